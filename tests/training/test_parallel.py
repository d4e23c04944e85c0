"""Training on what the machine has: the same steps on two devices as on one, and nearly the same in mixed precision."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from transferapp.system.hardware import Hardware

ROOT = Path(__file__).parents[2]
NO_JAX = pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed")


class Numbers:
    """Stands for a `PyDataset`: batches of the numbers from 0, labeled with their squares."""

    def __init__(self, sizes: list[int], labeled: bool = True) -> None:
        starts = np.cumsum([0, *sizes])
        parts = [np.arange(a, b, dtype=np.float32) for a, b in itertools.pairwise(starts)]
        self._items = [(part, part**2) if labeled else (part,) for part in parts]
        self.epoch = 0
        self.calls: list[str] = []

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        return self._items[index]

    def on_epoch_begin(self) -> None:
        self.calls.append("begin")

    def on_epoch_end(self) -> None:
        self.calls.append("end")


def even(sizes: list[int], count: int, labeled: bool = True) -> Any:
    from transferapp.training.parallel import EvenBatches

    return EvenBatches(Numbers(sizes, labeled), count)


# ------------------------------------------------------------------------------------------------------------------ batches


def test_batches_are_filled_up_to_a_multiple_of_the_devices() -> None:
    batches = even([4, 3], 4)
    assert len(batches) == 2
    assert [[part.tolist() for part in batches[i]] for i in range(2)] == [
        [[0, 1, 2, 3], [0, 1, 4, 9], [1, 1, 1, 1]],
        [[4, 5, 6, 4], [16, 25, 36, 16], [np.float32(4 / 3)] * 3 + [0]],
    ]


@pytest.mark.parametrize("own", range(1, 9))
@pytest.mark.parametrize("count", [2, 3, 8])
def test_the_mean_over_all_devices_is_the_mean_over_the_batch(own: int, count: int) -> None:
    values, _, weights = even([own], count)[0]
    assert len(values) % count == 0
    shares = (values * weights).reshape(count, -1).mean(axis=1)  # each device's own mean, as Keras takes it
    assert shares.mean() == pytest.approx(np.arange(own).mean(), abs=1e-6)


def test_what_is_only_predicted_gets_no_weights_and_keeps_its_order() -> None:
    batches = even([4, 1], 2, labeled=False)
    assert [len(batches[i]) for i in range(2)] == [1, 1]
    predicted = np.concatenate([batches[i][0] for i in range(2)])
    assert predicted[:5].tolist() == [0, 1, 2, 3, 4]


class Echo:
    """Stands for a model whose predictions are what it is given."""

    def predict(self, batches: Any, verbose: int) -> np.ndarray:
        return np.concatenate([batches[i][0] for i in range(len(batches))])


@pytest.mark.parametrize("count", range(2, 9))
@pytest.mark.parametrize("labeled", [False, True])
def test_each_image_has_its_own_prediction_on_any_number_of_devices(count: int, labeled: bool) -> None:
    from transferapp.training.parallel import predicted

    batches = even([64, 64, 64, 8], count, labeled)
    for _ in range(2):
        rows = predicted(Echo(), batches)
        assert rows.dtype == np.float32
        assert rows.tolist() == list(range(200))
    assert predicted(Echo(), batches.batches).tolist() == list(range(200)), "nothing was filled in"


def test_epochs_and_hooks_reach_the_batches() -> None:
    batches = even([2], 2)
    batches.epoch = 7
    batches.on_epoch_begin()
    batches.on_epoch_end()
    assert batches.epoch == batches.batches.epoch == 7
    assert batches.batches.calls == ["begin", "end"]


# -------------------------------------------------------------------------------------------------------------------- models


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


MIXED = Hardware(kind="gpu", devices=("gpu:0",), names=("a card",), dtype_policy="mixed_float16")


def test_a_cpu_trains_the_model_itself_on_the_data_themselves(tail: Any) -> None:
    from transferapp.training.parallel import prepare

    make, validation, multipliers = Numbers([2]).__class__, Numbers([2]), tail.multipliers(0.1)
    ready = prepare(tail.model, make, multipliers, Hardware(), validation)
    assert ready.model is tail.model
    assert ready.make_batches is make
    assert ready.validation is validation
    assert ready.multipliers == multipliers


def test_in_mixed_precision_the_body_computes_in_half_and_the_head_in_full(tail: Any) -> None:
    import keras

    from transferapp.training.parallel import training_copy

    before = keras.config.dtype_policy().name
    copy = training_copy(tail.model, MIXED)
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
    from transferapp.training.parallel import training_copy

    copy = training_copy(tail.model, MIXED)
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
    from transferapp.training.parallel import training_copy

    whole = tail_of(tiny_network(adapted=True), None)
    copy = training_copy(whole.model, Hardware(devices=("cpu:0", "cpu:1")))
    assert copy is not whole.model
    pixels = noise_pixels(3).astype(np.float32)
    logits, reference = (np.asarray(m(pixels, training=False)) for m in (copy, whole.model))
    np.testing.assert_allclose(logits, reference, rtol=1e-5, atol=1e-5)


def test_a_copy_of_a_compiled_model_is_not_compiled(tail: Any) -> None:
    from transferapp.training.optimizers import make_optimizer
    from transferapp.training.parallel import training_copy

    tail.model.compile(optimizer=make_optimizer("adam", 1e-3, average=0.9), loss="mse")
    assert not training_copy(tail.model, MIXED).compiled


@pytest.mark.slow
def test_mixed_precision_learns_what_full_precision_learns(tail: Any) -> None:
    import keras

    from transferapp.training.optimizers import make_optimizer
    from transferapp.training.parallel import training_copy

    rng = np.random.default_rng(2)
    features = rng.normal(size=(24, *tail.model.inputs[0].shape[1:])).astype(np.float32)
    labels = np.arange(24) % 3
    start = tail.model.get_weights()
    losses = {}
    for hardware in (Hardware(), MIXED):
        model = training_copy(tail.model, hardware)
        model.compile(
            optimizer=make_optimizer("adam", 1e-2, average=0.9, clip_norm=1.0),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=False,
        )
        losses[hardware.dtype_policy] = model.fit(
            features, labels, batch_size=8, epochs=4, shuffle=False, verbose=0
        ).history["loss"]
        tail.model.set_weights(start)  # a CPU trains the model itself
    assert type(model.optimizer).__name__ == "LossScaleOptimizer", "half-precision gradients would vanish without"
    assert losses["float32"][-1] < losses["float32"][0]
    np.testing.assert_allclose(losses["mixed_float16"], losses["float32"], rtol=0.02)


# ------------------------------------------------------------------------------------------------------------- several devices


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", pytest.param("jax", marks=NO_JAX)])
def test_two_devices_learn_what_one_learns(backend: str) -> None:
    env = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.two_devices"],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        check=True,
        timeout=300,
    )
    outcome = json.loads(done.stdout)
    for sets in outcome.values():
        one, two = sets["one"], sets["two"]
        assert (one["same_model"], two["same_model"]) == (True, False)
        assert (one["devices"], two["devices"]) == (1, 2)
        assert one["steps"] == two["steps"], "a batch is still one step"
        for what in ("weights", "average"):
            for alone, shared in zip(one[what], two[what], strict=True):
                np.testing.assert_allclose(shared, alone, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(two["logits"], one["logits"], rtol=1e-4, atol=1e-4)
    even_sets = outcome["even"]
    for figure in ("loss", "accuracy"):
        np.testing.assert_allclose(even_sets["two"]["history"][figure], even_sets["one"]["history"][figure], rtol=1e-4)
    assert even_sets["one"]["history"]["loss"][0] != pytest.approx(even_sets["one"]["history"]["loss"][-1], rel=1e-3)
