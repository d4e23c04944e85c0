"""Backbones as Keras models: scaling, failed downloads, weight files, foreign `.keras` files."""

from __future__ import annotations

import importlib
import json
import socket
import sys
import threading
import urllib.request
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest

from tests.helpers.networks import enliven, noise_pixels, tiny_network
from transferapp.backbones.keras_internals import all_layers
from transferapp.backbones.loading import load_backbone
from transferapp.backbones.registry import BACKBONES, EMBEDDED, backbone_spec
from transferapp.backbones.stages import find_stages
from transferapp.errors import UsageError, WeightsError

SMALL = (64, 64)
APPLICATIONS = [name for name, spec in BACKBONES.items() if spec.source == "application"]


@pytest.fixture
def no_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keras with an empty cache and a network that leads nowhere: what it tries to fetch fails at once, on any machine."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{unused.getsockname()[1]}"
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, nowhere)
        monkeypatch.setenv(name.upper(), nowhere)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(tmp_path))  # Keras reads KERAS_HOME once, on import
    return tmp_path


# ---------------------------------------------------------------------------------------------------------- applications


@pytest.mark.parametrize("name", APPLICATIONS)
def test_pixels_are_scaled_as_the_application_documents(name: str) -> None:
    from transferapp.backbones.loading import _scale

    spec = backbone_spec(name)
    module = importlib.import_module(getattr(keras.applications, spec.function).__module__)
    pixels = noise_pixels(2, (5, 4)).astype(np.float32)
    scaled = np.asarray(_scale(keras.ops.convert_to_tensor(pixels), spec.scaling))
    np.testing.assert_allclose(scaled, np.asarray(module.preprocess_input(pixels.copy())), atol=1e-3)


def test_the_scaling_is_part_of_the_network() -> None:
    model = load_backbone(backbone_spec("vgg16"), image_size=SMALL, pretrained=False)
    bare = keras.applications.VGG16(weights=None, include_top=False, input_shape=(*SMALL, 3))
    bare.set_weights(model.get_weights())
    pixels = noise_pixels(2, SMALL).astype(np.float32)
    expected = np.asarray(bare(keras.applications.vgg16.preprocess_input(pixels.copy())))
    np.testing.assert_allclose(np.asarray(model(pixels)), expected, rtol=1e-3, atol=1e-4 * expected.max())
    assert expected.std() > 0.01


@pytest.mark.parametrize("scaling", ["tf", "torch", "caffe", "none"])
def test_a_network_with_any_scaling_survives_being_saved(tmp_path: Path, scaling: Any) -> None:
    from transferapp.backbones.loading import _scale

    start = keras.Input((8, 8, 3), name="pixels")
    model = keras.Model(start, keras.layers.Conv2D(2, 3)(_scale(start, scaling)))
    model.save(tmp_path / "m.keras")
    pixels = noise_pixels(1, (8, 8)).astype(np.float32)
    again = keras.saving.load_model(tmp_path / "m.keras", safe_mode=True)
    np.testing.assert_allclose(np.asarray(again(pixels)), np.asarray(model(pixels)), rtol=1e-5, atol=1e-5)


def test_layers_have_the_same_names_whatever_was_built_before_and_in_whatever_thread() -> None:
    spec = backbone_spec("mobilenet_v3_small")  # leaves most of its activations nameless
    models: list[Any] = []

    def build() -> None:
        models.append(load_backbone(spec, image_size=SMALL, pretrained=False))

    for index in range(3):
        keras.layers.Activation("relu")  # uses up a number
        keras.layers.Add()
        if index < 2:
            build()
        else:  # Keras counts in each thread anew
            thread = threading.Thread(target=build)
            thread.start()
            thread.join()
    names = [[layer.name for layer in model.layers] for model in models]
    assert names[0] == names[1] == names[2]
    assert len(set(names[0])) == len(names[0])
    assert "activation" in names[0]
    assert find_stages(models[0]) == find_stages(models[1])


