"""Run a network forward, fast: OpenVINO on CPUs, Keras where there is an accelerator.

An engine takes uint8 pixels and gives float32 arrays. The served process uses the OpenVINO engine alone and so never imports
TensorFlow; `convert` is the one place where a Keras model becomes an OpenVINO one.

This module is also the one adapter that speaks a backend's own language: what Keras cannot say for all of them (which device is
what, training on several, conversion) is asked of TensorFlow or JAX here and nowhere else.

Precision is a named choice. OpenVINO would silently compute in bfloat16 where the CPU has it (twice the speed, class scores
off in the third decimal), so every engine states what it runs: `f32`, `bf16`, or `auto` for bf16 where the hardware has it.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
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


_importing = threading.Lock()


def import_openvino() -> Any:
    """Import OpenVINO without the package that reports its use to a third party over the network. Safe to call from threads."""
    with _importing:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None makes the import fail: a stub steps in
        import openvino

        # The first call makes a table, and gives up Python's lock on the way; where two threads are at it, each then waits for
        # the other for good. Every inference calls this, so it is called here first, by one thread (seen with 2026.4).
        openvino.Type.u8.to_dtype()
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


_ACCELERATOR_FILES = ("/dev/nvidia0", "/dev/kfd", "/dev/dxg", "/dev/accel0")
"""What Linux shows of an NVIDIA card, an AMD one, one seen through WSL, a TPU."""


@dataclass(frozen=True)
class Device:
    """A GPU or TPU.

    Attributes:
        id: What Keras calls it, such as `gpu:0`.
        name: What its maker calls it; the id's first part where that cannot be learnt.
        compute_capability: (major, minor) of an NVIDIA card; None for all others.
    """

    id: str
    name: str
    compute_capability: tuple[int, int] | None = None


def shows_accelerator() -> bool:
    """Whether the machine shows a sign of a GPU or TPU; always true on systems where there is no cheap way to tell."""
    return sys.platform != "linux" or any(Path(path).exists() for path in _ACCELERATOR_FILES)


def accelerator_devices() -> tuple[Device, ...]:
    """The GPUs or TPUs that Keras' backend can use. Imports Keras only where the machine shows a sign of one."""
    if not shows_accelerator():
        return ()
    import keras

    try:
        ids = [device.lower() for device in keras.distribution.list_devices()]
    except (AttributeError, RuntimeError, ValueError):
        return ()
    ids = [device for device in ids if not device.startswith("cpu")]
    described = _described() if ids else {}
    return tuple(described.get(device, Device(device, device.partition(":")[0].upper())) for device in ids)


def _described() -> dict[str, Device]:
    """What the backend knows of its devices, by Keras' name for them."""
    found = {}
    if keras_backend() == "jax":
        import jax

        for device in jax.devices():
            name = f"{device.platform}:{device.id}"
            found[name] = Device(
                name, str(device.device_kind), _capability(getattr(device, "compute_capability", None))
            )
    elif keras_backend() == "tensorflow":
        import tensorflow as tf

        for index, card in enumerate(tf.config.list_physical_devices("GPU")):
            facts = tf.config.experimental.get_device_details(card)
            name = f"gpu:{index}"
            found[name] = Device(name, facts.get("device_name", "GPU"), _capability(facts.get("compute_capability")))
    return found


def _capability(told: Any) -> tuple[int, int] | None:
    """TensorFlow tells (9, 0), JAX "9.0", and an AMD card something else altogether."""
    parts = told.split(".") if isinstance(told, str) else told
    try:
        major, minor = parts
        return int(major), int(minor)
    except (TypeError, ValueError):
        return None


def keras_has_accelerator() -> bool:
    """Whether Keras' backend sees a GPU or TPU. Imports Keras only where the machine shows a sign of one."""
    return bool(accelerator_devices())


def data_parallel(devices: Sequence[str]) -> AbstractContextManager[Any]:
    """The backend's own way to train one model on several devices, each of which takes a share of every batch.

    Args:
        devices: At least two of Keras' names, such as `gpu:0`.

    Returns:
        A context: models built within have their variables on every device.

    Raises:
        ResourceError: Keras runs on a backend for which there is none.
    """
    import keras

    strategy: Any
    if keras_backend() == "tensorflow":
        import tensorflow as tf

        strategy = tf.distribute.MirroredStrategy([device.upper() for device in devices])
    elif keras_backend() == "jax":
        strategy = keras.distribution.DataParallel(devices=list(devices), auto_shard_dataset=False)
    else:
        raise ResourceError(
            f"Training on {len(devices)} devices is not to be had from Keras on {keras_backend()}",
            hint="Unset KERAS_BACKEND, or show it one device only",
        )
    scope: AbstractContextManager[Any] = strategy.scope()
    return scope


def keras_backend() -> str:
    """The framework that Keras runs on: `tensorflow`, `jax` or another. Imports Keras."""
    import keras

    return str(keras.backend.backend())


def configured_backend() -> str:
    """What `keras_backend` will be, without importing Keras: by the variable that it reads, or else by its file."""
    named = os.environ.get("KERAS_BACKEND")
    if named:
        return named
    home = os.environ.get("KERAS_HOME")
    try:
        settings = json.loads(
            (Path(home) if home else Path.home() / ".keras").joinpath("keras.json").read_text("utf-8")
        )
        return str(settings["backend"])
    except (OSError, RuntimeError, ValueError, KeyError, TypeError):
        return "tensorflow"


POINTWISE = ("convolution", "product", "bfloat16")
"""How a 1 x 1 convolution can be computed: as convolutions are, as a product of matrices, or as a convolution in half precision
whose result is float32 again."""

_NEURAL = {"avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16", "avx512_fp16"}
"""Instructions of x86 processors, by Linux' names, with one of which TensorFlow computes by oneDNN unless told otherwise."""

_BFLOAT = {"avx512_bf16", "amx_bf16"}


def fastest_pointwise(precision: str = "auto") -> str:
    """How TensorFlow trains 1 x 1 convolutions fastest on this CPU: one of `POINTWISE`.

    Without oneDNN a training step with convolutions takes a fifth more time than one with products; with oneDNN, where there
    are instructions for it, half precision saves as much. Both were measured on Linux and x86-64, and are done there alone.

    Args:
        precision: One of `PRECISIONS`; with `f32` half precision is out of the question.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64" or configured_backend() != "tensorflow":
        return "convolution"
    flags = _cpu_flags()
    told = os.environ.get("TF_ENABLE_ONEDNN_OPTS", "").lower()
    onednn = told not in ("0", "false") and (told in ("1", "true") or bool(flags & _NEURAL))
    if not onednn:
        return "product"
    return "bfloat16" if precision != "f32" and flags & _BFLOAT else "convolution"


def _cpu_flags() -> set[str]:
    """What Linux says that an x86 processor can do; nothing where it does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return set(line.partition(":")[2].split())
    return set()


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


def _convert_elsewhere(model: keras.Model) -> Any:
    """`convert` in a process whose Keras runs on TensorFlow."""
    with tempfile.TemporaryDirectory(prefix="transferapp-") as name:
        folder = Path(name)
        with disk_errors(folder):
            model.save(folder / "model.keras")
        # The CPU will do, and whatever memory the accelerators have is in use by this process's backend.
        changes = {"KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
        code = "import sys; from transferapp.engine import convert_file; convert_file(*sys.argv[1:])"
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
