"""Running an exported file on the CPU: one loader for each format, all of them giving a function on a batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import utils.environment  # noqa: F401

# isort: split
import onnxruntime
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors
from torch import Tensor

Outputs = tuple[Tensor, ...]  # float32, as models/heads.py says: boxes with scores; of a segmenter the prototypes too
Runner = Callable[[Tensor], Outputs]  # takes (B, ch, H, W) float32 in [0, 1]

RUN_ERRORS = (  # what the runtimes raise for a file that they cannot load, or not run at some size
    RuntimeError,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)


def load_runner(path: Path, threads: int | None = None) -> Runner:
    """Return a function that runs an exported file on the CPU.

    Args:
        path: .torchscript or .onnx.
        threads: how many ONNX Runtime computes on, torch's number by default. TorchScript computes on torch's.

    Raises:
        RUN_ERRORS: the file is damaged, or needs what its runtime does not have.
    """
    return _load_torchscript(path) if path.suffix == ".torchscript" else _load_onnx(path, threads)


def _load_torchscript(path: Path) -> Runner:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch would like everyone to leave TorchScript
        module = torch.jit.load(path, map_location="cpu").eval()
    dtype = next(module.parameters()).dtype
    return lambda images: _as_outputs(module(images.to(dtype)))


def _load_onnx(path: Path, threads: int | None) -> Runner:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name, kind = session.get_inputs()[0].name, session.get_inputs()[0].type
    dtype = torch.float16 if kind == "tensor(float16)" else torch.float32
    return lambda images: _as_outputs(map(torch.from_numpy, session.run(None, {name: images.to(dtype).numpy()})))


def _as_outputs(output: Tensor | Iterable[Tensor]) -> Outputs:
    """Return what a network gave, one tensor or several, in float32."""
    return tuple(tensor.float() for tensor in ([output] if isinstance(output, Tensor) else output))
