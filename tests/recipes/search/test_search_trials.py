"""A trial: heads trained by mini-batches in NumPy agree with Keras, repeat themselves, and stop where hope ends."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from tests.helpers.search_problems import clusters
from transferapp.recipes.search.linear import LinearTrainer
from transferapp.recipes.search.problem import HeadSettings, batches, judged, relative_rates, run_trial, targets
from transferapp.recipes.search.space import SCHEDULES
from transferapp.training.head_spec import HeadSpec
from transferapp.training.optimizers import OPTIMIZERS
from transferapp.training.probe import fit_probe

BUILT = tuple(name for name, spec in OPTIMIZERS.items() if spec.keras_class)
DECAYED = {"weight_decay": 0.01, "label_smoothing": 0.1}


def test_trained_for_long_a_linear_head_comes_to_the_optimum_of_lbfgs() -> None:
    problem = clusters()
    settings = HeadSettings(HeadSpec(l2=0.1), learning_rate=0.02, batch_size=80, epochs=400)
    trainer = LinearTrainer(problem)
    trained = trainer.train(settings)
    probe = fit_probe(problem.train.center, problem.train.labels, problem.num_classes, 0.1)
    np.testing.assert_allclose(trained.weights[0], probe.kernel, atol=2e-3)
    np.testing.assert_allclose(
        trainer.logits(settings, trained, problem.val.center), probe.logits(problem.val.center), atol=2e-2
    )


def test_an_epoch_shows_every_image_once_and_in_turn_in_each_of_its_views() -> None:
    seen = np.zeros((10, 3), int)
    for epoch in range(3):
        chosen, views = (np.concatenate(parts) for parts in zip(*batches(10, 3, 4, epoch, 7), strict=True))
        assert sorted(chosen) == list(range(10))
        seen[chosen, views] += 1
    assert (seen == 1).all()


def test_smoothed_labels_sum_to_one() -> None:
    np.testing.assert_allclose(targets(np.array([1]), 4, 0.2), [[0.05, 0.85, 0.05, 0.05]], rtol=1e-6)


def test_a_cost_that_explodes_ends_a_trial_early() -> None:
    problem = clusters()
    outcome = run_trial(problem, LinearTrainer(problem), HeadSettings(HeadSpec(), "sgd", 1e4, epochs=10))
    assert outcome.exploded
    assert outcome.epochs < 10


def test_no_numbers_are_right_on_nothing() -> None:
    assert judged(np.array([[np.nan, 1.0]]), np.array([1])) == (0.0, math.inf)


def test_settings_are_found_by_name_in_the_head_or_beside_it() -> None:
    base = HeadSettings(HeadSpec(activation="tanh"))
    changed = base.with_params({"learning_rate": 0.5, "l2": 0.25, "hidden": (8,)}, epochs=3)
    assert (changed.learning_rate, changed.epochs) == (0.5, 3)
    assert (changed.head.l2, changed.head.hidden, changed.head.activation) == (0.25, (8,), "tanh")
    assert HeadSettings.from_json(changed.to_json()) == changed


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_rates_are_those_of_the_schedules_by_that_name(schedule: str) -> None:
    from transferapp.training.schedules import make_schedule

    keras_schedule = make_schedule(schedule, 1.0, 50)
    expected = [float(np.asarray(keras_schedule(step))) for step in range(50)]
    np.testing.assert_allclose(relative_rates(schedule, 50), expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", BUILT)
def test_a_linear_head_comes_out_as_keras_trains_it(optimizer: str) -> None:
    from transferapp.recipes.search.networks import NetworkTrainer

    problem = clusters(views=2)
    networks = NetworkTrainer(problem)
    settings = HeadSettings(HeadSpec(l2=0.1), optimizer, 1e-2, batch_size=32, epochs=4, **DECAYED)
    networks.compiled(settings).start_from_zero()
    by_keras, by_numpy = networks.train(settings), LinearTrainer(problem).train(settings)
    for ours, theirs in zip(by_numpy.weights, by_keras.weights, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-4)
    assert by_numpy.cost == pytest.approx(by_keras.cost, rel=1e-3)
    assert (by_numpy.steps, by_numpy.exploded) == (by_keras.steps, by_keras.exploded)


@pytest.mark.slow
def test_one_architecture_is_compiled_once_and_its_dials_still_turn() -> None:
    from transferapp.recipes.search.networks import NetworkTrainer

    problem = clusters()
    networks = NetworkTrainer(problem)
    base = HeadSettings(
        HeadSpec(hidden=(16,), dropout=0.1, dropconnect=0.1, batch_norm=True), learning_rate=0.01, epochs=4
    )
    first = run_trial(problem, networks, base)
    model = networks.compiled(base).model
    others = [
        dataclasses.replace(base, head=dataclasses.replace(base.head, **change))
        for change in ({"l2": 1.0}, {"l1": 0.1}, {"dropout": 0.8}, {"dropconnect": 0.8})
    ]
    losses = [run_trial(problem, networks, other).loss for other in others]
    assert len({first.loss, *losses}) == 5
    assert all(networks.compiled(other).model is model for other in others)
    again = run_trial(problem, networks, base)
    assert (again.loss, again.accuracy) == (first.loss, first.accuracy), "nothing of the trials between is left"


@pytest.mark.slow
def test_what_dropout_and_dropconnect_leave_out_evens_out() -> None:
    import keras

    from transferapp.recipes.search.networks import DialedDense, DialedDropout, Dials

    dials = Dials()
    dials["dropout"].assign(0.4)
    dials["dropconnect"].assign(0.4)
    x = np.random.default_rng(0).normal(size=(1, 6)).astype(np.float32)
    dense = DialedDense(3, dials, seed=1, drops=True)
    for layer in (DialedDropout(dials, seed=1), dense):
        still = keras.ops.convert_to_numpy(layer(x, training=False))
        mean = np.mean([keras.ops.convert_to_numpy(layer(x, training=True)) for _ in range(4000)], axis=0)
        np.testing.assert_allclose(mean, still, atol=0.15)


@pytest.mark.slow
def test_the_head_that_ships_gives_what_the_trained_one_gave() -> None:
    import keras

    from transferapp.recipes.search.networks import NetworkTrainer
    from transferapp.training.heads import build_head

    problem = clusters()
    spec = HeadSpec(hidden=(16, 8), activation="maxout", dropout=0.2, dropconnect=0.2, batch_norm=True, l2=0.01)
    settings, networks = HeadSettings(spec, learning_rate=0.01, epochs=3), NetworkTrainer(problem)
    trained = networks.train(settings)
    inputs = keras.Input((24,))
    outputs = build_head(spec, inputs, problem.num_classes, trained.mean, trained.std, for_prediction=True)
    ships = keras.Model(inputs, outputs)
    ships.set_weights(trained.weights)
    rows = problem.val.center
    np.testing.assert_allclose(ships(rows), networks.logits(settings, trained, rows), atol=1e-4)
