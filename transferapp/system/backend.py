"""Facts and functions of Keras' backends that Keras does not offer for all of them.

Devices, the fastest computation of 1 x 1 convolutions on the processor, a network as TensorFlow's graph. TensorFlow and JAX
are imported here alone.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras

_ACCELERATOR_FILES = ("/dev/nvidia0", "/dev/kfd", "/dev/dxg", "/dev/accel0")
"""Device files on Linux of NVIDIA and AMD GPUs, of GPUs seen through WSL, and of TPUs."""


@dataclass(frozen=True)
class Device:
    """A GPU or TPU.

    Attributes:
        id: Keras' name, such as `gpu:0`.
        name: The maker's name; the first part of the id if it is unknown.
        compute_capability: (major, minor) of an NVIDIA GPU; None for all others.
    """

    id: str
    name: str
    compute_capability: tuple[int, int] | None = None


def shows_accelerator() -> bool:
    """Return whether the machine shows a sign of a GPU or TPU; True on systems where there is no cheap way to tell."""
    return sys.platform != "linux" or any(Path(path).exists() for path in _ACCELERATOR_FILES)


def accelerator_devices() -> tuple[Device, ...]:
    """Return the GPUs or TPUs that Keras' backend can use. Imports Keras only where the machine shows a sign of one."""
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
    """Return the devices as the backend describes them, by Keras' name."""
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


def _capability(given: Any) -> tuple[int, int] | None:
    """Return the compute capability, which is (9, 0) in TensorFlow and "9.0" in JAX; None for what AMD GPUs have."""
    parts = given.split(".") if isinstance(given, str) else given
    try:
        major, minor = parts
        return int(major), int(minor)
    except (TypeError, ValueError):
        return None


def keras_has_accelerator() -> bool:
    """Return whether Keras' backend sees a GPU or TPU. Imports Keras only where the machine shows a sign of one."""
    return bool(accelerator_devices())


def keras_backend() -> str:
    """Return the framework that Keras runs on: `tensorflow`, `jax` or another. Imports Keras."""
    import keras

    return str(keras.backend.backend())


def configured_backend() -> str:
    """Return what `keras_backend` will be, without importing Keras, from the variable or the file that Keras reads."""
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


def divides_batches() -> bool:
    """Let this thread's models divide their batches among all devices, if there are several; return whether they do.

    JAX alone: each device holds all weights and computes an equal part of a batch (`keras.distribution.DataParallel`). To be
    called before a model is built, in each thread that builds or trains one, since Keras keeps a distribution per thread.
    """
    if configured_backend() != "jax":
        return False
    import keras

    if (distribution := _data_parallel()) is None:
        return False
    keras.distribution.set_distribution(distribution)
    return True


@functools.cache
def _data_parallel() -> Any:
    """Return the distribution over all devices; None for a single one."""
    import keras

    count = len(keras.distribution.list_devices())
    if count < 2:
        return None

    class Even(keras.distribution.DataParallel):  # type: ignore[misc]
        """Data parallelism in which a batch that cannot be divided evenly is computed whole by every device."""

        def get_data_layout(self, data_shape: tuple[int, ...]) -> Any:
            if data_shape[0] % count:
                return keras.distribution.TensorLayout([None] * len(data_shape), self.device_mesh)
            return super().get_data_layout(data_shape)

    return Even()


POINTWISE = ("convolution", "product", "bfloat16")
"""Ways to compute a 1 x 1 convolution: as convolutions are, as a matrix product, or as a convolution in half precision whose
result is float32 again."""

_NEURAL = {"avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16", "avx512_fp16"}
"""Instructions of x86 processors, by Linux' names. With any of them TensorFlow uses oneDNN unless it is switched off."""


def fastest_pointwise(precision: str = "auto") -> str:
    """Return the fastest way for TensorFlow to train 1 x 1 convolutions on this CPU: one of `POINTWISE`.

    Without oneDNN a training step with convolutions takes a fifth more time than one with products; with oneDNN, half precision
    saves as much where `bfloat16_pays`. Both were measured on Linux and x86-64, and are used there alone.

    Args:
        precision: One of `transferapp.backbones.engine.PRECISIONS`; `f32` excludes half precision.
    """
    if not _is_linux_on_x86() or configured_backend() != "tensorflow":
        return "convolution"
    setting = os.environ.get("TF_ENABLE_ONEDNN_OPTS", "").lower()
    onednn = setting not in ("0", "false") and (setting in ("1", "true") or bool(_cpu_facts()[1] & _NEURAL))
    if not onednn:
        return "product"
    return "bfloat16" if precision != "f32" and bfloat16_pays() else "convolution"


