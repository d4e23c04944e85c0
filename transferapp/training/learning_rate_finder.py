"""Find a learning rate by a short range test: raise it until the loss breaks out, and stay well below (Smith, 2017).

The rate climbs exponentially, one update at each value (arXiv:1506.01186, section 3.3). While it is too low the loss hardly
moves; then it falls; past the largest stable rate it breaks out. The suggestion is a tenth of the *edge*, the last rate at
which the smoothed loss was still as good as its best.

Why the edge, and not the steepest descent that others read off the same curve: fine-tuning here starts from a solved probe,
where there may be no descent to speak of, and the steepest place of a flat curve is noise. The edge is there in either case.
Why a tenth: a rate that survives one update in passing need not be stable for a whole run, and the loss betrays the breakout
only some updates after it began. On quadratics, where the critical rate is known to be 2/L, the edge was seen between a tenth
of it (loss and gradients drowned in noise) and five times it (no noise, and curvatures far apart).
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from transferapp.errors import TrainingError, UsageError

if TYPE_CHECKING:
    import keras

LOW, HIGH = 1e-6, 1.0
"""From far below any rate of use to Adam's far side; plain SGD may need a higher end."""

STEPS = 60
"""Updates: ten a decade, so that neighboring rates differ by a quarter."""

SAFETY = 10.0
"""The suggestion is the edge divided by this."""

DIVERGED_AT = 4.0
"""The test stops when the last `_IN_A_ROW` losses all exceed this many times the mean of those before, or one is not finite.
The mean, and several, rather than one loss and the best: batches of a solved probe differ tenfold among themselves, and to
stop early costs the edge, to stop late only a few updates that are undone anyway."""

_IN_A_ROW = 3
_WINDOW = 3
"""Half width of the smoothing, in updates: a factor of two in the rate. Symmetrical: a running mean would drag the edge."""
_NOISES = 3
"""The loss is still at its best while, smoothed, it is within this many of its own standard deviations of the lowest, ..."""
_AS_GOOD = 0.05
"""... or within this share of it: momentum makes it swing by as much, and a breakout passes both within a step or two."""
_FEWEST = 5
"""Updates that must have gone well for the curve to say anything."""


@dataclass(frozen=True)
class RateFinding:
    """Outcome of a range test.

    Attributes:
        suggestion: A learning rate to train with: `edge` / `SAFETY`.
        edge: The last rate at which the smoothed loss was within its noise of the lowest.
        diverged: Whether the loss broke out; if not, the edge may be higher than the test went.
        reason: One sentence for people.
        rates: The rates tried, rising.
        losses: The loss at each, of the batch before its update; the last may be infinite or NaN.
        smoothed: The finite losses smoothed; as long as `losses`, or shorter by the one that is not finite.
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
    """Run a range test on anything that can take a step.

    Args:
        step: Takes one update at the given learning rate and returns the loss of its batch, taken before the update.
        low, high: First and last rate, positive, `low` below `high`.
        steps: Updates at most, at least 10.

    Raises:
        UsageError: A number is out of range.
        TrainingError: The loss was not finite or broke out before the rate had risen to speak of.
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
        diverged = _broken_out(losses)
        if diverged:
            break
    finite = np.array([loss for loss in losses if math.isfinite(loss)])
    last_good = -1
    if len(finite) >= _FEWEST:
        smoothed, kept = _smooth(finite)
        settled = finite[:-_IN_A_ROW] if diverged else finite
        tolerance = np.maximum(_NOISES * _noise(settled) * kept, _AS_GOOD * abs(smoothed.min()))
        near_best = smoothed <= smoothed.min() + tolerance
        last_good = int(np.flatnonzero(near_best)[-1])
    if diverged and last_good < 1:
        raise TrainingError(
            f"The loss diverged from the start of the range test, at learning rates from {low:g}",
            expected="a loss that bears the lowest rate",
            hint="Start the range test lower, or look for damaged weights or images",
            code="diverged",
        )
    edge = rates[last_good]
    suggestion = edge / SAFETY
    if diverged:
        reason = f"the loss broke out at {rates[len(losses) - 1]:.2g} and was last at its best at {edge:.2g}"
    else:
        reason = f"the loss did not break out up to {high:.2g} and was last at its best at {edge:.2g}"
    return RateFinding(
        suggestion=suggestion,
        edge=edge,
        diverged=diverged,
        reason=f"{reason}; a tenth of that is {suggestion:.2g}",
        rates=tuple(rates[: len(losses)]),
        losses=tuple(losses),
        smoothed=tuple(float(loss) for loss in smoothed),
    )


