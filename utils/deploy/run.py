"""Running an exported file on the CPU in float32: one loader for each format, all giving a function on a batch.

Some runtimes compute in bfloat16 or float16 where the processor can, unless an option forbids it: OpenVINO with AMX,
NCNN and MNN on ARM. It is forbidden here, since the proof is about the file; `detect.py --half` lets OpenVINO choose.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import yaml
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors
from torch import Tensor
from ultralytics.nn.autobackend import AutoBackend
from ultralytics.nn.backends.base import BaseBackend

from models.yaml_numbers import load_yaml
from utils.deploy.ends import as_bytes
from utils.deploy.formats import format_of
from utils.deploy.ncnn import load_ncnn
from utils.deploy.onnx_graph import with_threshold_inputs
from utils.deploy.openvino import openvino_core

Outputs = tuple[Tensor, ...]  # float32, as models/heads.py says: boxes with scores; of a segmenter the prototypes too
Runner = Callable[..., Outputs]  # takes (B, ch, H, W) float32 in [0, 1]; an ONNX file's optional inputs by their names

INPUT_DTYPES = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16, "tensor(uint8)": torch.uint8}
MAX_METADATA_YAML = 1_000_000  # bytes of metadata
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
    """Return a function that runs an exported file, or folder, on the CPU.

    Args:
        path: its ending says the format, one of those that run here.
        threads: how many the runtime computes on, torch's number by default. TorchScript and ExecuTorch keep theirs.

    Raises:
        RUN_ERRORS: the file is damaged, or needs what its runtime does not have.
        ValueError: the ending is that of no format, or of one that does not run here.
    """
    kind = format_of(path)
    if kind is None or kind.elsewhere:
        raise ValueError(f"{path} is of no format that runs here")
    run = LOADERS.get(kind.name, _load_other)(path, threads or torch.get_num_threads())
    order = read_metadata(path).get("preprocess")
    return (lambda images, **inputs: run(as_bytes(images, order), **inputs)) if order else run


def _load_torchscript(path: Path, _: int) -> Runner:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch would like everyone to leave TorchScript
        module = torch.jit.load(path, map_location="cpu").eval()
    dtype = next(module.parameters()).dtype
    return lambda images: _as_outputs(module(images if images.dtype == torch.uint8 else images.to(dtype)))


def _load_onnx(path: Path, threads: int) -> Runner:
    session = open_session(str(path), threads)
    if "nms" in session.get_modelmeta().custom_metadata_map:
        session = open_session(with_threshold_inputs(path), threads)
    name, kind = session.get_inputs()[0].name, session.get_inputs()[0].type
    dtype = INPUT_DTYPES[kind]

    def run(images: Tensor, **inputs: np.ndarray) -> Outputs:
        return _as_outputs(session.run(None, {name: images.to(dtype).numpy(), **inputs}))

    return run


def open_session(model: str | bytes, threads: int = 0) -> onnxruntime.InferenceSession:
    """Return a session of ONNX Runtime on the CPU; `model` is the path or the content of a file."""
    return onnxruntime.InferenceSession(model, session_options(threads), providers=["CPUExecutionProvider"])


def session_options(threads: int = 0, spinning: bool = True) -> onnxruntime.SessionOptions:
    """Return the options of a session of ONNX Runtime that reports errors only.

    Args:
        threads: how many it computes on; 0: all cores.
        spinning: its threads keep their cores busy while they wait for each other.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors; it warns of thresholds that have become inputs
    if not spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _load_openvino(path: Path, threads: int) -> Runner:
    import openvino  # noqa: PLC0415 (slow, and few need it)

    graph = file_in(path, "*.xml")
    settings = {"INFERENCE_PRECISION_HINT": openvino.Type.f32, "INFERENCE_NUM_THREADS": threads}
    settings["PERFORMANCE_HINT"] = "LATENCY"
    network = openvino_core().compile_model(graph, "CPU", settings)
    return lambda images: _as_outputs(network(images.numpy()).values())


