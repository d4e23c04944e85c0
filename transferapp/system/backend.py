"""Keras' backend, asked in its own language: devices, how a processor computes fastest, a network as TensorFlow's graph.

Keras cannot tell these for all backends.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras

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


def fastest_pointwise(precision: str = "auto") -> str:
    """How TensorFlow trains 1 x 1 convolutions fastest on this CPU: one of `POINTWISE`.

    Without oneDNN a training step with convolutions takes a fifth more time than one with products; with oneDNN, half precision
    saves as much where `bfloat16_pays`. Both were measured on Linux and x86-64, and are done there alone.

    Args:
        precision: One of `transferapp.backbones.engine.PRECISIONS`; with `f32` half precision is out of the question.
    """
    if not _is_linux_on_x86() or configured_backend() != "tensorflow":
        return "convolution"
    told = os.environ.get("TF_ENABLE_ONEDNN_OPTS", "").lower()
    onednn = told not in ("0", "false") and (told in ("1", "true") or bool(_cpu_facts()[1] & _NEURAL))
    if not onednn:
        return "product"
    return "bfloat16" if precision != "f32" and bfloat16_pays() else "convolution"


def bfloat16_pays() -> bool:
    """Whether a CPU that has instructions for bfloat16 computes faster in it than in float32.

    With matrix tiles (AMX) it is taken to, and so is an AMD with the dot products of AVX512-BF16. With Intel's of that name a
    network takes 1.4 times as long as in float32 (measured, docs/decisions/0015-pointwise.md). On other systems, where
    nothing was measured, it is taken to be faster.
    """
    if not _is_linux_on_x86():
        return True
    vendor, flags = _cpu_facts()
    return "amx_bf16" in flags or ("avx512_bf16" in flags and vendor == "AuthenticAMD")


def _is_linux_on_x86() -> bool:
    return sys.platform == "linux" and platform.machine() == "x86_64"


def _cpu_facts() -> tuple[str, set[str]]:
    """(vendor, flags): who made an x86 processor, and what it can do, as Linux says; nothing where it does not say."""
    facts: dict[str, str] = {}
    with contextlib.suppress(OSError):
        first, _, _ = Path("/proc/cpuinfo").read_text().partition("\n\n")  # they are all alike
        for line in first.splitlines():
            name, _, value = line.partition(":")
            facts[name.strip()] = value.strip()
    return facts.get("vendor_id", ""), set(facts.get("flags", "").split())


def traced_by_tensorflow(model: keras.Model) -> Any:
    """A network in inference mode as one of TensorFlow's concrete functions: float32 pixels of shape (n, height, width, 3) in.

    Args:
        model: Functional, of one input with fixed height and width; Keras runs on TensorFlow.
    """
    import tensorflow as tf

    def forward(pixels: Any) -> Any:
        return model(pixels, training=False)

    pixels = tf.TensorSpec((None, *model.inputs[0].shape[1:]), tf.float32, name="pixels")
    return tf.function(forward, autograph=False).get_concrete_function(pixels)
