"""The architectures that YOLOv5 ships, as data: 28 model YAMLs that a parser of its language must build alike.

Rows are [from, number, module, args] as YOLOv5 writes them; `published` has its figures at 80 classes. The last rows
are YOLOv5's own heads, with three anchors a level.
"""

from __future__ import annotations

SIZES = {"n": (0.33, 0.25), "s": (0.33, 0.5), "m": (0.67, 0.75), "l": (1.0, 1.0), "x": (1.33, 1.25)}
ANCHORS = {  # by the number of levels; the files with other heads say how many a level has
    3: [[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119], [116, 90, 156, 198, 373, 326]],
    4: [
        [19, 27, 44, 40, 38, 94],
        [96, 68, 86, 152, 180, 137],
        [140, 301, 303, 264, 238, 542],
        [436, 615, 739, 380, 925, 792],
    ],
}
UP = [-1, 1, "nn.Upsample", [None, 2, "nearest"]]


def conv(c2, k=1, s=1, *more, word="Conv", source=-1):
    return [source, 1, word, [c2, k, s, *more]]


def join(*slots):
    return [[-1, *slots], 1, "Concat", [1]]


def c3(c2, number=3, *args, word="C3"):
    return [-1, number, word, [c2, *args]]


def detect(*slots):
    return [list(slots), 1, "Detect", ["nc", "anchors"]]


# Backbones ------------------------------------------------------------------------------------------------------------
def backbone(*widths, numbers=(3, 6, 9, 3, 3, 3), down="Conv", block="C3", last="C3"):
    """Return a stem, then a convolution of stride 2 and a block for each of `widths`, then SPPF."""
    rows = [conv(64, 6, 2, 2)]
    for i, width in enumerate(widths):
        word = last if i == len(widths) - 1 else block
        rows += [conv(width, 3, 2, word=down), c3(width, numbers[i], word=word)]
    return [*rows, [-1, 1, "SPPF", [widths[-1], 5]]]


P5 = backbone(128, 256, 512, 1024)
P6 = backbone(128, 256, 512, 768, 1024)
P7 = backbone(128, 256, 512, 768, 1024, 1280)


# Necks ----------------------------------------------------------------------------------------------------------------
def pan(*widths, first=10, skips=(4, 6, 8, 10), finest=3, down="Conv", block="C3", plus=()):
    """Return a path aggregation neck and its Detect.

    Args:
        widths: of its levels, from fine to coarse.
        first: the slot of its first row.
        skips: slots of the backbone's maps, from fine to coarse; the last level is what flows in.
        finest: how many blocks the finest level has.
        down: the word of its convolutions.
        block: the word of its blocks.
        plus: a further slot that the first join on the way down reads.
    """
    rows, narrowed, out = [], [], []
    for width, skip in list(zip(widths, skips, strict=False))[len(widths) - 2 :: -1]:
        narrowed.append(first + len(rows))
        number = finest if width == widths[0] else 3
        rows += [conv(width, word=down), UP, join(skip), c3(width, number, False, word=block)]
    out.append(first + len(rows) - 1)
    for width, wider, slot in zip(widths, widths[1:], narrowed[::-1], strict=False):
        extra = plus if len(out) == 1 else ()
        rows += [conv(width, 3, 2, word=down), join(slot, *extra), c3(wider, 3, False, word=block)]
        out.append(first + len(rows) - 1)
    return [*rows, detect(*out)]


FPN = [c3(1024, 3, False), UP, join(6), conv(512), c3(512, 3, False)]
FPN += [UP, join(4), conv(256), c3(256, 3, False), detect(18, 14, 10)]
V3_BACKBONE = [conv(32, 3, 1)]
for _width, _number in zip((64, 128, 256, 512, 1024), (1, 2, 8, 8, 4), strict=True):
    V3_BACKBONE += [conv(_width, 3, 2), c3(_width, _number, word="Bottleneck")]


def yolov3(fourth):
    """Return YOLOv3's head, whose second row is a 1x1 convolution or spatial pyramid pooling."""
    rows = [c3(1024, 1, False, word="Bottleneck"), fourth, conv(1024, 3, 1), conv(512), conv(1024, 3, 1)]
    rows += [conv(256, source=-2), UP, join(8), c3(512, 1, False, word="Bottleneck")]
    rows += [c3(512, 1, False, word="Bottleneck"), conv(256), conv(512, 3, 1), conv(128, source=-2), UP, join(6)]
    return [*rows, c3(256, 1, False, word="Bottleneck"), c3(256, 2, False, word="Bottleneck"), detect(27, 22, 15)]


TINY_BACKBONE = [conv(16, 3, 1)]
for _width in (32, 64, 128, 256, 512):
    TINY_BACKBONE += [[-1, 1, "nn.MaxPool2d", [2, 2, 0]], conv(_width, 3, 1)]
TINY_BACKBONE += [[-1, 1, "nn.ZeroPad2d", [[0, 1, 0, 1]]], [-1, 1, "nn.MaxPool2d", [2, 1, 0]]]
TINY_HEAD = [conv(1024, 3, 1), conv(256), conv(512, 3, 1), conv(128, source=-2), UP, join(8), conv(256, 3, 1)]
TINY_HEAD += [detect(19, 15)]


def model(size, backbone, head, **keys):
    depth, width = SIZES[size]
    anchors = ANCHORS.get(len(head[-1][0]), 3)
    scales = {"depth_multiple": depth, "width_multiple": width}
    return {"nc": 80, **scales, "anchors": anchors, "backbone": backbone, "head": head, **keys}


# The files ------------------------------------------------------------------------------------------------------------
PAN5 = pan(256, 512, 1024)
PAN6 = pan(256, 512, 768, 1024, first=12)
SEGMENT = [*PAN5[:-1], [[17, 20, 23], 1, "Segment", ["nc", "anchors", 32, 256]]]
STOCK = {
    **{f"yolov5{size}": model(size, P5, PAN5) for size in SIZES},
    **{f"yolov5{size}6": model(size, P6, PAN6) for size in SIZES},
    **{f"yolov5{size}-seg": model(size, P5, SEGMENT) for size in SIZES},
    "yolov5-p2": model("l", P5, pan(128, 256, 512, 1024, skips=(2, 4, 6), finest=1)),
    "yolov5-p34": model("s", P5, [*PAN5[:11], detect(17, 20)]),
    "yolov5-p6": model("l", P6, PAN6),
    "yolov5-p7": model("l", P7, pan(256, 512, 768, 1024, 1280, first=14)),
    "yolov5-bifpn": model("l", P5, pan(256, 512, 1024, plus=(6,))),
    "yolov5-fpn": model("l", P5, FPN),
    "yolov5-panet": model("l", P5, PAN5),
    "yolov5s-LeakyReLU": model("s", P5, PAN5, activation="nn.LeakyReLU(0.1)"),
    "yolov5s-ghost": model(
        "s",
        backbone(128, 256, 512, 1024, down="GhostConv", block="C3Ghost", last="C3Ghost"),
        pan(256, 512, 1024, down="GhostConv", block="C3Ghost"),
    ),
    "yolov5s-transformer": model("s", backbone(128, 256, 512, 1024, last="C3TR"), PAN5),
    "yolov3": model("l", V3_BACKBONE, yolov3(conv(512))),
    "yolov3-spp": model("l", V3_BACKBONE, yolov3([-1, 1, "SPP", [512, [5, 9, 13]]])),
    "yolov3-tiny": model("l", TINY_BACKBONE, TINY_HEAD),
}