def test_a_failed_download_names_the_embedded_backbones_in_its_hint(
    no_downloads: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(WeightsError) as caught:
        load_backbone(backbone_spec("mobilenet_v2"), image_size=SMALL)
    message = str(caught.value)
    assert "mobilenet_v2 could not be downloaded" in message
    assert "URL fetch failure" in message, "Keras did try"
    assert all(name in message for name in EMBEDDED)
    assert "--weights" in message
    assert str(no_downloads / "models") in message
    assert "\n" not in message
    printed = capsys.readouterr()
    assert "Downloading" in printed.err, "progress of a download is for the terminal"
    assert printed.out == "", "standard output is for answers"


class _Asked(Exception):  # noqa: N818
    """Raised in place of a download."""


@pytest.mark.parametrize(
    "name", ["mobilenet_v2", *(pytest.param(n, marks=pytest.mark.slow) for n in APPLICATIONS if n != "mobilenet_v2")]
)
def test_the_file_looked_for_in_keras_cache_is_the_one_that_keras_fetches(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def get_file(fname: str, *_arguments: Any, **_options: Any) -> str:
        asked.append(fname)
        raise _Asked

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", get_file)
    spec = backbone_spec(name)
    with pytest.raises(WeightsError):
        load_backbone(spec)
    assert asked == [spec.weights]


# ---------------------------------------------------------------------------------------------------------- weight files


def save_legacy(model: Any, path: Path) -> Path:
    """Write weights alone in the HDF5 layout of the files that Keras publishes."""
    from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group

    with h5py.File(path, "w") as file:
        save_weights_to_hdf5_group(file, model)
    return path


def save_current(model: Any, path: Path) -> Path:
    model.save_weights(path)
    return path


@pytest.fixture(scope="module")
def headless() -> Any:
    return enliven(keras.applications.MobileNetV3Small(weights=None, include_top=False, input_shape=(*SMALL, 3)), 1)


@pytest.fixture(scope="module")
def whole() -> Any:
    return enliven(keras.applications.MobileNetV3Small(weights=None, include_top=True, input_shape=(*SMALL, 3)), 2)


SAVERS = [("m.weights.h5", save_current), ("m.h5", save_legacy)]


@pytest.mark.parametrize(("file_name", "save"), SAVERS, ids=["current", "legacy"])
def test_headless_weights_of_an_application_are_taken_from_a_file(
    headless: Any, tmp_path: Path, file_name: str, save: Callable[[Any, Path], Path]
) -> None:
    file = save(headless, tmp_path / file_name)
    model = load_backbone(backbone_spec("mobilenet_v3_small"), image_size=SMALL, weights=file)
    assert model.output_shape == (None, 2, 2, 576)
    for ours, theirs in zip(model.get_weights(), headless.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(("file_name", "save"), SAVERS, ids=["current", "legacy"])
def test_weights_with_the_imagenet_classifier_are_taken_as_well(
    whole: Any, tmp_path: Path, file_name: str, save: Callable[[Any, Path], Path]
) -> None:
    file = save(whole, tmp_path / file_name)
    model = load_backbone(backbone_spec("mobilenet_v3_small"), image_size=SMALL, weights=file)
    for ours, theirs in zip(model.get_weights(), whole.get_weights(), strict=False):
        np.testing.assert_array_equal(ours, theirs)
    assert find_stages(model)[-1].shape == (2, 2, 576)


def test_the_imagenet_classifier_of_a_legacy_file_gives_logits_not_probabilities(whole: Any, tmp_path: Path) -> None:
    file = save_legacy(whole, tmp_path / "m.h5")
    model = load_backbone(backbone_spec("mobilenet_v3_small"), image_size=SMALL, weights=file)
    pixels = noise_pixels(2, SMALL).astype(np.float32)
    logits = np.asarray(model(pixels, training=False))
    assert logits.shape == (2, 1000)
    probabilities = np.asarray(whole(pixels, training=False))
    np.testing.assert_allclose(np.asarray(keras.ops.softmax(logits)), probabilities, rtol=1e-3, atol=1e-6)


def test_an_embedded_backbone_takes_weights_that_keras_saved(tmp_path: Path) -> None:
    spec = backbone_spec("efficientnet_lite0")
    model = enliven(load_backbone(spec, image_size=SMALL, pretrained=False))
    file = save_current(model, tmp_path / "mine.weights.h5")
    again = load_backbone(spec, image_size=SMALL, weights=file)
    for ours, theirs in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("name", "file_name", "save"), [("efficientnet_lite0", *SAVERS[0]), ("mobilenet_v2", *SAVERS[1])]
)
def test_weights_of_another_network_are_refused_in_one_line(
    headless: Any, tmp_path: Path, name: str, file_name: str, save: Callable[[Any, Path], Path]
) -> None:
    file = save(headless, tmp_path / file_name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Keras would print dozens
        with pytest.raises(WeightsError) as caught:
            load_backbone(backbone_spec(name), image_size=SMALL, weights=file)
    message = str(caught.value)
    assert f"{file} do not fit {name}" in message
    assert "Expected weights of" in message
    assert "\n" not in message


@pytest.mark.parametrize("file_name", ["w.weights.h5", "w.h5", "w.keras", "w.pth", "w.safetensors", "w"])
def test_a_file_that_holds_no_weights_is_refused(tmp_path: Path, file_name: str) -> None:
    file = tmp_path / file_name
    file.write_bytes(b"these are no weights")
    with pytest.raises(WeightsError, match=f"{file}"):
        load_backbone(backbone_spec("efficientnet_lite0"), image_size=SMALL, weights=file)


# ----------------------------------------------------------------------------------------------------------- .keras files


def load_file(path: Path, image_size: tuple[int, int] | None = None) -> Any:
    return load_backbone(backbone_spec(str(path)), image_size=image_size)


def test_a_functional_file_gives_its_own_answers(tmp_path: Path) -> None:
    model = tiny_network()
    model.save(tmp_path / "my.keras")
    pixels = noise_pixels(3).astype(np.float32)
    again = load_file(tmp_path / "my.keras")
    np.testing.assert_allclose(np.asarray(again(pixels)), np.asarray(model(pixels)), rtol=1e-5, atol=1e-5)
    assert find_stages(again) == find_stages(model)


def test_a_file_for_any_size_that_was_adapted_to_images_stays_adapted(tmp_path: Path) -> None:
    model = tiny_network((None, None), adapted=True)
    model.save(tmp_path / "my.keras")
    pixels = noise_pixels(3).astype(np.float32)
    again = load_file(tmp_path / "my.keras", pixels.shape[1:3])
    np.testing.assert_allclose(np.asarray(again(pixels)), np.asarray(model(pixels)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "bfloat16", "float16"])
def test_a_file_saved_under_another_precision_computes_in_float32(tmp_path: Path, policy: str) -> None:
    before = keras.config.dtype_policy()
    try:
        keras.config.set_dtype_policy(policy)
        model = enliven(tiny_network(adapted=True))
        inner = keras.Sequential([keras.layers.Conv2D(4, 1), keras.layers.ReLU()], name="inner")
        keras.Model(model.inputs[0], inner(model.outputs[0])).save(tmp_path / "mixed.keras")
    finally:
        keras.config.set_dtype_policy(before)
    original = keras.saving.load_model(tmp_path / "mixed.keras")
    again = load_file(tmp_path / "mixed.keras")
    assert {str(layer.compute_dtype) for layer in all_layers(again)} == {"float32"}
    assert {str(weight.dtype) for weight in again.trainable_weights} == {"float32"}
    pixels = noise_pixels(4).astype(np.float32)
    expected = np.asarray(original(pixels)).astype(np.float32)
    given = np.asarray(again(pixels))
    assert given.dtype == np.float32
    np.testing.assert_allclose(given, expected, atol=0.05 * np.abs(expected).max())
    assert len(find_stages(again)) == len(find_stages(original))


def test_a_sequential_file_gives_its_own_answers_and_can_be_cut(tmp_path: Path) -> None:
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((16, 16, 3)), layers.Conv2D(4, 3, name="a"), layers.MaxPooling2D(name="b"), layers.Conv2D(5, 3)]
    )
    model.save(tmp_path / "seq.keras")
    pixels = noise_pixels(2, (16, 16)).astype(np.float32)
    again = load_file(tmp_path / "seq.keras")
    np.testing.assert_allclose(np.asarray(again(pixels)), np.asarray(model(pixels)), rtol=1e-5, atol=1e-5)
    assert [stage.shape for stage in find_stages(again)] == [(14, 14, 4), (7, 7, 4), (5, 5, 5)]


def test_a_sequential_file_that_was_built_for_one_image_takes_any_number(tmp_path: Path) -> None:
    model = keras.Sequential([keras.layers.Conv2D(4, 3)])
    model(np.zeros((1, 16, 16, 3), np.float32))
    model.save(tmp_path / "seq.keras")
    again = load_file(tmp_path / "seq.keras")
    assert again.input_shape == (None, 16, 16, 3)
    pixels = noise_pixels(3, (16, 16)).astype(np.float32)
    np.testing.assert_allclose(np.asarray(again(pixels)), np.asarray(model(pixels)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("own", "asked", "expected"),
    [
        ((None, None), None, (224, 224)),
        ((None, None), (40, 48), (40, 48)),
        ((32, None), (40, 48), (32, 48)),
        ((32, 32), (40, 48), (32, 32)),
    ],
)
def test_a_file_for_any_size_is_given_one_and_a_file_with_a_size_keeps_it(
    tmp_path: Path, own: tuple[int | None, int | None], asked: tuple[int, int] | None, expected: tuple[int, int]
) -> None:
    model = tiny_network(own, num_logits=4)
    model.save(tmp_path / "my.keras")
    again = load_file(tmp_path / "my.keras", asked)
    assert again.input_shape == (None, *expected, 3)
    pixels = noise_pixels(1, expected).astype(np.float32)
    np.testing.assert_allclose(np.asarray(again(pixels)), np.asarray(model(pixels)), rtol=1e-4, atol=1e-5)


def _two_inputs() -> Any:
    inputs = [keras.Input((8, 8, 3)), keras.Input((8, 8, 3))]
    return keras.Model(inputs, keras.layers.Add()(inputs))


def _two_outputs() -> Any:
    start = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3)(start)
    return keras.Model(start, [x, keras.layers.ReLU()(x)])


def _gray() -> Any:
    start = keras.Input((8, 8, 1))
    return keras.Model(start, keras.layers.Conv2D(4, 3)(start))


def _vector() -> Any:
    start = keras.Input((8,))
    return keras.Model(start, keras.layers.Dense(4)(start))


def _unbuilt() -> Any:
    return keras.Sequential([keras.layers.Conv2D(4, 3)])


@pytest.mark.filterwarnings("ignore:You are saving a model that has not yet been built")
@pytest.mark.parametrize("build", [_two_inputs, _two_outputs, _gray, _vector, _unbuilt])
def test_a_model_of_another_kind_is_refused_with_what_it_is(tmp_path: Path, build: Callable[[], Any]) -> None:
    build().save(tmp_path / "odd.keras")
    with pytest.raises(UsageError, match=r"odd\.keras cannot be a backbone\. Expected a functional model .*, got a "):
        load_file(tmp_path / "odd.keras")


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04junk", b"\x89HDF\r\n\x1a\n" + bytes(100)])
def test_a_file_that_is_no_keras_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.keras").write_bytes(content)
    with pytest.raises(UsageError, match=r"bad\.keras cannot be loaded"):
        load_file(tmp_path / "bad.keras")


def test_a_keras_file_cut_short_is_refused(tmp_path: Path) -> None:
    tiny_network().save(tmp_path / "my.keras")
    whole_file = (tmp_path / "my.keras").read_bytes()
    for length in (len(whole_file) // 4, len(whole_file) // 2, len(whole_file) - 30):
        (tmp_path / "cut.keras").write_bytes(whole_file[:length])
        with pytest.raises(UsageError, match=r"cut\.keras cannot be loaded"):
            load_file(tmp_path / "cut.keras")


class Doubled(keras.layers.Layer):  # type: ignore[misc]
    """A layer of the user's own, of which a file holds the name only."""

    def call(self, inputs: Any) -> Any:
        return 2 * inputs


def test_a_file_with_a_layer_of_the_users_own_is_refused_and_the_layer_named(tmp_path: Path) -> None:
    start = keras.Input((8, 8, 3))
    keras.Model(start, Doubled()(start)).save(tmp_path / "own.keras")
    with pytest.raises(UsageError, match=r"Could not locate class 'Doubled'.*custom code is never run") as caught:
        load_file(tmp_path / "own.keras")
    assert "\n" not in str(caught.value)


def test_a_file_with_a_lambda_is_refused_and_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "executed"

    start = keras.Input((8, 8, 3))
    path = str(marker)
    touch = lambda x: (x, open(path, "w").close())[0]  # noqa: E731, PTH123
    keras.Model(start, keras.layers.Lambda(touch, output_shape=(8, 8, 3))(start)).save(tmp_path / "lambda.keras")
    marker.unlink(missing_ok=True)  # building the model ran it here
    with pytest.raises(UsageError, match="Lambda"):
        load_file(tmp_path / "lambda.keras")
    assert not marker.exists()
    keras.saving.load_model(tmp_path / "lambda.keras", safe_mode=False)(np.zeros((1, 8, 8, 3)))
    assert marker.exists(), "the attack is a real one"


def forge(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
    """Rewrite the configuration inside a saved network."""
    tiny_network().save(path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    entries["config.json"] = json.dumps(change(json.loads(entries["config.json"]))).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def _as_layer(**described: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Put another object in the place of the first convolution."""

    def change(config: dict[str, Any]) -> dict[str, Any]:
        layer = next(entry for entry in config["config"]["layers"] if entry["class_name"] == "Conv2D")
        layer.update(registered_name=None, **described)
        return config

    return change


def _as_activation(**described: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def change(config: dict[str, Any]) -> dict[str, Any]:
        layer = next(entry for entry in config["config"]["layers"] if entry["class_name"] == "Conv2D")
        layer["config"]["activation"] = described
        return config

    return change


def _as_model(**described: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda config: {**config, "registered_name": None, **described}


FORGERIES = {
    "class": _as_layer(module="intruder", class_name="Boom", config={"name": "stem"}),
    "model": _as_model(module="intruder", class_name="Boom", config={}),
    "function": _as_activation(module="intruder", class_name="function", config="boom", registered_name="boom"),
    "os.system": _as_activation(module="os", class_name="function", config="system", registered_name="system"),
    "builtins": _as_activation(module="builtins", class_name="function", config="exec", registered_name="exec"),
    "os as class": _as_layer(module="os", class_name="system", config={"command": "touch executed"}),
    "download": _as_activation(
        module="keras.utils", class_name="function", config="get_file", registered_name="get_file"
    ),
    "savedmodel": _as_layer(
        module="keras.layers", class_name="TFSMLayer", config={"filepath": "/tmp/nowhere", "name": "stem"}
    ),
    "named lambda": _as_layer(
        module="keras.layers",
        class_name="Lambda",
        config={
            "name": "stem",
            "function": {"module": "intruder", "class_name": "function", "config": "boom", "registered_name": "boom"},
        },
    ),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_configuration_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgery: str) -> None:
    (tmp_path / "intruder.py").write_text(
        "from pathlib import Path\n"
        "marker = Path(__file__).with_name('executed')\n"
        "marker.touch()\n"
        "def boom(*_, **__): marker.touch()\n"
        "class Boom:\n"
        "    def __init__(self, **_): marker.touch()\n"
        "    @classmethod\n"
        "    def from_config(cls, config): return cls(**config)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    file = forge(tmp_path / "forged.keras", FORGERIES[forgery])
    with pytest.raises(UsageError, match=r"forged\.keras cannot be loaded"):
        load_file(file)
    assert "intruder" not in sys.modules
    assert not (tmp_path / "executed").exists()


def test_a_forged_file_that_is_left_alone_loads(tmp_path: Path) -> None:
    file = forge(tmp_path / "honest.keras", lambda config: config)
    assert load_file(file).output_shape == (None, 8, 8, 20)


def test_an_archive_cannot_write_outside_of_itself(tmp_path: Path) -> None:
    file = forge(tmp_path / "slip.keras", lambda config: config)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("../escaped.txt", "out")
        archive.writestr("/tmp/escaped-from-a-keras-file.txt", "out")
    load_file(file)
    assert not (tmp_path.parent / "escaped.txt").exists()
    assert not Path("/tmp/escaped-from-a-keras-file.txt").exists()
