"""The loader of backbones: each is built once, in order, in the background."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.networks import tiny_network
from transferapp.backbones import loader as loader_module
from transferapp.backbones.loader import BackboneLoader
from transferapp.backbones.registry import BACKBONES, BackboneSpec, backbone_spec
from transferapp.errors import DataError, UsageError


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("backbones") / "tiny.keras"
    tiny_network().save(path)
    return path


def spec_named(name: str) -> BackboneSpec:
    return BackboneSpec(name, "embedded", (32, 32), None, "")


def test_a_model_is_built_once_for_all_threads(file: Path) -> None:
    spec = backbone_spec(str(file))
    with BackboneLoader() as loader:
        found: list[Any] = []
        threads = [threading.Thread(target=lambda: found.append(loader.model(spec))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 4
    assert len({id(model) for model in found}) == 1, "what is tuned must be what is exported"


def test_small_images_shrink_the_input_of_a_backbone_but_not_of_a_file(file: Path) -> None:
    lite0, own = BACKBONES["efficientnet_lite0"], backbone_spec(str(file))
    small = BackboneLoader([(32, 32), (40, 40)])
    assert small.input_size(lite0).image_size == (128, 128)
    assert small.input_size(lite0).tiny
    assert small.input_size(own).image_size == (32, 32)
    assert BackboneLoader([(640, 480)]).input_size(lite0).image_size == (224, 224)
    assert BackboneLoader(image_size=64).input_size(lite0).image_size == (64, 64)


def test_a_size_that_a_file_does_not_take_is_refused(file: Path, tmp_path: Path) -> None:
    loader = BackboneLoader(image_size=64)
    with pytest.raises(UsageError, match=r"takes images of one size only\. Expected --image-size 32, or none, got 64"):
        loader.model(backbone_spec(str(file)))
    tiny_network((None, None)).save(tmp_path / "any.keras")
    assert loader.model(backbone_spec(str(tmp_path / "any.keras"))).inputs[0].shape[1:3] == (64, 64)


def test_a_trunk_runs_the_model_at_the_chosen_size(file: Path) -> None:
    spec = backbone_spec(str(file))
    with BackboneLoader(engine="keras", streams=1) as loader:
        trunk = loader.trunk(spec)
        assert trunk is loader.trunk(spec)
        assert trunk.image_size == (32, 32)
        assert trunk.engine.precision == "float32"


def test_settings_and_weights_reach_the_trunk(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def load_trunk(spec: BackboneSpec, build: Any, **options: Any) -> str:
        given[spec.name] = options
        return spec.name

    monkeypatch.setattr(loader_module, "load_trunk", load_trunk)
    settings: dict[str, Any] = {"image_size": 64, "engine": "openvino", "precision": "bf16", "streams": 3}
    with BackboneLoader(weights={"one": Path("own.h5")}, **settings) as loader:
        for name in ("one", "two"):
            assert loader.trunk(spec_named(name)) == name  # type: ignore[comparison-overlap]
    common = {"image_size": (64, 64), "engine": "openvino", "precision": "bf16", "streams": 3}
    assert given == {"one": {**common, "weights": Path("own.h5")}, "two": {**common, "weights": None}}


def test_trunks_are_built_in_the_order_of_start_and_errors_reach_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []

    def build(self: Any, spec: BackboneSpec) -> str:
        built.append(spec.name)
        if spec.name == "bad":
            raise DataError("no such weights")
        return spec.name.upper()

    monkeypatch.setattr(BackboneLoader, "_build_trunk", build)
    specs = [spec_named(name) for name in ("one", "bad", "two")]
    with BackboneLoader() as loader:
        for spec in [*specs, *specs]:
            loader.start(spec)
        assert loader.trunk(specs[2]) == "TWO"  # type: ignore[comparison-overlap]
        with pytest.raises(DataError, match="no such weights"):
            loader.trunk(specs[1])
        assert loader.submit(built.copy).result() == ["one", "bad", "two"]


def test_leaving_the_context_cancels_what_is_queued_and_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, built = threading.Event(), []

    def build(self: Any, spec: BackboneSpec) -> None:
        built.append(spec.name)
        gate.wait(60)

    monkeypatch.setattr(BackboneLoader, "_build_trunk", build)
    with BackboneLoader() as loader:
        for name in ("first", "second", "third"):
            loader.start(spec_named(name))
    gate.set()
    loader._thread.shutdown(wait=True)
    assert set(built) <= {"first"}
