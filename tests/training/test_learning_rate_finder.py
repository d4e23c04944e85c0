"""The range test on quadratics, whose critical rate is known, and on a Keras model, which it must leave as it was."""

from __future__ import annotations

import math
from collections.abc import Callable

import keras
import numpy as np
import pytest

from transferapp.errors import TrainingError, UsageError
from transferapp.training.learning_rate_finder import SAFETY, RateFinding, find_learning_rate, range_test
from transferapp.training.optimizers import make_optimizer

# --- quadratics: 1/2 sum(curvature * x^2); gradient descent diverges beyond 2 / (largest curvature) ---


def quadratic(
    curvatures: np.ndarray, *, start: float = 1.0, noise: float = 0.0, rho: float = 0.0, seed: int = 0
) -> Callable[[float], float]:
    """A step of (momentum) descent; `noise` is the deviation of both gradients and losses, in units of their size."""
    rng = np.random.default_rng(seed)
    x = start / np.sqrt(curvatures)
    v = np.zeros_like(x)

    def step(rate: float) -> float:
        nonlocal x, v
        loss = 0.5 * float(np.sum(curvatures * x * x)) + noise * (1 + 0.3 * rng.normal())
        gradient = curvatures * x + noise * np.sqrt(curvatures) * rng.normal(size=x.shape)
        v = rho * v + gradient
        x = x - rate * v
        return loss

    return step


SPECTRA = {"one": np.ones(1), "two": np.array([1, 1e-3]), "many": np.geomspace(1, 1e-4, 30)}


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("largest", [10.0, 100.0, 1e3, 1e4])
def test_the_suggestion_is_below_the_critical_rate_and_within_two_orders(
    largest: float, spectrum: str, noise: float
) -> None:
    critical = 2 / largest
    for seed in range(3):
        found = range_test(quadratic(largest * SPECTRA[spectrum], noise=noise, seed=seed), high=10.0)
        assert critical / 100 <= found.suggestion < critical
        assert found.diverged


def test_momentum_moves_the_critical_rate_and_the_suggestion_stays_below_it() -> None:
    critical = 2 * (1 + 0.9) / 100
    found = range_test(quadratic(100 * SPECTRA["many"], rho=0.9), high=10.0)
    assert critical / 100 <= found.suggestion < critical


def test_a_start_at_the_optimum_has_no_descent_and_still_an_edge() -> None:
    # As after a solved probe: nothing to gain, only noise, until the rate breaks out.
    for seed in range(5):
        found = range_test(quadratic(100 * SPECTRA["many"], start=0.0, noise=0.1, seed=seed), high=10.0)
        assert found.diverged
        assert 2 / 100 / 200 <= found.suggestion < 2 / 100


def test_training_at_the_suggestion_converges_and_at_a_hundred_times_it_does_not() -> None:
    suggestion = range_test(quadratic(100 * SPECTRA["two"]), high=10.0).suggestion

    def train(rate: float) -> float:
        step = quadratic(100 * SPECTRA["two"])
        return [step(rate) for _ in range(200)][-1]

    assert train(suggestion) < 0.5 * train(0.0)
    with np.errstate(all="ignore"):
        assert not train(100 * suggestion) < 10


# --- the curve and the finding ---


def scripted(losses: list[float]) -> Callable[[float], float]:
    script = iter(losses)
    return lambda rate: next(script)


def test_a_curve_worked_by_hand() -> None:
    # Ten decades' tenth: rates 1, 10, ... 1e9. Smoothed with (1 2 3 4 3 2 1), the lowest is where the dip is.
    losses = [9.0, 8.0, 6.0, 3.0, 1.0, 0.0, 1.0, 3.0, 6.0, 8.0]
    found = range_test(scripted(losses), low=1.0, high=1e9, steps=10)
    assert found.rates == pytest.approx([10.0**n for n in range(10)])
    assert found.losses == tuple(losses)
    assert found.smoothed[5] == pytest.approx((6 + 2 * 3 + 3 * 1 + 4 * 0 + 3 * 1 + 2 * 3 + 6) / 16)
    assert found.smoothed[0] == pytest.approx((4 * 9 + 3 * 8 + 2 * 6 + 3) / 10)
    assert found.suggestion == found.edge / SAFETY
    assert not found.diverged


