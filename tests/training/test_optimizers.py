"""Each optimizer against the lecture's update rule, worked out in numpy; multipliers, decay, averaging, saved state.

Nothing here names a backend: the whole file also passes with KERAS_BACKEND=jax, and a slow test runs it so where JAX is.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable

import keras
import numpy as np
import pytest

from transferapp.errors import UsageError
from transferapp.training.optimizers import EPSILON, OPTIMIZERS, POLYAK_DECAY, averaged_weights, make_optimizer

START = np.array([1.0, -2.0, 0.5])
GRADIENTS = [np.array([0.5, -1.0, 2.0]), np.array([0.4, 1.0, -0.1]), np.array([-0.2, 0.3, 0.7])]
RATE = 0.1
FLOAT32 = (
    5e-5  # relative, of the way gone in three steps: 1 - 0.999 keeps five digits in float32, and so do Adam's steps
)

Rule = Callable[[np.ndarray, list[np.ndarray], float], np.ndarray]


def run(optimizer: keras.Optimizer, gradients: list[np.ndarray] = GRADIENTS, start: np.ndarray = START) -> np.ndarray:
    variable = keras.Variable(start.astype("float32"), name="x")
    for gradient in gradients:
        optimizer.apply([keras.ops.convert_to_tensor(gradient.astype("float32"))], [variable])
    return keras.ops.convert_to_numpy(variable)


# --- the lecture's rules, word for word ---


def lecture_sgd(x: np.ndarray, gradients: list[np.ndarray], rate: float) -> np.ndarray:
    for dx in gradients:
        x = x - rate * dx
    return x


def lecture_momentum(x: np.ndarray, gradients: list[np.ndarray], rate: float, rho: float = 0.9) -> np.ndarray:
    v = np.zeros_like(x)
    for dx in gradients:
        v = rho * v + dx
        x = x - rate * v
    return x


def lecture_nesterov(x: np.ndarray, gradients: list[np.ndarray], rate: float, rho: float = 0.9) -> np.ndarray:
    v = np.zeros_like(x)
    for dx in gradients:
        old_v = v
        v = rho * v - rate * dx
        x = x + (-rho * old_v + (1 + rho) * v)
    return x


def lecture_adagrad(x: np.ndarray, gradients: list[np.ndarray], rate: float) -> np.ndarray:
    grad_squared = np.zeros_like(x)
    for dx in gradients:
        grad_squared = grad_squared + dx * dx
        x = x - rate * dx / (np.sqrt(grad_squared) + 1e-7)
    return x


def lecture_rmsprop(x: np.ndarray, gradients: list[np.ndarray], rate: float, decay_rate: float = 0.99) -> np.ndarray:
    grad_squared = np.zeros_like(x)
    for dx in gradients:
        grad_squared = decay_rate * grad_squared + (1 - decay_rate) * dx * dx
        x = x - rate * dx / (np.sqrt(grad_squared) + 1e-7)
    return x


def lecture_adam(
    x: np.ndarray,
    gradients: list[np.ndarray],
    rate: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    decay: float = 0.0,
) -> np.ndarray:
    first_moment, second_moment = np.zeros_like(x), np.zeros_like(x)
    for t, dx in enumerate(gradients, start=1):
        first_moment = beta1 * first_moment + (1 - beta1) * dx
        second_moment = beta2 * second_moment + (1 - beta2) * dx * dx
        first_unbias = first_moment / (1 - beta1**t)
        second_unbias = second_moment / (1 - beta2**t)
        x = x - rate * decay * x
        x = x - rate * first_unbias / (np.sqrt(second_unbias) + 1e-7)
    return x


def lecture_adamw(x: np.ndarray, gradients: list[np.ndarray], rate: float) -> np.ndarray:
    return lecture_adam(x, gradients, rate, decay=0.004)


RULES: dict[str, Rule] = {
    "sgd": lecture_sgd,
    "momentum": lecture_momentum,
    "nesterov": lecture_nesterov,
    "adagrad": lecture_adagrad,
    "rmsprop": lecture_rmsprop,
    "adam": lecture_adam,
    "adamw": lecture_adamw,
}


@pytest.mark.parametrize("name", RULES)
def test_three_steps_follow_the_lectures_rule(name: str) -> None:
    expected = RULES[name](START, GRADIENTS, RATE)
    np.testing.assert_allclose(run(make_optimizer(name, RATE)) - START, expected - START, rtol=FLOAT32)


def test_every_listed_optimizer_that_trains_networks_is_held_to_a_rule() -> None:
    assert set(RULES) == {name for name, spec in OPTIMIZERS.items() if spec.keras_class}


def test_three_momentum_steps_worked_by_hand() -> None:
    # dx = 1, 1, 1; rho = .9, rate .1: v = 1, 1.9, 2.71; x = 1 - .1, - .19, - .271
    result = run(make_optimizer("momentum", 0.1), [np.ones(1)] * 3, np.ones(1))
    np.testing.assert_allclose(result, [1 - 0.1 - 0.19 - 0.271], rtol=1e-6)


def test_adams_first_step_is_the_rate_whatever_the_gradients_size() -> None:
    result = run(make_optimizer("adam", 0.1), [np.array([1e-2, -3.0, 1e3])], np.zeros(3))
    np.testing.assert_allclose(result, [-0.1, 0.1, -0.1], rtol=1e-3)


@pytest.mark.parametrize("name", ["adagrad", "rmsprop"])
@pytest.mark.parametrize("size", [1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-3])
def test_epsilon_inside_the_root_is_within_a_factor_of_root_two_of_the_lectures(name: str, size: float) -> None:
    gradients = [np.full(1, size)] * 3
    theirs = -RULES[name](np.zeros(1), gradients, RATE)
    ours = -run(make_optimizer(name, RATE), gradients, np.zeros(1))
    assert 0.999 <= (ours / theirs).item() <= np.sqrt(2) * 1.001


def test_adams_epsilon_counts_most_in_the_first_step_and_as_documented() -> None:
    size = 1e-5
    ours = -run(make_optimizer("adam", RATE), [np.full(1, size)], np.zeros(1)).item() / RATE
    assert ours == pytest.approx(size / (size + EPSILON / np.sqrt(1 - 0.999)), rel=1e-3)


# --- multipliers, decay, clipping ---


def two_layers(optimizer: keras.Optimizer) -> keras.Model:
    inputs = keras.Input((3,))
    hidden = keras.layers.Dense(4, kernel_initializer=keras.initializers.GlorotUniform(seed=1), name="trunk")(inputs)
    outputs = keras.layers.Dense(1, kernel_initializer=keras.initializers.GlorotUniform(seed=2), name="top")(hidden)
    model = keras.Model(inputs, outputs)
    model.compile(optimizer=optimizer, loss="mse")
    return model


def fitted(optimizer: keras.Optimizer, steps: int = 1) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Weights by path before and after `steps` updates through `model.fit`, compiled as usual."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 3)).astype("float32"), rng.normal(size=(8, 1)).astype("float32")
    model = two_layers(optimizer)
    before = {v.path: keras.ops.convert_to_numpy(v).copy() for v in model.trainable_variables}
    model.fit(x, y, batch_size=8, epochs=steps, shuffle=False, verbose=0)
    return before, {v.path: keras.ops.convert_to_numpy(v) for v in model.trainable_variables}


@pytest.mark.parametrize("name", RULES)
def test_a_tenth_is_a_tenth_of_the_rate_in_every_rule(name: str) -> None:
    # No weight decay: what it takes off depends on the weights, and so on the steps before.
    optimizer = make_optimizer(name, RATE, multipliers={"x": 0.1}, weight_decay=0.0)
    rule = lecture_adam if name == "adamw" else RULES[name]
    np.testing.assert_allclose(run(optimizer) - START, rule(START, GRADIENTS, RATE / 10) - START, rtol=FLOAT32)


@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_a_multiplier_of_a_tenth_makes_a_tenth_of_the_step_through_fit(name: str) -> None:
    before, plain = fitted(make_optimizer(name, 1e-2, weight_decay=0.1))
    _, scaled = fitted(make_optimizer(name, 1e-2, weight_decay=0.1, multipliers={"trunk/kernel": 0.1}))
    tenth = (scaled["trunk/kernel"] - before["trunk/kernel"]) / (plain["trunk/kernel"] - before["trunk/kernel"])
    np.testing.assert_allclose(tenth, 0.1, rtol=1e-3)  # the two differences keep four digits
    for path in ("trunk/bias", "top/kernel", "top/bias"):
        np.testing.assert_allclose(scaled[path], plain[path], rtol=1e-6, atol=1e-7)


def test_a_multiplier_works_under_a_schedule() -> None:
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([0], [0.1, 0.01])
    result = run(make_optimizer("sgd", schedule, multipliers={"x": 0.5}), [np.ones(1)] * 2, np.zeros(1))
    np.testing.assert_allclose(result, [-0.5 * (0.1 + 0.01)], rtol=1e-6)


def test_a_multiplier_of_zero_holds_a_variable_still() -> None:
    result = run(make_optimizer("adam", RATE, weight_decay=0.5, multipliers={"x": 0}))
    np.testing.assert_array_equal(result, START.astype("float32"))


def test_weight_decay_is_scaled_with_the_rate_of_the_variable() -> None:
    # x = 2, no gradient: 2 - 2 * rate * multiplier * decay
    result = run(make_optimizer("sgd", 0.1, weight_decay=0.5, multipliers={"x": 0.1}), [np.zeros(1)], np.full(1, 2.0))
    np.testing.assert_allclose(result, [2 - 2 * 0.1 * 0.1 * 0.5], rtol=1e-7)


def test_weight_decay_of_one_variable_can_be_switched_off() -> None:
    optimizer = make_optimizer("sgd", 0.1, weight_decay=0.5, multipliers={"x": 0.1})
    optimizer.exclude_from_weight_decay(var_names=["x"])
    np.testing.assert_array_equal(run(optimizer, [np.zeros(1)], np.full(1, 2.0)), [2.0])


def test_a_multiplier_that_names_nothing_is_an_error_and_not_ignored() -> None:
    with pytest.raises(UsageError, match="trunk/kernl, which is not trained"):
        run(make_optimizer("sgd", RATE, multipliers={"trunk/kernl": 0.1}))


def test_gradients_are_clipped_by_the_norm_of_all_of_them_together() -> None:
    first, second = keras.Variable(np.zeros(1, "float32")), keras.Variable(np.zeros(1, "float32"))
    optimizer = make_optimizer("sgd", 1.0, clip_norm=1.0)
    optimizer.apply([keras.ops.array([3.0]), keras.ops.array([4.0])], [first, second])
    np.testing.assert_allclose([float(first[0]), float(second[0])], [-0.6, -0.8], rtol=1e-6)


# --- Polyak averaging ---


def test_the_average_is_the_lectures_and_starts_at_the_weights_after_the_first_step() -> None:
    optimizer = make_optimizer("sgd", 1.0, average=POLYAK_DECAY)
    variable = keras.Variable(np.zeros(1, "float32"))
    averages = []
    for dx in (-1.0, -1.0, -1.0):  # x = 1, 2, 3
        optimizer.apply([keras.ops.array([dx])], [variable])
        averages.append(averaged_weights(optimizer)[0].item())
    second = 0.995 * 1 + 0.005 * 2
    np.testing.assert_allclose(averages, [1.0, second, 0.995 * second + 0.005 * 3], rtol=1e-6)


def test_fit_leaves_the_raw_weights_in_the_model_and_the_average_beside_them() -> None:
    _, plain = fitted(make_optimizer("adam", 1e-2), steps=5)
    optimizer = make_optimizer("adam", 1e-2, average=0.9)
    _, raw = fitted(optimizer, steps=5)
    for path, value in plain.items():
        np.testing.assert_allclose(raw[path], value, rtol=1e-6, atol=1e-7)
    averages = averaged_weights(optimizer)
    assert [a.shape for a in averages] == [v.shape for v in raw.values()]
    assert not np.allclose(averages[0], raw["trunk/kernel"])


def test_the_average_is_found_through_loss_scaling() -> None:
    inner = make_optimizer("sgd", 1e-2, average=0.5)
    fitted(keras.optimizers.LossScaleOptimizer(inner))
    np.testing.assert_array_equal(
        averaged_weights(keras.optimizers.LossScaleOptimizer(inner))[0], averaged_weights(inner)[0]
    )


def test_an_optimizer_without_an_average_raises() -> None:
    with pytest.raises(UsageError, match="holds no average"):
        averaged_weights(make_optimizer("sgd", RATE))


# --- state ---


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_state_saved_and_loaded_into_a_new_optimizer_continues_as_if_uninterrupted(name: str) -> None:
    def make() -> keras.Optimizer:
        return make_optimizer(name, RATE, multipliers={"x": 0.3}, average=0.9, weight_decay=0.01)

    whole = make()
    expected = run(whole)

    first = make()
    middle = run(first, GRADIENTS[:2])
    store: dict[str, np.ndarray] = {}
    first.save_own_variables(store)
    second = make()
    second.build([keras.Variable(middle, name="x")])
    second.load_own_variables(store)
    resumed = second._trainable_variables[0]
    second.apply([keras.ops.convert_to_tensor(GRADIENTS[2].astype("float32"))])
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(resumed), expected)
    np.testing.assert_array_equal(averaged_weights(second)[0], averaged_weights(whole)[0])


def test_two_runs_give_the_same_weights() -> None:
    settings = {"multipliers": {"x": 0.1}, "average": 0.9, "clip_norm": 1.0, "weight_decay": 0.1}
    first, second = (run(make_optimizer("adamw", RATE, **settings)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


# --- what is refused ---


def test_an_unknown_name_lists_the_optimizers_there_are() -> None:
    with pytest.raises(UsageError, match=r"'adma'.*sgd, momentum, nesterov, adagrad, rmsprop, adam, adamw"):
        make_optimizer("adma", RATE)


def test_lbfgs_is_listed_but_refers_to_the_probe() -> None:
    assert "convex head" in OPTIMIZERS["lbfgs"].help
    with pytest.raises(UsageError, match="convex head"):
        make_optimizer("lbfgs", RATE)


@pytest.mark.parametrize(
    ("name", "rate", "settings", "message"),
    [
        ("sgd", 0.0, {}, "learning_rate"),
        ("sgd", -1.0, {}, "learning_rate"),
        ("sgd", float("nan"), {}, "learning_rate"),
        ("adam", RATE, {"weight_decay": -0.1}, "weight_decay"),
        ("adam", RATE, {"clip_norm": 0.0}, "clip_norm"),
        ("adam", RATE, {"average": 1.0}, "average"),
        ("adam", RATE, {"average": 0.0}, "average"),
        ("adam", RATE, {"multipliers": {"x": -1.0}}, "multiplier of x"),
    ],
)
def test_numbers_out_of_range_are_refused(name: str, rate: float, settings: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_optimizer(name, rate, **settings)


def test_the_default_rates_train_and_adams_is_the_lectures() -> None:
    assert OPTIMIZERS["adam"].learning_rate == 1e-3
    for name in RULES:
        make_optimizer(name, OPTIMIZERS[name].learning_rate)


# --- the other backend ---


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed")
@pytest.mark.skipif(keras.backend.backend() == "jax", reason="this is the JAX run")
def test_all_of_this_holds_under_jax() -> None:
    environment = os.environ | {"KERAS_BACKEND": "jax"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
