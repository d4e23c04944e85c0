"""Learning-rate schedules of the lecture by name, each with an optional linear warm-up.

CS231n, "Training Neural Networks II", gives drops at fixed points, cosine, linear and inverse square root decay. Warm restarts
(SGDR) and triangular cycles come from the papers it cites. Keras' own schedules are used where Keras has them. Importing this
module imports no Keras; building a schedule does.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transferapp.errors import UsageError

if TYPE_CHECKING:
    import keras

STEP_FRACTIONS = (0.3, 0.6, 0.9)
STEP_FACTOR = 0.1
"""The lecture's example of a step schedule: ResNets drop to a tenth after epochs 30, 60 and 90 of 100."""

CYCLIC_FLOOR = 0.25
"""Lowest rate of a triangular cycle, as a share of the highest: Smith (2017), section 3.3, has a third or a quarter."""


@dataclass(frozen=True)
class ScheduleSpec:
    """A schedule by name.

    Attributes:
        name: Name in a configuration.
        help: One line for people.
        cyclic: Whether the rate rises again within a run, `cycles` times.
    """

    name: str
    help: str
    cyclic: bool = False


_SPECS = (
    ScheduleSpec("constant", "The same rate throughout."),
    ScheduleSpec("step", "To a tenth after 30, 60 and 90 % of the run."),
    ScheduleSpec("cosine", "From the rate to 0 along half a cosine; no setting to choose."),
    ScheduleSpec("linear", "From the rate to 0 in a straight line; common when fine-tuning."),
    ScheduleSpec("inverse_sqrt", "The rate divided by the root of the epoch: a quick fall, then a long tail."),
    ScheduleSpec(
        "sgdr", "Cosines with warm restarts; each cycle's end is a model of its own (snapshots).", cyclic=True
    ),
    ScheduleSpec("cyclic", "Triangles between a quarter of the rate and all of it.", cyclic=True),
)

SCHEDULES: dict[str, ScheduleSpec] = {spec.name: spec for spec in _SPECS}
"""Every schedule by name."""

_Rate = Callable[[Any], Any]
"""A function from a step, float32, to the learning rate; both may be tensors."""


