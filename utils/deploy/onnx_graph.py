"""Putting bytes and NMS around the graph of a finished ONNX file.

Both are made of operators that every opset from 11 has, so that it does not matter which exporter wrote the file.

A file with NMS gives (B, max_det, 6 + nm): x1 y1 x2 y2 in input pixels, score, class and mask coefficients, the best
scores first and zeros behind the last box; ultralytics' exports have the same form. It finds what detect.py finds: of
each candidate the best class, and of each class the boxes that no better one overlaps. Its thresholds are constants of
the graph under the names of `Nms`, which `with_threshold_inputs` makes inputs: in a file ONNX Runtime would warn of
inputs that may be left out, and TensorRT would want them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import onnx
from onnx import GraphProto, ModelProto, TensorProto, TensorShapeProto, ValueInfoProto, compose, helper, parser

from utils.deploy.ends import CLASS_STEP, Nms

Dimension: TypeAlias = TensorShapeProto.Dimension


def add_preprocess(model: ModelProto, order: str) -> ModelProto:
    """Return a model that takes bytes (B, H, W, 3) in place of its first input, numbers (B, 3, H, W) in [0, 1]."""
    name, inner = model.graph.input[0].name, "pixels"
    _rename(model.graph, name, inner)
    kind = model.graph.input[0].type.tensor_type
    batch, channels, height, width = kind.shape.dim
    flip, planes = "", "planes"
    if order == "bgr":
        flip, planes = "rgb = Gather<axis = 1>(planes, reverse)", "rgb"
    before = parser.parse_graph(f"""
        preprocess (uint8[B, H, W, C] {name}) => (float[B, C, H, W] {inner})
        <int64[3] reverse = {{2, 1, 0}}, float most = {{255}}>
        {{
            planes = Transpose<perm = [0, 3, 1, 2]>({name})
            {flip}
            numbers = Cast<to = {TensorProto.FLOAT}>({planes})
            normal = Div(numbers, most)
            {inner} = Cast<to = {kind.elem_type}>(normal)
        }}""")
    before = _prefixed(before, "bytes_")
    before.output[0].type.tensor_type.elem_type = kind.elem_type
    set_shape(before.input[0], [batch, height, width, channels])
    return _joined(model, before, model.graph, (inner, inner))


def add_nms(model: ModelProto, nms: Nms, nc: int, nm: int = 0) -> ModelProto:
    """Return a model that gives what NMS leaves of its first output, and the other outputs as they are.

    Args:
        model: its first output is (B, 4 + nc + nm, N): boxes xywh, class scores, mask coefficients.
        nms: the thresholds, and how many boxes are given.
        nc: number of classes.
        nm: number of mask coefficients.
    """
    name, inner = model.graph.output[0].name, "candidates"
    _rename(model.graph, name, inner)
    batch = model.graph.output[0].type.tensor_type.shape.dim[0]
    masks = ", masks" if nm else ""
    after = parser.parse_graph(f"""
        nms (float[B, R, N] raw, float[1] conf_thres, float[1] iou_thres, bool[1] agnostic_nms)
            => (float[B, M, R] {name})
        <
            int64[1] at_0 = {{0}}, int64[1] at_2 = {{2}}, int64[1] at_4 = {{4}}, int64[1] at_masks = {{{4 + nc}}},
            int64[1] at_end = {{{4 + nc + nm}}}, int64[1] rows = {{1}}, int64[1] max_det = {{{nms.max_det}}},
            int64[6] tail = {{0, 0, 0, 0, 0, {nms.max_det}}}, int64[3] all_rows = {{1, {6 + nm}, 1}},
            float two = {{2}}, float step = {{{CLASS_STEP}}}, float zero = {{0}}
        >
        {{
            numbers = Cast<to = {TensorProto.FLOAT}>(raw)
            xy = Slice(numbers, at_0, at_2, rows)
            wh = Slice(numbers, at_2, at_4, rows)
            scores = Slice(numbers, at_4, at_masks, rows)
            masks = Slice(numbers, at_masks, at_end, rows)
            half = Div(wh, two)
            low = Sub(xy, half)
            high = Add(xy, half)
            corners = Concat<axis = 1>(low, high)
            best = ArgMax<axis = 1, keepdims = 1>(scores)
            score = GatherElements<axis = 1>(scores, best)
            label = Cast<to = {TensorProto.FLOAT}>(best)
            shift = Mul(label, step)
            own_shift = Where(agnostic_nms, zero, shift)
            apart = Add(corners, own_shift)
            boxes = Transpose<perm = [0, 2, 1]>(apart)
            picked = NonMaxSuppression(boxes, score, max_det, iou_thres, conf_thres)
            picked_score = GatherND(score, picked)
            nothing = Mul(score, zero)
            kept = ScatterND(nothing, picked, picked_score)
            kept_and_tail = Pad(kept, tail)
            top, place = TopK<axis = 2>(kept_and_tail, max_det)
            found = Concat<axis = 1>(corners, score, label{masks})
            found_and_tail = Pad(found, tail)
            places = Expand(place, all_rows)
            ranked = GatherElements<axis = 2>(found_and_tail, places)
            seen = Greater(top, zero)
            clean = Where(seen, ranked, zero)
            {name} = Transpose<perm = [0, 2, 1]>(clean)
        }}""")
    after = _prefixed(after, "nms_")
    thresholds = [port for port in after.input if port.name in nms.inputs]
    for port in thresholds:
        after.initializer.append(
            helper.make_tensor(port.name, port.type.tensor_type.elem_type, [1], [nms.inputs[port.name]])
        )
        after.input.remove(port)
    set_shape(after.output[0], [batch, nms.max_det, 6 + nm])
    outputs = [output.name for output in model.graph.output][1:]
    joined = _joined(model, model.graph, after, (inner, "raw"))
    by_name = {output.name: output for output in joined.graph.output}
    del joined.graph.output[:]
    joined.graph.output.extend(by_name[output] for output in (name, *outputs))
    return joined


def with_threshold_inputs(path: Path) -> bytes:
    """Return an ONNX file with NMS whose thresholds are inputs, which take their values where a caller gives none."""
    model = onnx.load(path, load_external_data=False)
    inputs = {port.name for port in model.graph.input}
    for constant in model.graph.initializer:
        if constant.name in Nms().inputs.keys() - inputs:
            model.graph.input.append(helper.make_tensor_value_info(constant.name, constant.data_type, constant.dims))
    return model.SerializeToString()


# Parts ----------------------------------------------------------------------------------------------------------------
def _rename(graph: GraphProto, old: str, new: str) -> None:
    """Give a tensor of a graph another name."""
    for port in (*graph.input, *graph.output, *graph.value_info):
        if port.name == old:
            port.name = new
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]


def _prefixed(graph: GraphProto, prefix: str) -> GraphProto:
    """Return a graph whose names, but for inputs and outputs, begin with `prefix`."""
    return compose.add_prefix_graph(graph, prefix, rename_inputs=False, rename_outputs=False)


def set_shape(port: ValueInfoProto, sides: Sequence[Dimension | int | str]) -> None:
    """Set the shape of an input or output from numbers, names of free sides, and the sides of others."""
    shape = port.type.tensor_type.shape
    del shape.dim[:]
    for side in sides:
        if isinstance(side, int):
            shape.dim.add(dim_value=side)
        elif isinstance(side, str):
            shape.dim.add(dim_param=side)
        else:
            shape.dim.append(side)


def _joined(model: ModelProto, first: GraphProto, second: GraphProto, link: tuple[str, str]) -> ModelProto:
    """Return `model` with the graph of `first`, then `second`; `link` is an output of it and an input of that."""
    joined = ModelProto()
    joined.CopyFrom(model)
    joined.graph.CopyFrom(compose.merge_graphs(first, second, [link], name=model.graph.name, doc_string=""))
    del joined.graph.value_info[:]  # sides under the names of the texts above
    return joined
