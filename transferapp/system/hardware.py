"""The device that training runs on, and the precision that it computes in.

Detection goes by what Keras' backend can use, not by what is plugged in. On a machine that shows no accelerator, no framework
is imported to find that out. Training uses all devices under JAX, and otherwise one: the first accelerator, or the CPU. In
mixed precision it runs on a copy of the model (`transferapp.training.session`); what is exported stays in float32.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from transferapp.system.backend import (
    Device,
    accelerator_devices,
    configured_backend,
    fastest_pointwise,
    shows_accelerator,
)
from transferapp.system.threads import cpu_cores

TENSOR_CORES = (7, 0)
"""NVIDIA's compute capability from which GPUs multiply half-precision matrices several times faster than single-precision
ones (Volta, 2017). Below it, mixed precision saves memory and costs time."""

_SPELLED = {"gpu": "GPU", "tpu": "TPU", "cpu": "CPU"}


@dataclass(frozen=True)
class Hardware:
    """The device for training, and the precision.

    Attributes:
        kind: `cpu`, `gpu` or `tpu`.
        device: Keras' name of the device, such as `gpu:0`.
        name: The maker's name of the accelerator; empty for the CPU.
        num_devices: Devices of this kind that Keras' backend sees. Training uses the first, or all where it is `divided`.
        divided: Whether every device computes its part of each batch (`transferapp.system.backend.divides_batches`).
        cores: CPU cores that this process may use.
        dtype_policy: Keras' name for the precision: `float32`, `mixed_float16` or `mixed_bfloat16`.
        idle: Whether the machine shows an accelerator that Keras' backend cannot use.
        pointwise: Computation of 1 x 1 convolutions on the CPU while pretrained layers are tuned: one of
            `transferapp.system.backend.POINTWISE`. Accelerators have their `dtype_policy` for all layers.
    """

    kind: str = "cpu"
    device: str = "cpu:0"
    name: str = ""
    num_devices: int = 1
    divided: bool = False
    cores: int = 1
    dtype_policy: str = "float32"
    idle: bool = False
    pointwise: str = "convolution"

    @property
    def sentence(self) -> str:
        """Sentence for the decision card: the device and the precision."""
        if self.kind == "cpu":
            cores = f"{self.cores} CPU core{'s' if self.cores > 1 else ''}"
            if self.idle:
                return f"{cores}: Keras cannot use its accelerator because the driver or libraries are missing"
            half = ", the 1 x 1 convolutions of what is fine-tuned in bfloat16" if self.pointwise == "bfloat16" else ""
            return f"{cores}, no GPU: training computes in float32{half}"
        spelled = _SPELLED.get(self.kind, self.kind)
        if self.divided:
            count = f"{self.num_devices} {spelled}s"
        else:
            count = f"1 {spelled}" if self.num_devices == 1 else f"1 of {self.num_devices} {spelled}s"
        if self.dtype_policy == "float32":
            precision = "float32, for half precision would not be faster there"
        else:
            precision = f"{self.dtype_policy}, with its weights kept in float32"
        share = "each computes a part of every batch, and " if self.divided else ""
        idle = "; KERAS_BACKEND=jax uses all of them" if self.num_devices > 1 and not self.divided else ""
        return f"{count} ({self.name}): {share}training computes in {precision}{idle}"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "sentence": self.sentence}


def detect(precision: str = "auto") -> Hardware:
    """Detect the hardware. Imports Keras only where there is a sign of an accelerator.

    Args:
        precision: One of `transferapp.backbones.engine.PRECISIONS`; `f32` keeps all of a CPU's training in float32.
    """
    devices = accelerator_devices()
    pointwise = "convolution" if devices else fastest_pointwise(precision)
    return hardware_of(
        devices,
        cores=cpu_cores(),
        idle=not devices and _left_idle(),
        pointwise=pointwise,
        divides=configured_backend() == "jax",
    )


def hardware_of(
    devices: Sequence[Device],
    *,
    cores: int,
    idle: bool = False,
    pointwise: str = "convolution",
    divides: bool = False,
) -> Hardware:
    """Return the hardware to train on, given the accelerators: a pure function.

    Of several kinds, such as a GPU and the graphics unit beside it, the kind of the first counts.

    Args:
        devices: From `accelerator_devices`.
        cores: CPU cores.
        idle: See `Hardware`.
        pointwise: See `Hardware`; counts where there is no accelerator.
        divides: Whether Keras' backend divides batches among several devices.
    """
    if not devices:
        return Hardware(cores=cores, idle=idle, pointwise=pointwise)
    first = devices[0]
    # TensorFlow and JAX may name a GPU after its maker's software.
    kind = "tpu" if first.id.startswith("tpu") else "gpu"
    same_kind = [device for device in devices if device.id.partition(":")[0] == first.id.partition(":")[0]]
    return Hardware(
        kind=kind,
        device=first.id,
        name=first.name,
        num_devices=len(same_kind),
        divided=divides and len(same_kind) > 1,
        cores=cores,
        dtype_policy=_dtype_policy(kind, first),
    )


def _dtype_policy(kind: str, device: Device) -> str:
    if kind == "tpu":
        return "mixed_bfloat16"
    return "mixed_float16" if (device.compute_capability or (0, 0)) >= TENSOR_CORES else "float32"


def _left_idle() -> bool:
    """Return whether there is an accelerator that is not hidden on purpose. Only Linux shows it without a framework."""
    return sys.platform == "linux" and "CUDA_VISIBLE_DEVICES" not in os.environ and shows_accelerator()
