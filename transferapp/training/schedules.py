"""How the learning rate changes over a run: the lecture's schedules by name, with linear warm-up in front of any of them.

CS231n, "Training Neural Networks II", gives drops at fixed points, cosine, linear and inverse square root decay; warm
restarts (SGDR) and triangular cycles come from the papers it leans on. Keras' own schedules are used where Keras has them;
the shapes it lacks are in `transferapp.training.schedule_shapes`. The table needs no Keras; building a schedule imports it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
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
    """What is known of a schedule before it is built.

    Attributes:
        name: How it is called in a configuration.
        help: One line for people.
        cyclic: Whether it reads `cycles`: the rate rises again within a run.
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


def make_schedule(
    name: str,
    learning_rate: float,
    total_steps: int,
    *,
    warmup_steps: int = 0,
    steps_per_epoch: int | None = None,
    cycles: int = 1,
    t_mul: float = 1.0,
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Build a schedule. Step t, counted from 0, is the update taken after t others.

    Args:
        name: A key of `SCHEDULES`.
        learning_rate: The highest rate, positive.
        total_steps: Updates in the whole run, warm-up included.
        warmup_steps: Updates of linear warm-up, fewer than `total_steps`; the schedule proper fills the rest.
        steps_per_epoch: Updates in an epoch: the unit of time of `inverse_sqrt`, which needs it; and `sgdr`, given it, has
            cycles of whole epochs, so that each snapshot is the end of an epoch. The others do not read it.
        cycles: How often the rate falls; `sgdr` and `cyclic` alone read it. In `sgdr` it is the number of snapshots M.
        t_mul: How many times longer each cycle of `sgdr` is than the one before, at least 1 (Loshchilov & Hutter, 2017,
            arXiv:1608.03983).

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
    learning_rate = float(learning_rate)
    steps = _steps_after_warmup(total_steps, warmup_steps)
    ends: list[int] = []
    if name == "sgdr":
        from_start = restart_steps(
            total_steps, cycles, t_mul=t_mul, warmup_steps=warmup_steps, steps_per_epoch=steps_per_epoch
        )
        ends = [end - warmup_steps for end in from_start]
    schedule = _shape(name, learning_rate, steps, steps_per_epoch, cycles, ends)
    if warmup_steps:
        from transferapp.training.schedule_shapes import LinearWarmup

        schedule = LinearWarmup(schedule, warmup_steps)
    return schedule


def restart_steps(
    total_steps: int,
    cycles: int,
    *,
    t_mul: float = 1.0,
    warmup_steps: int = 0,
    steps_per_epoch: int | None = None,
) -> tuple[int, ...]:
    """After how many updates each cycle of the same `sgdr` schedule has ended: when to take a snapshot.

    A snapshot ensemble (Huang et al., 2017, arXiv:1704.00109) keeps the weights at these moments, where the rate is at its
    lowest; the next update is made at the full rate again.

    Args:
        total_steps, cycles, t_mul, warmup_steps, steps_per_epoch: As in `make_schedule`.

    Returns:
        `cycles` counts of completed updates, strictly rising; the last is `total_steps`. Where the cycles do not come out
        even, each ends at the whole step, or whole epoch, nearest to where it should.

    Raises:
        UsageError: A number is out of range, or the cycles are shorter than one step, or one epoch.
    """
    steps = _steps_after_warmup(total_steps, warmup_steps)
    _at_least_one("cycles", cycles)
    if not (math.isfinite(t_mul) and t_mul >= 1):
        raise UsageError("t_mul is out of range", expected="at least 1", got=f"{t_mul:g}")
    unit = 1 if steps_per_epoch is None else _at_least_one("steps_per_epoch", steps_per_epoch)
    lengths = [t_mul ** (i - cycles + 1) for i in range(cycles)]  # of the last cycle: no power can overflow
    shares = [done / sum(lengths) for done in itertools.accumulate(lengths)]
    ends = [round((warmup_steps + share * steps) / unit) * unit for share in shares[:-1]] + [total_steps]
    if any(end <= start for start, end in itertools.pairwise([warmup_steps, *ends])):
        raise UsageError(
            f"{cycles} cycles do not fit into the run",
            expected=f"at least one {'step' if steps_per_epoch is None else 'epoch'} for each",
            got=f"{steps} steps after the warm-up" + ("" if steps_per_epoch is None else f", {unit} an epoch"),
            hint="Ask for fewer cycles or train longer",
        )
    return tuple(ends)


def _shape(name: str, learning_rate: float, steps: int, epoch: int | None, cycles: int, ends: Sequence[int]) -> Any:
    """The schedule proper, `steps` long and counted from the end of the warm-up."""
    from keras.optimizers import schedules

    from transferapp.training.schedule_shapes import CosineRestarts, InverseSqrtDecay, TriangularCycles

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
            return InverseSqrtDecay(learning_rate, _at_least_one("steps_per_epoch", epoch))
        case "sgdr":
            return CosineRestarts(learning_rate, ends)
    cycle_steps = steps / _at_least_one("cycles", cycles, most=steps)
    return TriangularCycles(CYCLIC_FLOOR * learning_rate, learning_rate, cycle_steps)


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
