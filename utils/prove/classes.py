"""How far the outputs of two classifiers are apart: all probabilities, and the most probable class of each picture."""

from __future__ import annotations

from utils.deploy.run import Outputs
from utils.prove.compare import Difference, Errors, Tolerance, no_errors, why_not_compared


def measure_classes(expected: Outputs, got: Outputs, tolerance: Tolerance) -> tuple[Difference, Errors]:
    """Return how far the outputs of two classifiers are apart, and the error of each probability.

    A picture is a detection of its class: `matched` where that is the same, `undecidable` where a second class is as
    probable to within the tolerance, else `wrong`.

    Args:
        expected: of the unfused model, probabilities (B, nc).
        got: of the other.
        tolerance: of probabilities.
    """
    if problem := why_not_compared(expected, got):
        return Difference(problem=problem), no_errors()
    probabilities, others = expected[0], got[0]
    error = (others - probabilities).abs().flatten()
    same = probabilities.argmax(1) == others.argmax(1)
    lead = probabilities.amax(1) - probabilities.gather(1, others.argmax(1, keepdim=True))[:, 0]
    tied = ~same & (lead <= 2 * tolerance.score)
    difference = Difference(
        box_px=0.0,
        score=error.max().item(),
        reference=len(same),
        matched=int(same.sum()),
        undecidable=int(tied.sum()),
        wrong=int((~same & ~tied).sum()),
    )
    return difference, no_errors()._replace(score=error)