def find_learning_rate(
    model: keras.Model,
    batches: Iterable[tuple[Any, ...]],
    *,
    low: float = LOW,
    high: float = HIGH,
    steps: int = STEPS,
) -> RateFinding:
    """Run a range test on a compiled Keras model, and put everything back as it was.

    Weights, optimizer state, learning rate, seeds of dropout and metrics are restored, whatever happens. Multipliers of the
    optimizer stay in force: the rates are those of a variable whose multiplier is 1.

    Args:
        model: Compiled, with a number for a learning rate; a schedule would have its own idea of it.
        batches: Pairs (x, y) or triples (x, y, sample_weight) as `train_on_batch` takes them. A collection is gone through
            again when it runs out; an iterator has to give `steps` batches.
        low, high, steps: As in `range_test`. For plain SGD and momentum raise `high` to 10.

    Raises:
        UsageError: The model is not compiled, or for a schedule; there are too few batches; a number is out of range.
        TrainingError: The loss was not finite or broke out before the rate had risen to speak of.
    """
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None:
        raise UsageError("The model is not compiled", hint="Compile it with an optimizer and a loss first")
    if not optimizer.built:
        optimizer.build(model.trainable_variables)
    endless = _endless(batches)

    def step(rate: float) -> float:
        optimizer.learning_rate = rate
        logs = model.train_on_batch(*next(endless), return_dict=True)
        return float(logs["loss"])

    with _restored(model):
        try:
            optimizer.learning_rate = low
        except TypeError as error:
            raise UsageError(
                "The model is compiled with a learning-rate schedule",
                expected="a number, which the range test can raise",
            ) from error
        return range_test(step, low=low, high=high, steps=steps)


@contextlib.contextmanager
def _restored(model: keras.Model) -> Iterator[None]:
    """Put everything that a training step can change back to what it is now."""
    from keras import ops

    variables = [*model.variables, *model.optimizer.variables]
    saved = [np.array(ops.convert_to_numpy(variable)) for variable in variables]
    try:
        yield
    finally:
        for variable, value in zip(variables, saved, strict=True):
            variable.assign(value)
        model.reset_metrics()


def _endless(batches: Iterable[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    for turn in itertools.count():
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise UsageError(
                "There are no more batches for the range test" if turn else "There are no batches for the range test",
                expected="a collection that can be gone through again, or a batch for every step",
            )


def _broken_out(losses: list[float]) -> bool:
    if not math.isfinite(losses[-1]):
        return True
    before, last = losses[:-_IN_A_ROW], losses[-_IN_A_ROW:]
    return len(before) >= _FEWEST and min(last) > DIVERGED_AT * sum(before) / len(before)


def _smooth(losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Triangular moving average, and the share of white noise's deviation that it leaves at each point."""
    window = np.concatenate([np.arange(1, _WINDOW + 2), np.arange(_WINDOW, 0, -1)]).astype(float)
    weight = np.convolve(np.ones_like(losses), window)[_WINDOW:-_WINDOW]
    total = np.convolve(losses, window)[_WINDOW:-_WINDOW]
    kept = np.sqrt(np.convolve(np.ones_like(losses), window**2)[_WINDOW:-_WINDOW]) / weight
    return total / weight, kept


def _noise(losses: np.ndarray) -> float:
    """Standard deviation of the losses about a smooth curve, from second differences; the median ignores the breakout."""
    if len(losses) < _FEWEST:
        return 0.0
    return float(np.median(np.abs(np.diff(losses, 2))) * 1.4826 / math.sqrt(6))
