"""Tails: they start as the linear classifier, and only the layers above the cut train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from tests.helpers.networks import TINY_SIZE, enliven, noise_pixels, tiny_network
from transferapp.backbones.keras_internals import give_weights
from transferapp.backbones.stages import Stage, Tap, cut, find_stages
from transferapp.training.batches import CachedBatches, CachedCenters
from transferapp.training.head_spec import Head
from transferapp.training.heads import attach_head
from transferapp.training.probe import LinearProbe
from transferapp.training.tail import (
    InferenceMode,
    Tail,
    attach_tails,
    build_tail,
    plain_tail,
    with_features,
)

CLASSES = 3
CUTS = (None, 0, 1)
"""Cuts of the tiny network: at the input, and at its first two stages."""


@pytest.fixture(scope="module")
def backbone() -> Any:
    return tiny_network(num_logits=5)


@pytest.fixture(scope="module")
def stages(backbone: Any) -> tuple[Stage, ...]:
    return find_stages(backbone)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return noise_pixels(12).astype(np.float32)


@pytest.fixture(scope="module")
def probe(backbone: Any, stages: tuple[Stage, ...], pixels: np.ndarray) -> LinearProbe:
    return random_probe(features(backbone, stages, pixels))


def features(backbone: Any, stages: tuple[Stage, ...], pixels: np.ndarray) -> np.ndarray:
    return np.asarray(cut(backbone, stages[-1])[0](pixels, training=False)).mean(axis=(1, 2))


def random_probe(rows: np.ndarray) -> LinearProbe:
    rng = np.random.default_rng(3)
    return LinearProbe(
        mean=rows.mean(axis=0),
        std=rows.std(axis=0) + np.float32(0.1),
        kernel=rng.normal(0, 0.3, (rows.shape[1], CLASSES)).astype(np.float32),
        bias=rng.normal(0, 0.1, CLASSES).astype(np.float32),
        l2=0.01,
        iterations=7,
    )


def stage_at(stages: tuple[Stage, ...], index: int | None) -> Stage | None:
    return None if index is None else stages[index]


def below(backbone: Any, stage: Stage | None, pixels: np.ndarray) -> np.ndarray:
    """What the trunk hands to the tail."""
    return pixels if stage is None else np.asarray(cut(backbone, stage)[0](pixels, training=False))


def head_weights(tail: Tail) -> list[np.ndarray]:
    return [array for layer in tail.head for array in layer.get_weights()]


def compiled(tail: Tail, optimizer: str = "sgd") -> Any:
    tail.model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return tail.model


def values(variables: Any) -> list[np.ndarray]:
    return [np.array(keras.ops.convert_to_numpy(v)) for v in variables]


# ------------------------------------------------------------------------------------------------------------ the beginning


@pytest.mark.parametrize("index", CUTS)
def test_before_training_a_tail_on_its_trunk_equals_the_probe(
    backbone: Any, stages: tuple[Stage, ...], probe: LinearProbe, pixels: np.ndarray, index: int | None
) -> None:
    stage = stage_at(stages, index)
    tail = build_tail(backbone, stages, stage, Head.of(probe))
    logits = np.asarray(tail.model(below(backbone, stage, pixels)))
    expected = probe.logits(features(backbone, stages, pixels))
    assert len(set(expected.argmax(axis=1))) > 1
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    kernel, bias = head_weights(tail)
    np.testing.assert_array_equal(kernel, probe.kernel)
    np.testing.assert_array_equal(bias, probe.bias)


@pytest.mark.parametrize("index", CUTS)
def test_what_lies_above_the_cut_trains_and_nothing_else(
    backbone: Any, stages: tuple[Stage, ...], probe: LinearProbe, index: int | None
) -> None:
    tail = build_tail(backbone, stages, stage_at(stages, index), Head.of(probe))
    trained = {variable.path.split("/")[0] for variable in tail.model.trainable_variables}
    layers = ["stem", "conv1", "bn1", "down2", "conv2", "bn2", "top", "head_logits"]
    assert trained == set(layers[{None: 0, 0: 3, 1: 6}[index] :])


def test_training_a_tail_leaves_the_backbone_unchanged_and_its_weights_give_the_whole_network(
    backbone: Any, stages: tuple[Stage, ...], probe: LinearProbe, pixels: np.ndarray
) -> None:
    pretrained = values(backbone.weights)
    tail = build_tail(backbone, stages, stages[0], Head.of(probe))
    before = {v.path: array for v, array in zip(tail.model.weights, values(tail.model.weights), strict=True)}
    x = below(backbone, stages[0], pixels)
    compiled(tail).fit(x, np.arange(12) % CLASSES, batch_size=4, verbose=0)
    moved = {v.path.split("/")[0] for v in tail.model.weights if np.abs(values([v])[0] - before[v.path]).max() > 0}
    assert moved == {"down2", "conv2", "bn2", "top", "head_logits"}
    for ours, theirs in zip(values(backbone.weights), pretrained, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    # The exported network computes the same: one tail on the trunk, calibrated by 1.
    members = [tail.model.get_weights()]
    whole = attach_tails(backbone, stages, stages[0], Head.of(probe), members, 1.0, "whole")
    logits = np.asarray(tail.model(x))
    assert np.abs(logits - probe.logits(features(backbone, stages, pixels))).max() > 1e-3
    np.testing.assert_allclose(np.asarray(whole(pixels)), np.asarray(keras.ops.softmax(logits)), atol=1e-5)


def test_random_weights_are_drawn_by_the_seed_and_leave_the_scale_of_pixels_alone(
    stages: tuple[Stage, ...], probe: LinearProbe
) -> None:
    backbone = tiny_network(num_logits=5, adapted=True)
    pretrained = dict(zip([v.path for v in backbone.weights], values(backbone.weights), strict=True))

    def drawn(seed: int) -> dict[str, np.ndarray]:
        model = build_tail(backbone, stages, None, Head.of(probe), from_scratch=True, seed=seed).model
        arrays = dict(zip([v.path for v in model.weights], values(model.weights), strict=True))
        return {path: array for path, array in arrays.items() if path in pretrained}

    first, again, other = drawn(0), drawn(0), drawn(1)
    scaling = [path for path in first if path.startswith("scale/")]
    assert len(scaling) == 3, list(first)
    for path in scaling:
        np.testing.assert_array_equal(first[path], pretrained[path])
    kernels = [path for path in first if path.endswith("kernel")]
    assert len(kernels) == 5
    for path in kernels:
        np.testing.assert_array_equal(first[path], again[path])
        assert np.abs(first[path] - other[path]).max() > 0
        assert np.abs(first[path] - pretrained[path]).max() > 0
    for path, array in zip(pretrained, values(backbone.weights), strict=True):
        np.testing.assert_array_equal(array, pretrained[path])


# ------------------------------------------------------------------------------------------------------------- statistics


@pytest.mark.parametrize("index", [None, 0])
@pytest.mark.parametrize("from_scratch", [False, True])
def test_statistics_stand_still_unless_the_weights_are_random(
    stages: tuple[Stage, ...], probe: LinearProbe, pixels: np.ndarray, index: int | None, from_scratch: bool
) -> None:
    backbone = tiny_network(num_logits=5)
    stage = stage_at(stages, index)
    tail = build_tail(backbone, stages, stage, Head.of(probe), from_scratch=from_scratch)
    statistics = [v for v in tail.model.variables if "moving" in v.path]
    assert statistics
    before = values(statistics)
    compiled(tail).fit(below(backbone, stage, pixels), np.arange(12) % CLASSES, verbose=0)
    moved = [float(np.abs(a - b).max()) for a, b in zip(values(statistics), before, strict=True)]
    assert all(moved) if from_scratch else not any(moved)


def test_from_scratch_statistics_are_those_of_the_images_after_few_steps(
    stages: tuple[Stage, ...], probe: LinearProbe, pixels: np.ndarray
) -> None:
    tail = build_tail(tiny_network(num_logits=5), stages, None, Head.of(probe), from_scratch=True)
    variances = [v for v in tail.model.variables if "moving_variance" in v.path]
    begun = values(variances)
    tail.model.compile(keras.optimizers.SGD(0.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    labels = np.arange(12) % CLASSES
    tail.model.fit(pixels, labels, epochs=40, batch_size=12, verbose=0)
    early = values(variances)
    tail.model.fit(pixels, labels, epochs=200, batch_size=12, verbose=0)
    for before, after, final in zip(begun, early, values(variances), strict=True):
        assert np.abs(final - after).max() < 0.05 * np.abs(final - before).max()


def test_in_training_batch_norm_works_with_its_statistics_and_dropout_is_off() -> None:
    """The gradient of a step is that of the network as it predicts, worked out by hand."""
    start = keras.Input((1, 1, 1))
    x = keras.layers.BatchNormalization(epsilon=0.0, name="norm")(start)
    x = keras.layers.Dropout(0.9, seed=0)(x)
    network = keras.Model(start, x)
    # gamma 2, beta 1, mean 3, variance 4: x of 5 gives 2 * (5 - 3) / 2 + 1 = 3, and of 7 it gives 5.
    network.layers[1].set_weights([np.array([w], np.float32) for w in (2.0, 1.0, 3.0, 4.0)])
    inputs = keras.Input((1, 1, 1))
    model = keras.Model(inputs, keras.layers.Flatten()(InferenceMode(network)(inputs)))
    model.compile(keras.optimizers.SGD(0.1), "mse")
    loss = model.train_on_batch(np.array([5.0, 7.0], np.float32).reshape(2, 1, 1, 1), np.array([[3.0], [4.0]]))
    assert float(loss) == pytest.approx(0.5)  # errors 0 and 1
    # d loss / d beta = mean(2 * error) = 1; d loss / d gamma = mean(2 * error * normalized) = 2.
    gamma, beta, mean, variance = (float(w[0]) for w in network.layers[1].get_weights())
    assert (gamma, beta) == pytest.approx((2.0 - 0.1 * 2.0, 1.0 - 0.1 * 1.0))
    assert (mean, variance) == (3.0, 4.0)


# ------------------------------------------------------------------------------------------------------------------- rates


def test_rates_fall_towards_the_input(backbone: Any, stages: tuple[Stage, ...], probe: LinearProbe) -> None:
    tail = build_tail(backbone, stages, None, Head.of(probe))
    by_layer = {path.split("/")[0]: rate for path, rate in tail.multipliers(0.1, 0.5).items()}
    early = {"stem": 0.025, "conv1": 0.025, "bn1": 0.025}
    assert by_layer == pytest.approx({**early, "down2": 0.05, "conv2": 0.05, "bn2": 0.05, "top": 0.1})
    assert set(tail.multipliers(0.1).values()) == {0.1}
    trained = {variable.path for variable in tail.model.trainable_variables}
    assert trained - set(tail.multipliers(0.1)) == {v.path for layer in tail.head for v in layer.trainable_variables}


def test_a_layer_that_is_used_below_the_cut_too_stays_as_it_is() -> None:
    layers = keras.layers
    start = keras.Input((*TINY_SIZE, 3))
    shared = layers.Conv2D(3, 3, padding="same", name="shared")
    x = layers.Conv2D(3, 3, 2, padding="same", name="stem")(start)
    x = layers.Add(name="join1")([x, layers.ReLU()(shared(x))])
    x = layers.Conv2D(3, 3, 2, padding="same", name="down")(x)
    x = layers.Add(name="join2")([x, layers.ReLU()(shared(x))])
    backbone = enliven(keras.Model(start, layers.Conv2D(5, 1, name="last")(x)))
    stages = find_stages(backbone)
    first = next(stage for stage in stages if stage.name == "join1")
    pixels = noise_pixels(4).astype(np.float32)
    probe = random_probe(features(backbone, stages, pixels))
    tail = build_tail(backbone, stages, first, Head.of(probe))
    trained = {variable.path.split("/")[0] for variable in tail.model.trainable_variables}
    assert trained == {"down", "last", "head_logits"}
    np.testing.assert_allclose(
        np.asarray(tail.model(below(backbone, first, pixels))),
        probe.logits(features(backbone, stages, pixels)),
        atol=1e-3,
    )
    whole = build_tail(backbone, stages, None, Head.of(probe))
    assert "shared" in {variable.path.split("/")[0] for variable in whole.model.trainable_variables}


# --------------------------------------------------------------------------------------------------------------- snapshots


@pytest.mark.parametrize("index", CUTS)
def test_an_ensemble_is_the_average_of_its_members(
    stages: tuple[Stage, ...], probe: LinearProbe, pixels: np.ndarray, index: int | None, tmp_path: Any
) -> None:
    backbone = tiny_network(num_logits=5, adapted=True)
    stage = stage_at(stages, index)
    tail = build_tail(backbone, stages, stage, Head.of(probe))
    rng = np.random.default_rng(0)
    spread = [0.05 * v.trainable for v in tail.model.weights]
    members = [
        [w + rng.normal(0, s, w.shape).astype(w.dtype) for w, s in zip(tail.model.get_weights(), spread, strict=True)]
        for _ in range(3)
    ]
    scores = []
    for weights in members:
        tail.model.set_weights(weights)
        logits = np.asarray(tail.model(below(backbone, stage, pixels)))
        scores.append(np.asarray(keras.ops.softmax(logits / 1.7)))
    assert np.abs(scores[0] - scores[1]).max() > 1e-3
    network = attach_tails(backbone, stages, stage, Head.of(probe), members, 1.7, "three")
    np.testing.assert_allclose(np.asarray(network(pixels)), np.mean(scores, axis=0), atol=1e-5)
    assert not network.trainable_variables
    network.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", compile=False, safe_mode=True)
    np.testing.assert_allclose(np.asarray(again(pixels)), np.mean(scores, axis=0), atol=1e-5)
    # The second output of the served network: what the head of the first tail reads.
    probabilities, pooled = with_features(network)(pixels)
    np.testing.assert_allclose(np.asarray(probabilities), np.mean(scores, axis=0), atol=1e-5)
    first = plain_tail(backbone, stages, stage, Head.of(probe), "first")
    give_weights(first, members[0])
    expected = keras.Model(first.inputs[0], first.get_layer("head_standardize").input)(below(backbone, stage, pixels))
    np.testing.assert_allclose(np.asarray(pooled), np.asarray(expected), atol=1e-5)


@pytest.mark.parametrize("index", [None, 0])
def test_a_linear_classifier_counts_as_much_as_the_tails_that_it_is_averaged_with(
    backbone: Any, stages: tuple[Stage, ...], probe: LinearProbe, pixels: np.ndarray, tmp_path: Path, index: int | None
) -> None:
    cut = None if index is None else stages[index]
    head = Head.of(probe)
    tail = build_tail(backbone, stages, cut, head)
    members = [[w + change * (w.ndim == 4) for w in tail.model.get_weights()] for change in (0.05, 0.02)]
    alone = attach_tails(backbone, stages, cut, head, members, 1.7, "alone")
    linear = attach_head(backbone, stages, [Tap(stages[-1].name)], head, 1.3, "linear")
    expected = (np.asarray(alone(pixels)) + np.asarray(linear(pixels))) / 2
    assert np.abs(np.asarray(alone(pixels)) - np.asarray(linear(pixels))).max() > 1e-3
    blend = attach_tails(backbone, stages, cut, head, members, 1.7, "blend", linear)
    np.testing.assert_allclose(np.asarray(blend(pixels)), expected, atol=1e-6)
    assert not blend.trainable_variables
    blend.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", compile=False, safe_mode=True)
    np.testing.assert_allclose(np.asarray(again(pixels)), expected, atol=1e-6)
    probabilities, pooled = with_features(blend)(pixels)
    np.testing.assert_allclose(np.asarray(probabilities), expected, atol=1e-6)
    np.testing.assert_allclose(np.asarray(pooled), np.asarray(with_features(alone)(pixels)[1]), atol=1e-6)


@pytest.mark.parametrize("from_scratch", [False, True])
def test_weights_of_a_tail_fit_the_plain_tail(
    backbone: Any, stages: tuple[Stage, ...], probe: LinearProbe, from_scratch: bool
) -> None:
    tail = build_tail(backbone, stages, stages[0], Head.of(probe), from_scratch=from_scratch)
    twin = plain_tail(backbone, stages, stages[0], Head.of(probe), "twin")
    assert [w.path.split("/")[-1] for w in twin.weights] == [w.path.split("/")[-1] for w in tail.model.weights]
    assert [w.shape for w in twin.weights] == [w.shape for w in tail.model.weights]
    assert not {id(v) for v in twin.weights} & {id(v) for v in backbone.weights}


# -------------------------------------------------------------------------------------------------------------------- data

VIEWS = 3


def cached(count: int = 10, batch_size: int = 4, seed: int = 1) -> CachedBatches:
    """Row r holds r; image p has its views in rows p, p + count, p + 2 count; its label is p."""
    rows = np.repeat(np.arange(count * VIEWS, dtype=np.float16)[:, None], 4, axis=1)
    positions = np.arange(count * VIEWS).reshape(VIEWS, count).T
    return CachedBatches(rows, positions, np.arange(count), (2, 2, 1), batch_size=batch_size, seed=seed)


def epoch_of(batches: CachedBatches, epoch: int) -> tuple[list[int], list[int]]:
    """(labels, rows) in the order of the epoch."""
    batches.epoch = epoch
    items = [batches[index] for index in range(len(batches))]
    labels = [int(label) for _, part in items for label in part]
    return labels, [int(x[0, 0, 0]) for part, _ in items for x in part]


def test_an_epoch_holds_every_image_once() -> None:
    batches = cached()
    x, y = batches[0]
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((4, 2, 2, 1), np.float32, (4,), np.int32)
    assert [len(batches[index][1]) for index in range(len(batches))] == [4, 4, 2]
    for epoch in range(4):
        labels, rows = epoch_of(batches, epoch)
        assert sorted(labels) == list(range(10))
        assert [row % 10 for row in rows] == labels, "the rows are of the images that the labels say"


def test_as_many_epochs_as_views_see_each_view_once() -> None:
    batches = cached()
    for first in (0, 5):
        seen = [row for epoch in range(first, first + VIEWS) for row in epoch_of(batches, epoch)[1]]
        assert sorted(seen) == list(range(10 * VIEWS))


def test_an_epoch_mixes_all_kinds_of_views() -> None:
    _, rows = epoch_of(cached(count=30), 0)
    assert sorted(row // 30 for row in rows) == [0] * 10 + [1] * 10 + [2] * 10


def test_order_and_views_follow_from_seed_and_epoch_alone() -> None:
    fresh = epoch_of(cached(), 7)
    used = cached()
    for epoch in (0, 3, 2):
        epoch_of(used, epoch)
    assert epoch_of(used, 7) == fresh
    assert epoch_of(cached(seed=2), 7) != fresh
    assert epoch_of(used, 8) != fresh
    assert [epoch_of(cached(batch_size=size), 7) for size in (1, 3, 100)] == [fresh] * 3


@pytest.mark.parametrize("index", [-1, 3])
def test_there_is_nothing_beyond_the_last_batch(index: int) -> None:
    with pytest.raises(IndexError):
        cached()[index]
    with pytest.raises(IndexError):
        CachedCenters(np.zeros((5, 4), np.float16), np.arange(5), (2, 2, 1), batch_size=2)[index]


def test_validation_comes_in_order() -> None:
    rows = np.repeat(np.arange(9, dtype=np.float16)[:, None], 4, axis=1)
    centers = CachedCenters(rows, np.array([8, 2, 5, 1, 0]), (2, 2, 1), batch_size=2)
    parts = [centers[index][0] for index in range(len(centers))]
    assert [part.shape for part in parts] == [(2, 2, 2, 1), (2, 2, 2, 1), (1, 2, 2, 1)]
    assert np.concatenate(parts)[:, 0, 0, 0].tolist() == [8, 2, 5, 1, 0]
    assert parts[0].dtype == np.float32
