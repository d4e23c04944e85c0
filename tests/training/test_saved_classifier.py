"""Saved Keras models that are composed without Keras, against the same built by Keras."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.networks import pretrained
from transferapp.backbones.registry import EMBEDDED, backbone_spec
from transferapp.backbones.stages import Tap
from transferapp.backbones.trunk import Trunk, load_trunk
from transferapp.training import saved_classifier
from transferapp.training.head_spec import Head, HeadSpec
from transferapp.training.heads import attach_head
from transferapp.training.saved_classifier import compose_saved


@pytest.fixture(scope="module", params=EMBEDDED)
def embedded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Trunk]:
    """An embedded backbone in Keras, and its trunk from a new cache."""
    spec = backbone_spec(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRANSFERAPP_CACHE", str(tmp_path_factory.mktemp("cache")))
        for _ in range(2):  # converted, and then from the cache
            trunk = load_trunk(spec, lambda: pretrained(spec.name), image_size=spec.image_size, precision="f32")
    return pretrained(spec.name), trunk


def a_head(trunk: Trunk, taps: list[Tap], num_classes: int) -> Head:
    rng = np.random.default_rng(len(taps))
    width = sum(
        (1 + tap.deviation) * stage.shape[2] for tap in taps for stage in trunk.stages if stage.name == tap.stage
    )
    mean, std = rng.random(width).astype(np.float32), rng.random(width).astype(np.float32) + np.float32(0.5)
    kernel = rng.normal(0, 1 / np.sqrt(width), (width, num_classes)).astype(np.float32)
    return Head(HeadSpec(), mean, std, num_classes, (kernel, rng.random(num_classes).astype(np.float32)))


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["the last stage", "an early one", "a mixture without the last", "all taps"])
def test_it_is_the_network_that_keras_would_build(embedded: tuple[Any, Trunk], tmp_path: Path, choice: str) -> None:
    import keras

    backbone, trunk = embedded
    first, second, *_ = (stage.name for stage in trunk.stages)
    taps = {
        "the last stage": [Tap(trunk.top.name)],
        "an early one": [Tap(first)],
        "a mixture without the last": [Tap(first, deviation=True), Tap(second, deviation=True)],
        "all taps": list(trunk.mixture_taps),
    }[choice]
    head = a_head(trunk, taps, 7)
    archive = compose_saved(trunk, taps, head, 0.7, "pets")
    assert archive is not None
    (tmp_path / "model.keras").write_bytes(archive)
    composed = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    built = attach_head(backbone, trunk.stages, taps, head, 0.7, "pets")
    assert composed.name == "pets"
    assert not composed.trainable_weights
    assert len(composed.weights) == len(built.weights)
    pixels = np.random.default_rng(0).integers(0, 256, (2, *trunk.image_size, 3)).astype(np.float32)
    np.testing.assert_allclose(composed.predict(pixels, verbose=0), built.predict(pixels, verbose=0), atol=1e-6)
    # It is an ordinary Keras file: saved again, it holds the same weights.
    composed.save(tmp_path / "again.keras")
    again = keras.saving.load_model(tmp_path / "again.keras")
    for one, other in zip(composed.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_nothing_is_composed_without_the_saved_taps(embedded: tuple[Any, Trunk], tmp_path: Path) -> None:
    _, trunk = embedded
    taps = [Tap(trunk.top.name)]
    head = a_head(trunk, taps, 3)
    assert compose_saved(dataclasses.replace(trunk, saved=None), taps, head, 1.0, "pets") is None
    assert compose_saved(dataclasses.replace(trunk, saved=tmp_path / "gone.keras"), taps, head, 1.0, "pets") is None
    (tmp_path / "damaged.keras").write_bytes(b"no zip")
    assert compose_saved(dataclasses.replace(trunk, saved=tmp_path / "damaged.keras"), taps, head, 1.0, "pets") is None
    with pytest.MonkeyPatch.context() as patch:  # as with a layer of a kind that is new
        patch.delitem(saved_classifier._KINDS, "DepthwiseConv2D")
        assert compose_saved(trunk, taps, head, 1.0, "pets") is None
    assert trunk.saved is not None
    with zipfile.ZipFile(trunk.saved) as archive:
        assert json.loads(archive.read("config.json"))["config"]["name"].endswith("_taps")
