"""Stages: found from the graph in every network family; the two parts of a cut compute what the whole does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from tests.helpers.networks import TINY_SIZE, TINY_STAGES, enliven, noise_pixels, tiny_network
from transferapp.backbones.engine import OpenVINOEngine, convert
from transferapp.backbones.loading import load_backbone
from transferapp.backbones.registry import backbone_spec
from transferapp.backbones.stages import (
    Stage,
    cut,
    find_stages,
    pooled_taps,
    spatial_deviation,
    stage_named,
    stage_tensor,
)
from transferapp.errors import UsageError

SMALL = (64, 64)
layers = keras.layers
DEVIATING = {
    "noise": np.random.default_rng(0).normal(size=(3, 4, 6, 5)).astype(np.float32),
    "far from zero": (1e3 + np.random.default_rng(1).normal(size=(2, 8, 8, 4))).astype(np.float32),
    "constant": np.full((2, 3, 3, 2), 7, np.float32),
    "one pixel": np.ones((2, 1, 1, 3), np.float32),
}


def described(stages: tuple[Stage, ...]) -> list[tuple[str, tuple[int, int, int]]]:
    return [(stage.name, stage.shape) for stage in stages]


def backbone(name: str, size: tuple[int, int] = SMALL) -> Any:
    return enliven(load_backbone(backbone_spec(name), image_size=size, pretrained=False))


def check_recomposition(model: Any, size: tuple[int, int]) -> None:
    """Trunk and tail at every stage make the whole, and share its weights out between them."""
    pixels = noise_pixels(2, size).astype(np.float32)
    whole = np.asarray(model(pixels, training=False))
    assert np.isfinite(whole).all()
    assert np.abs(whole[0] - whole[1]).max() > 0.01 * np.abs(whole).max() > 0, "the outputs tell the images apart"
    for stage in find_stages(model):
        trunk, tail = cut(model, stage)
        features = np.asarray(trunk(pixels, training=False))
        assert features.shape[1:] == stage.shape
        recomposed = np.asarray(tail(features, training=False))
        np.testing.assert_allclose(recomposed, whole, rtol=1e-4, atol=1e-5 * np.abs(whole).max(), err_msg=stage.name)
        assert trunk.count_params() + tail.count_params() == model.count_params()


# Worked out from the papers' tables for an input of 64 × 64: one stage for each group of residual blocks at one width.
EXPECTED = {
    "efficientnet_lite0": [
        ("block2", (16, 16, 24)),
        ("block4", (8, 8, 40)),
        ("block7", (4, 4, 80)),
        ("block10", (4, 4, 112)),
        ("block14", (2, 2, 192)),
        ("top", (2, 2, 1280)),
    ],
    "mobilenet_v2": [
        ("block_2_add", (16, 16, 24)),
        ("block_5_add", (8, 8, 32)),
        ("block_9_add", (4, 4, 64)),
        ("block_12_add", (4, 4, 96)),
        ("block_15_add", (2, 2, 160)),
        ("out_relu", (2, 2, 1280)),
    ],
    "resnet50": [
        ("conv2_block3_out", (16, 16, 256)),
        ("conv3_block4_out", (8, 8, 512)),
        ("conv4_block6_out", (4, 4, 1024)),
        ("conv5_block3_out", (2, 2, 2048)),
    ],
    "densenet121": [
        ("pool2_relu", (16, 16, 256)),
        ("pool3_relu", (8, 8, 512)),
        ("pool4_relu", (4, 4, 1024)),
        ("relu", (2, 2, 1024)),
    ],
    "efficientnet_v2_b0": [
        ("block2b_add", (16, 16, 32)),
        ("block3b_add", (8, 8, 48)),
        ("block4c_add", (4, 4, 96)),
        ("block5e_add", (4, 4, 112)),
        ("block6h_add", (2, 2, 192)),
        ("top_activation", (2, 2, 1280)),
    ],
    "convnext_tiny": [
        ("add_2", (16, 16, 96)),
        ("add_5", (8, 8, 192)),
        ("add_14", (4, 4, 384)),
        ("layer_normalization", (2, 2, 768)),
    ],
}
FAST = ("efficientnet_lite0", "mobilenet_v2")


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in EXPECTED]
)
def test_a_network_is_cut_where_its_paper_draws_the_lines_and_recomposes_exactly(name: str) -> None:
    model = backbone(name)
    stages = find_stages(model)
    assert described(stages) == EXPECTED[name]
    assert [stage.index for stage in stages] == list(range(len(stages)))
    assert [stage.is_top for stage in stages] == [False] * (len(stages) - 1) + [True]
    check_recomposition(model, SMALL)


@pytest.mark.slow
def test_a_network_whose_cells_reach_back_has_one_stage() -> None:
    model = backbone("nasnet_mobile", (96, 96))  # every cell also sees the output of the cell before the last
    stages = find_stages(model)
    assert [stage.shape for stage in stages] == [(3, 3, 1056)]
    assert stages[0].is_top
    check_recomposition(model, (96, 96))


def test_a_network_that_merges_nowhere_has_a_stage_for_each_resolution() -> None:
    model = backbone("vgg16")
    assert described(find_stages(model)) == [
        ("block1_conv2", (64, 64, 64)),
        ("block2_conv2", (32, 32, 128)),
        ("block3_conv3", (16, 16, 256)),
        ("block4_conv3", (8, 8, 512)),
        ("block5_conv3", (4, 4, 512)),
        ("block5_pool", (2, 2, 512)),
    ]
    check_recomposition(model, SMALL)


@pytest.mark.parametrize("num_logits", [0, 5])
def test_a_small_residual_network_has_the_stages_worked_out_by_hand(num_logits: int) -> None:
    model = tiny_network(num_logits=num_logits)
    assert described(find_stages(model)) == list(TINY_STAGES)
    check_recomposition(model, TINY_SIZE)


def test_an_input_that_is_not_square_keeps_height_and_width_apart() -> None:
    stages = find_stages(tiny_network((32, 64)))
    assert [stage.shape for stage in stages] == [(16, 32, 8), (8, 16, 12), (8, 16, 20)]
    assert stages[0].describe() == "join1 (16×32×8)"


def test_the_gate_of_a_squeeze_and_excitation_is_no_merge() -> None:
    start = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, padding="same", name="conv")(start)
    gate = layers.Conv2D(8, 1, activation="sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    x = layers.Multiply(name="gated")([x, gate])
    x = layers.Conv2D(12, 3, padding="same", name="next")(x)
    model = enliven(keras.Model(start, x))
    # Taken for a merge, the gate would end a stage at `gated`; a chain of one resolution is a single stage.
    assert described(find_stages(model)) == [("next", (16, 16, 12))]
    check_recomposition(model, (16, 16))


def test_a_classifier_of_1x1_convolutions_is_no_stage() -> None:
    body = tiny_network()
    x = layers.GlobalAveragePooling2D(keepdims=True)(body.outputs[0])
    x = layers.Flatten()(layers.Conv2D(7, 1, name="logits")(layers.Conv2D(30, 1, activation="relu")(x)))
    model = enliven(keras.Model(body.inputs[0], x))
    assert described(find_stages(model)) == list(TINY_STAGES)
    check_recomposition(model, TINY_SIZE)


def test_a_layer_that_is_used_twice_names_two_different_places() -> None:
    relu = layers.ReLU(name="relu")
    start = keras.Input((16, 16, 3))
    first = relu(layers.Conv2D(8, 3, 2, padding="same")(start))
    second = relu(layers.Conv2D(8, 3, padding="same")(layers.MaxPooling2D()(first)))
    third = relu(layers.Conv2D(8, 3, padding="same")(second))
    model = enliven(keras.Model(start, third))
    stages = find_stages(model)
    assert described(stages) == [("relu", (8, 8, 8)), ("relu#3", (4, 4, 8))]
    assert stage_tensor(model, stages[0]) is first
    assert stage_tensor(model, stages[1]) is third
    check_recomposition(model, (16, 16))


def test_a_dense_block_merges_by_concatenation() -> None:
    start = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, 2, padding="same")(start)
    for _ in range(2):
        x = layers.Concatenate()([x, layers.Conv2D(4, 3, padding="same", activation="relu")(x)])
    transition = layers.Conv2D(8, 1, name="transition")(x)
    x = layers.Concatenate(name="last")([transition, layers.Conv2D(4, 3, padding="same")(transition)])
    model = enliven(keras.Model(start, x))
    assert [stage.shape for stage in find_stages(model)] == [(8, 8, 16), (8, 8, 12)]
    check_recomposition(model, (16, 16))


def test_no_stage_lies_beside_a_path_that_goes_around_it() -> None:
    start = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, 2, padding="same", name="below")(start)
    inner = layers.Conv2D(8, 3, padding="same", activation="relu", name="inside")(x)
    inner = layers.Add(name="inner_join")([inner, layers.Conv2D(8, 3, padding="same")(inner)])
    x = layers.Add(name="outer_join")([x, inner])  # goes around all of it
    model = enliven(keras.Model(start, x))
    assert [stage.name for stage in find_stages(model)] == ["outer_join"]
    check_recomposition(model, (16, 16))


# ---------------------------------------------------------------------------------------------------------------- refusals


def _two_towers() -> Any:
    start = keras.Input((16, 16, 3), name="pixels")
    towers = [layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, name=f"tower{i}")(start)) for i in range(2)]
    return keras.Model(start, layers.Concatenate()(towers), name="towers")


def _no_image() -> Any:
    start = keras.Input((16,))
    return keras.Model(start, layers.Dense(3)(start), name="vector")


def _two_inputs() -> Any:
    inputs = [keras.Input((16, 16, 3)), keras.Input((16, 16, 3))]
    return keras.Model(inputs, layers.Add()(inputs), name="twins")


def _two_outputs() -> Any:
    start = keras.Input((16, 16, 3))
    x = layers.Conv2D(4, 3)(start)
    return keras.Model(start, [x, layers.ReLU()(x)], name="fork")


def _any_size() -> Any:
    return tiny_network((None, None))


class _Subclassed(keras.Model):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(name="subclassed")
        self.convolution = layers.Conv2D(4, 3)

    def call(self, inputs: Any) -> Any:
        return self.convolution(inputs)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (_two_towers, "towers has no feature map to cut at"),
        (_no_image, r"vector cannot be cut.*input of fixed shape.*\(16,\)"),
        (_two_inputs, "twins cannot be cut.*one input and one output"),
        (_two_outputs, "fork cannot be cut.*one input and one output"),
        (_any_size, "tiny cannot be cut.*input of fixed shape"),
        (_Subclassed, "subclassed cannot be cut.*functional.*got a _Subclassed"),
    ],
)
def test_a_model_that_cannot_be_cut_is_an_error(build: Callable[[], Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        find_stages(build())


def test_a_stage_is_found_by_name_and_the_last_one_as_top() -> None:
    stages = find_stages(tiny_network())
    assert stage_named(stages, "join2") is stages[1]
    assert stage_named(stages, "top") is stages[2]
    renamed = (*stages[:2], Stage("last", 2, (8, 8, 20), True))
    assert stage_named(renamed, "top") is renamed[2]


def test_an_unknown_stage_lists_the_valid_names() -> None:
    with pytest.raises(UsageError, match=r"no stage 'join9'.*join1, join2, top, or top"):
        stage_named(find_stages(tiny_network()), "join9")


@pytest.mark.parametrize("stage", [Stage("join9", 0, (16, 16, 8), False), Stage("join1", 0, (16, 16, 9), False)])
def test_a_stage_of_another_network_is_refused(stage: Stage) -> None:
    with pytest.raises(UsageError, match="tiny cannot be cut at join"):
        cut(tiny_network(), stage)


# -------------------------------------------------------------------------------------------------------------------- taps


@pytest.mark.parametrize("num_logits", [0, 5])
def test_pooled_taps_are_means_of_stages_then_the_logits_then_deviations(num_logits: int) -> None:
    model = tiny_network(num_logits=num_logits)
    stages = find_stages(model)
    pixels = noise_pixels(3).astype(np.float32)
    maps = [np.asarray(cut(model, stage)[0](pixels)) for stage in stages]
    means, deviations = ([statistic(each, axis=(1, 2)) for each in maps] for statistic in (np.mean, np.std))
    logits = [np.asarray(model(pixels))] if num_logits else []
    row = np.asarray(pooled_taps(model, stages)(pixels))
    assert row.shape == (3, 2 * (8 + 12 + 20) + num_logits)
    np.testing.assert_allclose(row, np.concatenate([*means, *logits, *deviations], axis=1), rtol=1e-5, atol=1e-5)


def test_pooled_taps_of_a_single_stage_are_its_mean_and_its_deviation() -> None:
    start = keras.Input((4, 4, 3))
    model = enliven(keras.Model(start, layers.Conv2D(2, 3, name="only")(start)))
    row = np.asarray(pooled_taps(model, find_stages(model))(noise_pixels(2, (4, 4)).astype(np.float32)))
    whole = np.asarray(model(noise_pixels(2, (4, 4)).astype(np.float32)))
    expected = np.concatenate([whole.mean(axis=(1, 2)), whole.std(axis=(1, 2))], axis=1)
    np.testing.assert_allclose(row, expected, rtol=1e-5)


def deviations_of(maps: np.ndarray) -> keras.Model:
    start = keras.Input(maps.shape[1:])
    return keras.Model(start, spatial_deviation(start, "deviation"))


@pytest.mark.parametrize("maps", DEVIATING.values(), ids=DEVIATING)
def test_deviations_are_those_of_numpy(maps: np.ndarray) -> None:
    found = np.asarray(deviations_of(maps)(maps))
    assert found.shape == (len(maps), maps.shape[3])
    np.testing.assert_allclose(found, maps.astype(np.float64).std(axis=(1, 2)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("maps", DEVIATING.values(), ids=DEVIATING)
def test_deviations_survive_being_saved(maps: np.ndarray, tmp_path: Path) -> None:
    model = deviations_of(maps)
    expected = maps.astype(np.float64).std(axis=(1, 2))
    model.save(tmp_path / "deviations.keras")
    again = keras.saving.load_model(tmp_path / "deviations.keras", safe_mode=True)
    np.testing.assert_allclose(np.asarray(again(maps)), expected, rtol=1e-4, atol=1e-6)


def test_taps_survive_being_saved_and_being_converted(tmp_path: Path) -> None:
    model = tiny_network(num_logits=5)
    taps, pixels = pooled_taps(model, find_stages(model)), noise_pixels(3)
    expected = np.asarray(taps(pixels.astype(np.float32)))
    taps.save(tmp_path / "taps.keras")
    again = keras.saving.load_model(tmp_path / "taps.keras", safe_mode=True)
    np.testing.assert_allclose(np.asarray(again(pixels.astype(np.float32))), expected, rtol=1e-5, atol=1e-5)
    converted = OpenVINOEngine(convert(taps), precision="f32")(pixels)
    np.testing.assert_allclose(converted, expected, rtol=1e-4, atol=1e-4)