def test_rates_rise_exponentially_from_low_to_high() -> None:
    seen: list[float] = []
    range_test(lambda rate: seen.append(rate) or 1.0, low=1e-4, high=1e-1, steps=31)
    assert seen == pytest.approx([1e-4 * 10 ** (n / 10) for n in range(31)])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_it_stops_at_once_where_the_loss_is_not_finite(bad: float) -> None:
    found = range_test(scripted([1.0 - 0.01 * n for n in range(20)] + [bad] + [1.0] * 100))
    assert len(found.rates) == len(found.losses) == 21
    assert len(found.smoothed) == 20
    assert found.diverged
    assert "diverged at" in found.reason


def test_it_stops_after_three_losses_of_over_four_times_the_mean_and_not_after_one_bad_batch() -> None:
    one_bad_batch = [1.0] * 10 + [50.0] + [1.0] * 10
    found = range_test(scripted(one_bad_batch + [20.0] * 39))
    assert len(found.losses) == len(one_bad_batch) + 3
    assert found.diverged


def test_a_loss_that_never_diverges_gives_the_highest_rate() -> None:
    found = range_test(lambda rate: 1.0, high=0.5)
    assert found.edge == pytest.approx(0.5)
    assert not found.diverged
    assert "did not diverge up to 0.5" in found.reason


@pytest.mark.parametrize("losses", [[math.nan], [1.0, math.inf], [10.0**n for n in range(60)]])
def test_a_loss_that_diverges_from_the_start_is_an_error_with_a_hint(losses: list[float]) -> None:
    with pytest.raises(TrainingError, match=r"diverged from the start.*Start the range test lower"):
        range_test(scripted(losses))


def test_the_same_test_twice_finds_the_same() -> None:
    first, second = (range_test(quadratic(SPECTRA["many"], noise=0.1, seed=3), high=100.0) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("settings", [{"low": 0.0}, {"low": 1.0, "high": 1.0}, {"high": math.inf}, {"steps": 9}])
def test_numbers_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        range_test(lambda rate: 1.0, **settings)  # type: ignore[arg-type]


# --- on a Keras model ---


def make_batches(count: int, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(3, 5))
    labels = rng.integers(0, 3, size=(count, 16))
    return [((centers[y] + rng.normal(size=(16, 5))).astype("float32"), y) for y in labels]


def make_model(optimizer: keras.Optimizer | None) -> keras.Model:
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.Dense(8, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.1, seed=1),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    if optimizer is not None:
        model.compile(optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def state(model: keras.Model) -> list[np.ndarray]:
    variables = [*model.variables, *model.optimizer.variables]
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]


@pytest.fixture(scope="module")
def tested() -> tuple[keras.Model, list[np.ndarray], RateFinding]:
    """A model that has trained a little, its state then, and what a range test on it found."""
    model = make_model(make_optimizer("momentum", 0.01, average=0.9, multipliers={}))
    for batch in make_batches(3):
        model.train_on_batch(*batch)
    before = state(model)
    return model, before, find_learning_rate(model, make_batches(4))


def test_weights_optimizer_rate_and_seeds_are_put_back(
    tested: tuple[keras.Model, list[np.ndarray], RateFinding],
) -> None:
    model, before, _ = tested
    assert float(model.optimizer.learning_rate) == pytest.approx(0.01)
    for now, then in zip(state(model), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_a_model_trains_on_afterwards_at_the_suggested_rate(
    tested: tuple[keras.Model, list[np.ndarray], RateFinding],
) -> None:
    model, _, found = tested
    assert 1e-5 < found.suggestion < 10
    assert found.losses[0] == pytest.approx(found.losses[1], rel=1)
    model.optimizer.learning_rate = found.suggestion
    batches = make_batches(30, seed=0)
    losses = [model.train_on_batch(*batch)[0] for batch in batches]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


def test_state_is_put_back_also_when_the_test_fails() -> None:
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(make_optimizer("momentum", 0.01), loss="mse")
    before = [np.array(keras.ops.convert_to_numpy(v)) for v in model.variables]
    with pytest.raises(TrainingError, match="diverged from the start"):
        find_learning_rate(model, [(np.full((4, 1), np.nan, "float32"), np.zeros((4, 1), "float32"))])
    for now, then in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(now), then)
    assert int(model.optimizer.iterations) == 0
    assert float(model.optimizer.learning_rate) == pytest.approx(0.01)
