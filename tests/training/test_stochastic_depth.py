"""Stochastic depth in a tail: its residual sums and rates, with nothing else random."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from tests.helpers.networks import enliven, noise_pixels, tiny_network
from transferapp.backbones.stages import find_stages
from transferapp.training.head_spec import Head, HeadSpec
from transferapp.training.tail import InferenceMode, TrainingMode, attach_tails, build_tail, plain_tail, residual_sums

layers = keras.layers
CLASSES = 3


def blocks(count: int = 3) -> Any:
    """Residual blocks in a row, the branch now before and now behind the shortcut in the sum."""
    start = keras.Input((6, 6, 4))
    x = start
    for index in range(count):
        branch = layers.Conv2D(4, 3, padding="same", name=f"conv{index}")(x)
        branch = layers.BatchNormalization(name=f"norm{index}")(branch)
        x = layers.Add(name=f"sum{index}")([x, branch] if index % 2 else [branch, x])
    return enliven(keras.Model(start, x))


def new_head(channels: int, **spec: Any) -> Head:
    return Head(HeadSpec(**spec), np.zeros(channels, np.float32), np.ones(channels, np.float32), CLASSES)


def test_sums_of_a_shortcut_and_its_branch_are_found() -> None:
    found = residual_sums(blocks())
    assert [(operation.name, branch) for operation, branch in found.items()] == [("sum0", 0), ("sum1", 1), ("sum2", 0)]


def test_what_is_no_residual_block_is_left_alone() -> None:
    start = keras.Input((6, 6, 4))
    left, right = layers.Conv2D(4, 1)(start), layers.Conv2D(4, 3, padding="same")(start)
    x = layers.Add(name="projected")([left, right])  # the shortcut is a computation too
    x = layers.Add(name="three")([x, layers.ReLU()(x), layers.ReLU()(x)])
    shared = layers.Add(name="twice")
    x = shared([shared([x, layers.ReLU()(x)]), x])
    x = layers.Concatenate()([x, layers.ReLU()(x)])
    assert residual_sums(keras.Model(start, x)) == {}


def test_a_plus_sign_is_a_sum_too() -> None:
    start = keras.Input((6, 6, 4))
    network = keras.Model(start, start + layers.Conv2D(4, 1)(start))
    assert list(residual_sums(network).values()) == [1]
    body = InferenceMode(network, 0.5, seed=1)
    x = np.ones((60, 6, 6, 4), np.float32)
    kept = (np.asarray(body(x, training=True)) - x != 0).any(axis=(1, 2, 3)).mean()
    assert 0.25 < kept < 0.75
    np.testing.assert_allclose(body(x), network(x), atol=1e-6)


def test_higher_branches_are_left_out_more_often() -> None:
    body = InferenceMode(blocks(4), 0.4)
    assert [layer.rate for layer in body.sums] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert InferenceMode(blocks(4)).sums == []


@pytest.mark.parametrize("kind", [InferenceMode, TrainingMode])
def test_training_is_right_on_average_and_prediction_exact(kind: Any) -> None:
    network = blocks(2)
    body = kind(network, 0.4, seed=1)
    x = np.random.default_rng(0).normal(size=(3, 6, 6, 4)).astype(np.float32)
    predicted = np.asarray(network(x, training=False))
    np.testing.assert_allclose(np.asarray(body(x, training=False)), predicted, rtol=1e-4, atol=1e-4)
    if kind is TrainingMode:  # its BatchNorm takes the batch's own statistics, so only chance is looked at
        assert np.abs(np.asarray(body(x, training=True)) - np.asarray(body(x, training=True))).max() > 1e-3
        return
    draws = np.stack([np.asarray(body(x, training=True)) for _ in range(400)])
    # Every branch sees an input that is right on average, and what lies within it is linear here.
    error = draws.std(axis=0, ddof=1) / np.sqrt(len(draws)) + 1e-5
    assert (np.abs(draws.mean(axis=0) - predicted) / error).max() < 5


@pytest.mark.parametrize("from_scratch", [False, True])
def test_a_tail_with_stochastic_depth_trains_and_ships_without(from_scratch: bool, tmp_path: Any) -> None:
    backbone = tiny_network()
    stages = find_stages(backbone)
    head = new_head(20, hidden=(6,), dropout=0.2)
    tail = build_tail(backbone, stages, None, head, from_scratch=from_scratch, stochastic_depth=0.5, seed=2)
    assert tail.residual_branches == 2
    assert build_tail(backbone, stages, stages[-2], head, stochastic_depth=0.5).residual_branches == 0
    pixels = noise_pixels(12).astype(np.float32)
    tail.model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    pretrained, before = backbone.get_weights(), tail.model.get_weights()
    tail.model.fit(pixels, np.arange(12) % CLASSES, verbose=0)
    assert any(np.abs(a - b).max() > 0 for a, b in zip(before, tail.model.get_weights(), strict=True))
    for ours, theirs in zip(backbone.get_weights(), pretrained, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    logits = np.asarray(tail.model(pixels, training=False))
    whole = attach_tails(backbone, stages, None, head, [tail.model.get_weights()], 1.0, "whole")
    np.testing.assert_allclose(np.asarray(whole(pixels)), np.asarray(keras.ops.softmax(logits)), atol=1e-4)
    twin = plain_tail(backbone, stages, None, head, "twin")
    twin.set_weights(tail.model.get_weights())
    np.testing.assert_allclose(np.asarray(twin(pixels)), logits, atol=1e-4)
    whole.save(tmp_path / "whole.keras")
    assert not any(isinstance(layer, InferenceMode | TrainingMode) for layer in whole._flatten_layers())


def test_a_copy_for_other_hardware_keeps_its_depth() -> None:
    body = InferenceMode(blocks(2), 0.3, seed=4, pointwise="bfloat16", name="body")
    again = body.like(blocks(2))
    assert (type(again), again.stochastic_depth, again.seed, again.name) == (InferenceMode, 0.3, 4, "body")
    assert again.pointwise == "bfloat16"
