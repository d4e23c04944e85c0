"""The definition against the paper (Tan and Le, 2019, table 1) and the published counts, and the assignment of its weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transferapp.backbones.efficientnet_lite import (
    assign_torch_weights,
    build_efficientnet_lite,
    read_state_dict,
    round_filters,
)
from transferapp.backbones.registry import backbone_spec, weights_path
from transferapp.errors import WeightsError

# Block by block as the paper's table gives them: (expansion, kernel, strides, channels out).
LITE0 = [
    *[(1, 3, 1, 16)],
    *[(6, 3, 2, 24), (6, 3, 1, 24)],
    *[(6, 5, 2, 40), (6, 5, 1, 40)],
    *[(6, 3, 2, 80), (6, 3, 1, 80), (6, 3, 1, 80)],
    *[(6, 5, 1, 112), (6, 5, 1, 112), (6, 5, 1, 112)],
    *[(6, 5, 2, 192), (6, 5, 1, 192), (6, 5, 1, 192), (6, 5, 1, 192)],
    *[(6, 3, 1, 320)],
]
# Width 1.1 and depth 1.2 by hand: channels to the nearest multiple of 8, repeats upwards, but for the first and last stage.
LITE2 = [
    *[(1, 3, 1, 16)],
    *[(6, 3, 2, 24), (6, 3, 1, 24), (6, 3, 1, 24)],
    *[(6, 5, 2, 48), (6, 5, 1, 48), (6, 5, 1, 48)],
    *[(6, 3, 2, 88), (6, 3, 1, 88), (6, 3, 1, 88), (6, 3, 1, 88)],
    *[(6, 5, 1, 120), (6, 5, 1, 120), (6, 5, 1, 120), (6, 5, 1, 120)],
    *[(6, 5, 2, 208), (6, 5, 1, 208), (6, 5, 1, 208), (6, 5, 1, 208), (6, 5, 1, 208)],
    *[(6, 3, 1, 352)],
]


def parameters_by_hand(blocks: list[tuple[int, int, int, int]]) -> int:
    """Trainable parameters: kernels, two numbers a channel of every normalization, and the classifier."""
    total = 3 * 3 * 3 * 32 + 2 * 32
    channels = 32
    for expansion, kernel, _, out in blocks:
        inner = channels * expansion
        if expansion != 1:
            total += channels * inner + 2 * inner
        total += kernel * kernel * inner + 2 * inner + inner * out + 2 * out
        channels = out
    return total + channels * 1280 + 2 * 1280 + 1280 * 1000 + 1000


@pytest.fixture(scope="module")
def lite0() -> Any:
    return build_efficientnet_lite("lite0", width=1.0, depth=1.0, image_size=(224, 224))


@pytest.fixture(scope="module")
def lite2() -> Any:
    return build_efficientnet_lite("lite2", width=1.1, depth=1.2, image_size=(260, 260))


@pytest.mark.parametrize(
    ("filters", "width", "expected"),
    [
        (32, 1.0, 32),
        (16, 1.1, 16),  # 17.6 → 16, a loss of 9 %
        (24, 1.1, 24),  # 26.4 → 24, a loss of 9 %
        (40, 1.1, 48),  # 44 lies halfway: upwards
        (80, 1.1, 88),
        (112, 1.1, 120),  # 123.2
        (192, 1.1, 208),  # 211.2
        (320, 1.1, 352),
        (4, 1.0, 8),  # never below the divisor
        (10, 1.0, 16),  # 8 would lose a fifth
    ],
)
def test_round_filters_gives_the_values_worked_out_by_hand(filters: int, width: float, expected: int) -> None:
    assert round_filters(filters, width) == expected


@given(st.integers(1, 2000), st.floats(0.1, 4))
def test_round_filters_is_near_and_a_multiple_of_eight(filters: int, width: float) -> None:
    rounded, scaled = round_filters(filters, width), filters * width
    assert rounded % 8 == 0
    assert rounded >= 0.9 * scaled
    assert rounded <= max(8, scaled + 8)


@pytest.mark.parametrize(
    ("name", "blocks", "published"), [("lite0", LITE0, 4_652_008), ("lite2", LITE2, 6_092_072)], ids=["lite0", "lite2"]
)
def test_trainable_parameters_are_those_of_the_paper_and_the_published_count(
    name: str, blocks: list[tuple[int, int, int, int]], published: int, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(name)
    counted = sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)
    assert counted == parameters_by_hand(blocks) == published


@pytest.mark.parametrize(("name", "blocks"), [("lite0", LITE0), ("lite2", LITE2)], ids=["lite0", "lite2"])
def test_every_block_is_the_papers(
    name: str, blocks: list[tuple[int, int, int, int]], request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(name)
    layers = {layer.name: layer for layer in model.layers}
    channels = 32
    for index, (expansion, kernel, strides, out) in enumerate(blocks):
        depthwise = layers[f"block{index}_depthwise"]
        assert depthwise.kernel_size == (kernel, kernel)
        assert depthwise.strides == (strides, strides)
        assert depthwise.input.shape[-1] == channels * expansion
        assert layers[f"block{index}_project"].filters == out
        assert (f"block{index}_expand" in layers) == (expansion != 1)
        assert (f"block{index}" in layers) == (strides == 1 and channels == out), "residual where shapes allow"
        channels = out
    assert f"block{len(blocks)}_depthwise" not in layers


def test_feature_maps_have_the_sizes_of_the_papers_table(lite0: Any) -> None:
    shapes = {
        "stem": (112, 112, 32),
        "block0_project_bn": (112, 112, 16),
        "block2": (56, 56, 24),
        "block4": (28, 28, 40),
        "block7": (14, 14, 80),
        "block10": (14, 14, 112),
        "block14": (7, 7, 192),
        "block15_project_bn": (7, 7, 320),
        "top": (7, 7, 1280),
        "pool": (1280,),
        "imagenet_logits": (1000,),
    }
    assert {name: lite0.get_layer(name).output.shape[1:] for name in shapes} == shapes


def test_the_lite_variant_has_relu6_and_no_squeeze_and_excitation(lite0: Any) -> None:
    kinds = [type(layer).__name__ for layer in lite0.layers]
    assert {layer.max_value for layer in lite0.layers if type(layer).__name__ == "ReLU"} == {6.0}
    assert kinds.count("GlobalAveragePooling2D") == 1
    assert "Multiply" not in kinds
    assert {layer.epsilon for layer in lite0.layers if type(layer).__name__ == "BatchNormalization"} == {1e-3}


def test_the_model_scales_pixels_itself(lite0: Any) -> None:
    scaled = np.asarray(lite0.get_layer("rescaling")(np.array([0.0, 127.0, 255.0], np.float32)))
    np.testing.assert_allclose(scaled, [-127 / 128, 0, 1], atol=1e-7)


# ------------------------------------------------------------------------------------------------- weights from PyTorch


@pytest.fixture(scope="module")
def state() -> dict[str, np.ndarray]:
    path = weights_path(backbone_spec("efficientnet_lite0"))
    assert path is not None
    return read_state_dict(path)


def test_tensors_land_where_they_belong_and_in_keras_layout(lite0: Any, state: dict[str, np.ndarray]) -> None:
    before = dict(state)
    assign_torch_weights(lite0, state)
    assert state == before, "the caller's dictionary stays as it was"
    kernel = np.asarray(lite0.get_layer("block3_expand").kernel)  # torch: (out, in, h, w); Keras: (h, w, in, out)
    assert kernel[0, 0, 5, 7] == state["_blocks.3._expand_conv.weight"][7, 5, 0, 0]
    stem = np.asarray(lite0.get_layer("stem").kernel)
    assert stem[1, 2, 0, 9] == state["_conv_stem.weight"][9, 0, 1, 2]
    depthwise = np.asarray(lite0.get_layer("block3_depthwise").kernel)  # torch: (channels, 1, h, w)
    assert depthwise[4, 1, 11, 0] == state["_blocks.3._depthwise_conv.weight"][11, 0, 4, 1]
    logits = lite0.get_layer("imagenet_logits")
    assert np.asarray(logits.kernel)[3, 800] == state["_fc.weight"][800, 3]
    np.testing.assert_array_equal(np.asarray(logits.bias), state["_fc.bias"])
    for layer, prefix in (("stem_bn", "_bn0"), ("block0_depthwise_bn", "_blocks.0._bn1"), ("head_bn", "_bn1")):
        normalize = lite0.get_layer(layer)
        for variable, field in (
            (normalize.gamma, "weight"),
            (normalize.beta, "bias"),
            (normalize.moving_mean, "running_mean"),
            (normalize.moving_variance, "running_var"),
        ):
            np.testing.assert_array_equal(np.asarray(variable), state[f"{prefix}.{field}"])


@pytest.mark.parametrize(
    "name", ["_fc.bias", "_conv_stem.weight", "_blocks.9._bn2.running_var", "_blocks.15._project_conv.weight"]
)
def test_a_missing_tensor_is_refused_and_named(lite0: Any, state: dict[str, np.ndarray], name: str) -> None:
    with pytest.raises(WeightsError, match=f"no tensor '{name}'"):
        assign_torch_weights(lite0, {key: array for key, array in state.items() if key != name})


@pytest.mark.parametrize("name", ["_fc.weight", "_blocks.2._depthwise_conv.weight", "_bn0.bias"])
def test_a_tensor_of_another_shape_is_refused_and_named(lite0: Any, state: dict[str, np.ndarray], name: str) -> None:
    with pytest.raises(WeightsError, match=f"{name.rpartition('.')[0]} do not fit"):
        assign_torch_weights(lite0, {**state, name: state[name][..., :-1]})


def test_a_tensor_of_another_rank_is_refused(lite0: Any, state: dict[str, np.ndarray]) -> None:
    with pytest.raises(WeightsError, match="_conv_stem do not fit"):
        assign_torch_weights(lite0, {**state, "_conv_stem.weight": state["_conv_stem.weight"].ravel()})


def test_a_tensor_left_over_is_refused_and_named(lite0: Any, state: dict[str, np.ndarray]) -> None:
    extra = {**state, "_blocks.16._expand_conv.weight": np.zeros((1, 1, 1, 1), np.float32)}
    with pytest.raises(WeightsError, match=r"1 tensors .* no place in lite0: _blocks\.16"):
        assign_torch_weights(lite0, extra)


def test_the_weights_of_one_size_do_not_fit_another(lite2: Any, state: dict[str, np.ndarray]) -> None:
    with pytest.raises(WeightsError):
        assign_torch_weights(lite2, state)
