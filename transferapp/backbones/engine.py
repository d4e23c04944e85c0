"""Run a network forward, fast: OpenVINO on CPUs, Keras where there is an accelerator.

An engine takes uint8 pixels and gives float32 arrays. The served process uses the OpenVINO engine alone and so never imports
TensorFlow; `convert` is the one place where a Keras model becomes an OpenVINO one.

Precision is a named choice. OpenVINO would silently compute in bfloat16 where the CPU has it (class scores off in the third
decimal, at twice the speed on some processors and two thirds of it on others), so every engine states what it runs: `f32`,
`bf16`, or `auto` for bf16 where that is faster.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from transferapp.errors import BundleError, ResourceError, UsageError
from transferapp.system.backend import bfloat16_pays, keras_backend, keras_has_accelerator, traced_by_tensorflow
from transferapp.system.storage import disk_errors

if TYPE_CHECKING:
    import keras

PRECISIONS = ("auto", "f32", "bf16")
ENGINES = ("auto", "openvino", "keras")

BATCH_SIZE = 8
"""Images in one forward pass: past eight, two cores gain nothing and the activations fall out of the cache (measured)."""


FEATURE_TOLERANCE = {"f32": 2e-5, "bf16": 0.1}
"""How far pooled features at any stage may be from Keras', as ||difference|| / ||features|| over a set of images.

Measured over the stages of the embedded backbones on photographs: f32 differs by the order of its sums alone (2e-6); bf16 keeps
eight bits of every activation (0.03 to 0.07 over many images, up to 0.2 for a single one that excites little). What a bundle
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


_importing = threading.Lock()


@contextlib.contextmanager
def _import_failing(name: str) -> Iterator[None]:
    """Let imports of a module that was not imported before fail within the block."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]


def import_openvino() -> Any:
    """Import OpenVINO without the package that reports its use to a third party over the network. Safe to call from threads."""
    with _importing:
        with _import_failing("openvino_telemetry"):  # a stub takes its place
            import openvino

        # The first call makes a table, and gives up Python's lock on the way; where two threads are at it, each then waits for
        # the other for good. Every inference calls this, so it is called here first, by one thread (seen with 2026.4).
        openvino.Type.u8.to_dtype()
    return openvino


def resolve_precision(precision: str) -> str:
    """Turn `auto` into what this CPU runs fastest: `bf16` where it has instructions for it that pay, otherwise `f32`."""
    if precision not in PRECISIONS:
        raise UsageError(f"Unknown precision {precision!r}", expected=f"one of {', '.join(PRECISIONS)}")
    if precision != "auto":
        return precision
    return "bf16" if bfloat16_pays() and has_bfloat16() else "f32"


def has_bfloat16() -> bool:
    """Whether OpenVINO can compute in bfloat16 on this CPU; whether that is faster, `bfloat16_pays` knows."""
    return "BF16" in import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


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
            raise _unloadable(str(model) if isinstance(model, (str, Path)) else "the network", error) from error
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


def read_network(xml: bytes, weights: bytes, source: str) -> Any:
    """Make an `openvino.Model` of a network's two files, given as bytes.

    Args:
        xml: The `.xml`.
        weights: The `.bin`; copied.
        source: What to call them in an error.

    Raises:
        BundleError: They are not a network that this version of OpenVINO can read.
    """
    try:
        return import_openvino().Core().read_model(xml, weights)
    except RuntimeError as error:
        raise _unloadable(source, error) from error


def _unloadable(source: str, error: RuntimeError) -> BundleError:
    return BundleError(
        f"OpenVINO could not load {source} ({_complaint(error)})",
        hint="Fit the bundle again, or install the OpenVINO version that bundle.json names",
    )


def _complaint(error: RuntimeError) -> str:
    """What OpenVINO's message says last: before it come places in its source."""
    return next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)


class KerasEngine:
    """The Keras model itself, through one compiled function: the choice for GPUs, and the reference for parity."""

    name = "keras"

    def __init__(self, model: keras.Model) -> None:
        self.precision = str(model.compute_dtype)
        self._model = model
        self._multiple = BATCH_SIZE if keras_backend() == "jax" else 1  # JAX compiles anew for each size of a batch
        self._lock = threading.Lock()  # Keras' predict function is not made for several threads

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        filled = np.pad(batch, [(0, -len(batch) % self._multiple), (0, 0), (0, 0), (0, 0)])
        with self._lock:
            outputs = self._model.predict_on_batch(filled.astype(np.float32))
        return np.asarray(outputs, dtype=np.float32)[: len(batch)]


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
    the time; Keras' own OpenVINO export leaves half as many operations again in networks with squeeze-and-excitation. Where
    Keras runs on another backend, a process of its own reads the saved model with TensorFlow and converts it.

    Args:
        model: A functional model with one output whose input has fixed height and width; any batch size.

    Returns:
        An `openvino.Model` that takes uint8 pixels (-1, height, width, 3).

    Raises:
        ResourceError: The other process failed, for want of memory, disk or TensorFlow.
    """
    if keras_backend() != "tensorflow":
        return _convert_elsewhere(model)
    openvino = import_openvino()
    from openvino.preprocess import PrePostProcessor

    converted = openvino.convert_model(traced_by_tensorflow(model))
    converted.reshape([-1, *model.inputs[0].shape[1:]])
    processor = PrePostProcessor(converted)
    processor.input().tensor().set_element_type(openvino.Type.u8)
    return processor.build()


def _convert_elsewhere(model: keras.Model) -> Any:
    """`convert` in a process whose Keras runs on TensorFlow."""
    with tempfile.TemporaryDirectory(prefix="transferapp-") as name:
        folder = Path(name)
        with disk_errors(folder):
            model.save(folder / "model.keras")
        # The CPU will do, and whatever memory the accelerators have is in use by this process's backend.
        changes = {"KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
        code = "import sys; from transferapp.backbones.engine import convert_file; convert_file(*sys.argv[1:])"
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-c", code, str(folder / "model.keras"), str(folder / "model.xml")],
            env={**os.environ, **changes},
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode:
            said = next(
                (line for line in reversed(done.stderr.splitlines()) if line.strip()), f"exit {done.returncode}"
            )
            raise ResourceError(
                f"The process that makes the OpenVINO network with TensorFlow failed ({said.strip()[:200]})",
                hint="Unset KERAS_BACKEND to train with TensorFlow itself",
            )
        # Read as bytes: from a path OpenVINO would map the file, which is about to go.
        network, weights = ((folder / f"model.{suffix}").read_bytes() for suffix in ("xml", "bin"))
        return import_openvino().Core().read_model(network, weights)


def convert_file(source: str, target: str) -> None:
    """Convert a `.keras` file to an OpenVINO network at `target` (.xml), its weights beside it."""
    import keras

    save_converted(convert(keras.models.load_model(source, compile=False)), Path(target))


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
