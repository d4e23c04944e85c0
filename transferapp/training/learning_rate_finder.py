"""Learning-rate range test: raise the rate until the loss diverges, and suggest a rate well below (Smith, 2017).

The rate climbs exponentially, one update at each value (arXiv:1506.01186, section 3.3). While it is too low the loss hardly
moves; then it falls; past the largest stable rate it diverges. The suggestion is a tenth of the *edge*, the last rate at which
the smoothed loss was still as good as its best.

The edge is used rather than the steepest descent, which others read off the same curve: fine-tuning here starts from a solved
classifier, where there may be no descent to speak of, and the steepest place of a flat curve is noise. It is divided by ten
because a rate that survives one update need not be stable for a whole run, and the loss shows divergence only some updates
after it began. On quadratics, whose critical rate is known to be 2/L, the edge was between a tenth of it (loss and gradients
dominated by noise) and five times it (no noise, and curvatures far apart).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from transferapp.errors import TrainingError, UsageError

if TYPE_CHECKING:
    import keras

    from transferapp.training.settings import Batches

LOW, HIGH = 1e-6, 1.0
"""Range of rates: from far below any rate of use to above Adam's; plain SGD may need a higher end."""

STEPS = 60
"""Updates: ten per decade, so that neighboring rates differ by a quarter."""

SAFETY = 10.0
"""Divisor of the edge that gives the suggestion."""

DIVERGED_AT = 4.0
"""The test stops when each of the last `_IN_A_ROW` losses exceeds this many times the mean of those before, or one is not
finite. Several losses and the mean, rather than one loss and the best: batches of a linear classifier differ tenfold among
themselves, and stopping early costs the edge, while stopping late costs only a few updates that are undone anyway."""

_IN_A_ROW = 3
_WINDOW = 3
"""Half width of the smoothing, in updates: a factor of two in the rate. Symmetric: a running mean would shift the edge."""
_NOISES = 3
"""The loss is as good as its best while, smoothed, it is within this many of its own standard deviations of the lowest, ..."""
_AS_GOOD = 0.05
"""... or within this share of it: momentum makes it swing by as much, and divergence passes both within a step or two."""
_FEWEST = 5
"""Updates that a curve must have to be read."""


@dataclass(frozen=True)
class RateFinding:
    """Outcome of a range test.

    Attributes:
        suggestion: A learning rate to train with: `edge` / `SAFETY`.
        edge: The last rate at which the smoothed loss was within its noise of the lowest.
        diverged: Whether the loss diverged; if not, the edge may lie beyond the range.
        reason: One sentence for people.
        rates: The rates tried, rising.
        losses: Loss of the batch before the update at each rate; the last may be infinite or NaN.
        smoothed: The finite losses, smoothed.
    """

    suggestion: float
    edge: float
    diverged: bool
    reason: str
    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]


