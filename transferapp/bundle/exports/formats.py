"""Formats of exports: how each is written, and how it is run again to compare it with the bundle."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from transferapp.backbones.engine import OpenVINOEngine, import_nncf, read_network, save_converted
from transferapp.backbones.keras_internals import all_layers
from transferapp.bundle.format import Bundle
from transferapp.errors import ResourceError, UsageError
from transferapp.images.views import REFERENCE_CROP, SHORT_SIDE
from transferapp.system.backend import (
    constant_function,
    convert_to_litert,
    keras_backend,
    load_with_tensorflow,
    save_with_tensorflow,
)
from transferapp.system.storage import write_bytes

METADATA = "metadata.json"
"""File beside the network: class names, image size, geometry, and the comparison with the bundle."""

EXPORT = "transferapp-export"

_OPSET = 17
"""Version of the ONNX operators; ONNX Runtime reads it since 1.12, of 2022."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Images to run an export on.

    Attributes:
        pixels: Center crops, uint8, shape (n, height, width, 3).
        files: The files that they come from.
    """

    pixels: np.ndarray
    files: Sequence[Path]


Run = Callable[[Batch], np.ndarray]
"""An opened export: from images to probabilities, float32 of shape (n, num_classes)."""


@dataclass(frozen=True)
class Format:
    """A format of exports.

    Attributes:
        name: Name on the command line.
        file: File or folder of the network in the folder of the export.
        packages: Importable names that it needs beside those of the plain installation.
        write: Called with the bundle, center crops to calibrate on (an iterable of uint8 arrays of shape
            (1, height, width, 3)) and the folder to write to.
        opened: Context manager around the written network, called with its folder.
        quantized: Whether it computes with rounded weights and activations.
    """

    name: str
    file: str
    packages: tuple[str, ...]
    write: Callable[[Bundle, Iterable[np.ndarray], Path], None]
    opened: Callable[[Path], contextlib.AbstractContextManager[Run]]
    quantized: bool = False

    def check_packages(self) -> None:
        """Raise an error where a package that the format needs is not installed.

        Raises:
            ResourceError: One is missing.
        """
        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if missing:
            raise ResourceError(
                f"The format {self.name} needs packages that are not installed: {', '.join(missing)}",
                hint="pip install 'transferapp[export]'",
                code="missing_package",
            )


def find_format(name: str) -> Format:
    """Return a format by its name.

    Raises:
        UsageError: There is none of that name.
    """
    found = next((form for form in FORMATS if form.name == name), None)
    if found is None:
        raise UsageError(
            f"Unknown format {name!r}", expected=f"one of {', '.join(form.name for form in FORMATS)}", code="format"
        )
    return found


def preparation(bundle: Bundle) -> dict[str, Any]:
    """Return how an image becomes pixels of the network: the geometry of one crop."""
    return {
        "orientation": "as the EXIF tag says",
        "sample_bits": bundle.sample_bits,
        "crop": "center, of the aspect of the input",
        "crop_share": REFERENCE_CROP / SHORT_SIDE,
        "resample": "bicubic, antialiased",
        "image_size": list(bundle.image_size),
    }


def write_metadata(bundle: Bundle, form: Format, figures: dict[str, Any], folder: Path) -> None:
    """Write what a program needs to know beside the network.

    Args:
        bundle: The bundle.
        form: The format.
        figures: The comparison with the bundle.
        folder: Folder of the export.
    """
    height, width = bundle.image_size
    document = {
        "format": EXPORT,
        "kind": form.name,
        "file": form.file,
        "name": bundle.name,
        "bundle_version": bundle.version,
        "class_names": list(bundle.class_names),
        "input": {
            "name": "pixels",
            "dtype": "uint8",
            "shape": [None, height, width, 3],
            "color": "RGB, sRGB",
            "range": [0, 255],
        },
        "output": {"name": "probabilities", "dtype": "float32", "shape": [None, len(bundle.class_names)]},
        "preparation": preparation(bundle),
        "temperature": "applied",
        "compared": figures,
    }
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    (folder / METADATA).write_text(text, encoding="utf-8", errors="backslashreplace")


def is_export(folder: Path) -> bool:
    """Return whether a folder holds an export, so that another may replace it."""
    try:
        document = json.loads((folder / METADATA).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(document, dict) and document.get("format") == EXPORT


def _constant_function(bundle: Bundle) -> Any:
    """Return the bundle's Keras model as a function for converters.

    Raises:
        UsageError: Keras does not run on TensorFlow.
    """
    if keras_backend() != "tensorflow":
        raise UsageError(
            "This format is written with TensorFlow", got=f"KERAS_BACKEND={keras_backend()}", hint="Unset KERAS_BACKEND"
        )
    import keras

    model = keras.saving.load_model(bundle.file("model.keras"), compile=False, safe_mode=True)
    for layer in all_layers(model):
        if isinstance(layer, keras.layers.Normalization):
            layer.mean, layer.variance = np.asarray(layer.mean), np.asarray(layer.variance)
    return constant_function(model)


def _write_onnx(bundle: Bundle, _calibration: Iterable[np.ndarray], folder: Path) -> None:
    import tf2onnx

    function = _constant_function(bundle)
    signature = function.input_signature
    model, _ = tf2onnx.convert.from_function(function, input_signature=signature, opset=_OPSET)
    for dimension in (model.graph.input[0], model.graph.output[0]):
        dimension.type.tensor_type.shape.dim[0].dim_param = "batch"
    write_bytes(folder / "model.onnx", model.SerializeToString())


@contextlib.contextmanager
def _opened_onnx(folder: Path) -> Iterator[Run]:
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    yield lambda batch: np.asarray(session.run(["probabilities"], {"pixels": batch.pixels})[0])


def _write_litert(bundle: Bundle, _calibration: Iterable[np.ndarray], folder: Path) -> None:
    write_bytes(folder / "model.tflite", convert_to_litert(_constant_function(bundle)))


@contextlib.contextmanager
def _opened_litert(folder: Path) -> Iterator[Run]:
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_path=str(folder / "model.tflite")).get_signature_runner()
    yield lambda batch: np.asarray(runner(pixels=batch.pixels)["probabilities"])


def _write_savedmodel(bundle: Bundle, _calibration: Iterable[np.ndarray], folder: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        save_with_tensorflow(_constant_function(bundle), folder / "model")


@contextlib.contextmanager
def _opened_savedmodel(folder: Path) -> Iterator[Run]:
    run = load_with_tensorflow(folder / "model")
    yield lambda batch: np.asarray(run(batch.pixels))


def _write_int8(bundle: Bundle, calibration: Iterable[np.ndarray], folder: Path) -> None:
    nncf = import_nncf()
    network = read_network(bundle.read("model.xml"), bundle.read("model.bin"), str(bundle.path))
    images = list(calibration)
    # MIXED quantizes activations that take negative values on both sides of 0.
    with contextlib.redirect_stdout(io.StringIO()):
        quantized = nncf.quantize(
            network, nncf.Dataset(images), subset_size=len(images), preset=nncf.QuantizationPreset.MIXED
        )
    save_converted(quantized, folder / "model.xml")


@contextlib.contextmanager
def _opened_int8(folder: Path) -> Iterator[Run]:
    engine = OpenVINOEngine(folder / "model.xml", precision="f32")
    yield lambda batch: engine(batch.pixels)


FORMATS = (
    Format("onnx", "model.onnx", ("tf2onnx", "onnx", "onnxruntime"), _write_onnx, _opened_onnx),
    Format("litert", "model.tflite", ("ai_edge_litert",), _write_litert, _opened_litert),
    Format("savedmodel", "model", (), _write_savedmodel, _opened_savedmodel),
    Format("openvino-int8", "model.xml", ("nncf",), _write_int8, _opened_int8, quantized=True),
)
