"""Where a file and its model part: is it fusing or the file, and which row of the YAML is the first that differs?

The rows of the eager model are known by their outputs. In what the other side computes on its way, whatever its tensors
are called, the one nearest to each output of a row is looked for: a row is sound where that is as near as float32
rounds. The first row that is not, and that no sound row depends on, is where they part. Within it the same is done for
its modules.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import onnx
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from models import DetectionModel
from models.blocks.reparam import Reparameterizable
from utils.deploy.formats import format_of
from utils.deploy.run import RUN_ERRORS, Outputs
from utils.prove.compare import HALF_TOLERANCE, Tolerance
from utils.prove.inside import TensorShape, Visit, Watch, each_output, watch
from utils.prove.reference import ROUNDING, Case, Evidence, Reference, run_eager

FLOOR = 3e-6  # relative error that float32 explains anywhere
HALF_FLOOR = 2e-2  # and float16
DECISION = 1e-2  # a relative error of float32 that rounding alone does not make: a tie was ordered otherwise
LOOK_ERRORS = (*RUN_ERRORS, onnx.shape_inference.InferenceError, ValueError, TypeError, KeyError)
Look = Callable[
    [Collection[TensorShape], Visit], Outputs | None
]  # shows the inner tensors of the side that is in question


@dataclass(frozen=True)
class Divergence:
    """Where a file and its model part.

    Attributes:
        by: "fusing", or "file" where the fused model still agrees with the unfused one; "rounding" where no row differs
            by more than float32 explains.
        title: of the file's format.
        row: number in the YAML of the first row that differs; None where it is not known.
        word: its module, as in the YAML.
        module: the first module of the row that differs, by its name in the model; empty where it is not known.
        error: of the row's output, relative to its largest number; infinite where there is nothing of its shape.
        before: the largest error of the sound rows.
        note: why no row is named.
    """

    by: str
    title: str
    row: int | None = None
    word: str = ""
    module: str = ""
    error: float = math.inf
    before: float = 0.0
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        known = {"row": self.row, "word": self.word, "module": self.module} if self.row is not None else {}
        return {"by": self.by, **known, "text": str(self)}

    def __str__(self) -> str:
        culprit = {
            "fusing": "fusing changes the model",
            "file": f"fusing is right, the {self.title} file is not",
            "rounding": "neither fusing nor the file is to blame",
        }[self.by]
        if self.row is None:
            return f"{culprit}: {self.note}" if self.note else culprit
        far = f", by {self.error:.1e} of its largest number" if math.isfinite(self.error) else ""
        inside = f", in {self.module}" if self.module else ""
        sound = f"; sound rows differ by at most {self.before:.1e}" if self.before else ""
        return f"{culprit}: row {self.row} {self.word} is the first that differs{far}{inside}{sound}"


def explain(
    reference: Reference, deploy: DetectionModel, path: Path, cases: Sequence[Case], tolerance: Tolerance
) -> dict[str, Any] | None:
    """Return where a file parts from the unfused model in the worst of some cases, as JSON takes it; None if not."""
    failing = [case for case in cases if not case.ok and case.evidence]
    if not failing:
        return None
    worst = max(failing, key=lambda case: case.excess)
    found = find_divergence(reference, deploy, path, worst, tolerance)
    return found.as_dict() if found else None


def find_divergence(
    reference: Reference, deploy: DetectionModel, path: Path, case: Case, tolerance: Tolerance
) -> Divergence | None:
    """Return where a file parts from the unfused model.

    Args:
        reference: the unfused model.
        deploy: the eager model that was written.
        path: the file.
        case: a comparison that failed.
        tolerance: of the proof; that of float16 files has the layers within compared as loosely.

    Returns:
        None where there is nothing to look into: the file does not run, or the unfused model's outputs are not finite.
    """
    evidence = case.evidence
    if case.ok or evidence is None or not all(bool(output.isfinite().all()) for output in evidence.expected):
        return None
    images = evidence.images

    def agrees(outputs: Outputs) -> bool:
        return reference.judge(case.file, case.picture, Evidence(images, evidence.expected, outputs), tolerance)[0].ok

    fused = copy.deepcopy(deploy).float().cpu()
    kind = format_of(path)
    title = kind.title if kind else path.name
    if not agrees(run_eager(fused, images)):
        original = Original(reference.model, reference.exact, images)
        look, inner = partial(_watch_eager, fused, images), partial(_preserved, fused)
        return _locate(Divergence("fusing", title), original, look, inner, FLOOR)
    floor = HALF_FLOOR if tolerance == HALF_TOLERANCE else FLOOR
    original = Original(fused, copy.deepcopy(fused).double(), images)
    try:
        if evidence.nms and _has_outputs(original, path, floor):
            return Divergence("file", title, note="its network is, so the NMS behind it is not")
        return _locate(Divergence("file", title), original, partial(watch, path, images), _all, floor, agrees)
    except LOOK_ERRORS as error:
        return Divergence("file", title, note=f"it does not run with its inside shown ({type(error).__name__})")


class Original(NamedTuple):
    """The eager model that is right, the same in float64, and the pictures that it runs on."""

    model: DetectionModel
    exact: DetectionModel
    images: Tensor


def _locate(
    found: Divergence,
    original: Original,
    look: Look,
    inner: Callable[[str, nn.Module], Iterator[str]],
    floor: float,
    agrees: Callable[[Outputs], bool] = lambda _: False,
) -> Divergence:
    """Complete `found` by the row, and the module within it, in which another side parts from the original.

    Args:
        found: who parts.
        look: shows what the other side computes.
        inner: gives the modules within one, called by its name in the model, whose outputs the other side should have.
        floor: the relative error that rounding explains.
        agrees: whether outputs are right after all.
    """
    model = original.model
    rows = _observe(original, [f"model.{i}" for i in range(len(model.model))])
    search = Search(rows)
    outputs = look(search.shapes, search)
    if outputs is None:
        return replace(found, note="this format does not show what it computes between its layers")
    if agrees(outputs):
        return replace(found, note="with its inside shown it agrees, so its runtime's optimization is what differs")
    sound = [site.is_sound(floor) for site in rows]
    most = max((site.error for site in rows if not site.is_undecided), default=0.0)
    note = f"all rows agree as far as rounding goes, to {most:.1e}: the outputs hang on less"
    nothing = replace(found, by="rounding", note=note)
    if all(sound) and not rows[-1].is_undecided:
        return nothing
    row = _first_difference(model, sound)
    if not any(sound) and math.isinf(rows[0].error):
        return replace(found, note="the outputs of its rows are not to be found in it")
    modules = _observe(original, list(inner(f"model.{row}", model.model[row])))
    search = Search(modules)
    look(search.shapes, search)
    module = next((site.name for site in modules if not site.is_sound(floor)), "")
    if all(sound) and not module:
        return nothing
    return replace(
        found,
        row=row,
        word=model.nodes[row].row.module,
        module=module,
        error=rows[row].error,
        before=max((site.error for site, fine in zip(rows, sound, strict=True) if fine), default=0.0),
    )


def _has_outputs(original: Original, path: Path, floor: float) -> bool:
    """Return whether what the model puts out is found in a file, which may do something else with it."""
    site = ModuleOutputs("outputs")
    exact = run_eager(original.exact, original.images.double())
    for output, right in zip(run_eager(original.model, original.images), exact, strict=True):
        site.add(output)
        site.rounding.append(_distance(right, output))
    search = Search([site])
    watch(path, original.images, search.shapes, search)
    return site.is_sound(floor)


def _first_difference(model: DetectionModel, sound: Sequence[bool]) -> int:
    """Return the first row that is not sound and that no sound row depends on; the head where there is none."""
    last = len(sound) - 1
    writers = {slot: i for i, node in enumerate(model.nodes) for slot in node.slots}
    cleared = [*sound[:last], False]  # the outputs differ, so a head with sound inputs is to blame
    for i in range(last - 1, -1, -1):
        if cleared[i]:
            for slot in model.nodes[i].sources:
                if slot in writers:
                    cleared[writers[slot]] = True
    return cleared.index(False)


# Sites ----------------------------------------------------------------------------------------------------------------
@dataclass
class ModuleOutputs:
    """The outputs of one module, how far float32 is off in each, and the smallest error found so far for each."""

    name: str
    tensors: list[Tensor] = field(default_factory=list)
    rounding: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)

    def add(self, tensor: Tensor) -> None:
        """Take an output to look for."""
        self.tensors.append(tensor.clone())
        self.errors.append(math.inf)

    @property
    def error(self) -> float:
        """The error of the output that is least like anything that was found."""
        return max(self.errors, default=0.0)

    def is_sound(self, floor: float) -> bool:
        """Return whether something equal was found for each output that is decided, up to rounding."""
        pairs = zip(self.errors, self.rounding, strict=True)
        return all(error <= max(floor, ROUNDING * own) for error, own in pairs if own <= DECISION)

    @property
    def is_undecided(self) -> bool:
        """Whether an output holds an order that float32 and float64 do not share, as that of scores which tie does."""
        return any(own > DECISION for own in self.rounding)


class Search:
    """Called with tensor after tensor, keeps for every output of some sites how near the nearest one came."""

    def __init__(self, sites: Sequence[ModuleOutputs]) -> None:
        self.wanted: dict[TensorShape, list[tuple[ModuleOutputs, int]]] = {}
        for site in sites:
            for i, tensor in enumerate(site.tensors):
                self.wanted.setdefault(tuple(tensor.shape), []).append((site, i))

    @property
    def shapes(self) -> Collection[TensorShape]:
        """Those of the outputs."""
        return self.wanted.keys()

    def __call__(self, tensor: Tensor) -> None:
        """Compare a tensor with all outputs of its shape."""
        for site, i in self.wanted.get(tuple(tensor.shape), ()):
            site.errors[i] = min(site.errors[i], _distance(site.tensors[i], tensor))


def _distance(expected: Tensor, got: Tensor) -> float:
    """Return the largest difference over the largest number, infinite for numbers that are none."""
    error = ((got - expected).abs().max() / expected.abs().max().clamp(min=1e-12)).item()
    return error if math.isfinite(error) else math.inf


def _observe(original: Original, names: Sequence[str]) -> list[ModuleOutputs]:
    """Run a model and return what the named modules put out, in the order in which they end.

    A module that runs more than once, as an activation that many layers share does, is left out.
    """
    sites: dict[str, ModuleOutputs] = {}
    calls: Counter[str] = Counter()

    def keep(name: str, tensors: list[Tensor]) -> None:
        calls[name] += 1
        site = sites.setdefault(name, ModuleOutputs(name))
        for tensor in tensors:
            site.add(tensor)

    def compare(name: str, tensors: list[Tensor]) -> None:
        site = sites[name]
        known = site.tensors[len(site.rounding) :]
        site.rounding += [_distance(exact, tensor) for exact, tensor in zip(tensors, known, strict=False)]

    with each_output(original.model, names, keep):
        run_eager(original.model, original.images)
    with each_output(original.exact, names, compare):
        run_eager(original.exact, original.images.double())
    return [site for name, site in sites.items() if calls[name] == 1]


def _watch_eager(model: nn.Module, images: Tensor, shapes: Collection[TensorShape], visit: Visit) -> Outputs:  # noqa: ARG001
    with Watch(visit):
        return run_eager(model, images)


def _all(name: str, module: nn.Module) -> Iterator[str]:
    """Yield the names of all modules within one: what is written as it stands has the outputs of each."""
    return (full for full, inner in module.named_modules(prefix=name) if inner is not module)


def _preserved(fused: nn.Module, name: str, module: nn.Module) -> Iterator[str]:
    """Yield the modules within one whose outputs `fused` still has: blocks that fuse, and BatchNorms outside of them.

    What fusing drops as a whole, such as the branch of a head that only training needs, holds none.
    """
    kept = {full for full, _ in fused.named_modules(remove_duplicate=False)}
    if isinstance(module, Reparameterizable | _BatchNorm):
        yield name
    elif name in kept:
        for child, inner in module.named_children():
            yield from _preserved(fused, f"{name}.{child}", inner)
