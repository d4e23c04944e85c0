"""Engines: the same features from OpenVINO as from Keras, from any number of threads, and their errors."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers.networks import TINY_SIZE, noise_pixels, pretrained, tiny_network
from tests.helpers.tiny_bundle import color_network
from transferapp.backbones import engine as engine_module
from transferapp.backbones.engine import (
    FEATURE_TOLERANCE,
    KerasEngine,
    OpenVINOEngine,
    convert,
    has_bfloat16,
    resolve_engine,
    resolve_precision,
    save_converted,
)
from transferapp.backbones.registry import backbone_spec
from transferapp.backbones.stages import find_stages, pooled_taps
from transferapp.errors import BundleError, ResourceError, UsageError
from transferapp.images.views import center_view, render
from transferapp.system import backend as backend_module
from transferapp.system.backend import keras_has_accelerator

HAS_BF16 = has_bfloat16()


@pytest.fixture(scope="module")
def tiny() -> Any:
    """A small network and what OpenVINO makes of it."""
    model = tiny_network(num_logits=5)
    return model, convert(model)


def relative_error(features: np.ndarray, reference: np.ndarray) -> float:
    """||difference|| / ||features||."""
    return float(np.linalg.norm(features - reference) / np.linalg.norm(reference))


# ---------------------------------------------------------------------------------------------------------------- features


@pytest.fixture(scope="module")
def taps() -> tuple[list[int], np.ndarray, np.ndarray, Any]:
    """Lite0's taps: their widths, photographs, Keras' features of them, and the converted network."""
    data: Any = pytest.importorskip("skimage.data")
    model = pretrained("efficientnet_lite0")
    stages = find_stages(model)
    tapped = pooled_taps(model, stages)
    size = backbone_spec("efficientnet_lite0").image_size
    names = ("chelsea", "coffee", "astronaut", "rocket", "retina")
    photographs = [Image.fromarray(getattr(data, name)()) for name in names]
    pixels = np.stack([render(image, center_view(image.size, size), size) for image in photographs])
    channels = [stage.shape[2] for stage in stages]
    return [*channels, 1000, *channels], pixels, KerasEngine(tapped)(pixels), convert(tapped)


@pytest.mark.parametrize(
    "precision", ["f32", pytest.param("bf16", marks=pytest.mark.skipif(not HAS_BF16, reason="the CPU has no bf16"))]
)
def test_openvino_gives_keras_features_at_every_stage_within_the_stated_tolerance(
    taps: tuple[list[int], np.ndarray, np.ndarray, Any], precision: str
) -> None:
    widths, pixels, reference, converted = taps
    engine = OpenVINOEngine(converted, precision=precision)
    assert engine.precision == precision
    features = engine(pixels)
    assert features.shape == reference.shape == (len(pixels), sum(widths))
    ends = np.cumsum(widths)
    for end, width in zip(ends, widths, strict=True):
        columns = slice(int(end) - width, int(end))
        assert relative_error(features[:, columns], reference[:, columns]) <= FEATURE_TOLERANCE[precision]


def test_the_stated_tolerance_tells_another_network_apart(tiny: Any) -> None:
    pixels = noise_pixels(4)
    other = KerasEngine(tiny_network(num_logits=5))  # the same weights but for one, moved by a percent
    other._model.get_layer("conv1").kernel.assign(other._model.get_layer("conv1").kernel * 1.01)
    assert relative_error(KerasEngine(tiny[0])(pixels), other(pixels)) > FEATURE_TOLERANCE["f32"]


def test_features_are_float32_from_uint8_pixels_in_any_memory_layout(tiny: Any) -> None:
    model, converted = tiny
    pixels = noise_pixels(4)
    before = pixels.copy()
    reference = np.asarray(model(pixels.astype(np.float32), training=False))
    engines = (OpenVINOEngine(converted, precision="f32"), KerasEngine(model))
    for engine in engines:
        features = engine(pixels)
        assert features.dtype == np.float32
        np.testing.assert_allclose(features, reference, rtol=1e-3, atol=1e-4)
        flipped = np.ascontiguousarray(pixels[:, ::-1])[:, ::-1]
        assert not flipped.flags.c_contiguous
        np.testing.assert_array_equal(engine(flipped), features)
    np.testing.assert_array_equal(pixels, before)


@pytest.mark.parametrize("count", [1, 3, 8, 13])
def test_an_image_has_the_same_features_in_a_batch_of_any_size(tiny: Any, count: int) -> None:
    engine = OpenVINOEngine(tiny[1], precision="f32")
    pixels = noise_pixels(count)
    alone = np.concatenate([engine(pixels[i : i + 1]) for i in range(count)])
    assert relative_error(engine(pixels), alone) <= FEATURE_TOLERANCE["f32"]


def test_threads_that_are_the_first_to_run_a_network_do_not_wait_for_each_other_for_good() -> None:
    """OpenVINO's own first call hangs in more than half of such processes; so `import_openvino` makes it."""
    code = (
        "import sys, threading\n"
        "from transferapp.backbones.engine import import_openvino\n"
        "openvino = import_openvino()\n"
        "sys.setswitchinterval(1e-6)\n"
        "start = threading.Barrier(8)\n"
        "work = lambda: (start.wait(), openvino.Type.u8.to_dtype())\n"
        "threads = [threading.Thread(target=work) for _ in range(8)]\n"
        "for thread in threads: thread.start()\n"
        "for thread in threads: thread.join()\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2]) for _ in range(6)]
    try:
        assert [process.wait(60) for process in processes] == [0] * 6
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_the_same_batch_gives_the_same_bits_each_time(tiny: Any) -> None:
    pixels = noise_pixels(8)
    first = OpenVINOEngine(tiny[1], precision="f32")
    again = OpenVINOEngine(tiny[1], precision="f32")
    expected = first(pixels)
    for _ in range(3):
        np.testing.assert_array_equal(first(pixels), expected)
    np.testing.assert_array_equal(again(pixels), expected)


def test_an_answer_is_not_overwritten_by_the_next_one(tiny: Any) -> None:
    engine = OpenVINOEngine(tiny[1], precision="f32")
    first = engine(noise_pixels(2, seed=1))
    kept = first.copy()
    engine(noise_pixels(2, seed=2))
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("streams", [1, 2])
def test_eight_threads_get_the_answers_that_one_gets(tiny: Any, streams: int) -> None:
    engine = OpenVINOEngine(tiny[1], precision="f32", streams=streams)
    batches = [noise_pixels(1 + seed % 4, seed=seed) for seed in range(64)]
    expected = [engine(batch) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(engine, batches))
    for answer, one in zip(answers, expected, strict=True):
        np.testing.assert_allclose(answer, one, rtol=1e-5, atol=1e-5)


def test_the_keras_engine_too_may_be_called_from_several_threads(tiny: Any) -> None:
    engine = KerasEngine(tiny[0])
    assert (engine.name, engine.precision) == ("keras", "float32")
    batches = [noise_pixels(2, seed=seed) for seed in range(16)]
    expected = [engine(batch) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        for answer, one in zip(pool.map(engine, batches), expected, strict=True):
            np.testing.assert_array_equal(answer, one)


# -------------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("from_file", [False, True])
def test_a_pickled_engine_gives_the_same_bits(tiny: Any, tmp_path: Path, from_file: bool) -> None:
    network = tiny[1]
    if from_file:
        save_converted(network, tmp_path / "network.xml")
        network = tmp_path / "network.xml"
    engine = OpenVINOEngine(network, precision="f32", streams=2)
    pickled = pickle.dumps(engine)
    (tmp_path / "network.bin").unlink(missing_ok=True)
    copy, batch = pickle.loads(pickled), noise_pixels(4)
    assert copy.precision == "f32"
    np.testing.assert_array_equal(copy(batch), engine(batch))


def test_the_keras_engine_cannot_leave_its_process(tiny: Any) -> None:
    with pytest.raises(UsageError, match="--engine openvino"):
        pickle.dumps(KerasEngine(tiny[0]))


def test_a_saved_network_gives_what_it_gave_before(tiny: Any, tmp_path: Path) -> None:
    save_converted(tiny[1], tmp_path / "model.xml")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.bin", "model.xml"]
    engine = OpenVINOEngine(tmp_path / "model.xml", precision="f32")
    assert engine.input_shape == (-1, *TINY_SIZE, 3)
    pixels = noise_pixels(3)
    np.testing.assert_array_equal(engine(pixels), OpenVINOEngine(tiny[1], precision="f32")(pixels))


def test_weights_are_saved_in_full_precision(tiny: Any, tmp_path: Path) -> None:
    save_converted(tiny[1], tmp_path / "model.xml")
    kernel = np.asarray(tiny[0].get_layer("logits").kernel)
    stored = (tmp_path / "model.bin").read_bytes()
    assert np.ascontiguousarray(kernel).tobytes() in stored or np.ascontiguousarray(kernel.T).tobytes() in stored


def _spoil(content: bytes | None) -> Any:
    def spoil(path: Path) -> None:
        path.unlink() if content is None else path.write_bytes(content)

    return spoil


@pytest.mark.parametrize(
    ("file", "spoil"),
    [
        ("model.xml", _spoil(None)),
        ("model.xml", _spoil(b"")),
        ("model.xml", _spoil(b"<html>not a network</html>")),
        ("model.xml", lambda path: path.write_bytes(path.read_bytes()[:500])),
        ("model.bin", _spoil(None)),
        ("model.bin", lambda path: path.write_bytes(path.read_bytes()[:20])),
    ],
    ids=["no xml", "empty xml", "html", "cut xml", "no bin", "cut bin"],
)
def test_a_file_that_is_no_network_is_a_bundle_error_in_one_line(tmp_path: Path, file: str, spoil: Any) -> None:
    save_converted(color_network(3, size=(8, 8)), tmp_path / "model.xml")
    spoil(tmp_path / file)
    with pytest.raises(BundleError) as caught:
        OpenVINOEngine(tmp_path / "model.xml", precision="f32")
    message = str(caught.value)
    assert f"OpenVINO could not load {tmp_path / 'model.xml'}" in message
    assert "\n" not in message
    assert ".cpp" not in message, "places in OpenVINO's source tell nobody anything"


def test_a_place_that_cannot_be_written_is_a_resource_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ResourceError, match="Could not write"):
        save_converted(color_network(3, size=(8, 8)), tmp_path / "file" / "model.xml")


@pytest.mark.skipif(sys.platform == "win32", reason="limits of this kind are POSIX")
def test_a_full_disk_is_a_resource_error(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from tests.helpers.tiny_bundle import color_network\n"
        "from transferapp.backbones.engine import save_converted\n"
        "from transferapp.errors import ResourceError\n"
        "network = color_network(100_000, size=(8, 8))\n"  # 1.2 MB of weights
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "try:\n"
        "    save_converted(network, Path(sys.argv[1]) / 'model.xml')\n"
        "except ResourceError as error:\n"
        "    sys.exit(error.exit_code)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=root, timeout=60, check=False)
    assert done.returncode == ResourceError.exit_code


# ---------------------------------------------------------------------------------------------------------------- choices


def test_unknown_choices_list_the_valid_ones() -> None:
    with pytest.raises(UsageError, match=r"Unknown precision 'f16'.*auto, f32, bf16"):
        resolve_precision("f16")
    with pytest.raises(UsageError, match=r"Unknown engine 'onnx'.*auto, openvino, keras"):
        resolve_engine("onnx")


def test_named_choices_are_taken_as_they_are() -> None:
    assert [resolve_precision(name) for name in ("f32", "bf16")] == ["f32", "bf16"]
    assert [resolve_engine(name) for name in ("openvino", "keras")] == ["openvino", "keras"]


@pytest.mark.parametrize("pays", [False, True])
def test_auto_precision_is_what_the_cpu_has_and_is_fast_in(monkeypatch: pytest.MonkeyPatch, pays: bool) -> None:
    monkeypatch.setattr(engine_module, "bfloat16_pays", lambda: pays)
    assert resolve_precision("auto") == ("bf16" if HAS_BF16 and pays else "f32")


@pytest.fixture
def signs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that stands for a graphics card's device; it does not exist yet."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(backend_module, "_ACCELERATOR_FILES", (str(tmp_path / "nvidia0"),))
    return tmp_path / "nvidia0"


def test_without_a_sign_of_an_accelerator_keras_is_not_even_asked(signs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keras", None)  # importing it would now fail
    assert not keras_has_accelerator()
    assert resolve_engine("auto") == "openvino"


@pytest.mark.parametrize(
    ("devices", "engine"),
    [(["cpu:0"], "openvino"), (["CPU:0", "CPU:1"], "openvino"), (["gpu:0"], "keras"), (["cpu:0", "tpu:0"], "keras")],
)
def test_auto_engine_follows_the_devices_that_keras_sees(
    signs: Path, monkeypatch: pytest.MonkeyPatch, devices: list[str], engine: str
) -> None:
    import keras

    signs.touch()
    monkeypatch.setattr(keras.distribution, "list_devices", lambda: devices)
    assert resolve_engine("auto") == engine


def test_a_backend_that_cannot_list_devices_counts_as_a_cpu(signs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import keras

    def fail() -> list[str]:
        raise RuntimeError("no devices")

    signs.touch()
    monkeypatch.setattr(keras.distribution, "list_devices", fail)
    assert not keras_has_accelerator()


# ----------------------------------------------------------------------------------------------------------- other backends


@pytest.mark.slow
def test_under_another_backend_a_process_with_tensorflow_converts(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, converted = tiny
    monkeypatch.setattr(engine_module, "keras_backend", lambda: "jax")
    elsewhere = convert(model)
    pixels = noise_pixels(3)
    engine = OpenVINOEngine(elsewhere, precision="f32")
    assert engine.input_shape == (-1, *TINY_SIZE, 3)
    np.testing.assert_array_equal(engine(pixels), OpenVINOEngine(converted, precision="f32")(pixels))


def test_a_failed_conversion_in_a_subprocess_is_an_error(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keras.py").write_text("raise ImportError('no framework in here')\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}")
    monkeypatch.setattr(engine_module, "keras_backend", lambda: "jax")
    with pytest.raises(
        ResourceError, match=r"with TensorFlow failed \(ImportError: no framework in here\).*KERAS_BACKEND"
    ):
        convert(tiny[0])


def test_under_jax_batches_have_one_of_few_sizes(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny[0]
    sizes = []

    def recorded(batch: np.ndarray) -> Any:
        sizes.append(len(batch))
        return type(model).predict_on_batch(model, batch)

    pixels = noise_pixels(11)
    expected = KerasEngine(model)(pixels)
    monkeypatch.setattr(engine_module, "keras_backend", lambda: "jax")
    monkeypatch.setattr(model, "predict_on_batch", recorded)
    engine = KerasEngine(model)
    for count in (1, 5, 8, 11):
        features = engine(pixels[:count])
        assert features.shape == (count, expected.shape[1])
        np.testing.assert_allclose(features, expected[:count], rtol=1e-5, atol=1e-5)
    assert sizes == [8, 8, 8, 16]


# ---------------------------------------------------------------------------------------------------------------- privacy


def test_the_package_that_reports_use_over_the_network_is_never_imported(tmp_path: Path) -> None:
    (tmp_path / "openvino_telemetry.py").write_text(
        "from pathlib import Path\nPath(__file__).with_name('imported').touch()\n"
    )
    code = (
        "import sys\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "from transferapp.backbones.engine import import_openvino\n"
        "openvino = import_openvino()\n"
        "import openvino.tools.ovc\n"  # the converter is what would report
        "assert 'openvino_telemetry' not in sys.modules\n"
        "assert 'tensorflow' not in sys.modules and 'keras' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=Path(__file__).parents[2])
    assert not (tmp_path / "imported").exists()
    plain = code.replace("from transferapp.backbones.engine import import_openvino\nopenvino = import_openvino()\n", "")
    subprocess.run([sys.executable, "-c", plain], check=False, timeout=60, capture_output=True)
    assert (tmp_path / "imported").exists(), "left to itself, OpenVINO does import it"


def test_threads_are_not_bound_to_cores(tiny: Any) -> None:
    # Otherwise two processes on one machine bind their threads to the same first cores.
    engine = OpenVINOEngine(tiny[1], precision="f32")
    assert engine._compiled.get_property("ENABLE_CPU_PINNING") is False
