"""Heads: forms, regularization, loading without this package, and the signal through deep ones."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from tests.helpers.networks import draws_in_training
from transferapp.backbones.stages import Tap, find_stages
from transferapp.errors import UsageError
from transferapp.training.head_spec import ACTIVATIONS, POOLINGS, Head, HeadSpec
from transferapp.training.heads import attach_head, build_head, check_signal, head_layers, signal_findings
from transferapp.training.probe import fit_probe, moments
from transferapp.training.tail import lone_head

MAPS = (5, 6, 8)
CLASSES = 3


def maps(count: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(1, 2, (count, *MAPS)).astype(np.float32)


def model_of(spec: HeadSpec, *, for_prediction: bool = False, seed: int = 0) -> Any:
    start = keras.Input(MAPS)
    mean, std = np.full(MAPS[2], 0.5, np.float32), np.full(MAPS[2], 2.0, np.float32)
    return keras.Model(start, build_head(spec, start, CLASSES, mean, std, seed=seed, for_prediction=for_prediction))


# ------------------------------------------------------------------------------------------------------------------- form

FORMS = [
    HeadSpec(),
    HeadSpec(pooling="max"),
    HeadSpec(pooling="fractional_max", dropout=0.5),
    HeadSpec(hidden=(7,), dropconnect=0.5, l1=1e-3, l2=1e-2),
    HeadSpec(hidden=(7, 5), activation="maxout", batch_norm=True, dropout=0.3),
    *(HeadSpec(hidden=(6,), activation=name, initializer="glorot") for name in ACTIVATIONS if name != "maxout"),
]


@pytest.mark.parametrize("spec", FORMS, ids=HeadSpec.describe)
def test_what_ships_computes_what_was_trained_with_layers_of_keras_alone(spec: HeadSpec, tmp_path: Path) -> None:
    trained, plain = model_of(spec), model_of(spec, for_prediction=True)
    trained.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    trained.fit(maps(), np.arange(6) % CLASSES, epochs=2, verbose=0)
    plain.set_weights(trained.get_weights())
    expected = np.asarray(trained(maps(9, 1), training=False))
    np.testing.assert_allclose(np.asarray(plain(maps(9, 1), training=not spec.batch_norm)), expected, atol=1e-5)
    assert not plain.losses
    plain.save(tmp_path / "head.keras")
    assert "transferapp" not in json.dumps(plain.get_config())


@pytest.mark.slow
def test_a_saved_head_is_loaded_where_this_package_is_not(tmp_path: Path) -> None:
    plain = model_of(HeadSpec("fractional_max", (6,), "maxout", batch_norm=True), for_prediction=True)
    plain.save(tmp_path / "head.keras")
    np.save(tmp_path / "maps.npy", maps())
    code = (
        "import sys; sys.modules['transferapp'] = None\n"
        "import keras, numpy as np\n"
        "model = keras.saving.load_model('head.keras', safe_mode=True)\n"
        "np.save('logits.npy', np.asarray(model(np.load('maps.npy'))))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), np.asarray(plain(maps())), atol=1e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_maps_are_pooled_and_standardized_within_the_graph(pooling: str) -> None:
    model = model_of(HeadSpec(pooling=pooling), for_prediction=True)
    kernel = np.eye(MAPS[2], CLASSES, dtype=np.float32)
    model.set_weights([kernel, np.zeros(CLASSES, np.float32)])
    x = maps()
    whole = {"average": x.mean(axis=(1, 2)), "max": x.max(axis=(1, 2))}
    given = np.asarray(model(x))
    if pooling == "fractional_max":  # regions of the largest values, averaged: between the two
        between = [(whole[name][:, :CLASSES] - 0.5) / 2 for name in ("average", "max")]
        assert (given > between[0]).all()
        assert (given < between[1]).all()
    else:
        np.testing.assert_allclose(given, (whole[pooling][:, :CLASSES] - 0.5) / 2, atol=1e-5)


def test_features_that_are_pooled_already_are_taken_as_they_are() -> None:
    spec = HeadSpec(pooling="max", hidden=(4,))
    zero, one = np.zeros(MAPS[2], np.float32), np.ones(MAPS[2], np.float32)
    flat = keras.Input(MAPS[2:])
    model = keras.Model(flat, build_head(spec, flat, CLASSES, zero, one))
    start = keras.Input(MAPS)
    whole = keras.Model(start, build_head(spec, start, CLASSES, zero, one))
    np.testing.assert_allclose(np.asarray(model(maps().max(axis=(1, 2)))), np.asarray(whole(maps())), atol=1e-5)


def test_penalties_are_the_lectures() -> None:
    model = model_of(HeadSpec(hidden=(2,), l1=0.5, l2=0.25))
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(size=w.shape).astype(np.float32) for w in model.get_weights()])
    kernels = [w for w in model.get_weights() if w.ndim == 2]
    expected = sum(0.5 * np.abs(w).sum() + 0.25 / 2 * np.square(w).sum() for w in kernels)
    assert float(sum(model.losses)) == pytest.approx(expected, rel=1e-5)


def test_gradient_steps_lead_a_linear_head_to_the_optimum_that_is_solved_for() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % CLASSES
    features = (np.eye(CLASSES, 8)[labels] * 2 + rng.normal(size=(60, 8))).astype(np.float32)
    probe = fit_probe(features, labels, CLASSES, l2=0.1)
    new = Head(HeadSpec(l2=0.1), *moments(features), CLASSES)
    model = lone_head(new, (8,), seed=0).model
    rate = keras.optimizers.schedules.CosineDecay(0.05, 300)
    model.compile(keras.optimizers.Adam(rate), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    steps = (np.tile(features, (300, 1)), np.tile(labels, 300))  # one epoch of them: that takes Keras far less than 300
    model.fit(*steps, batch_size=60, shuffle=False, verbose=0)
    np.testing.assert_allclose(np.asarray(model(features)), probe.logits(features), atol=0.02)


@pytest.mark.parametrize("spec", [HeadSpec(dropout=0.5), HeadSpec(dropconnect=0.5), HeadSpec(pooling="fractional_max")])
def test_training_is_random_and_its_average_is_the_prediction(spec: HeadSpec) -> None:
    model = model_of(spec, seed=3)
    x = maps(4)
    draws = draws_in_training(model, x, 400)
    assert draws.std(axis=0).min() > 0
    error = draws.std(axis=0, ddof=1) / np.sqrt(len(draws))
    predicted = np.asarray(model(x, training=False))
    if spec.pooling == "fractional_max":  # where the regions lie in prediction is one draw of many
        error = draws.std(axis=0, ddof=1)
    assert (np.abs(draws.mean(axis=0) - predicted) / error).max() < 5


def test_the_seed_decides_the_weights_and_every_layer_has_its_own() -> None:
    spec = HeadSpec(hidden=(8, 8))
    first, second, other = (model_of(spec, seed=seed).get_weights() for seed in (1, 1, 2))
    for ours, theirs in zip(first, second, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert np.abs(first[0] - other[0]).max() > 0
    assert np.abs(first[0] - first[2]).max() > 0, "both kernels are 8 × 8"


@pytest.mark.parametrize(("initializer", "variance"), [("he", 2 / 400), ("glorot", 2 / (400 + 300))])
def test_initial_weights_have_the_variance_of_their_paper(initializer: str, variance: float) -> None:
    spec = HeadSpec(hidden=(300,), initializer=initializer)
    head = Head(spec, np.zeros(400, np.float32), np.ones(400, np.float32), CLASSES)
    kernel = lone_head(head, (400,), seed=0).model.get_weights()[0]
    assert kernel.var() == pytest.approx(variance, rel=0.05)


def test_a_head_keeps_its_numbers_when_it_is_built_again() -> None:
    spec = HeadSpec(hidden=(5,), batch_norm=True, dropout=0.2)
    new = Head(spec, np.zeros(8, np.float32), np.ones(8, np.float32), CLASSES)
    tail = lone_head(new, (8,), seed=1)
    assert [layer.name for layer in tail.head] == ["head_hidden_1", "head_norm_1", "head_logits"]
    assert tail.multipliers(0.0) == {}
    rng = np.random.default_rng(0)
    tail.model.set_weights([rng.uniform(0.1, 1, w.shape).astype(np.float32) for w in tail.model.get_weights()])
    kept = replace(new, weights=tuple(w for layer in tail.head for w in layer.get_weights()))
    again = lone_head(kept, (8,), seed=9)
    x = rng.normal(size=(4, 8)).astype(np.float32)
    np.testing.assert_array_equal(np.asarray(again.model(x)), np.asarray(tail.model(x)))
    assert head_layers(again.model) == again.head


def test_a_backbone_may_call_its_own_layers_a_head() -> None:
    start = keras.Input((4, 4, 3))
    x = keras.layers.Conv2D(6, 1, name="head_conv")(start)
    x = keras.layers.BatchNormalization(name="head_bn")(x)
    backbone = keras.Model(start, keras.layers.Conv2D(8, 1, name="head_last")(x))
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=shape).astype(np.float32) for shape in ((8, 5), (5,), (5, CLASSES), (CLASSES,))]
    head = Head(HeadSpec(hidden=(5,)), np.zeros(8, np.float32), np.ones(8, np.float32), CLASSES, tuple(weights))
    pretrained = backbone.get_weights()
    stages = find_stages(backbone)
    whole = attach_head(backbone, stages, [Tap(stages[-1].name)], head, 1.0, "whole")
    for ours, theirs in zip(whole.get_weights(), [*pretrained, *weights], strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"pooling": "median"}, "average, max, fractional_max"),
        ({"activation": "swish"}, "maxout"),
        ({"initializer": "zeros"}, "he, glorot"),
        ({"hidden": (0,)}, "hidden"),
        ({"hidden": (8,) * 21}, "at most 20"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropconnect": -0.1}, "dropconnect"),
        ({"l1": float("inf")}, "l1"),
        ({"l2": float("nan")}, "l2"),
    ],
)
def test_what_is_invalid_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        HeadSpec(**values)


def test_a_form_survives_json() -> None:
    for spec in FORMS:
        assert HeadSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    with pytest.raises(UsageError, match="no 'depth'"):
        HeadSpec.from_json({"depth": 3})


def test_only_a_linear_head_on_averages_without_chance_is_solved() -> None:
    assert HeadSpec(l2=0.1).solvable
    others = [{"hidden": (4,)}, {"pooling": "max"}, {"dropout": 0.1}, {"dropconnect": 0.1}, {"l1": 0.1}]
    assert not any(HeadSpec(**changes).solvable for changes in others)  # type: ignore[arg-type]
    assert HeadSpec(dropout=0.1).linear


# ----------------------------------------------------------------------------------------------------------------- signal

DEEP = 10


def deep(activation: str, initializer: str, scale: float | None = None, *, batch_norm: bool = False) -> Any:
    """A head of ten hidden layers of a hundred units; with `scale`, weights of that standard deviation."""
    spec = HeadSpec(hidden=(100,) * DEEP, activation=activation, initializer=initializer, batch_norm=batch_norm)
    head = Head(spec, np.zeros(100, np.float32), np.ones(100, np.float32), CLASSES)
    model = lone_head(head, (100,), seed=0).model
    if scale is not None:
        rng = np.random.default_rng(0)
        model.set_weights([rng.normal(0, scale, w.shape) if w.ndim == 2 else w for w in model.get_weights()])
    return model


@pytest.mark.parametrize(
    ("activation", "initializer", "scale", "codes"),
    [
        ("tanh", "glorot", 0.01, ["vanishing_signal"]),
        ("tanh", "glorot", 1.0, ["stuck_units"]),
        ("tanh", "glorot", None, []),
        ("relu", "he", None, []),
        ("relu", "glorot", 0.01, ["vanishing_signal"]),
        ("maxout", "he", None, []),
        ("sigmoid", "glorot", None, ["vanishing_signal"]),
    ],
)
def test_what_the_lecture_shows_of_ten_layers_is_found(
    activation: str, initializer: str, scale: float | None, codes: list[str]
) -> None:
    features = np.random.default_rng(1).normal(0, 1, (300, 100)).astype(np.float32)
    signals = check_signal(deep(activation, initializer, scale), features)
    assert [signal.layer for signal in signals] == list(range(1, DEEP + 1))
    findings = signal_findings(signals)
    assert [finding.code for finding in findings] == codes
    assert all(np.isfinite(list(finding.evidence.values())).all() for finding in findings)


def test_units_that_answer_no_image_are_dead() -> None:
    model = deep("relu", "he")
    weights = model.get_weights()
    weights[1][:80] = -100.0  # biases of the first layer
    model.set_weights(weights)
    features = np.random.default_rng(1).normal(0, 1, (50, 100)).astype(np.float32)
    signals = check_signal(model, features)
    assert signals[0].stuck == 0.8
    assert "stuck_units" in [finding.code for finding in signal_findings(signals)]


def test_a_linear_head_has_nothing_to_check() -> None:
    head = Head(HeadSpec(), np.zeros(4, np.float32), np.ones(4, np.float32), CLASSES)
    assert check_signal(lone_head(head, (4,), seed=0).model, np.zeros((3, 4), np.float32)) == ()
    assert signal_findings(()) == ()
