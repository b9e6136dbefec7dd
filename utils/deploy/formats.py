"""The formats that export.py writes, as data: one row each, read by everything that writes, runs or names files.

Everybody writes through ultralytics' exporter. A row says what its format is called, which options it knows, which
packages write and run it, and why it is not run here where nothing can run it.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from models.errors import UserError, did_you_mean

DEFAULT_FORMATS = ("torchscript", "onnx")  # what is written when nobody says what


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        name: what `--include` takes, and ultralytics' exporter.
        title: what people call it.
        ending: of a file's or folder's name, after the stem of the weights: ".onnx".
        aliases: other names that `--include` takes.
        content: pattern of the file that a folder must hold; empty where the format is one file.
        dynamic: whether batch, height and width can stay free.
        half: whether float16 can be written: "cpu" anywhere, "cuda" on a GPU only, "" nowhere.
        batches: whether it takes more than one picture at a time.
        onnx: whether it is made from an ONNX graph, so that `--opset` and `--simplify` count.
        group_norm: whether its runtime computes a GroupNorm faster than what a GroupNorm consists of.
        copies: how many times the size of the weights writing takes on the disk, at most.
        writers: packages that write it, beside those that write ONNX, as pip takes them.
        runners: packages that run it, as pip takes them.
        systems: what `sys.platform` must say for it to be written; empty: anything.
        gpu: whether writing needs an NVIDIA GPU.
        program: whether a file can do more than compute, such as write files: `utils/deploy/trust.py`.
        elsewhere: why the proof cannot run it; empty where it can.
    """

    name: str
    title: str
    ending: str
    aliases: tuple[str, ...] = ()
    content: str = ""
    dynamic: bool = False
    half: str = ""
    batches: bool = True
    onnx: bool = False
    group_norm: bool = False
    copies: int = 2
    writers: tuple[str, ...] = ()
    runners: tuple[str, ...] = ()
    systems: tuple[str, ...] = ()
    gpu: bool = False
    program: bool = False
    elsewhere: str = ""

    @property
    def packages(self) -> list[str]:
        """The names of the packages that write and run it, without versions."""
        return sorted({package.partition("==")[0] for package in (*self.writers, *self.runners)})

    @property
    def not_run(self) -> str:
        """Why a file of this format cannot be run on this machine; empty where it can."""
        return self.elsewhere or needs(self.runners)


FORMATS = {
    row.name: row
    for row in (
        Format("torchscript", "TorchScript", ".torchscript", dynamic=True, half="cuda", program=True),
        Format("onnx", "ONNX", ".onnx", dynamic=True, half="cpu", onnx=True, copies=3),
        Format(
            name="openvino",
            title="OpenVINO",
            ending="_openvino_model",
            content="*.xml",
            dynamic=True,
            half="cpu",
            group_norm=True,
            writers=("openvino",),
            runners=("openvino",),
        ),
        Format(
            name="ncnn",
            title="NCNN",
            ending="_ncnn_model",
            content="*.param",
            half="cpu",
            batches=False,
            copies=6,
            writers=("pnnx==20260526", "ncnn==1.0.20261020"),
            runners=("ncnn==1.0.20261020",),
        ),
        Format(
            name="mnn",
            title="MNN",
            ending=".mnn",
            dynamic=True,
            half="cpu",
            onnx=True,
            copies=6,
            writers=("MNN==3.6.1",),
            runners=("MNN==3.6.1",),
        ),
        Format(
            name="litert",
            title="LiteRT",
            ending=".tflite",
            aliases=("tflite",),
            copies=4,
            writers=("litert-torch==0.10.0", "ai-edge-litert==2.3.0"),
            runners=("ai-edge-litert==2.3.0",),
            systems=("linux", "darwin"),
        ),
        Format(
            name="executorch",
            title="ExecuTorch",
            ending="_executorch_model",
            content="*.pte",
            writers=("executorch==1.5.1",),
            runners=("executorch==1.5.1",),
        ),
        Format(
            name="paddle",
            title="PaddlePaddle",
            ending="_paddle_model",
            aliases=("paddlepaddle",),
            content="*.pdiparams",
            copies=4,
            writers=("paddlepaddle==3.2.2", "x2paddle==1.6.0", "six==1.17.0"),
            runners=("paddlepaddle==3.2.2",),
        ),
        Format(
            name="coreml",
            title="CoreML",
            ending=".mlpackage",
            aliases=("mlpackage", "mlprogram", "ios", "apple"),
            content="*.mlmodel",
            half="cpu",
            batches=False,
            writers=("coremltools==9.0",),
            systems=("linux", "darwin"),
            elsewhere="CoreML files run in Apple's own runtime, on macOS and iOS",
        ),
        Format(
            name="engine",
            title="TensorRT",
            ending=".engine",
            aliases=("tensorrt", "trt"),
            dynamic=True,
            half="cuda",
            onnx=True,
            copies=6,
            writers=("tensorrt",),
            gpu=True,
            elsewhere="TensorRT runs on the GPU that it was built on, and the proof on the CPU",
        ),
    )
}
ALIASES = {alias: row.name for row in FORMATS.values() for alias in (row.name, *row.aliases)}
UNWRITTEN = {  # other names that YOLOv5 and ultralytics know, and what to take instead
    **dict.fromkeys(
        ("imx", "rknn", "axelera", "deepx", "qnn", "hailo", "xilinx", "ascend"),
        "its chip does not compute in float32; take --include onnx and the tools of its maker",
    ),
    "edgetpu": "its chip does not compute in float32; take --include litert and the tools of its maker",
    **dict.fromkeys(("saved_model", "pb", "tfjs"), "LiteRT has come after TensorFlow's formats; take --include litert"),
    "coreai": "take --include coreml for Apple's devices",
    **dict.fromkeys(("pt", "pytorch"), "the weights are that already"),
}


