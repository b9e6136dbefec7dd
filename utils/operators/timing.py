"""How long operators take in a runtime, node by node; this needs numpy and the runtime alone.

ONNX Runtime and OpenVINO have a clock for their nodes. NCNN has none, but computes no more than what it is asked for:
its layers are asked for one by one, and what each answer takes is the time of the layer.
"""

from __future__ import annotations

import io
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from models.errors import cause
from utils.deploy.ncnn import NcnnLayer, ncnn_net, read_ncnn, sides_of_input
from utils.deploy.openvino import openvino_core
from utils.operators.archive import Archive, Setting
from utils.operators.description import BEFORE, BEHIND
from utils.operators.table import Overheads

PAUSE = 0.002  # seconds between two runs, in which the waiting threads of the one before fall asleep
BURST = 3  # runs after each pause, of which the first one finds the processor half asleep
EVICTED = 4 << 20  # bytes that are read between two runs, so that weights do not lie in the innermost caches
Events = list[tuple[str, float]]  # the nodes in their order, and milliseconds
REFUSALS = (RuntimeError, ValueError, TypeError, KeyError)  # of runtimes; those of ONNX Runtime have types of their own
NUMPY_TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(int32)": np.int32}


class Opened(Protocol):
    """A model in a runtime, which tells how long each node takes if it was opened so.

    Attributes:
        outputs: how many numbers it gives.
    """

    outputs: int

    def run(self) -> None:
        """Compute it once."""

    def events(self) -> list[Events]:
        """Return what each run consisted of; the model is closed."""


Time = tuple[float, int]  # milliseconds, and the nodes that they were spent in
Opener = Callable[[bytes, int, bool], Opened]  # content of a file, threads, whether nodes are timed


class OnnxRuntime:
    """A small model in ONNX Runtime."""

    def __init__(self, content: bytes, threads: int, profiled: bool = True) -> None:
        import onnxruntime  # noqa: PLC0415 (a machine may have the other runtime alone)

        self.folder = tempfile.TemporaryDirectory(prefix="repyolo-")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors
        options.enable_profiling = profiled
        options.profile_file_prefix = str(Path(self.folder.name) / "profile")
        self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self.inputs = {p.name: _numbers(p.shape, NUMPY_TYPES[p.type]) for p in self.session.get_inputs()}
        self.outputs = sum(math.prod(port.shape) for port in self.session.get_outputs())

    def run(self) -> None:
        self.session.run(None, self.inputs)

    def events(self) -> list[Events]:
        content = json.loads(Path(self.session.end_profiling()).read_text(encoding="utf-8"))
        self.folder.cleanup()
        runs: list[Events] = [[]]
        for event in sorted(content, key=lambda event: event["ts"] + event["dur"]):  # a run ends behind its nodes
            if event["name"].endswith("_kernel_time"):
                runs[-1].append((event["name"], event["dur"] / 1e3))
            elif event["name"] == "model_run":
                runs.append([])
        return [run for run in runs if run]


class OpenVino:
    """A small model in OpenVINO."""

    def __init__(self, content: bytes, threads: int, profiled: bool = True) -> None:
        import openvino  # noqa: PLC0415 (a machine may have the other runtime alone)

        settings = {"INFERENCE_PRECISION_HINT": openvino.Type.f32, "INFERENCE_NUM_THREADS": threads}
        core = openvino_core()
        settings |= {"PERFORMANCE_HINT": "LATENCY", "PERF_COUNT": profiled}
        network = core.compile_model(core.read_model(io.BytesIO(content)), "CPU", settings)
        self.network = network
        self.request = network.create_infer_request()
        self.profiled = profiled
        self.inputs = [_numbers(list(port.shape), port.element_type.to_dtype()) for port in network.inputs]
        self.outputs = sum(math.prod(port.shape) for port in network.outputs)
        self.runs: list[Events] = []

    def run(self) -> None:
        if not self.profiled:
            self.network(self.inputs)
            return
        self.request.infer(self.inputs)
        nodes = self.request.profiling_info
        self.runs.append([(node.node_name, node.real_time.total_seconds() * 1e3) for node in nodes])

    def events(self) -> list[Events]:
        return self.runs


