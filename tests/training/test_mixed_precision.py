"""Training in mixed precision: nearly the same steps as in float32, on a copy with the same weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="module")
def tail() -> Any:
    """A tail above the first stage of a small network."""
    from tests.helpers.networks import tiny_network

    return tail_of(tiny_network(), 0)


def tail_of(backbone: Any, cut: int | None) -> Any:
    """A tail above a stage of a small network, or the whole of it."""
    from transferapp.backbones.stages import find_stages
    from transferapp.training.head_spec import Head
    from transferapp.training.probe import LinearProbe
    from transferapp.training.tail import build_tail

    stages = find_stages(backbone)
    kernel = np.random.default_rng(0).normal(0, 0.1, (20, 3)).astype(np.float32)
    probe = LinearProbe(np.zeros(20, np.float32), np.ones(20, np.float32), kernel, np.zeros(3, np.float32), 1.0, 1)
    return build_tail(backbone, stages, None if cut is None else stages[cut], Head.of(probe))


MIXED = "mixed_float16"


def test_in_full_precision_the_model_itself_is_trained(tail: Any) -> None:
    from transferapp.training.session import in_precision

    multipliers = tail.multipliers(0.1)
    assert in_precision(tail.model, multipliers, "float32") == (tail.model, multipliers)


def test_multipliers_are_renamed_to_the_copys_variables(tail: Any) -> None:
    from transferapp.training.session import in_precision

    multipliers = tail.multipliers(0.1, 0.5)
    copy, renamed = in_precision(tail.model, multipliers, MIXED)
    own = [multipliers.get(variable.path) for variable in tail.model.trainable_variables]
    assert [renamed.get(variable.path) for variable in copy.trainable_variables] == own
    assert set(own) > {None}


def test_in_mixed_precision_the_body_computes_in_half_and_the_head_in_full(tail: Any) -> None:
    import keras

    from transferapp.training.session import in_precision

    before = keras.config.dtype_policy().name
    copy = in_precision(tail.model, {}, MIXED)[0]
    assert keras.config.dtype_policy().name == before
    body = next(layer.network for layer in copy.layers if hasattr(layer, "network"))
    assert {layer.compute_dtype for layer in body.layers} == {"float16"}
    assert {layer.name: layer.compute_dtype for layer in copy.layers if layer.name.startswith("head_")} == {
        "head_pool": "float32",
        "head_standardize": "float32",
        "head_logits": "float32",
    }
    assert {str(v.dtype) for v in copy.weights} == {"float32"}
    assert {layer.compute_dtype for layer in tail.model.layers} == {"float32"}, "the original is as it was"


def test_a_copy_has_the_weights_in_their_order_and_shares_none(tail: Any) -> None:
    from transferapp.training.session import in_precision

    copy = in_precision(tail.model, {}, MIXED)[0]
    for own, theirs in zip(copy.weights, tail.model.weights, strict=True):
        assert own is not theirs
        np.testing.assert_array_equal(np.asarray(own), np.asarray(theirs))
    assert [v.shape for v in copy.trainable_variables] == [v.shape for v in tail.model.trainable_variables]
    features = np.random.default_rng(1).normal(size=(5, *copy.inputs[0].shape[1:])).astype(np.float32)
    logits, reference = (np.asarray(m(features, training=False)) for m in (copy, tail.model))
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, reference, rtol=0.02, atol=0.02)
    assert np.abs(logits - reference).max() > 0, "it does compute in another precision"


def test_a_copy_scales_pixels_as_the_backbone_was_adapted_to() -> None:
    from tests.helpers.networks import noise_pixels, tiny_network
    from transferapp.training.session import in_precision

    whole = tail_of(tiny_network(adapted=True), None)
    copy, _ = in_precision(whole.model, {}, "mixed_bfloat16")
    pixels = noise_pixels(3).astype(np.float32)
    logits, reference = (np.asarray(m(pixels, training=False)) for m in (copy, whole.model))
    np.testing.assert_allclose(logits, reference, rtol=0.05, atol=0.05)


def test_a_copy_of_a_compiled_model_is_not_compiled(tail: Any) -> None:
    from transferapp.training.optimizers import make_optimizer
    from transferapp.training.session import in_precision

    tail.model.compile(optimizer=make_optimizer("adam", 1e-3, average=0.9), loss="mse")
    assert not in_precision(tail.model, {}, MIXED)[0].compiled


@pytest.mark.slow
def test_mixed_precision_learns_what_full_precision_learns(tail: Any) -> None:
    import keras

    from transferapp.training.optimizers import make_optimizer
    from transferapp.training.session import in_precision

    rng = np.random.default_rng(2)
    features = rng.normal(size=(24, *tail.model.inputs[0].shape[1:])).astype(np.float32)
    labels = np.arange(24) % 3
    start = tail.model.get_weights()
    losses = {}
    for policy in ("float32", MIXED):
        model, _ = in_precision(tail.model, {}, policy)
        model.compile(
            optimizer=make_optimizer("adam", 1e-2, average=0.9, clip_norm=1.0),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=False,
        )
        losses[policy] = model.fit(features, labels, batch_size=8, epochs=4, shuffle=False, verbose=0).history["loss"]
        tail.model.set_weights(start)  # in float32 the model itself is trained
    assert type(model.optimizer).__name__ == "LossScaleOptimizer", "half-precision gradients would vanish without"
    assert losses["float32"][-1] < losses["float32"][0]
    np.testing.assert_allclose(losses["mixed_float16"], losses["float32"], rtol=0.02)
