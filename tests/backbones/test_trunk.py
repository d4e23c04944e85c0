"""Trunks: every tap in one pass, and a cache of converted networks without incomplete entries."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.helpers.networks import TINY_SIZE, TINY_STAGES, enliven, noise_pixels, tiny_network
from transferapp.backbones.engine import FEATURE_TOLERANCE
from transferapp.backbones.registry import BackboneSpec, backbone_spec
from transferapp.backbones.stages import Tap, cut
from transferapp.backbones.trunk import Trunk, load_trunk

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRANSFERAPP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, BackboneSpec]:
    """A small network with five logits, and the spec of the file it was saved to."""
    model = tiny_network(num_logits=5)
    path = tmp_path_factory.mktemp("backbone") / "tiny.keras"
    model.save(path)
    return model, backbone_spec(str(path))


class Builder:
    """Builds a model and counts how often it was asked to."""

    def __init__(self, model: Any) -> None:
        self.model, self.calls = model, 0

    def __call__(self) -> Any:
        self.calls += 1
        return self.model


def load(saved: tuple[Any, BackboneSpec], **options: Any) -> tuple[Trunk, Builder]:
    model, spec = saved
    builder = Builder(model)
    settings = {"image_size": TINY_SIZE, "precision": "f32", **options}
    return load_trunk(spec, builder, **settings), builder


def expected_rows(model: Any, trunk: Trunk, pixels: np.ndarray) -> np.ndarray:
    """Means of every stage worked out by NumPy, then the logits, then the standard deviations."""
    x = pixels.astype(np.float32)
    maps = [np.asarray(cut(model, stage)[0](x)) for stage in trunk.stages]
    means, deviations = ([statistic(each, axis=(1, 2)) for each in maps] for statistic in (np.mean, np.std))
    return np.concatenate([*means, np.asarray(model(x)), *deviations], axis=1)


def folder_of(cache: Path) -> Path:
    (folder,) = (path for path in (cache / "networks").iterdir() if not path.name.startswith("."))
    return folder


def close(rows: np.ndarray, reference: np.ndarray) -> bool:
    return bool(np.linalg.norm(rows - reference) <= FEATURE_TOLERANCE["f32"] * np.linalg.norm(reference))


def test_a_trunk_knows_its_stages_and_the_layout_of_its_rows(cache: Path, saved: tuple[Any, BackboneSpec]) -> None:
    trunk, _ = load(saved)
    assert [(stage.name, stage.shape) for stage in trunk.stages] == list(TINY_STAGES)
    assert trunk.top is trunk.stages[-1]
    assert (trunk.name, trunk.image_size, trunk.num_logits) == ("tiny.keras", TINY_SIZE, 5)
    assert trunk.row_slices == [slice(0, 8), slice(8, 20), slice(20, 40), slice(40, 45)]
    assert trunk.deviation_slices == [slice(45, 53), slice(53, 65), slice(65, 85)]
    assert trunk.row_size == 85


@pytest.mark.parametrize("engine", ["openvino", "keras"])
def test_rows_are_means_of_stages_then_the_logits_then_deviations(
    cache: Path, saved: tuple[Any, BackboneSpec], engine: str
) -> None:
    trunk, _ = load(saved, engine=engine)
    pixels = noise_pixels(5)
    rows = trunk.rows(pixels)
    assert rows.shape == (5, trunk.row_size)
    assert rows.dtype == np.float32
    assert close(rows, expected_rows(saved[0], trunk, pixels))


@pytest.mark.parametrize("engine", ["openvino", "keras"])
def test_rows_stay_those_of_the_key_when_the_model_is_tuned(
    cache: Path, saved: tuple[Any, BackboneSpec], engine: str
) -> None:
    model = tiny_network(num_logits=5)
    trunk, _ = load((model, saved[1]), engine=engine)
    enliven(model, seed=1)
    pixels = noise_pixels(2)
    assert close(trunk.rows(pixels), expected_rows(saved[0], trunk, pixels))
    assert not close(trunk.rows(pixels), expected_rows(model, trunk, pixels))


def test_a_backbone_without_a_classifier_has_no_logits(cache: Path, tmp_path: Path) -> None:
    model = tiny_network()
    model.save(tmp_path / "headless.keras")
    trunk = load_trunk(backbone_spec(str(tmp_path / "headless.keras")), lambda: model, image_size=TINY_SIZE)
    assert trunk.num_logits == 0
    assert trunk.row_slices == [slice(0, 8), slice(8, 20), slice(20, 40)]
    assert trunk.deviation_slices == [slice(40, 48), slice(48, 60), slice(60, 80)]
    assert trunk.rows(noise_pixels(2)).shape == (2, 80)


def test_the_features_of_taps_are_their_columns_in_the_order_asked_for(
    cache: Path, saved: tuple[Any, BackboneSpec]
) -> None:
    trunk, _ = load(saved)
    rows = np.arange(2 * 3 * 85).reshape(2, 3, 85)
    np.testing.assert_array_equal(trunk.features(rows, [Tap("join2")]), rows[..., 8:20])
    both = trunk.features(rows, [Tap("top", deviation=True), Tap("join1"), Tap("top")])
    np.testing.assert_array_equal(both, rows[..., [*range(20, 40), *range(65, 85), *range(8), *range(20, 40)]])


def test_the_second_time_nothing_is_built_and_the_rows_are_the_same(
    cache: Path, saved: tuple[Any, BackboneSpec]
) -> None:
    first, built = load(saved)
    second, built_again = load(saved)
    assert (built.calls, built_again.calls) == (1, 0)
    assert (second.key, second.stages, second.row_slices) == (first.key, first.stages, first.row_slices)
    np.testing.assert_array_equal(second.rows(noise_pixels(4)), first.rows(noise_pixels(4)))


def test_a_cached_trunk_runs_without_keras_and_tensorflow(cache: Path, saved: tuple[Any, BackboneSpec]) -> None:
    trunk, _ = load(saved)
    code = (
        "import sys\n"
        "import numpy as np\n"
        "from transferapp.backbones.registry import backbone_spec\n"
        "from transferapp.backbones.trunk import load_trunk\n"
        "spec = backbone_spec(sys.argv[1])\n"
        "trunk = load_trunk(spec, lambda: sys.exit('built again'), image_size=spec.image_size, precision='f32')\n"
        "assert trunk.key == sys.argv[2], trunk.key\n"
        "assert trunk.rows(np.zeros((2, 32, 32, 3), np.uint8)).shape == (2, 85)\n"
        "assert 'tensorflow' not in sys.modules and 'keras' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, saved[1].weights, trunk.key], check=True, timeout=60)


def _cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x40
    path.write_bytes(data)


def _facts(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return lambda path: path.write_text(json.dumps(change(json.loads(path.read_text())))) and None


DAMAGE: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "no stages": ("stages.json", Path.unlink),
    "empty stages": ("stages.json", lambda path: path.write_bytes(b"")),
    "stages of another kind": ("stages.json", lambda path: path.write_text("[]")),
    "stages without checksums": ("stages.json", _facts(lambda facts: {**facts, "sha256": None})),
    "stages without stages": ("stages.json", _facts(lambda facts: {"sha256": facts["sha256"]})),
    "no network": ("taps.xml", Path.unlink),
    "garbage network": ("taps.xml", lambda path: path.write_bytes(b"<html></html>")),
    "cut network": ("taps.xml", _cut_short),
    "no weights": ("taps.bin", Path.unlink),
    "cut weights": ("taps.bin", _cut_short),
    "flipped bit": ("taps.bin", _flip_a_bit),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_built_anew_and_is_whole_again(
    cache: Path, saved: tuple[Any, BackboneSpec], damage: str
) -> None:
    first, _ = load(saved)
    expected = first.rows(noise_pixels(3))
    file, spoil = DAMAGE[damage]
    spoil(folder_of(cache) / file)
    rebuilt, built = load(saved)
    assert built.calls == 1
    np.testing.assert_array_equal(rebuilt.rows(noise_pixels(3)), expected)
    again, built = load(saved)
    assert built.calls == 0
    np.testing.assert_array_equal(again.rows(noise_pixels(3)), expected)


def test_what_a_kill_has_left_of_an_unfinished_network_is_not_taken_for_one(
    cache: Path, saved: tuple[Any, BackboneSpec]
) -> None:
    load(saved)
    whole = folder_of(cache)
    litter = cache / "networks" / ".unfinished"
    shutil.copytree(whole, litter)
    (litter / "stages.json").unlink()
    shutil.rmtree(whole)
    _, built = load(saved)
    assert built.calls == 1
    assert folder_of(cache) == whole
    assert sorted(file.name for file in whole.iterdir()) == ["stages.json", "taps.bin", "taps.xml"]


def test_nothing_unfinished_is_left_beside_a_finished_network(cache: Path, saved: tuple[Any, BackboneSpec]) -> None:
    load(saved)
    (folder_of(cache) / "taps.bin").unlink()
    load(saved)
    assert [path.name for path in (cache / "networks").iterdir()] == [folder_of(cache).name]


def test_a_network_that_another_process_finished_first_is_left_in_place(
    cache: Path, saved: tuple[Any, BackboneSpec]
) -> None:
    model, spec = saved

    def build_slowly() -> Any:  # while this builds, another comes in and finishes
        load(saved)
        return model

    trunk = load_trunk(spec, build_slowly, image_size=TINY_SIZE, precision="f32")
    assert close(trunk.rows(noise_pixels(2)), expected_rows(model, trunk, noise_pixels(2)))
    assert load(saved)[1].calls == 0


def test_the_key_names_whatever_changes_the_numbers(
    cache: Path, saved: tuple[Any, BackboneSpec], tmp_path: Path
) -> None:
    other_weights = enliven(tiny_network(num_logits=5), seed=1)
    other_weights.save(tmp_path / "tiny.keras")
    same_name = backbone_spec(str(tmp_path / "tiny.keras"))
    wide = tiny_network((32, 64), num_logits=5)
    keys = {
        "as it is": load(saved)[0].key,
        "precision": load(saved, precision="bf16")[0].key,
        "engine": load(saved, engine="keras")[0].key,
        "weights": load((other_weights, same_name))[0].key,
        "weights in keras": load((other_weights, same_name), engine="keras")[0].key,
        "input size": load((wide, saved[1]), image_size=(32, 64))[0].key,
    }
    assert len(set(keys.values())) == len(keys), keys
    assert load(saved)[0].key == keys["as it is"]
    assert load(saved, engine="keras")[0].key == keys["engine"]


def test_weights_that_building_downloads_are_part_of_the_key(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    spec = backbone_spec("mobilenet_v2")
    model = tiny_network()

    def build_as_if_downloading(content: bytes) -> Callable[[], Any]:
        def build() -> Any:
            (tmp_path / "models" / spec.weights).write_bytes(content)
            return model

        return build

    def key(content: bytes) -> str:
        return load_trunk(spec, build_as_if_downloading(content), image_size=TINY_SIZE, precision="f32").key

    first = key(b"these weights")
    assert key(b"never built: the weights are here and the network is cached") == first
    (tmp_path / "models" / spec.weights).unlink()
    assert key(b"other weights") != first


@pytest.mark.slow
def test_two_processes_that_start_at_once_both_get_a_whole_network(
    cache: Path, saved: tuple[Any, BackboneSpec]
) -> None:
    code = (
        "import sys\n"
        "import numpy as np\n"
        "from transferapp.backbones.loading import load_backbone\n"
        "from transferapp.backbones.registry import backbone_spec\n"
        "from transferapp.backbones.trunk import load_trunk\n"
        "spec = backbone_spec(sys.argv[1])\n"
        "for _ in range(3):\n"
        "    trunk = load_trunk(spec, lambda: load_backbone(spec), image_size=spec.image_size, precision='f32')\n"
        "    print(trunk.key, trunk.rows(np.full((1, 32, 32, 3), 100, np.uint8)).tobytes().hex())\n"
    )
    command = [sys.executable, "-c", code, saved[1].weights]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"})
        for _ in range(2)
    ]
    answers = [process.communicate(timeout=180)[0].splitlines() for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert len(set(answers[0] + answers[1])) == 1
    assert load(saved)[1].calls == 0


def test_in_f32_it_is_the_same_trunk_compiled_at_the_first_use(cache: Path, saved: tuple[Any, BackboneSpec]) -> None:
    trunk, _ = load(saved)
    assert trunk.in_f32() is trunk
    rounded: Any = SimpleNamespace(name="openvino", precision="bf16")
    other = dataclasses.replace(trunk, key=f"{trunk.key.removesuffix('f32')}bf16", engine=rounded).in_f32()
    assert (other.key, other.engine.precision) == (trunk.key, "f32")
    pixels = noise_pixels(3, TINY_SIZE)
    np.testing.assert_array_equal(other.rows(pixels), trunk.rows(pixels))
    elsewhere = pickle.loads(pickle.dumps(other.engine))  # as a worker of a cluster receives it
    np.testing.assert_allclose(elsewhere(pixels), trunk.rows(pixels), rtol=1e-5)