def range_test(
    step: Callable[[float], float], *, low: float = LOW, high: float = HIGH, steps: int = STEPS
) -> RateFinding:
    """Run a range test on anything that takes steps.

    Args:
        step: Makes one update at the given learning rate and returns the loss of its batch before the update.
        low, high: First and last rate, positive, `low` below `high`.
        steps: Updates at most, at least 10.

    Raises:
        UsageError: A number is out of range.
        TrainingError: The loss was not finite, or diverged at the lowest rates.
    """
    if not (0 < low < high < math.inf):
        raise UsageError("The range of learning rates is empty", expected="0 < low < high", got=f"{low:g} to {high:g}")
    if steps < 2 * _FEWEST:
        raise UsageError("steps is out of range", expected=f"at least {2 * _FEWEST}", got=str(steps))
    rates = [float(rate) for rate in np.geomspace(low, high, steps)]
    losses: list[float] = []
    diverged = False
    for rate in rates:
        losses.append(float(step(rate)))
        diverged = _diverged(losses)
        if diverged:
            break
    finite = np.array([loss for loss in losses if math.isfinite(loss)])
    last_good = -1
    if len(finite) >= _FEWEST:
        smoothed, noise_left = _smooth(finite)
        before = finite[:-_IN_A_ROW] if diverged else finite
        tolerance = np.maximum(_NOISES * _noise(before) * noise_left, _AS_GOOD * abs(smoothed.min()))
        last_good = int(np.flatnonzero(smoothed <= smoothed.min() + tolerance)[-1])
    if diverged and last_good < 1:
        raise TrainingError(
            f"The loss diverged from the start of the range test, at learning rates from {low:g}",
            expected="a finite loss at the lowest rate",
            hint="Start the range test lower, or look for damaged weights or images",
            code="diverged",
        )
    edge = rates[last_good]
    suggestion = edge / SAFETY
    if diverged:
        reason = f"the loss diverged at {rates[len(losses) - 1]:.2g} and was last at its best at {edge:.2g}"
    else:
        reason = f"the loss did not diverge up to {high:.2g} and was last at its best at {edge:.2g}"
    return RateFinding(
        suggestion=suggestion,
        edge=edge,
        diverged=diverged,
        reason=f"{reason}; a tenth of that is {suggestion:.2g}",
        rates=tuple(rates[: len(losses)]),
        losses=tuple(losses),
        smoothed=tuple(float(loss) for loss in smoothed),
    )


def find_learning_rate(model: keras.Model, batches: Batches) -> RateFinding:
    """Run a range test on a compiled Keras model, and restore the model.

    Weights, optimizer state, learning rate, seeds of dropout and metrics are restored, whatever happens. Multipliers of the
    optimizer apply: the rates are those of a variable whose multiplier is 1.

    Args:
        model: Compiled, with a number for a learning rate (a schedule cannot be changed).
        batches: Training data, repeated where there are fewer than `STEPS`.

    Raises:
        TrainingError: The loss was not finite, or diverged at the lowest rates.
    """
    optimizer = model.optimizer
    if not optimizer.built:
        optimizer.build(model.trainable_variables)
    steps = iter(range(STEPS))

    def step(rate: float) -> float:
        optimizer.learning_rate = rate
        logs = model.train_on_batch(*batches[next(steps) % len(batches)], return_dict=True)
        return float(logs["loss"])

    with _restored(model):
        return range_test(step)


@contextlib.contextmanager
def _restored(model: keras.Model) -> Iterator[None]:
    """Restore everything that a training step can change."""
    from keras import ops

    variables = [*model.variables, *model.optimizer.variables]
    saved = [np.array(ops.convert_to_numpy(variable)) for variable in variables]
    try:
        yield
    finally:
        for variable, value in zip(variables, saved, strict=True):
            variable.assign(value)
        model.reset_metrics()


def _diverged(losses: list[float]) -> bool:
    if not math.isfinite(losses[-1]):
        return True
    before, last = losses[:-_IN_A_ROW], losses[-_IN_A_ROW:]
    return len(before) >= _FEWEST and min(last) > DIVERGED_AT * sum(before) / len(before)


def _smooth(losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the triangular moving average, and the share of white noise's deviation that remains at each point."""
    window = np.concatenate([np.arange(1, _WINDOW + 2), np.arange(_WINDOW, 0, -1)]).astype(float)
    weight = np.convolve(np.ones_like(losses), window)[_WINDOW:-_WINDOW]
    total = np.convolve(losses, window)[_WINDOW:-_WINDOW]
    noise_left = np.sqrt(np.convolve(np.ones_like(losses), window**2)[_WINDOW:-_WINDOW]) / weight
    return total / weight, noise_left


def _noise(losses: np.ndarray) -> float:
    """Return the standard deviation around a smooth curve, by the median of second differences, which ignores divergence."""
    if len(losses) < _FEWEST:
        return 0.0
    return float(np.median(np.abs(np.diff(losses, 2))) * 1.4826 / math.sqrt(6))
