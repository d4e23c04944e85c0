"""Inference engines: OpenVINO on CPUs, Keras on accelerators.

An engine takes uint8 pixels and returns float32 arrays. The served process uses the OpenVINO engine alone and so never imports
TensorFlow; only `convert` makes OpenVINO models of Keras models.

Precision is always explicit. OpenVINO would silently compute in bfloat16 where the CPU has it (class scores off in the third
decimal, at twice the speed on some processors and two thirds of it on others), so every engine has one of `f32` and `bf16`;
`auto` is bf16 where that is faster.
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
"""Images in one forward pass: beyond eight, two cores gain nothing and activations exceed the cache (measured)."""


FEATURE_TOLERANCE = {"f32": 2e-5, "bf16": 0.1}
"""Largest difference of pooled features from Keras' at any stage, as ||difference|| / ||features|| over a set of images.

Measured over the stages of the embedded backbones on photographs: f32 differs by the order of its sums alone (2e-6); bf16 has
eight bits for every activation (0.03 to 0.07 over many images, up to 0.2 for a single image with weak activations). A bundle is
checked again on its probabilities, and more closely: see `evaluation.parity`."""


class Engine(Protocol):
    """Protocol of compiled networks. Thread-safe."""

    name: str
    precision: str

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """Run pixels through the network.

        Args:
            batch: uint8, shape (n, height, width, 3), RGB, 0-255.

        Returns:
            float32, shape (n, outputs): the first output.
        """
        ...

    def outputs(self, batch: np.ndarray) -> tuple[np.ndarray, ...]:
        """Run pixels through the network; return all its outputs, each float32 of shape (n, ...)."""
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
    """Import OpenVINO without its telemetry package, which sends usage data to a third party. Thread-safe."""
    with _importing:
        with _import_failing("openvino_telemetry"):  # a stub takes its place
            import openvino

        # The first call builds a table and releases Python's lock meanwhile; two threads at it deadlock (seen with 2026.4).
        # Every inference calls this function, so one thread calls it here first.
        openvino.Type.u8.to_dtype()
    return openvino


def import_nncf() -> Any:
    """Import NNCF, which quantizes OpenVINO models, without the same telemetry package. Thread-safe."""
    import_openvino()
    with _importing, _import_failing("openvino_telemetry"):
        import nncf
    return nncf


def resolve_precision(precision: str) -> str:
    """Return the precision that `auto` stands for: `bf16` where this CPU has fast instructions for it, otherwise `f32`."""
    if precision not in PRECISIONS:
        raise UsageError(f"Unknown precision {precision!r}", expected=f"one of {', '.join(PRECISIONS)}")
    if precision != "auto":
        return precision
    return "bf16" if bfloat16_pays() and has_bfloat16() else "f32"


def has_bfloat16() -> bool:
    """Return whether OpenVINO can compute in bfloat16 on this CPU; see `bfloat16_pays` for whether that is faster."""
    return "BF16" in import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVINOEngine:
    """A network compiled by OpenVINO for the CPU.

    Args:
        model: An `openvino.Model`, or the path of its `.xml` beside its `.bin`.
        precision: One of `PRECISIONS`.
        streams: Callers that run at once, each on its own share of the cores; with 1, one caller uses all of them.
        threads: Cores to use in total; None for all.

    Raises:
        BundleError: This version of OpenVINO cannot read the file.
    """

    name = "openvino"

    def __init__(self, model: Any, *, precision: str = "auto", streams: int = 1, threads: int | None = None) -> None:
        openvino = import_openvino()
        self.precision = resolve_precision(precision)
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": self.precision,
            "NUM_STREAMS": streams,
            "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
            "ENABLE_CPU_PINNING": False,  # each process would bind its threads to the first cores
        }
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = threads
        try:
            self._compiled = openvino.Core().compile_model(model, "CPU", options)
        except RuntimeError as error:
            raise _unloadable(str(model) if isinstance(model, (str, Path)) else "the network", error) from error
        self._model = model
        self._local = threading.local()
        self.input_shape: tuple[int, ...] = tuple(
            d.get_length() if d.is_static else -1 for d in self._compiled.input(0).partial_shape
        )

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        return self._run(batch, 1)[0]

    def outputs(self, batch: np.ndarray) -> tuple[np.ndarray, ...]:
        return self._run(batch, len(self._compiled.outputs))

    def _run(self, batch: np.ndarray, count: int) -> tuple[np.ndarray, ...]:
        request = getattr(self._local, "request", None)
        if request is None:
            request = self._local.request = self._compiled.create_infer_request()
        request.infer({0: np.ascontiguousarray(batch)}, share_inputs=True)
        # Copies: the request's own memory is reused.
        return tuple(np.array(request.get_output_tensor(index).data, dtype=np.float32) for index in range(count))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the network; another process compiles it for one core."""
        path = self._model
        with tempfile.TemporaryDirectory(prefix="transferapp-") as folder:
            if not isinstance(path, (str, Path)):
                path = Path(folder) / "model.xml"
                save_converted(self._model, path)
            files = [Path(path).with_suffix(suffix).read_bytes() for suffix in (".xml", ".bin")]
        return _unpickled, (*files, self.precision)


