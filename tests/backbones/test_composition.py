"""Networks composed of a cached trunk and a linear classifier, against the same computed by NumPy."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax

from tests.helpers.networks import TINY_SIZE, noise_pixels, tiny_network
from transferapp.backbones.composition import compose_classifier
from transferapp.backbones.engine import OpenVINOEngine
from transferapp.backbones.registry import backbone_spec
from transferapp.backbones.stages import Tap
from transferapp.backbones.trunk import Trunk, load_trunk

NUM_CLASSES = 3


@pytest.fixture(scope="module")
def trunks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trunk, Trunk]:
    """The trunk of a small network on each engine."""
    folder = tmp_path_factory.mktemp("backbone")
    model = tiny_network(num_logits=5)
    model.save(folder / "tiny.keras")
    spec = backbone_spec(str(folder / "tiny.keras"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRANSFERAPP_CACHE", str(folder / "cache"))
        first, second = (
            load_trunk(spec, lambda: model, image_size=TINY_SIZE, precision="f32", engine=engine)
            for engine in ("openvino", "keras")
        )
    return first, second


def head(features: np.ndarray) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    width = features.shape[1]
    return {
        "mean": features.mean(axis=0),
        "std": features.std(axis=0) + np.float32(1e-3),
        "kernel": rng.normal(0, 1 / np.sqrt(width), (width, NUM_CLASSES)).astype(np.float32),
        "bias": rng.normal(size=NUM_CLASSES).astype(np.float32),
        "temperature": 1.7,
    }


def choices(trunk: Trunk) -> list[list[Tap]]:
    first, middle, top = (stage.name for stage in trunk.stages)
    return [
        [Tap(top)],
        [Tap(first)],
        [Tap(middle, deviation=True)],
        [Tap(first, deviation=True), Tap(top, deviation=True), Tap(top)],
    ]


@pytest.mark.parametrize("choice", range(4))
def test_a_composed_network_does_what_its_classifier_does_on_features(trunks: tuple[Trunk, Trunk], choice: int) -> None:
    trunk, pixels = trunks[0], noise_pixels(12)
    taps = choices(trunk)[choice]
    features = trunk.features(trunk.rows(pixels), taps)
    linear = head(features)
    network = compose_classifier(trunk, taps, **linear)
    logits = (features - linear["mean"]) / linear["std"] @ linear["kernel"] + linear["bias"]
    found, read = OpenVINOEngine(network, precision="f32").outputs(pixels)
    assert found.shape == (12, NUM_CLASSES)
    np.testing.assert_allclose(read, features, rtol=1e-4, atol=1e-4)
    assert np.abs(found - softmax(logits / 1.7, axis=1)).max() < 1e-5
    assert found.std(axis=0).max() > 0.005


def test_stages_above_the_last_tap_are_left_out(trunks: tuple[Trunk, Trunk]) -> None:
    trunk = trunks[0]
    early, late = choices(trunk)[1], choices(trunk)[0]
    sizes = []
    for taps in (early, late):
        features = trunk.features(trunk.rows(noise_pixels(4)), taps)
        network = compose_classifier(trunk, taps, **head(features))
        assert network is not None
        sizes.append(len(network.get_ops()))
    assert sizes[0] < 0.7 * sizes[1]


def test_nothing_is_composed_where_there_is_no_cached_network(trunks: tuple[Trunk, Trunk], tmp_path: Path) -> None:
    compiled, on_keras = trunks
    taps = choices(compiled)[0]
    linear = head(compiled.features(compiled.rows(noise_pixels(4)), taps))
    assert on_keras.network is None
    assert compose_classifier(on_keras, taps, **linear) is None
    assert compiled.network is not None
    kept = tmp_path / "kept"
    shutil.move(compiled.network.parent, kept)
    try:
        assert compose_classifier(compiled, taps, **linear) is None
    finally:
        shutil.move(kept, compiled.network.parent)
