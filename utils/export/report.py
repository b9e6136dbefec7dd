"""What an export did: the content of best.export.json."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
import ultralytics

from models import DetectionModel
from models.summary import count_parameters
from utils.deploy.formats import FORMATS
from utils.deploy.write import Written
from utils.export.options import Options
from utils.int8.search import Quantization
from utils.latency import Latency
from utils.prove.at_scale import ScaleProof
from utils.prove.compare import HALF_TOLERANCE, Tolerance
from utils.prove.report import Proof

LATENCY_ROUNDS = 5  # of measuring how long the networks take


@dataclass
class Report:
    """What an export did; `as_dict` is the content of best.export.json."""

    weights: str
    model: DetectionModel
    deploy: DetectionModel
    options: Options
    written: dict[str, Written]
    proofs: dict[str, Proof]
    latency: dict[str, Latency]
    quantized: dict[str, Quantization] = dataclasses.field(default_factory=dict)
    files: list[Path] = dataclasses.field(default_factory=list)  # in their final place; empty when not ok
    scale_proofs: dict[str, ScaleProof] = dataclasses.field(default_factory=dict)  # of many pictures
    evidence: list[Path] = dataclasses.field(default_factory=list)  # what shows the worst case

    @property
    def ok(self) -> bool:
        """Whether every file that can be run here agrees with the unfused model, and quantized ones are good enough."""
        proven = all(proof.ok or proof.not_run for proof in self.proofs.values())
        judged = all(found.ok for found in self.scale_proofs.values())
        return proven and judged and all(found.ok for found in self.quantized.values())

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        o = self.options
        return {
            "weights": self.weights,
            "cfg": self.model.spec.name,
            "imgsz": list(o.size),
            "batch": o.batch,
            "dynamic": o.dynamic,
            "half": o.half,
            "exporter": o.exporter,
            "nms": dataclasses.asdict(o.nms) if o.nms else None,
            "preprocess": o.preprocess,
            "fused": fused_counts(self.deploy),
            "params": {"train": count_parameters(self.model), "deploy": count_parameters(self.deploy)},
            "formats": {name: self._format(name) for name in self.written},
            "tolerance": dataclasses.asdict(self._tolerance),
            "latency": {"of": "medians on the CPU", "threads": torch.get_num_threads(), "rounds": LATENCY_ROUNDS},
            "int8": {name: found.as_dict() for name, found in self.quantized.items()},
            "versions": versions(o.formats),
            "ok": self.ok,
        }

    @property
    def _tolerance(self) -> Tolerance:
        return HALF_TOLERANCE if self.options.half else Tolerance()

    def _format(self, name: str) -> dict[str, Any]:
        written = self.written[name]
        names = {"unfused": "unfused", "fused": "fused", "this": name}
        found = {"opset": written.opset} if written.opset else {}
        return {
            "file": written.path.name,
            **found,
            "bytes": written.bytes,
            "sha256": written.sha256,
            **self.proofs[name].as_dict(),
            **({"survey": self.scale_proofs[name].as_dict()} if name in self.scale_proofs else {}),
            "latency_ms": {key: round(self.latency[of].median, 3) for key, of in names.items() if of in self.latency},
            "latency_min_ms": {
                key: round(self.latency[of].minimum, 3) for key, of in names.items() if of in self.latency
            },
        }


def to_json(report: Report) -> str:
    """Return the content of the report's file; numbers that are none become null."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [plain(entry) for entry in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(report.as_dict()), indent=1, ensure_ascii=False) + "\n"


def fused_counts(deploy: DetectionModel) -> dict[str, Any]:
    """Return how many of what were fused, and under `left` what was not, each with its reason."""
    report = getattr(deploy, "report", None)
    if report is None:
        return {"left": ["everything: not fused, as --no-fuse asks"]}
    return {**dict(sorted(report.fused.items())), "left": list(report.left)}


def fused_text(deploy: DetectionModel) -> str:
    """Return one line on what was fused, and one for each reason why something was left."""
    counts = fused_counts(deploy)
    left = counts.pop("left")
    lines = [", ".join(f"{count} {kind}" for kind, count in counts.items()) or "nothing"]
    if not left:
        lines[0] += "; no BatchNorm is left"
    reasons: dict[str, list[str]] = {}
    for entry in left:
        name, _, reason = entry.partition(": ")
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        lines.append(f"    left {', '.join(names[:3])}{more}: {reason}")
    return "\n".join(lines)


def versions(formats: Sequence[str] = ()) -> dict[str, str]:
    """Return the versions of the libraries that an export into these formats depends on."""
    libraries = {"torch": torch, "ultralytics": ultralytics, "onnx": onnx, "onnxruntime": onnxruntime}
    own = sorted({package for name in formats for package in FORMATS[name].packages})
    found = {package: importlib.metadata.version(package) for package in own}
    return {name: str(library.__version__) for name, library in libraries.items()} | found