def bfloat16_pays() -> bool:
    """Return whether a CPU that has instructions for bfloat16 computes faster in it than in float32.

    Assumed of matrix tiles (AMX) and of AMD's AVX512-BF16. With Intel's AVX512-BF16 a network takes 1.4 times as long as in
    float32 (measured, docs/decisions/0015-pointwise.md). Assumed of other systems, where nothing was measured.
    """
    if not _is_linux_on_x86():
        return True
    vendor, flags = _cpu_facts()
    return "amx_bf16" in flags or ("avx512_bf16" in flags and vendor == "AuthenticAMD")


def _is_linux_on_x86() -> bool:
    return sys.platform == "linux" and platform.machine() == "x86_64"


def _cpu_facts() -> tuple[str, set[str]]:
    """Return the vendor of an x86 processor and its flags, from Linux; empty on other systems."""
    facts: dict[str, str] = {}
    with contextlib.suppress(OSError):
        first, _, _ = Path("/proc/cpuinfo").read_text().partition("\n\n")  # they are all alike
        for line in first.splitlines():
            name, _, value = line.partition(":")
            facts[name.strip()] = value.strip()
    return facts.get("vendor_id", ""), set(facts.get("flags", "").split())


def traced_by_tensorflow(model: keras.Model) -> Any:
    """Return a network in inference mode as a concrete function of TensorFlow that takes float32 (n, height, width, 3).

    Args:
        model: Functional, of one input with fixed height and width; Keras runs on TensorFlow.
    """
    import tensorflow as tf

    def forward(pixels: Any) -> Any:
        return model(pixels, training=False)

    pixels = tf.TensorSpec((None, *model.inputs[0].shape[1:]), tf.float32, name="pixels")
    return tf.function(forward, autograph=False).get_concrete_function(pixels)


def constant_function(model: keras.Model, names: Sequence[str]) -> Any:
    """Return a network as a function of TensorFlow that holds its weights as constants, for converters.

    Args:
        model: Functional, of one input with fixed height and width; Keras runs on TensorFlow. It must keep nothing but
            variables on the device: the constants of an adapted `Normalization` are captured as inputs otherwise.
        names: Names of its outputs.

    Returns:
        A `tf.function` from `pixels`, uint8 of shape (n, height, width, 3), to a dictionary of the outputs.
    """
    import numpy as np
    import tensorflow as tf

    trained, other = (
        [np.asarray(v.value) for v in variables]
        for variables in (model.trainable_variables, model.non_trainable_variables)
    )

    def forward(pixels: Any) -> dict[str, Any]:
        outputs, _ = model.stateless_call(trained, other, tf.cast(pixels, tf.float32), training=False)
        return dict(zip(names, outputs if isinstance(outputs, list) else [outputs], strict=True))

    pixels = tf.TensorSpec((None, *model.inputs[0].shape[1:]), tf.uint8, name="pixels")
    return tf.function(forward, input_signature=[pixels], autograph=False)


def save_with_tensorflow(function: Any, folder: Path) -> None:
    """Write a `constant_function` as a SavedModel with the signature `serving_default`."""
    import tensorflow as tf

    tf.saved_model.save(tf.Module(), str(folder), signatures=function)


def load_with_tensorflow(folder: Path) -> Any:
    """Return the signature `serving_default` of a SavedModel as a function from pixels to a dictionary of NumPy arrays."""
    import tensorflow as tf

    loaded = tf.saved_model.load(str(folder))
    signature = loaded.signatures["serving_default"]

    def run(pixels: Any) -> Any:
        # The module is named, because it would be deleted otherwise.
        assert loaded is not None
        return {name: output.numpy() for name, output in signature(pixels=tf.constant(pixels)).items()}

    return run


def convert_to_litert(function: Any) -> bytes:
    """Return a `constant_function` in the format of LiteRT (TensorFlow Lite)."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()], tf.Module())
    converted: bytes = converter.convert()
    return converted
