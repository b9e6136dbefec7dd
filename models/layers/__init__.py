"""The words of the YAML language: one small function per word, in which all channel arithmetic lives.

A layer function takes the place where its row stands (`Site`) and the row's arguments as its own parameters; it returns
the module and what flows out. Its signature is the word's: arguments are checked against it, and messages quote it.
Channels and strides are known before anything is run. An argument `c2` is scaled by width_multiple, others are not.

The words are in `convolutions`, `shapes` (what has no convolution), `blocks`, `weighing`, `stages`, `yolov7`,
`several` (rows of several maps) and `heads`; importing this package registers all of them. `rows` builds a row by its
word, or a list backbone, which `models.backbones` holds.
"""

from models.layers import blocks, convolutions, heads, several, shapes, stages, weighing, yolov7
from models.layers.rows import READS_LIST, build_backbone, build_layer, check_word, is_backbone
from models.layers.site import LAYERS, Feature, Layer, Site

__all__ = [
    "LAYERS",
    "READS_LIST",
    "Feature",
    "Layer",
    "Site",
    "blocks",
    "build_backbone",
    "build_layer",
    "check_word",
    "convolutions",
    "heads",
    "is_backbone",
    "several",
    "shapes",
    "stages",
    "weighing",
    "yolov7",
]
