"""Tiny networks to quantize, pictures to calibrate them on, and files of them."""

import onnx
import torch

from models import create_model
from tests.helpers import randomize_, tiny
from utils.data.samples import PHOTOS, make_pictures
from utils.deploy.fresh import calibrate_batch_norms
from utils.int8.calibration import batches

SHAPE = (1, 3, 64, 64)
OUTLIER = "model.1.conv"  # the layer of the tiny networks that is given large weights


def photographs():
    """Return batches of real photographs."""
    return batches(PHOTOS, SHAPE, "test")


def network(activation):
    """Return a tiny network; in each channel of one layer, one weight is much larger than the others, and unused."""
    model = randomize_(create_model(tiny(activation=activation)))
    model.names, model.imgsz = {0: "cat", 1: "dog"}, 64
    with torch.no_grad():
        model.get_submodule(OUTLIER).weight[:, 0, 0, 0] = 20.0
        model.get_submodule("model.0.bn").weight[0] = 0  # it reads zeros
        model.get_submodule("model.0.bn").bias[0] = 0
    calibrate_batch_norms(model, torch.stack(list(make_pictures((64, 64)).values())))
    return model


def saved(quantized, path):
    """Write an ONNX model and return its path."""
    onnx.save(quantized, str(path))
    return path