def make_schedule(
    name: str,
    learning_rate: float,
    total_steps: int,
    *,
    warmup_steps: int = 0,
    steps_per_epoch: int | None = None,
    cycles: int = 1,
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Build a schedule. Step t, counted from 0, is the update after t others.

    Args:
        name: A key of `SCHEDULES`.
        learning_rate: The highest rate, positive.
        total_steps: Updates in the whole run, warm-up included.
        warmup_steps: Updates of linear warm-up (Goyal et al., 2017, arXiv:1706.02677), fewer than `total_steps`. Update t of
            them has ``(t + 1) / (warmup_steps + 1)`` of the rate that the schedule starts with.
        steps_per_epoch: Updates in an epoch. `inverse_sqrt` needs it as its unit of time; `sgdr`, given it, has cycles of
            whole epochs, so that each snapshot is the end of an epoch.
        cycles: Cycles of `sgdr` and `cyclic`.

    Returns:
        A function from step to learning rate; both may be tensors. Past `total_steps`, `cyclic` goes on with another cycle and
        `inverse_sqrt` goes on falling; the others stay at their last rate.

    Raises:
        UsageError: The name is unknown or a number is out of range.
    """
    if name not in SCHEDULES:
        raise UsageError(f"Unknown schedule {name!r}", expected=f"one of {', '.join(SCHEDULES)}")
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise UsageError("learning_rate is out of range", expected="more than 0", got=f"{learning_rate:g}")
    steps = _steps_after_warmup(total_steps, warmup_steps)
    ends: list[int] = []
    if name == "sgdr":
        from_start = restart_steps(total_steps, cycles, warmup_steps=warmup_steps, steps_per_epoch=steps_per_epoch)
        ends = [end - warmup_steps for end in from_start]
    rate = _rate(name, float(learning_rate), steps, steps_per_epoch, cycles, ends)
    return _schedule_class()(_with_warmup(rate, warmup_steps) if warmup_steps else rate)


def restart_steps(
    total_steps: int, cycles: int, *, warmup_steps: int = 0, steps_per_epoch: int | None = None
) -> tuple[int, ...]:
    """Return the number of updates after which each cycle of the same `sgdr` schedule ends, for snapshots.

    A snapshot ensemble (Huang et al., 2017, arXiv:1704.00109) stores the weights at these moments, where the rate is lowest;
    the next update has the full rate again (SGDR; Loshchilov & Hutter, 2017, arXiv:1608.03983).

    Args:
        total_steps, cycles, warmup_steps, steps_per_epoch: As in `make_schedule`.

    Returns:
        `cycles` counts of completed updates, strictly rising; the last is `total_steps`. Where cycles are not whole steps, or
        whole epochs, each ends at the nearest one.

    Raises:
        UsageError: A number is out of range, or the cycles are shorter than one step, or one epoch.
    """
    steps = _steps_after_warmup(total_steps, warmup_steps)
    _at_least_one("cycles", cycles)
    unit = 1 if steps_per_epoch is None else _at_least_one("steps_per_epoch", steps_per_epoch)
    inner = [round((warmup_steps + cycle * steps / cycles) / unit) * unit for cycle in range(1, cycles)]
    ends = [*inner, total_steps]
    if any(end <= start for start, end in itertools.pairwise([warmup_steps, *ends])):
        raise UsageError(
            f"{cycles} cycles do not fit into the run",
            expected=f"at least one {'step' if steps_per_epoch is None else 'epoch'} for each",
            got=f"{steps} steps after the warm-up" + ("" if steps_per_epoch is None else f", {unit} an epoch"),
            hint="Ask for fewer cycles or train longer",
        )
    return tuple(ends)


@functools.cache
def _schedule_class() -> Any:
    """Return the Keras schedule class that calls a function; defined here because Keras is imported late."""
    import keras

    class Schedule(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]  # Keras has no types
        """Learning rate as a function of the step, for optimizers that are not saved."""

        def __init__(self, rate: _Rate) -> None:
            super().__init__()
            self._rate = rate

        def __call__(self, step: Any) -> Any:
            return self._rate(keras.ops.cast(step, "float32"))

    return Schedule


def _rate(name: str, learning_rate: float, steps: int, epoch: int | None, cycles: int, ends: Sequence[int]) -> Any:
    """Return the schedule after the warm-up, `steps` long, as a `_Rate`."""
    from keras.optimizers import schedules

    match name:
        case "constant":
            return schedules.PolynomialDecay(learning_rate, steps, end_learning_rate=learning_rate)
        case "step":
            # Keras changes the value after a boundary, not at it.
            boundaries = [round(fraction * steps) - 1 for fraction in STEP_FRACTIONS]
            rates = [learning_rate * STEP_FACTOR**drops for drops in range(len(STEP_FRACTIONS) + 1)]
            return schedules.PiecewiseConstantDecay(boundaries, rates)
        case "cosine":
            return schedules.CosineDecay(learning_rate, steps)
        case "linear":
            return schedules.PolynomialDecay(learning_rate, steps, end_learning_rate=0.0)
        case "inverse_sqrt":
            if epoch is None:
                raise UsageError(
                    "inverse_sqrt needs steps_per_epoch", hint="It divides the rate by the root of the epoch"
                )
            return _inverse_sqrt(learning_rate, _at_least_one("steps_per_epoch", epoch))
        case "sgdr":
            return _cosine_restarts(learning_rate, ends)
    return _triangles(learning_rate, steps / _at_least_one("cycles", cycles, most=steps))


def _with_warmup(rate: _Rate, warmup_steps: int) -> _Rate:
    """Return a straight climb to the start of another schedule, which follows."""
    from keras import ops

    def at(step: Any) -> Any:
        climb = rate(0) * (step + 1.0) / (warmup_steps + 1.0)
        return ops.where(step < warmup_steps, climb, rate(ops.maximum(step - float(warmup_steps), 0.0)))

    return at


def _cosine_restarts(learning_rate: float, ends: Sequence[int]) -> _Rate:
    """Return half a cosine from the rate to 0 for each cycle, and 0 after the last end.

    Keras' `CosineDecayRestarts` finds the cycle by a float32 logarithm of the step, which can miss a restart by a step; here
    cycles end at given steps, where snapshots are taken.
    """
    from keras import ops

    def at(step: Any) -> Any:
        progress = ops.ones_like(step)
        for start, end in itertools.pairwise([0, *ends]):
            inside = ops.logical_and(step >= start, step < end)
            progress = ops.where(inside, (step - start) / (end - start), progress)
        return learning_rate * 0.5 * (1.0 + ops.cos(math.pi * progress))

    return at


def _inverse_sqrt(learning_rate: float, epoch: int) -> _Rate:
    """Return ``learning_rate / sqrt(1 + step / epoch)``: the lecture's ``rate / sqrt(t)``, its epochs t counted from 1."""
    from keras import ops

    return lambda step: learning_rate * ops.rsqrt(1.0 + ops.cast(step, "float32") / epoch)


def _triangles(learning_rate: float, cycle_steps: float) -> _Rate:
    """Return straight lines up and down again between `CYCLIC_FLOOR` of the rate and the rate (Smith, 2017)."""
    from keras import ops

    def at(step: Any) -> Any:
        cycles = ops.cast(step, "float32") / cycle_steps
        height = 1.0 - ops.abs(2.0 * (cycles - ops.floor(cycles)) - 1.0)
        return learning_rate * (CYCLIC_FLOOR + (1.0 - CYCLIC_FLOOR) * height)

    return at


def _steps_after_warmup(total_steps: int, warmup_steps: int) -> int:
    _at_least_one("total_steps", total_steps)
    if not 0 <= warmup_steps < total_steps:
        raise UsageError(
            "warmup_steps is out of range",
            expected=f"0 to less than the run's {total_steps} steps",
            got=str(warmup_steps),
        )
    return total_steps - warmup_steps


def _at_least_one(setting: str, value: int, most: int | None = None) -> int:
    if value < 1 or (most is not None and value > most):
        bounds = "at least 1" if most is None else f"1 to the {most} steps there are"
        raise UsageError(f"{setting} is out of range", expected=bounds, got=str(value))
    return value
