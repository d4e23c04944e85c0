"""Exported networks, run by the runtimes that they are for. Skipped where those are not installed."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers.networks import TINY_SIZE, enliven, noise_pixels, tiny_network
from tests.helpers.tiny_bundle import make_tiny_bundle
from transferapp.backbones.engine import OpenVINOEngine, convert, save_converted
from transferapp.bundle.exports.formats import FORMATS, describe, find_format, preparation
from transferapp.bundle.exports.networks import Batch, Job
from transferapp.bundle.format import NOVELTY, read_bundle, write_manifest, writing
from transferapp.bundle.novelty import Novelty, directions
from transferapp.bundle.predictor import Predictor
from transferapp.cli.export import FORMATS as OFFERED
from transferapp.images.views import GEOMETRIES, Geometry, center_view
from transferapp.training.tail import with_features

pytestmark = pytest.mark.slow
CLASSES = ("ant", "bee", "wasp")
EXACT = ("onnx", "litert", "savedmodel")


def installed(kind: str) -> Any:
    """Return a format, or skip the test where its packages are missing."""
    form = find_format(kind)
    if missing := [name for name in form.packages if importlib.util.find_spec(name) is None]:
        pytest.skip(f"{', '.join(missing)} is not installed")
    return form


def write(form: Any, path: Path, folder: Path, calibration: Sequence[np.ndarray] = ()) -> None:
    bundle = read_bundle(path)
    form.write(Job(bundle, folder, describe(bundle, form), calibration))


def keras_bundle(path: Path, network: Any, *, novelty: bool = False, geometry: Geometry = "crop") -> Path:
    """Write a bundle around a Keras network from pixels to probabilities of `CLASSES`.

    Args:
        path: Folder of the bundle.
        network: With the head of `with_a_deep_head` for novelty.
        novelty: Whether it knows noise of seed 1 as training images, and noise of seed 2 as held-out images.
        geometry: Of its input.
    """
    converted = convert(with_features(network) if novelty else network)
    with writing(path) as staging:
        network.save(staging / "model.keras")
        save_converted(converted, staging / "model.xml")
        if novelty:
            features = OpenVINOEngine(converted, precision="f32").outputs
            known = directions(features(noise_pixels(40, seed=1))[1]).astype(np.float16)
            similar = Novelty(known, np.zeros(0, np.float32)).similarity(features(noise_pixels(30, seed=2))[1])
            (staging / NOVELTY).write_bytes(Novelty(known, np.sort(similar)).to_bytes())
        write_manifest(
            staging,
            {
                "name": path.name,
                "class_names": list(CLASSES),
                "input": {"image_size": list(network.inputs[0].shape[1:3]), "geometry": geometry},
            },
        )
    return path


def with_many_channels() -> Any:
    """An adapted normalization of more channels than TensorFlow turns into constants, and spatial deviations."""
    import keras

    from transferapp.backbones.stages import spatial_deviation

    trunk = tiny_network(adapted=True)
    x = keras.layers.Conv2D(200, 1, activation="relu6", name="wide")(trunk.outputs[0])
    columns = [keras.layers.GlobalAveragePooling2D()(x), spatial_deviation(x, "deviation")]
    x = keras.layers.Concatenate()(columns)
    x = keras.layers.Normalization(mean=np.full(400, 0.3, np.float32), variance=np.full(400, 0.5, np.float32))(x)
    return classifier(trunk, x)


def with_a_deep_head() -> Any:
    """Fractional max-pooling, a hidden layer of maxout units, and batch normalization."""
    from transferapp.training.head_spec import HeadSpec
    from transferapp.training.heads import build_head

    trunk = tiny_network()
    spec = HeadSpec(hidden=(12,), activation="maxout", pooling="fractional_max", batch_norm=True)
    moments = np.zeros(20, np.float32), np.ones(20, np.float32)
    logits = build_head(spec, trunk.outputs[0], len(CLASSES), *moments, for_prediction=True)
    return classifier(trunk, None, logits)


def averaged() -> Any:
    """Two networks of different input sizes, averaged as an ensemble does."""
    import keras

    pixels = keras.Input((*TINY_SIZE, 3), name="pixels")
    small = keras.layers.Resizing(24, 24)(pixels)
    members = [with_many_channels()(pixels), classifier(tiny_network((24, 24), num_logits=3))(small)]
    return keras.Model(pixels, keras.layers.Average()(members))


def classifier(network: Any, features: Any = None, logits: Any = None) -> Any:
    """Put softmax, and before it a dense layer where features are given, on a network; with random weights."""
    import keras

    if features is not None:
        logits = keras.layers.Dense(len(CLASSES), name="dense")(features)
    elif logits is None:
        logits = network.outputs[0]
    model = keras.Model(network.inputs[0], keras.layers.Softmax()(keras.layers.Rescaling(0.5)(logits)))
    return enliven(model)


@pytest.mark.parametrize("network", [with_many_channels, with_a_deep_head, averaged])
@pytest.mark.parametrize("kind", EXACT)
def test_an_export_computes_what_the_bundle_does(kind: str, network: Callable[[], Any], tmp_path: Path) -> None:
    form = installed(kind)
    path = keras_bundle(tmp_path / "bundle", network())
    predictor, pixels = Predictor.load(path, precision="f32"), noise_pixels(11)
    expected = predictor.probabilities(pixels)
    assert expected.std(axis=0).max() > 0.01, "the images give different answers"
    write(form, path, tmp_path)
    assert (tmp_path / form.file).exists()
    with form.opened(tmp_path) as opened:
        for count in (11, 1, 4):  # batches of any size
            given = opened.from_pixels(Batch(pixels[:count], [])).probabilities
            assert given.dtype == np.float32
            np.testing.assert_allclose(given, expected[:count], atol=2e-5)


@pytest.mark.parametrize("kind", EXACT)
def test_an_export_scores_novelty_as_the_bundle_does(kind: str, tmp_path: Path) -> None:
    form = installed(kind)
    path = keras_bundle(tmp_path / "bundle", with_a_deep_head(), novelty=True)
    predictor = Predictor.load(path, precision="f32")
    assert predictor.novelty is not None
    pixels = np.concatenate([noise_pixels(6, seed=3), np.zeros((2, *TINY_SIZE, 3), np.uint8)])
    expected = predictor.novelty.score(predictor.engine.outputs(pixels)[1])
    assert len(set(expected)) > 3, "the images are known to different degrees"
    write(form, path, tmp_path)
    with form.opened(tmp_path) as opened:
        given = opened.from_pixels(Batch(pixels, [])).novelty
    assert given is not None
    np.testing.assert_allclose(given, expected, atol=1.01 / (len(predictor.novelty.held_out) + 1))


def test_the_probabilities_are_the_first_output_of_an_onnx_file_with_novelty(tmp_path: Path) -> None:
    form = installed("onnx")
    import onnxruntime

    path = keras_bundle(tmp_path / "bundle", with_a_deep_head(), novelty=True)
    write(form, path, tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    pixels = noise_pixels(3)
    expected = Predictor.load(path, precision="f32").probabilities(pixels)
    np.testing.assert_allclose(session.run(None, {"pixels": pixels})[0], expected, atol=2e-5)


def test_an_int8_export_is_close_and_smaller(tmp_path: Path) -> None:
    form = installed("openvino-int8")
    path = keras_bundle(tmp_path / "bundle", with_many_channels())
    pixels = noise_pixels(24)
    expected = Predictor.load(path, precision="f32").probabilities(pixels)
    write(form, path, tmp_path, [image[None] for image in noise_pixels(32, seed=1)])
    with form.opened(tmp_path) as opened:
        given = opened.from_pixels(Batch(pixels, [])).probabilities
    assert 0 < np.abs(given - expected).max() < 0.1
    assert (tmp_path / "model.bin").stat().st_size < 0.5 * (path / "model.bin").stat().st_size


def test_a_plain_program_with_onnxruntime_gets_the_prediction_of_the_bundle(tmp_path: Path) -> None:
    """The lines of docs/exports.md, without this package."""
    form = installed("onnx")
    import onnxruntime

    bundle = read_bundle(keras_bundle(tmp_path / "bundle", with_many_channels()))
    write(form, bundle.path, tmp_path)
    image = Image.fromarray(noise_pixels(1, (90, 70))[0])
    image.save(tmp_path / "image.png")

    width, height = image.size
    side = min(width, height) * 0.875
    left, top = (width - side) / 2, (height - side) / 2
    pixels = np.asarray(image.resize(TINY_SIZE, Image.Resampling.BICUBIC, box=(left, top, left + side, top + side)))
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (probabilities,) = session.run(None, {"pixels": pixels[None]})[0]

    prediction = Predictor(bundle, precision="f32").predict(tmp_path / "image.png", views=1)
    expected = {score.label: score.score for score in prediction.scores}
    np.testing.assert_allclose(probabilities, [expected[name] for name in CLASSES], atol=1e-5)
    assert (left, top) == pytest.approx(center_view(image.size, TINY_SIZE).box[:2])


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_the_preparation_says_what_of_an_image_the_network_sees(tmp_path: Path, geometry: Geometry) -> None:
    """The pixels of the bundle, from what the preparation says alone."""
    bundle = read_bundle(make_tiny_bundle(tmp_path / "bundle", geometry=geometry))
    said = preparation(bundle)
    assert said["geometry"] == geometry
    image = Image.fromarray(noise_pixels(1, (100, 400))[0])
    height, width = said["image_size"]
    if geometry == "crop":
        side = 100 * said["crop_share"]
        left, top = (400 - side) / 2, (100 - side) / 2
        box = (left, top, left + side, top + side)
    else:
        assert said["crop_share"] == 1
        box = (0, 0, 400, 100)
    expected = Image.new("RGB", (width, height), (said["padding"] or 0,) * 3)
    scaled_height = height // 4 if geometry == "pad" else height
    scaled = image.resize((width, scaled_height), Image.Resampling.BICUBIC, box=box)
    expected.paste(scaled, (0, (height - scaled_height) // 2))
    image.save(tmp_path / "image.png")
    predictor = Predictor(bundle)
    given = predictor.crops(predictor.decode(tmp_path / "image.png", 1), 1)[0]
    np.testing.assert_array_equal(given, np.asarray(expected))


def test_the_command_offers_every_format() -> None:
    assert tuple(form.name for form in FORMATS) == OFFERED


def test_the_names_in_an_onnx_file_are_those_of_the_metadata(tmp_path: Path) -> None:
    form = installed("onnx")
    import onnx

    write(form, keras_bundle(tmp_path / "bundle", with_many_channels()), tmp_path)
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    (pixels,), (probabilities,) = model.graph.input, model.graph.output
    assert (pixels.name, probabilities.name) == ("pixels", "probabilities")
    assert pixels.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert json.loads(json.dumps([d.dim_value for d in pixels.type.tensor_type.shape.dim[1:]])) == [*TINY_SIZE, 3]