def _load_ncnn(path: Path, threads: int) -> Runner:
    import ncnn  # noqa: PLC0415 (optional)

    net = load_ncnn(file_in(path, "*.param"), threads)
    into, out_of = net.input_names()[0], sorted(net.output_names())

    def run(images: Tensor) -> Outputs:
        pictures = []
        for picture in images.numpy():
            with net.create_extractor() as extractor:
                extractor.input(into, ncnn.Mat(picture))
                found = [extractor.extract(name) for name in out_of]
            if any(code for code, _ in found):
                raise RuntimeError("NCNN gives no output")
            pictures.append([np.array(mat) for _, mat in found])
        return _as_outputs(np.stack(output) for output in zip(*pictures, strict=True))

    return run


def _load_mnn(path: Path, threads: int) -> Runner:
    import MNN  # noqa: PLC0415 (optional)

    net = _open_mnn(path, threads)

    def run(images: Tensor) -> Outputs:
        found = net.onForward([MNN.expr.const(images.contiguous().data_ptr(), list(images.shape))])
        if not found:
            raise RuntimeError("MNN gives no output")
        return _as_outputs(variable.read().copy() for variable in found)

    return run


def _open_mnn(path: Path, threads: int = 1) -> Any:
    import MNN  # noqa: PLC0415 (optional)

    runtime = MNN.nn.create_runtime_manager(({"precision": "high", "backend": "CPU", "numThread": threads},))
    try:
        return MNN.nn.load_module_from_file(str(path), [], [], runtime_manager=runtime, rearrange=True)
    except SystemError as error:
        raise RuntimeError("MNN knows no such file") from error


def _load_other(path: Path, _: int) -> Runner:
    """Return a function that runs a file with ultralytics' backend for it."""
    try:
        backend = AutoBackend(str(path), device=torch.device("cpu"), verbose=False)
    except (Exception, SystemExit) as error:
        raise RuntimeError(str(error) or type(error).__name__) from error

    def run(images: Tensor) -> Outputs:
        try:
            return _as_outputs(backend.backend.forward(images))
        except (Exception, SystemExit) as error:
            raise RuntimeError(str(error) or type(error).__name__) from error

    return run


LOADERS = {
    "torchscript": _load_torchscript,
    "onnx": _load_onnx,
    "openvino": _load_openvino,
    "ncnn": _load_ncnn,
    "mnn": _load_mnn,
}


def file_in(folder: Path, pattern: str) -> Path:
    """Return the first file of a folder that a pattern fits; RuntimeError where there is none."""
    found = sorted(folder.glob(pattern))
    if not found:
        raise RuntimeError(f"there is no {pattern} in {folder}")
    return found[0]


def _as_outputs(output: Any | Iterable[Any]) -> Outputs:
    """Return what a network gave, tensors or arrays, one or several, in float32."""
    several = [output] if isinstance(output, (Tensor, np.ndarray)) else output
    return tuple(torch.as_tensor(tensor).float() for tensor in several)


# Metadata -------------------------------------------------------------------------------------------------------------
def read_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata of an export, empty where it holds none; it may be anything, as exports come from strangers.

    Raises:
        RUN_ERRORS: the file is damaged.
        ValueError: the metadata is no dictionary.
    """
    kind, beside = format_of(path), path / "metadata.yaml"
    if beside.exists():
        found = _load_yaml(beside)
    elif kind and kind.name == "mnn":  # which only its runtime reads
        found = json.loads(_open_mnn(path).get_info().get("bizCode") or "{}")
    else:
        found = BaseBackend.read_metadata(path)
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise ValueError("not a dictionary of names")
    return found


def _load_yaml(path: Path) -> Any:
    if path.stat().st_size > MAX_METADATA_YAML:
        raise ValueError(f"more than {MAX_METADATA_YAML} bytes")
    try:
        return load_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError("no YAML") from error
