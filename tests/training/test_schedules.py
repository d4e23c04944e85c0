"""Schedules by hand, against numpy, at their borders, and inside a compiled step.

Nothing here names a backend: the file also passes with KERAS_BACKEND=jax.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transferapp.errors import UsageError
from transferapp.training.optimizers import make_optimizer
from transferapp.training.schedules import SCHEDULES, make_schedule, restart_steps

RATE = 0.4
OPTIONS: dict[str, dict[str, Any]] = {
    "inverse_sqrt": {"steps_per_epoch": 10},
    "sgdr": {"cycles": 3},
    "cyclic": {"cycles": 2},
}


def made(name: str, total_steps: int = 100, **options: Any) -> Any:
    return make_schedule(name, RATE, total_steps, **(OPTIONS.get(name, {}) | options))


def rates(schedule: Any, steps: int) -> np.ndarray:
    """The rate at each of the first `steps` steps, given as the integers that optimizers count in."""
    return np.array([float(schedule(keras.ops.convert_to_tensor(step, "int32"))) for step in range(steps)])


# --- values ---


def in_tenths(t: float) -> float:
    return RATE * 0.1 ** sum(t >= fraction * 100 for fraction in (0.3, 0.6, 0.9))


def warm_restarts(t: float) -> float:
    for start, end in ((0, 33), (33, 67), (67, 100)):
        if start <= t < end:
            return RATE * (1 + math.cos(math.pi * (t - start) / (end - start))) / 2
    return 0.0


def triangles(t: float) -> float:
    position = t % 50
    return RATE / 4 + (RATE - RATE / 4) * (position / 25 if position <= 25 else 2 - position / 25)


REFERENCES: dict[str, Callable[[float], float]] = {
    "constant": lambda t: RATE,
    "step": in_tenths,
    "cosine": lambda t: RATE / 2 * (1 + math.cos(math.pi * t / 100)),
    "linear": lambda t: RATE * (1 - t / 100),
    "inverse_sqrt": lambda t: RATE / math.sqrt(1 + t / 10),
    "sgdr": warm_restarts,
    "cyclic": triangles,
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_step_of_a_run_has_the_rate_of_the_formula(name: str) -> None:
    expected = [REFERENCES[name](t) for t in range(100)]
    np.testing.assert_allclose(rates(made(name), 100), expected, rtol=2e-5, atol=1e-6 * RATE)


@pytest.mark.parametrize(
    ("name", "step", "rate"),
    [
        ("constant", 99, 0.4),
        ("step", 29, 0.4),
        ("step", 30, 0.04),
        ("step", 60, 0.004),
        ("step", 99, 0.0004),
        ("cosine", 0, 0.4),
        ("cosine", 50, 0.2),
        ("cosine", 100, 0.0),
        ("linear", 25, 0.3),
        ("linear", 100, 0.0),
        ("inverse_sqrt", 0, 0.4),
        ("inverse_sqrt", 30, 0.2),  # the fourth epoch begins: 0.4 / sqrt(4)
        ("cyclic", 0, 0.1),
        ("cyclic", 25, 0.4),
        ("cyclic", 50, 0.1),
    ],
)
def test_rates_worked_by_hand(name: str, step: int, rate: float) -> None:
    assert float(made(name)(step)) == pytest.approx(rate, rel=1e-5, abs=1e-7)


def test_warm_restarts_worked_by_hand() -> None:
    # 60 steps in cycles of 20; each starts at the full rate, is at half of it half-way, and ends near 0.
    schedule = made("sgdr", 60)
    for start in (0, 20, 40):
        assert float(schedule(start)) == pytest.approx(RATE, rel=1e-5)
        assert float(schedule(start + 10)) == pytest.approx(RATE / 2, rel=1e-4)
        last = RATE / 2 * (1 + math.cos(math.pi * 19 / 20))
        assert float(schedule(start + 19)) == pytest.approx(last, rel=1e-3)


# --- restarts ---


def test_snapshots_are_due_at_the_end_of_each_cycle() -> None:
    assert restart_steps(100, 4) == (25, 50, 75, 100)
    assert restart_steps(110, 4, warmup_steps=10) == (35, 60, 85, 110)
    assert restart_steps(10, 3) == (3, 7, 10)  # 3.33 and 6.67 lie between steps
    assert restart_steps(7, 1) == (7,)


def test_cycles_can_be_made_of_whole_epochs_warm_up_or_not() -> None:
    assert restart_steps(100, 3, steps_per_epoch=10) == (30, 70, 100)  # 33.3 and 66.7
    assert restart_steps(100, 3, warmup_steps=15, steps_per_epoch=10) == (40, 70, 100)  # 43.3 and 71.7
    schedule = make_schedule("sgdr", RATE, 100, cycles=3, warmup_steps=15, steps_per_epoch=10)
    for restart in (40, 70):
        assert float(schedule(restart)) == pytest.approx(RATE)
        assert float(schedule(restart - 1)) < 0.01 * RATE


@settings(max_examples=30, deadline=None)
@given(
    total=st.integers(2, 5000),
    cycles=st.integers(1, 12),
    warmup=st.integers(0, 50),
)
def test_the_rate_is_full_after_each_restart_and_lowest_before_it(total: int, cycles: int, warmup: int) -> None:
    try:
        ends = restart_steps(total + warmup, cycles, warmup_steps=warmup)
    except UsageError:
        assert total / cycles < 1.5
        return
    assert len(ends) == cycles
    assert ends[-1] == total + warmup
    schedule = make_schedule("sgdr", RATE, total + warmup, warmup_steps=warmup, cycles=cycles)
    for start, end in zip((warmup, *ends), ends, strict=False):
        lowest = RATE / 2 * (1 + math.cos(math.pi * (end - start - 1) / (end - start)))
        assert float(schedule(start)) == pytest.approx(RATE, rel=1e-6)
        assert float(schedule(end - 1)) == pytest.approx(lowest, rel=1e-3, abs=1e-7)


# --- warm-up ---


@pytest.mark.parametrize("name", SCHEDULES)
def test_warm_up_climbs_evenly_from_above_zero_and_meets_the_schedule(name: str) -> None:
    plain, warm = made(name, 100), made(name, 110, warmup_steps=10)
    climb = rates(warm, 11)
    np.testing.assert_allclose(climb, float(plain(0)) * np.arange(1, 12) / 11, rtol=1e-5)
    np.testing.assert_allclose(
        [float(warm(t + 10)) for t in range(100)], rates(plain, 100), rtol=1e-5, atol=1e-6 * RATE
    )


# --- as Keras objects ---


@pytest.mark.parametrize("name", SCHEDULES)
def test_steps_may_be_numbers_or_tensors_of_any_integer_type(name: str) -> None:
    schedule = made(name, warmup_steps=5)
    for step in (0, 4, 5, 37):
        values = {float(schedule(keras.ops.convert_to_tensor(step, dtype))) for dtype in ("int32", "int64", "float32")}
        assert values == {float(schedule(step))}


def test_every_schedule_steers_the_updates_of_a_compiled_training_step() -> None:
    # One weight whose gradient is always -1 under SGD: after n updates it is the sum of the first n rates.
    for name in SCHEDULES:
        schedule = made(name, 6, warmup_steps=2, **({"cycles": 2} if name == "sgdr" else {}))
        layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")
        model = keras.Sequential([keras.Input((1,)), layer])
        model.compile(make_optimizer("sgd", schedule), loss=lambda _, y: -keras.ops.mean(y), jit_compile=False)
        model.fit(np.ones((6, 1), "float32"), np.zeros((6, 1), "float32"), batch_size=1, verbose=0)
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(layer.kernel).item(), rates(schedule, 6).sum(), rtol=1e-5, err_msg=name
        )


# --- what is refused ---


def test_an_unknown_name_lists_the_schedules_there_are() -> None:
    with pytest.raises(UsageError, match=r"'cosin'.*constant, step, cosine, linear, inverse_sqrt, sgdr, cyclic"):
        make_schedule("cosin", RATE, 10)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cosine", {"learning_rate": 0.0}, "learning_rate"),
        ("cosine", {"learning_rate": math.nan}, "learning_rate"),
        ("cosine", {"total_steps": 0}, "total_steps"),
        ("cosine", {"warmup_steps": 10}, "warmup_steps"),
        ("cosine", {"warmup_steps": -1}, "warmup_steps"),
        ("sgdr", {"cycles": 0}, "cycles"),
        ("sgdr", {"cycles": 11}, "11 cycles do not fit"),
        ("sgdr", {"cycles": 3, "steps_per_epoch": 5}, "3 cycles do not fit"),
        ("cyclic", {"cycles": 11}, "cycles"),
        ("cyclic", {"cycles": 0}, "cycles"),
        ("inverse_sqrt", {}, "steps_per_epoch"),
        ("inverse_sqrt", {"steps_per_epoch": 0}, "steps_per_epoch"),
    ],
)
def test_numbers_out_of_range_are_refused(name: str, options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_schedule(name, **({"learning_rate": RATE, "total_steps": 10} | options))


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_shortest_run_has_a_schedule(name: str) -> None:
    schedule = make_schedule(name, RATE, 1, steps_per_epoch=1)
    assert 0 < float(schedule(0)) <= RATE * (1 + 1e-6)