class Ncnn:
    """A small model in NCNN, whose weights are zeros."""

    AS_IT_IS = 1  # how a tensor is asked for in the layout that the next layer reads

    def __init__(self, content: bytes, threads: int, profiled: bool = True) -> None:
        import ncnn  # noqa: PLC0415 (a machine may have another runtime alone)

        layers = read_ncnn(content.decode())
        self.net = ncnn_net(threads)
        if self.net.load_param_mem(content.decode()) or self.net.load_model(ncnn.DataReaderFromEmpty()):
            raise RuntimeError("NCNN knows no such layer")
        self.layers = [layer for layer in layers if layer.kind != "Input"]
        inputs = {layer.name: sides_of_input(layer) for layer in layers if layer.kind == "Input"}
        arrays = {name: _numbers(sides, np.float32) for name, sides in inputs.items()}
        self.inputs = {name: ncnn.Mat(array).clone() for name, array in arrays.items()}
        self.profiled = profiled
        self.runs: list[Events] = []
        self.ends = self.net.output_names()
        with self._extractor() as extractor:
            self.outputs = sum(np.array(self._extract(extractor, name)).size for name in self.ends)

    def run(self) -> None:
        with self._extractor() as extractor:
            if self.profiled:
                self.runs.append([self._timed(extractor, layer) for layer in self.layers])
                return
            for name in self.ends:
                np.array(self._extract(extractor, name))

    def events(self) -> list[Events]:
        return self.runs

    def _extractor(self) -> Any:
        """Return what computes one run, with its inputs."""
        extractor = self.net.create_extractor()
        for name, mat in self.inputs.items():
            extractor.input(name, mat)
        return extractor

    def _timed(self, extractor: Any, layer: NcnnLayer) -> tuple[str, float]:
        start = time.perf_counter()
        self._extract(extractor, layer.outputs[0], self.AS_IT_IS)
        return layer.name, (time.perf_counter() - start) * 1e3

    @staticmethod
    def _extract(extractor: Any, name: str, layout: int = 0) -> Any:
        code, mat = extractor.extract(name, layout)
        if code:
            raise RuntimeError(f"NCNN does not compute {name}")
        return mat


OPENERS: dict[str, Opener] = {"onnx": OnnxRuntime, "openvino": OpenVino, "ncnn": Ncnn}


def time_group(contents: Sequence[bytes], setting: Setting, rounds: int, seconds: float) -> list[Time | str]:
    """Return the time of some operators, which run in turns so that noise hits all alike.

    Args:
        contents: of their small models.
        setting: how they are computed.
        rounds: how many times each is timed BURST times at most; the median counts, because medians of operators
            add up to that of a network, and what each takes at its fastest does not.
        seconds: after which there are no more rounds, of which there are at least 2.

    Returns:
        Text stands for a model that the runtime does not compute, and says why.
    """
    opened: list[Opened | str] = [_open(content, setting) for content in contents]
    cache = np.zeros(EVICTED, np.uint8)
    start = time.perf_counter()
    for turn in range(rounds):
        for model in opened:
            if isinstance(model, str):
                continue
            time.sleep(PAUSE)
            for _ in range(BURST):
                cache += 1
                model.run()
        if turn >= 2 and time.perf_counter() - start > seconds:
            break
    return [model if isinstance(model, str) else time_of_nodes(model.events()) for model in opened]


def time_overheads(archive: Archive, setting: Setting, rounds: int) -> Overheads:
    """Return what a run takes by the clock of this process, less what its nodes take by that of the runtime."""
    gaps, counts, outputs = [], [], []
    for name in ("one", "chain", "output"):
        content = archive.overhead(setting.models, name)
        plain, profiled = (OPENERS[setting.runtime](content, setting.threads, timed) for timed in (False, True))
        times = []
        for _ in range(rounds):
            profiled.run()
            time.sleep(PAUSE)
            start = time.perf_counter()
            plain.run()
            times.append((time.perf_counter() - start) * 1e3)
        nodes, count = time_of_nodes(profiled.events())
        gaps.append(statistics.median(times) - nodes)
        counts.append(count)
        outputs.append(plain.outputs / 1e6)
    node = (gaps[1] - gaps[0]) / (counts[1] - counts[0])
    output = max(0.0, (gaps[2] - gaps[0]) / (outputs[2] - outputs[0]))
    return Overheads(max(0.0, gaps[0] - counts[0] * node), node, output)


def runtime_version(runtime: str) -> str:
    """Return the version of a runtime that is installed, empty if it is not."""
    try:
        return metadata.version({"onnx": "onnxruntime"}.get(runtime, runtime))
    except metadata.PackageNotFoundError:
        return ""


def _open(content: bytes, setting: Setting) -> Opened | str:
    """Return a model that has run once; where the runtime does not compute it, the reason."""
    try:
        model = OPENERS[setting.runtime](content, setting.threads, True)
        model.run()
    except Exception as error:
        if isinstance(error, REFUSALS) or type(error).__module__.startswith("onnxruntime"):
            return cause(error)
        raise
    return model


def time_of_nodes(runs: Sequence[Events]) -> tuple[float, int]:
    """Return the milliseconds of the nodes between those around an operator, their medians, and how many nodes compute.

    OpenVINO also tells of nodes that became part of others, which take no time.
    """
    columns = list(zip(*([duration for _, duration in _between(run)] for run in runs), strict=True))
    return sum(map(statistics.median, columns)), sum(map(any, columns))


def _between(run: Events) -> Events:
    """Return the nodes of a run that are behind the last one before the operator, and before the first one behind.

    What converts the operator's own output for the node behind it has a name that begins with the operator's.
    """
    first = max((place + 1 for place, (name, _) in enumerate(run) if BEFORE in name), default=0)
    last = min(
        (place for place, (name, _) in enumerate(run) if place >= first and name.startswith(BEHIND)), default=len(run)
    )
    return run[first:last]


def _numbers(sides: Sequence[int], kind: Any) -> Any:
    """Return an input: fractions between -1 and 1, or zeros where whole numbers or truths are wanted."""
    if np.issubdtype(kind, np.floating):
        return np.random.default_rng(0).uniform(-1, 1, sides).astype(kind)
    return np.zeros(sides, kind)
