"""The choice among candidates: a pure function of their figures on the validation images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, TypeVar


class Scored(Protocol):
    """A candidate as far as the choice looks at it: both figures are None where it was not trained."""

    @property
    def accuracy(self) -> float | None: ...
    @property
    def loss(self) -> float | None: ...


C = TypeVar("C", bound=Scored)


def merit(accuracy: float | None, loss: float | None) -> tuple[float, float]:
    """Return a sort key: accuracy first, then the smaller loss; what was not trained or has no finite loss comes last."""
    if accuracy is None or loss is None or not math.isfinite(loss):
        return (-1.0, 0.0)
    return (accuracy, -loss)


def choose(candidates: Sequence[C], *, insist: bool = False) -> C:
    """Return the candidate that ships.

    Args:
        candidates: The linear classifier first, then what was trained beside it.
        insist: Whether to pass the linear classifier over where anything else was trained (`--rule-only`, `--scratch`).
    """
    solved, *others = candidates
    trained = [candidate for candidate in others if candidate.accuracy is not None]
    if not trained:
        return solved
    best = max(trained, key=lambda candidate: merit(candidate.accuracy, candidate.loss))
    if insist or solved.accuracy is None or merit(best.accuracy, best.loss)[0] > solved.accuracy:
        return best
    return solved
