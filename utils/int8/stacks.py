"""Stacks of matrices in ONNX files as grouped 1x1 convolutions, of which runtimes have INT8 kernels.

A fully connected layer over the pixels of a tile (`models/blocks/repmlp.py`) is a product with a stack of matrices, one
for each group of channels, which is fastest in float. For such stacks ONNX Runtime has no INT8 kernel with a scale for
each output, for grouped convolutions it has.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper


def module_path(node: str) -> str:
    """Return the path of the module in which a node was traced, from its name: `/model.0/conv/Conv` to `model.0.conv`.

    A module in a list or a sequence is traced as `list.0`, below the sequence once more: `/list.0/list.0.1/conv/Conv`.
    """
    parts: list[str] = []
    for part in node.split("/")[1:-1]:
        if parts and part.startswith(f"{parts[-1]}."):
            parts.pop()
        parts.append(part)
    return ".".join(parts)


def with_grouped_convolutions(model: ModelProto) -> ModelProto:
    """Return the model, which is changed, with a grouped convolution for each product with a stack of matrices.

    The bias that is added to such a product is the convolution's. Weight and bias are named by the path of the module.
    """
    graph = model.graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes: list[NodeProto] = []
    written: set[str] = set()  # by the convolutions
    for node in graph.node:
        weight = tensors.get(node.input[1]) if node.op_type == "MatMul" else None
        if weight is not None and weight.ndim == 3:
            last, bias = _last_and_bias(graph, node, tensors, (weight.shape[0], 1, weight.shape[2]))
            nodes += _convolution(graph, node, weight, bias, last.output[0])
            written.add(last.output[0])
        elif node.output[0] not in written:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    read = {name for node in graph.node for name in node.input}
    used = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(used)
    return model


def _last_and_bias(
    graph: Any, product: NodeProto, tensors: dict[str, np.ndarray], shape: tuple[int, ...]
) -> tuple[NodeProto, np.ndarray | None]:
    """Return the node that alone reads a product and adds a constant of `shape` to it, and that constant.

    Where there is none, the product itself and None.
    """
    readers = [node for node in graph.node if product.output[0] in node.input]
    if len(readers) == 1 and readers[0].op_type == "Add":
        constant = next((tensors[name] for name in readers[0].input if name in tensors), None)
        if constant is not None and constant.shape == shape:
            return readers[0], constant
    return product, None


def _convolution(
    graph: Any, product: NodeProto, weight: np.ndarray, bias: np.ndarray | None, output: str
) -> list[NodeProto]:
    """Return the nodes that compute a product (groups, rows, inputs) x (groups, inputs, outputs) by a convolution.

    The rows are its pixels: (1, groups * inputs, rows, 1) to (1, groups * outputs, rows, 1).
    """
    groups, inputs, outputs = weight.shape
    name, path = product.name, module_path(product.name)
    if any(tensor.name == f"{path}.weight" for tensor in graph.initializer):
        path = name  # a module that has another product
    constants = {
        f"{path}.weight": weight.transpose(0, 2, 1).reshape(groups * outputs, inputs, 1, 1),
        f"{name}/flat": np.array([1, groups * inputs, -1, 1]),
        f"{name}/stack": np.array([groups, outputs, -1]),
    }
    if bias is not None:
        constants[f"{path}.bias"] = bias.reshape(-1)
    graph.initializer.extend(numpy_helper.from_array(np.ascontiguousarray(v), key) for key, v in constants.items())
    parameters = [f"{path}.weight", *([f"{path}.bias"] if bias is not None else [])]

    def node(kind: str, last: str, inputs: list[str], output: str, **attributes: Any) -> NodeProto:
        return helper.make_node(kind, inputs, [output], f"{name}/{last}", **attributes)

    turned, flat, convolved, stack = (f"{name}/{last}/output" for last in ("turned", "flat", "Conv", "stack"))
    return [
        node("Transpose", "turned", [product.input[0]], turned, perm=[0, 2, 1]),
        node("Reshape", "flattened", [turned, f"{name}/flat"], flat),
        node("Conv", "Conv", [flat, *parameters], convolved, group=groups, kernel_shape=[1, 1]),
        node("Reshape", "stacked", [convolved, f"{name}/stack"], stack),
        node("Transpose", "turned back", [stack], output, perm=[0, 2, 1]),
    ]
