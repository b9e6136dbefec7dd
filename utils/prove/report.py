"""The proof of one format as data and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from utils.prove.reference import TEMPORARY, Case


@dataclass
class Proof:
    """All comparisons of one format."""

    cases: list[Case] = field(default_factory=list)
    not_run: str = ""  # why there can be none on this machine
    divergence: dict[str, Any] | None = (
        None  # where the file parts from the model, as `utils/prove/divergence.py` found it
    )

    @property
    def ok(self) -> bool:
        """Whether there are comparisons and all of them agree."""
        return bool(self.cases) and all(case.ok for case in self.cases)

    def as_dict(self) -> dict[str, Any]:
        """Return the worst of all comparisons, and each of them, as JSON takes it."""
        if self.not_run:
            return {"ok": None, "not_proven": self.not_run}
        parting = {"divergence": self.divergence} if self.divergence else {}
        worst = summarize(self.cases) if self.cases else {}
        return {**worst, **parting, "cases": [case.as_dict() for case in self.cases], "ok": self.ok}


def summarize(cases: Sequence[Case]) -> dict[str, Any]:
    """Return the worst errors of some comparisons and the sum of their detections.

    Pictures in which the model sees nothing count among the detections only where it sees nothing in any.
    """
    differences = [case.difference for case in cases]
    seen = [d for d in differences if d.sees_something] or differences
    return {
        "max_box_error_px": max(d.box_px for d in differences),
        "max_score_error": max(d.score for d in differences),
        **({"max_mask_error": mask} if (mask := max(d.mask for d in differences)) else {}),
        "detections": {
            "reference": sum(d.reference for d in seen),
            "matched": sum(d.matched for d in seen),
            "undecidable": sum(d.undecidable for d in seen),
            "min_iou": min(d.min_iou for d in seen),
        },
    }


# Output ---------------------------------------------------------------------------------------------------------------
def proof_table(proofs: dict[str, Proof], things: str = "boxes") -> str:
    """Return the proofs as text: a line for each file and input, and one for each comparison to remark on.

    `things` are what the networks find in pictures.
    """
    width = max((len(case.file) for proof in proofs.values() for case in proof.cases), default=0) + 2
    width = max(width, len(TEMPORARY) + len(max(proofs, key=len)) + 3)
    lines = [
        f"{'file':<{width}}{'input':<14}{'pictures':>8}{'box error':>13}{'score error':>13}"
        f"{'same ' + things:>14}{'least IoU':>11}"
    ]
    for name, proof in proofs.items():
        if proof.not_run:
            lines.append(f"{name:<{width}}written, not proven here: {proof.not_run}")
        groups: dict[tuple[str, str], list[Case]] = {}
        for case in proof.cases:
            groups.setdefault((name_of(case, name), "x".join(map(str, (case.batch, *case.size)))), []).append(case)
        for (file, shape), cases in groups.items():
            worst = summarize(cases)
            found = worst["detections"]
            boxes = f"{found['matched']:>9}/{found['reference']:<4}{found['min_iou']:>11.6f}"
            if not any(case.difference.sees_something for case in cases):
                boxes = "   none seen; --data names other pictures"
            lines.append(
                f"{file:<{width}}{shape:<14}{len(cases):>8}"
                f"{worst['max_box_error_px']:>10.1e} px{worst['max_score_error']:>13.1e}{boxes}"
            )
            lines += [f"    {text}" for case in cases if (text := remark(case))]
        if proof.divergence:
            lines.append(f"    {proof.divergence['text']}")
    return "\n".join(lines)


def name_of(case: Case, kind: str) -> str:
    """Return what a table calls the file of a case, which is of this format."""
    return f"{case.file} {kind}" if case.file == TEMPORARY else case.file


def remark(case: Case) -> str:
    """Return where a comparison parts, or that it needed more than the tolerance; nothing for the others."""
    d, allowed = case.difference, case.allowed
    if case.ok and case.rounding:
        own = case.rounding
        return f"≈ {case.picture}: float32 alone is off by {own.box_px:.1e} px and {own.score:.1e} from float64 here"
    if case.ok:
        undecided = f"≈ {case.picture}: {d.undecidable} of {d.reference} detections hang on less than rounding"
        return undecided if d.undecidable and d.matched < d.reference else ""
    reasons = [d.problem] if d.problem else []
    if not d.problem and not d.box_px <= allowed.box_px:
        reasons.append(f"boxes differ by {d.box_px:.3g} px, allowed are {allowed.box_px:.3g}")
    if not d.problem and not d.score <= allowed.score:
        reasons.append(f"scores differ by {d.score:.3g}, allowed are {allowed.score:.3g}")
    if not d.problem and not d.mask <= allowed.mask:
        reasons.append(f"masks differ by {d.mask:.3g} of the largest number, allowed are {allowed.mask:.3g}")
    if d.wrong:
        judged = d.reference - d.undecidable
        reasons.append(f"{d.wrong} detections are missing or too many, of {judged} that do not hang on rounding")
    return f"✗ {case.picture}: {', '.join(reasons)}"
