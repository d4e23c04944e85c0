"""The shapes of learning-rate schedules that Keras lacks: warm-up in front of any, exact restarts, inverse root, triangles.

Each is a `LearningRateSchedule` in `keras.ops`: the step may be a number or a tensor, inside a compiled function or out of
it, and each can be rebuilt from its configuration. `transferapp.training.schedules` puts them together with Keras' own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

_Schedule: Any = keras.optimizers.schedules.LearningRateSchedule


@keras.saving.register_keras_serializable("transferapp")
class LinearWarmup(_Schedule):  # type: ignore[misc]
    """A straight climb to the start of another schedule, which then begins (Goyal et al., 2017, arXiv:1706.02677).

    Step t of the climb has ``(t + 1) / (warmup_steps + 1)`` of that schedule's first rate: the first step is not wasted on
    rate 0, and the rate rises by the same amount every step until it meets the schedule. Keras' own warm-up belongs to its
    cosine alone and starts at 0.

    Args:
        schedule: What follows; it sees steps counted from the end of the climb.
        warmup_steps: Length of the climb, at least 1.
    """

    def __init__(self, schedule: Any, warmup_steps: int) -> None:
        super().__init__()
        self.schedule = schedule
        self.warmup_steps = warmup_steps

    def __call__(self, step: Any) -> Any:
        step = ops.cast(step, "float32")
        climb = self.schedule(0) * (step + 1.0) / (self.warmup_steps + 1.0)
        return ops.where(
            step < self.warmup_steps, climb, self.schedule(ops.maximum(step - float(self.warmup_steps), 0.0))
        )

    def get_config(self) -> dict[str, Any]:
        return {
            "schedule": keras.optimizers.schedules.serialize(self.schedule),
            "warmup_steps": self.warmup_steps,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> LinearWarmup:
        return cls(keras.optimizers.schedules.deserialize(config["schedule"]), config["warmup_steps"])


@keras.saving.register_keras_serializable("transferapp")
class CosineRestarts(_Schedule):  # type: ignore[misc]
    """Half a cosine from the rate to 0, again and again: SGDR (Loshchilov & Hutter, 2017, arXiv:1608.03983).

    Keras' own `CosineDecayRestarts` finds the cycle by a float32 logarithm of the step, which can miss a restart by a step
    where cycles are not whole; here they end at the steps they are told to, and snapshots can be taken just there.

    Args:
        initial_learning_rate: The rate at the start of each cycle.
        ends: After how many steps each cycle ends; strictly rising. From the last on, the rate is 0.
    """

    def __init__(self, initial_learning_rate: float, ends: Sequence[int]) -> None:
        super().__init__()
        self.initial_learning_rate = initial_learning_rate
        self.ends = [int(end) for end in ends]

    def __call__(self, step: Any) -> Any:
        step = ops.cast(step, "float32")
        progress = ops.ones_like(step)
        for start, end in itertools.pairwise([0, *self.ends]):
            inside = ops.logical_and(step >= start, step < end)
            progress = ops.where(inside, (step - start) / (end - start), progress)
        return self.initial_learning_rate * 0.5 * (1.0 + ops.cos(math.pi * progress))

    def get_config(self) -> dict[str, Any]:
        return {"initial_learning_rate": self.initial_learning_rate, "ends": self.ends}


@keras.saving.register_keras_serializable("transferapp")
class InverseSqrtDecay(_Schedule):  # type: ignore[misc]
    """``initial_learning_rate / sqrt(1 + step / decay_steps)``: the lecture's inverse square root.

    The lecture counts t in epochs and from 1, so with `decay_steps` of one epoch this is its ``rate / sqrt(t)`` at the start
    of each epoch. With `decay_steps` equal to a warm-up before it, it is the tail of Vaswani et al. (2017, arXiv:1706.03762).

    Args:
        initial_learning_rate: The rate at step 0.
        decay_steps: Steps in a unit of time, positive.
    """

    def __init__(self, initial_learning_rate: float, decay_steps: int) -> None:
        super().__init__()
        self.initial_learning_rate = initial_learning_rate
        self.decay_steps = decay_steps

    def __call__(self, step: Any) -> Any:
        return self.initial_learning_rate * ops.rsqrt(1.0 + ops.cast(step, "float32") / self.decay_steps)

    def get_config(self) -> dict[str, Any]:
        return {"initial_learning_rate": self.initial_learning_rate, "decay_steps": self.decay_steps}


@keras.saving.register_keras_serializable("transferapp")
class TriangularCycles(_Schedule):  # type: ignore[misc]
    """Straight up from `low` to `high` and straight down again, over and over (Smith, 2017, arXiv:1506.01186).

    Args:
        low: The rate at both ends of a cycle.
        high: The rate in the middle of it.
        cycle_steps: Length of a cycle, positive; need not be whole.
    """

    def __init__(self, low: float, high: float, cycle_steps: float) -> None:
        super().__init__()
        self.low = low
        self.high = high
        self.cycle_steps = cycle_steps

    def __call__(self, step: Any) -> Any:
        cycles = ops.cast(step, "float32") / self.cycle_steps
        height = 1.0 - ops.abs(2.0 * (cycles - ops.floor(cycles)) - 1.0)
        return self.low + (self.high - self.low) * height

    def get_config(self) -> dict[str, Any]:
        return {"low": self.low, "high": self.high, "cycle_steps": self.cycle_steps}
