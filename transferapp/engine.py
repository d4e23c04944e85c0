"""Run a network forward, fast: OpenVINO on CPUs, Keras where there is an accelerator.

An engine takes uint8 pixels and gives float32 arrays. The served process uses the OpenVINO engine alone and so never imports
TensorFlow; `convert` is the one place where a Keras model becomes an OpenVINO one, and the one adapter that speaks TensorFlow.

Precision is a named choice. OpenVINO would silently compute in bfloat16 where the CPU has it (twice the speed, class scores
off in the third decimal), so every engine states what it runs: `f32`, `bf16`, or `auto` for bf16 where the hardware has it.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from transferapp.errors import BundleError, ResourceError, UsageError
from transferapp.storage import disk_errors

if TYPE_CHECKING:
    import keras

PRECISIONS = ("auto", "f32", "bf16")
ENGINES = ("auto", "openvino", "keras")

BATCH_SIZE = 8
"""Pictures in one forward pass: past eight, two cores gain nothing and the activations fall out of the cache (measured)."""


FEATURE_TOLERANCE = {"f32": 2e-5, "bf16": 0.1}
"""How far pooled features at any stage may be from Keras', as ||difference|| / ||features|| over a set of pictures.

Measured over the stages of the embedded backbones on photographs: f32 differs by the order of its sums alone (2e-6); bf16 keeps
eight bits of every activation (0.03 to 0.07 over many pictures, up to 0.2 for a single one that excites little). What a bundle
serves is checked again, on its own probabilities and more closely: see `evaluation.parity`."""


class Engine(Protocol):
    """A network ready to run. Safe to call from several threads."""

    name: str
    precision: str

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """Run pixels through the network.

        Args:
            batch: uint8, shape (n, height, width, 3), RGB, 0-255.

        Returns:
            float32, shape (n, outputs).
        """
        ...


def import_openvino() -> Any:
    """Import OpenVINO without the package that reports its use to a third party over the network."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None makes the import fail: a stub steps in
    import openvino

    return openvino


def resolve_precision(precision: str) -> str:
    """Turn `auto` into what this CPU runs best: `bf16` where it has the instructions, otherwise `f32`."""
    if precision not in PRECISIONS:
        raise UsageError(f"Unknown precision {precision!r}", expected=f"one of {', '.join(PRECISIONS)}")
    if precision != "auto":
        return precision
    capabilities = import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "bf16" if "BF16" in capabilities else "f32"


class OpenVINOEngine:
    """A network compiled by OpenVINO for the CPU.

    Args:
        model: An `openvino.Model`, or the path of its `.xml` (the `.bin` lies beside it).
        precision: One of `PRECISIONS`.
        streams: How many callers may run at once, each on its own share of the cores; 1 gives one caller all of them.
        threads: Cores to use in all; None for every one.

    Raises:
        BundleError: The file is not a network that this version of OpenVINO can read.
    """

    name = "openvino"

    def __init__(self, model: Any, *, precision: str = "auto", streams: int = 1, threads: int | None = None) -> None:
        openvino = import_openvino()
        self.precision = resolve_precision(precision)
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": self.precision,
            "NUM_STREAMS": streams,
            "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
        }
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = threads
        try:
            self._compiled = openvino.Core().compile_model(model, "CPU", options)
        except RuntimeError as error:
            source = model if isinstance(model, (str, Path)) else "the network"
            raise BundleError(
                f"OpenVINO could not load {source} ({_complaint(error)})",
                hint="Fit the bundle again, or install the OpenVINO version that bundle.json names",
            ) from error
        self._local = threading.local()
        self.input_shape: tuple[int, ...] = tuple(
            d.get_length() if d.is_static else -1 for d in self._compiled.input(0).partial_shape
        )

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        request = getattr(self._local, "request", None)
        if request is None:
            request = self._local.request = self._compiled.create_infer_request()
        request.infer({0: np.ascontiguousarray(batch)}, share_inputs=True)
        return np.array(
            request.get_output_tensor(0).data, dtype=np.float32
        )  # a copy: the request's own memory is reused


def _complaint(error: RuntimeError) -> str:
    """What OpenVINO's message says last: before it come places in its source."""
    return next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)


class KerasEngine:
    """The Keras model itself, through one compiled function: the choice for GPUs, and the reference for parity."""

    name = "keras"

    def __init__(self, model: keras.Model) -> None:
        self.precision = str(model.compute_dtype)
        self._model = model
        self._lock = threading.Lock()  # Keras' predict function is not made for several threads

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        with self._lock:
            return np.asarray(self._model.predict_on_batch(batch.astype(np.float32)), dtype=np.float32)


_ACCELERATOR_FILES = ("/dev/nvidia0", "/dev/kfd", "/dev/dxg", "/dev/accel0")
"""What Linux shows of an NVIDIA card, an AMD one, one seen through WSL, a TPU."""


def keras_has_accelerator() -> bool:
    """Whether Keras' backend sees a GPU or TPU. Imports Keras only where the machine shows a sign of one."""
    if sys.platform == "linux" and not any(Path(path).exists() for path in _ACCELERATOR_FILES):
        return False
    import keras

    try:
        devices = keras.distribution.list_devices()
    except (AttributeError, RuntimeError, ValueError):
        return False
    return any(not device.lower().startswith("cpu") for device in devices)


def resolve_engine(kind: str) -> str:
    """`openvino` or `keras`; `auto` is Keras where it sees an accelerator and OpenVINO otherwise."""
    if kind not in ENGINES:
        raise UsageError(f"Unknown engine {kind!r}", expected=f"one of {', '.join(ENGINES)}")
    if kind == "auto":
        return "keras" if keras_has_accelerator() else "openvino"
    return kind


def convert(model: keras.Model) -> Any:
    """Make an OpenVINO model of a Keras model.

    The way leads over one traced TensorFlow function, which gives the same operations as a SavedModel on disk in a fifth of
    the time; Keras' own OpenVINO export leaves half as many operations again in networks with squeeze-and-excitation.

    Args:
        model: A functional model with one output whose input has fixed height and width; any batch size.

    Returns:
        An `openvino.Model` that takes uint8 pixels (-1, height, width, 3).

    Raises:
        ResourceError: Keras runs on another backend than TensorFlow.
    """
    import keras

    if keras.backend.backend() != "tensorflow":
        raise ResourceError(
            f"The OpenVINO engine is made from a TensorFlow graph, and Keras runs on {keras.backend.backend()}",
            hint="Choose --engine keras, or unset KERAS_BACKEND",
        )
    import tensorflow as tf

    openvino = import_openvino()
    from openvino.preprocess import PrePostProcessor

    shape = (None, *model.inputs[0].shape[1:])

    def forward(pixels: Any) -> Any:
        return model(pixels, training=False)

    traced = tf.function(forward, autograph=False).get_concrete_function(
        tf.TensorSpec(shape, tf.float32, name="pixels")
    )
    converted = openvino.convert_model(traced)
    converted.reshape([-1, *shape[1:]])
    processor = PrePostProcessor(converted)
    processor.input().tensor().set_element_type(openvino.Type.u8)
    return processor.build()


def save_converted(converted: Any, path: Path) -> None:
    """Write an OpenVINO model as `path` (.xml) and its weights beside it (.bin), in full precision.

    Raises:
        ResourceError: The disk is full, or the place cannot be written.
    """
    with disk_errors(path):
        try:
            import_openvino().save_model(converted, os.fspath(path), compress_to_fp16=False)
        except RuntimeError as error:  # all that OpenVINO says of a full disk
            raise OSError(_complaint(error)) from error
