"""Layers of NCNN as operators: how graphs are read and written, what is said of a layer, and which row it is of."""

import json

import numpy as np
import pytest

from utils.deploy.ncnn import NcnnLayer, input_layer, read_ncnn, sides_of_input, write_ncnn
from utils.operators.ncnn_graph import NcnnGraph, write_ncnn_operator, write_ncnn_overheads

GRAPH = """7767517
6 7
Input in0 0 1 in0
Convolution conv_0 1 1 in0 1 0=16 1=3 11=3 3=2 4=1 5=1 6=432 9=1
Split split_0 1 2 1 2 3
Pooling pool_0 1 1 2 4 0=0 1=5 2=1 3=2
Swish silu_0 1 1 4 5
Concat cat_0 2 1 3 5 out0 0=0
"""
SHAPES = {
    "in0": (3, 8, 8),
    "1": (16, 4, 4),
    "2": (16, 4, 4),
    "3": (16, 4, 4),
    "4": (16, 4, 4),
    "5": (16, 4, 4),
    "out0": (32, 4, 4),
}


@pytest.fixture
def values():
    """Return what the tensors of GRAPH might be, copies being equal."""
    random = np.random.default_rng(0)
    found = {name: random.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    return {**found, "2": found["1"], "3": found["1"]}


def test_graphs_are_written_as_they_were_read():
    layers = read_ncnn(GRAPH)
    assert write_ncnn(layers) == GRAPH
    assert layers[1].inputs == ("in0",) and layers[1].outputs == ("1",)
    assert layers[5].inputs == ("3", "5")
    assert (layers[1].option(6), layers[1].option(7, 1)) == (432, 1)
    assert input_layer("x", [3, 4, 5]).options == ("2=3", "1=4", "0=5")


@pytest.mark.parametrize("sides", [[7], [6, 7], [5, 6, 7], [4, 5, 6, 7]])
def test_inputs_keep_the_order_of_their_sides(sides):
    assert sides_of_input(input_layer("x", sides)) == sides
    ncnn = pytest.importorskip("ncnn")
    net = ncnn.Net()
    assert not net.load_param_mem(write_ncnn([input_layer("x", sides)]))


@pytest.mark.parametrize("text", ["", "hello", "1234567\n1 1\nInput in0 0 1 in0\n", "7767517\n1 1\nInput in0\n"])
def test_what_is_no_graph_is_refused(text):
    with pytest.raises(ValueError, match="NCNN"):
        read_ncnn(text)


def test_layers_are_operators_of_the_first_row_that_needs_them(values):
    rows = [[values["1"]], [], [values["5"]], [values["out0"]]]
    parts = NcnnGraph(read_ncnn(GRAPH), values).parts(rows)
    assert [(placed.operator.text, placed.row) for placed in parts.operators] == [
        ("Convolution 3>16 3/2 4x4 Relu", 0),
        ("Pooling 5/1 16x4x4", 2),
        ("Swish 16x4x4", 2),
        ("Concat 32x4x4", 3),
    ]
    assert parts.outputs == 32 * 16
    convolution, pooling, swish, concat = (placed.operator for placed in parts.operators)
    assert convolution.family == "Convolution 3 /2 dense odd Relu outside>map"
    assert concat.family == "Concat map/map>map"
    assert (convolution.work, convolution.read, convolution.written, convolution.weights) == (432 * 16, 192, 256, 432)
    assert (pooling.work, swish.work, concat.read) == (256 * 25, 256, 512)


def test_rounding_does_not_hide_a_row(values):
    nearly = {name: value * (1 + 1e-5) for name, value in values.items()}
    rows = [[values["1"]], [values["4"]], [values["out0"]]]
    assert [placed.row for placed in NcnnGraph(read_ncnn(GRAPH), nearly).parts(rows).operators] == [0, 1, 2, 2]


def test_small_graphs_hold_one_layer_and_what_it_reads(values):
    convolution, *_, concat = (p.operator for p in NcnnGraph(read_ncnn(GRAPH), values).parts([[]]).operators)
    assert read_ncnn(write_ncnn_operator(convolution).decode()) == [
        input_layer("input0", [3, 8, 8]),
        NcnnLayer("Convolution", "operator", ("input0",), ("t0",), tuple(json.loads(convolution.graph)["options"])),
    ]
    layers = read_ncnn(write_ncnn_operator(concat).decode())
    assert [layer.name for layer in layers] == ["input0", "before/0", "input1", "before/1", "operator"]
    assert layers[-1].inputs == ("i0", "i1")
    lengths = {name: len(read_ncnn(text.decode())) for name, text in write_ncnn_overheads().items()}
    assert lengths == {"one": 2, "chain": 65, "output": 2}