def _unpickled(xml: bytes, weights: bytes, precision: str) -> OpenVINOEngine:
    return OpenVINOEngine(read_network(xml, weights, "the network"), precision=precision, threads=1)


def read_network(xml: bytes, weights: bytes, source: str) -> Any:
    """Make an `openvino.Model` of a network's two files, given as bytes.

    Args:
        xml: The `.xml`.
        weights: The `.bin`; copied.
        source: Name for errors.

    Raises:
        BundleError: This version of OpenVINO cannot read them.
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
    """Return the last line of OpenVINO's message; the lines before it name places in its source."""
    return next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)


class KerasEngine:
    """The Keras model itself, through one compiled function: for GPUs, and as the reference for parity."""

    name = "keras"

    def __init__(self, model: keras.Model) -> None:
        self.precision = str(model.compute_dtype)
        self._model = model
        self._multiple = BATCH_SIZE if keras_backend() == "jax" else 1  # JAX compiles again for each batch size
        self._lock = threading.Lock()  # Keras' predict function is not thread-safe

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        return self.outputs(batch)[0]

    def outputs(self, batch: np.ndarray) -> tuple[np.ndarray, ...]:
        filled = np.pad(batch, [(0, -len(batch) % self._multiple), (0, 0), (0, 0), (0, 0)])
        with self._lock:
            outputs = self._model.predict_on_batch(filled.astype(np.float32))
        outputs = outputs if isinstance(outputs, list) else [outputs]
        return tuple(np.asarray(output, dtype=np.float32)[: len(batch)] for output in outputs)

    def __reduce__(self) -> tuple[Any, ...]:
        raise UsageError("A cluster's workers cannot run the Keras engine", hint="Use --engine openvino with --ray")


def resolve_engine(kind: str) -> str:
    """Return `openvino` or `keras`; `auto` is Keras where it sees an accelerator and OpenVINO otherwise."""
    if kind not in ENGINES:
        raise UsageError(f"Unknown engine {kind!r}", expected=f"one of {', '.join(ENGINES)}")
    if kind == "auto":
        return "keras" if keras_has_accelerator() else "openvino"
    return kind


def convert(model: keras.Model) -> Any:
    """Convert a Keras model to an OpenVINO model.

    The model is traced as one TensorFlow function, which gives the same operations as a SavedModel on disk in a fifth of the
    time; Keras' own OpenVINO export gives half as many more in networks with squeeze-and-excitation. Where Keras runs on
    another backend, a subprocess reads the saved model with TensorFlow and converts it.

    Args:
        model: A functional model whose input has fixed height and width; any batch size.

    Returns:
        An `openvino.Model` that takes uint8 pixels (-1, height, width, 3); its outputs are in the order of the model's.

    Raises:
        ResourceError: The subprocess failed, for lack of memory, disk or TensorFlow.
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
    """Run `convert` in a process whose Keras runs on TensorFlow."""
    with tempfile.TemporaryDirectory(prefix="transferapp-") as name:
        folder = Path(name)
        with disk_errors(folder):
            model.save(folder / "model.keras")
        # On the CPU, because the accelerators' memory is in use by this process's backend.
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
        # Read as bytes: from a path OpenVINO would map the file, which is deleted next.
        network, weights = ((folder / f"model.{suffix}").read_bytes() for suffix in ("xml", "bin"))
        return import_openvino().Core().read_model(network, weights)


def convert_file(source: str, target: str) -> None:
    """Convert a `.keras` file to an OpenVINO network at `target` (.xml), with its weights beside it."""
    import keras

    save_converted(convert(keras.models.load_model(source, compile=False)), Path(target))


def save_converted(converted: Any, path: Path) -> None:
    """Write an OpenVINO model as `path` (.xml) and its weights beside it (.bin), in full precision.

    Raises:
        ResourceError: The disk is full, or the folder cannot be written.
    """
    with disk_errors(path):
        try:
            import_openvino().save_model(converted, os.fspath(path), compress_to_fp16=False)
        except RuntimeError as error:  # OpenVINO raises nothing else for a full disk
            raise OSError(_complaint(error)) from error