def check_formats(names: Sequence[str]) -> tuple[str, ...]:
    """Return the formats that `--include` names, each once, several of them joined by commas if need be.

    Raises:
        UserError: one does not exist, or none is named.
    """
    words = [word.strip().lower() for name in names for word in name.split(",") if word.strip()]
    if not words:
        raise UserError(f"--include names no format, choose of {', '.join(FORMATS)}")
    for name in words:
        if name in UNWRITTEN:
            raise UserError(f"--include {name} is not written: {UNWRITTEN[name]}")
        if name not in ALIASES:
            raise UserError(f"there is no format '{name}'{did_you_mean(name, ALIASES)}, choose of {', '.join(FORMATS)}")
    return tuple(dict.fromkeys(ALIASES[name] for name in words))


def check_possible(
    names: Sequence[str], *, dynamic: bool = False, half: bool = False, batch: int = 1, gpu: bool = False
) -> None:
    """Check that formats can be written on this machine with these options, before anything is written.

    Args:
        names: of formats.
        dynamic: leave batch, height and width free.
        half: float16.
        batch: pictures in one input.
        gpu: whether `--device` names one.

    Raises:
        UserError: an option that a format does not know, or what is missing here.
    """
    for row in (FORMATS[name] for name in names):
        if dynamic and not row.dynamic:
            raise UserError(f"{row.title} has no dynamic shapes: leave --dynamic out, or {row.name} out of --include")
        if half and not row.half:
            raise UserError(f"{row.title} is not written in float16: leave --half out, or {row.name} out of --include")
        if half and row.half == "cuda" and not gpu:
            raise UserError(f"{row.title} in float16 needs a GPU: name it with --device, for instance 0")
        if batch > 1 and not row.batches:
            raise UserError(f"{row.title} takes one picture at a time, not --batch-size {batch}")
        if row.systems and sys.platform not in row.systems:
            raise UserError(f"{row.title} is written on {' and '.join(row.systems)} only, not on {sys.platform}")
        if row.gpu and not gpu:
            raise UserError(f"{row.title} is built on an NVIDIA GPU: name it with --device, for instance 0")
        if missing := needs(row.writers):
            raise UserError(f"--include {row.name} {missing}")


def needs(packages: Sequence[str]) -> str:
    """Return what to install of `packages`, as the end of a sentence; empty where all are there."""
    missing = [package for package in packages if not _is_installed(package.partition("==")[0])]
    if not missing:
        return ""
    return f"needs {' and '.join(p.partition('==')[0] for p in missing)}: pip install {' '.join(missing)}"


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def format_of(path: str | Path) -> Format | None:
    """Return the format of an exported file by the ending of its name, or None for anything else."""
    name = Path(path).name.lower()
    return next((row for row in FORMATS.values() if name.endswith(row.ending)), None)
