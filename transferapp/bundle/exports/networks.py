"""Networks of exports: how each format is written from a bundle, and how it is run again."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from transferapp.backbones.engine import OpenVINOEngine, import_nncf, import_openvino, read_network, save_converted
from transferapp.backbones.keras_internals import all_layers
from transferapp.bundle.format import KERAS_FILE, NOVELTY, Bundle
from transferapp.bundle.novelty import Novelty
from transferapp.errors import UsageError
from transferapp.system.backend import (
    constant_function,
    convert_to_litert,
    keras_backend,
    load_with_tensorflow,
    save_with_tensorflow,
)
from transferapp.system.storage import write_bytes

_OPSET = 17
"""Version of the ONNX operators; ONNX Runtime reads it since 1.12, of 2022."""


@dataclass(frozen=True, eq=False)
class Job:
    """An export to write.

    Attributes:
        bundle: The bundle.
        folder: Folder to write to.
        metadata: Description of the export, for those that hold it themselves.
        calibration: Center crops to calibrate on, each uint8 of shape (1, height, width, 3).
        runtime: Package of the runtime in a page, as the user named it; None to find it.
    """

    bundle: Bundle
    folder: Path
    metadata: Mapping[str, Any]
    calibration: Iterable[np.ndarray] = ()
    runtime: Path | None = None


@dataclass(frozen=True, eq=False)
class Batch:
    """Images to run an export on.

    Attributes:
        pixels: Center crops, uint8, shape (n, height, width, 3).
        files: The files that they come from.
    """

    pixels: np.ndarray
    files: Sequence[Path]


@dataclass(frozen=True, eq=False)
class Answers:
    """Answers of an export.

    Attributes:
        probabilities: float32, shape (n, num_classes).
        novelty: Scores in [0, 1), shape (n,); None where the export has none.
    """

    probabilities: np.ndarray
    novelty: np.ndarray | None = None


Run = Callable[[Batch], Answers]


@dataclass(frozen=True)
class Opened:
    """An export that can be run.

    Attributes:
        from_pixels: Runs the network on the crops.
        from_files: Runs it on the files, which the export decodes and scales itself; None where it cannot.
    """

    from_pixels: Run
    from_files: Run | None = None


def _constant_function(bundle: Bundle) -> Any:
    """Return the bundle's Keras model as a function for converters; with the features where it tells novelty from them.

    Raises:
        UsageError: Keras does not run on TensorFlow.
    """
    if keras_backend() != "tensorflow":
        raise UsageError(
            "This format is written with TensorFlow", got=f"KERAS_BACKEND={keras_backend()}", hint="Unset KERAS_BACKEND"
        )
    import keras

    model = keras.saving.load_model(bundle.file(KERAS_FILE), compile=False, safe_mode=True)
    for layer in all_layers(model):
        if isinstance(layer, keras.layers.Normalization):
            layer.mean, layer.variance = np.asarray(layer.mean), np.asarray(layer.variance)
    if NOVELTY not in bundle.manifest["files"]:
        return constant_function(model, ["probabilities"])
    from transferapp.training.tail import with_features

    return constant_function(with_features(model), ["probabilities", "features"])


def _write_novelty(job: Job) -> None:
    if NOVELTY in job.bundle.manifest["files"]:
        write_bytes(job.folder / NOVELTY, job.bundle.read(NOVELTY))


def _opened(folder: Path, outputs: Callable[[np.ndarray], Mapping[str, Any]]) -> Opened:
    """Return an export that gives probabilities, and features from which its novelty is scored."""
    file = folder / NOVELTY
    novelty = Novelty.from_bytes(file.read_bytes()) if file.exists() else None

    def run(batch: Batch) -> Answers:
        found = outputs(batch.pixels)
        return Answers(
            np.asarray(found["probabilities"]), novelty.score(np.asarray(found["features"])) if novelty else None
        )

    return Opened(run)


def onnx_network(bundle: Bundle) -> bytes:
    """Return the network of a bundle as an ONNX file."""
    import tf2onnx

    function = _constant_function(bundle)
    signature = function.input_signature
    model, _ = tf2onnx.convert.from_function(function, input_signature=signature, opset=_OPSET)
    model.graph.output.sort(key=lambda output: output.name != "probabilities")  # programs often take the first output
    for dimension in (*model.graph.input, *model.graph.output):
        dimension.type.tensor_type.shape.dim[0].dim_param = "batch"
    network: bytes = model.SerializeToString()
    return network


def write_onnx(job: Job) -> None:
    write_bytes(job.folder / "model.onnx", onnx_network(job.bundle))
    _write_novelty(job)


@contextlib.contextmanager
def opened_onnx(folder: Path) -> Iterator[Opened]:
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    yield _opened(folder, lambda pixels: dict(zip(names, session.run(names, {"pixels": pixels}), strict=True)))


def write_litert(job: Job) -> None:
    write_bytes(job.folder / "model.tflite", convert_to_litert(_constant_function(job.bundle)))
    _write_novelty(job)


@contextlib.contextmanager
def opened_litert(folder: Path) -> Iterator[Opened]:
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_path=str(folder / "model.tflite")).get_signature_runner()
    yield _opened(folder, lambda pixels: runner(pixels=pixels))


def write_savedmodel(job: Job) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        save_with_tensorflow(_constant_function(job.bundle), job.folder / "model")
    _write_novelty(job)


@contextlib.contextmanager
def opened_savedmodel(folder: Path) -> Iterator[Opened]:
    yield _opened(folder, load_with_tensorflow(folder / "model"))


def write_int8(job: Job) -> None:
    nncf = import_nncf()
    whole = read_network(job.bundle.read("model.xml"), job.bundle.read("model.bin"), str(job.bundle.path))
    # Novelty is left out: it compares features with those of training images, and rounding moves them.
    probabilities = whole.output(0).get_node().input_value(0)
    network = import_openvino().Model([probabilities], whole.get_parameters(), whole.get_friendly_name())
    images = list(job.calibration)
    # MIXED quantizes activations that take negative values on both sides of 0.
    with contextlib.redirect_stdout(io.StringIO()):
        quantized = nncf.quantize(
            network, nncf.Dataset(images), subset_size=len(images), preset=nncf.QuantizationPreset.MIXED
        )
    save_converted(quantized, job.folder / "model.xml")


@contextlib.contextmanager
def opened_int8(folder: Path) -> Iterator[Opened]:
    engine = OpenVINOEngine(folder / "model.xml", precision="f32")
    yield Opened(lambda batch: Answers(engine(batch.pixels)))
