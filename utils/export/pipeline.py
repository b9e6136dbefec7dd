"""Exporting: every file is written, proven, and only then given its final name.

Everything is written into a temporary folder beside the final place. A file takes its final name only when all of
them agree with the unfused model; whatever goes wrong before that leaves the folder, and an older export in it, as it
was.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import tempfile
from collections.abc import Iterable
from functools import lru_cache, partial
from pathlib import Path

from models import DetectionModel
from models.errors import UserError
from utils.deploy.files import publish, temporary_folder
from utils.deploy.formats import FORMATS, format_of
from utils.deploy.run import load_runner
from utils.deploy.trust import trust
from utils.deploy.write import Written, quiet, write
from utils.detect.writers import write_bytes, write_image
from utils.export.options import Options
from utils.export.report import LATENCY_ROUNDS, Report, to_json
from utils.int8.search import Int8, Quantization, draw_curves, quantize
from utils.latency import Latency, measure
from utils.paths import check_holds_none
from utils.prove.at_scale import HALF_MAX_DROP, MAX_DROP, ProofPictures, compare_at_scale
from utils.prove.compare import HALF_TOLERANCE, Tolerance
from utils.prove.divergence import explain
from utils.prove.reference import TEMPORARY, Reference
from utils.prove.report import Proof, name_of
from utils.prove.side_by_side import draw_side_by_side
from utils.sizes import other_shape, third_shape

DYNAMIC_BATCH = 2  # that a file with dynamic shapes is proven with
FREE_BATCHES = (1, 2, 3)  # that a file whose batch alone is free is proven with


# The whole of it ------------------------------------------------------------------------------------------------------
def export(model: DetectionModel, folder: Path, stem: str, weights: str, options: Options) -> Report:
    """Write `model` into `folder` as `stem`.torchscript and so on with `stem`.export.json, if the proof agrees.

    Args:
        model: unfused; it is left as it is.
        weights: what the report calls the model's origin.

    Returns:
        the report. Where it is not `ok`, nothing was put into `folder`.

    Raises:
        ExportError: a format cannot be written for this model.
        UserError: `folder` cannot be written to, or a folder lies where a file would go, or the other way round.
        OSError: the disk is full.
    """
    check_places(folder, stem, options)
    reference = Reference(model, options.pictures)
    deploy = model.fuse() if options.fuse else copy.deepcopy(model)
    with temporary_folder(folder) as temporary:
        written = {
            name: write(deploy, temporary / name / f"{stem}{FORMATS[name].ending}", options) for name in options.formats
        }
        check_replaced([file.path for file in written.values()], folder)
        with quiet(options.verbose):
            proofs = {name: prove(reference, deploy, file.path, options) for name, file in written.items()}
        report = Report(weights, model, deploy, options, written, proofs, latency={})
        if report.ok and options.proof_pictures:
            prove_at_scale(reference, report, options.proof_pictures)
        if report.ok and options.int8:
            report.quantized = _quantize(deploy, written, temporary / "int8", options, options.int8)
        if report.ok:
            report.latency = compare_latency(reference, deploy, written, options)
            report.files = _publish(report, temporary, folder, stem)
        report.evidence = leave_evidence(reference, report, folder, stem)
    return report


def check_places(folder: Path, stem: str, options: Options) -> None:
    """Check what the results would replace.

    Raises:
        UserError: a folder lies in the place of a file, or a file in that of a folder, so that it is no older export;
            or it is a file that is read, such as the weights or a picture of the proof.
    """
    places = {f"{stem}{FORMATS[name].ending}": bool(FORMATS[name].content) for name in options.formats}
    if options.int8:
        places |= {f"{stem}-int8{FORMATS[name].ending}": bool(FORMATS[name].content) for name in options.formats}
        places[f"{stem}.int8.png"] = False
    places |= {f"{stem}.export{end}.{suffix}": False for end in ("", "-failed") for suffix in ("json", "jpg")}
    sources = options.sources()
    for place, is_folder in ((folder / name, is_folder) for name, is_folder in places.items()):
        if place.exists() and place.is_dir() != is_folder:
            there, wanted = ("file", "folder") if is_folder else ("folder", "file")
            raise UserError(f"{place} is a {there}, and the export would put a {wanted} in its place: move it away")
        if place.exists():
            check_holds_none(place, sources, "--output")


def check_replaced(made: Iterable[Path], folder: Path) -> None:
    """Check that exports which are folders take the place of older ones in which there is nothing else.

    Args:
        made: files and folders on their way into `folder`.
        folder: of the results.

    Raises:
        UserError: there is a file that the new folder does not have.
    """
    for path in made:
        place = folder / path.name
        former = sorted(p for p in place.rglob("*") if p.is_symlink() or not p.is_dir()) if place.is_dir() else []
        own = next((file for file in former if not os.path.lexists(path / file.relative_to(place))), None)
        if own:
            raise UserError(
                f"{own} is no file of an export, which would replace the folder that it is in: move it away"
            )


def _quantize(
    deploy: DetectionModel, written: dict[str, Written], folder: Path, options: Options, int8: Int8
) -> dict[str, Quantization]:
    """Return the quantized files, which are in `folder`; their layers are looked at in an ONNX file."""
    folder.mkdir()
    graph = folder / "float.onnx"
    write(deploy, graph, dataclasses.replace(options, simplify=False, exporter="torchscript"))
    files = {name: file.path for name, file in written.items()}
    shape = (options.batch, deploy.spec.ch, *options.size)
    return quantize(files, graph, deploy, shape, int8)


def prove(reference: Reference, deploy: DetectionModel, path: Path, options: Options) -> Proof:
    """Compare the file at `path` with the reference, at the sizes that `utils/prove/reference.py` describes."""
    kind = format_of(path)
    if kind and kind.not_run:
        return Proof(not_run=kind.not_run)
    tolerance = HALF_TOLERANCE if options.half else Tolerance()
    proof = Proof()
    stride = int(deploy.stride.max())
    other = other_shape(options.size, stride)
    load = lru_cache(1)(load_runner)  # once for the sizes of a file

    def compare(file: Path, size: tuple[int, int], batch: int, name: str) -> None:
        cases = list(reference.cases(file, size, batch, tolerance, name, load))
        proof.cases += cases
        proof.divergence = proof.divergence or explain(reference, deploy, file, cases, tolerance)

    batches = sorted({*FREE_BATCHES, options.batch}) if options.dynamic == "batch" else [options.batch]
    for batch in batches:
        compare(path, options.size, batch, path.name)
    if options.dynamic is True:
        compare(path, other, options.batch, path.name)
        compare(path, third_shape(options.size, stride), DYNAMIC_BATCH, path.name)
    elif deploy.only_size is None:
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            sibling = Path(folder) / path.name
            write(deploy, sibling, dataclasses.replace(options, size=other))
            compare(sibling, other, options.batch, TEMPORARY)
    return proof


def prove_at_scale(reference: Reference, report: Report, proof_pictures: ProofPictures) -> None:
    """Compare the files of a report with the reference on many pictures, as `utils/prove/at_scale.py` does."""
    o = report.options
    runs_here = {name: file.path for name, file in report.written.items() if not FORMATS[name].not_run}
    files = {name: (path.name, load_runner(path)) for name, path in runs_here.items()}
    tolerance, most_drop = (HALF_TOLERANCE, HALF_MAX_DROP) if o.half else (Tolerance(), MAX_DROP)
    report.scale_proofs = compare_at_scale(
        reference, files, proof_pictures, o.size, o.batch, tolerance, most_drop, o.nms
    )
    for name, found in report.scale_proofs.items():
        worst = [found.worst] if found.worst else []
        report.proofs[name].divergence = explain(reference, report.deploy, runs_here[name], worst, tolerance)


def leave_evidence(reference: Reference, report: Report, folder: Path, stem: str) -> list[Path]:
    """Write the picture of the worst case beside the report, and remove those of an earlier export.

    Of files that were refused the picture and the report are called `stem`.export-failed, and stay until a success.
    Those that were proven on a few pictures only need no picture.
    """
    success, failure = (
        [folder / f"{stem}.export{end}{suffix}" for suffix in (".jpg", ".json")] for end in ("", "-failed")
    )
    picture, summary = success if report.ok else failure
    made = []
    cases = [(name, found.worst) for name, found in report.scale_proofs.items()]
    if not report.ok:
        cases += [(name, case) for name, proof in report.proofs.items() for case in proof.cases]
        write_bytes(summary, to_json(report).encode())
        made.append(summary)
    shown = [(case.excess, name, case) for name, case in cases if case and case.evidence]
    if reference.model.task == "classify":  # nothing is drawn into its pictures
        shown = []
    if shown:
        _, name, worst = max(shown, key=lambda entry: entry[0])
        write_image(picture, draw_side_by_side(reference, worst, name_of(worst, name)))
        made.append(picture)
    for path in {picture, *(failure if report.ok else ())}.difference(made):
        path.unlink(missing_ok=True)
    return made


def compare_latency(
    reference: Reference, deploy: DetectionModel, written: dict[str, Written], options: Options
) -> dict[str, Latency]:
    """Return how long the unfused and the fused eager model and each file take for one batch, on the CPU."""
    images = reference.batches(options.size, options.batch)[0][1]
    fused = copy.deepcopy(deploy).float().cpu()
    runs = {"unfused": partial(reference, images), "fused": partial(fused, images)}
    for name, file in written.items():
        if not FORMATS[name].not_run:
            runs[name] = partial(load_runner(file.path), images)
    return measure(runs, LATENCY_ROUNDS)


def _publish(report: Report, temporary: Path, folder: Path, stem: str) -> list[Path]:
    """Give the files their final names, the report last, and return them."""
    quantized = [found.take(temporary, stem) for found in report.quantized.values()]
    if quantized:
        quantized.append(draw_curves(list(report.quantized.values()), temporary / f"{stem}.int8.png"))
    summary = temporary / f"{stem}.export.json"
    summary.write_text(to_json(report), encoding="utf-8")
    made = [*(written.path for written in report.written.values()), *quantized, summary]
    check_replaced(made, folder)
    files = publish(made, temporary, folder)
    for file in files:
        trust(file)
    for found in report.quantized.values():
        found.file = folder / f"{stem}-int8{found.format.ending}"
    return files
