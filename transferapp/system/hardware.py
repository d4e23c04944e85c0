"""What the machine has to train with, and what follows from it: the precision, and how a batch is shared among several devices.

Detection goes by what Keras' backend can use, not by what is plugged in. On a machine that shows no accelerator, no framework
is imported to find that out. The trainer builds and runs its model within `distributed`, on a copy that
`transferapp.training.parallel` makes for the hardware; what is exported keeps its variables on one device and in float32.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

from transferapp.system.backend import Device, accelerator_devices, data_parallel, fastest_pointwise, shows_accelerator
from transferapp.system.threads import cpu_cores

TENSOR_CORES = (7, 0)
"""NVIDIA's compute capability from which cards multiply half-precision matrices several times faster than single-precision
ones (Volta, 2017). Below it, mixed precision saves memory and costs time."""

BFLOAT_CORES = (8, 0)
"""From which they do so with bfloat16 as well, as fast (Ampere, 2020)."""

_SPELLED = {"gpu": "GPU", "tpu": "TPU", "cpu": "CPU"}


@dataclass(frozen=True)
class Hardware:
    """What training runs on.

    Attributes:
        kind: `cpu`, `gpu` or `tpu`.
        devices: What Keras calls them, such as `gpu:0`; one or more, all of one kind. The CPU is one device.
        names: What their makers call the accelerators, as many as there are; empty for the CPU.
        cores: CPU cores that this process may use.
        dtype_policy: Keras' name for the precision: `float32`, `mixed_float16` or `mixed_bfloat16`.
        idle: Whether the machine shows an accelerator that Keras' backend cannot use.
        pointwise: How the CPU computes 1 x 1 convolutions while pretrained layers are tuned: one of
            `transferapp.system.backend.POINTWISE`. Accelerators have their `dtype_policy` for all layers.
    """

    kind: str = "cpu"
    devices: tuple[str, ...] = ("cpu:0",)
    names: tuple[str, ...] = ()
    cores: int = 1
    dtype_policy: str = "float32"
    idle: bool = False
    pointwise: str = "convolution"

    @property
    def count(self) -> int:
        """Devices that share every batch."""
        return len(self.devices)

    @property
    def sentence(self) -> str:
        """For the decision card: what there is, and what is made of it."""
        if self.kind == "cpu":
            cores = f"{self.cores} CPU core{'s' if self.cores > 1 else ''}"
            if self.idle:
                return f"{cores}: there is an accelerator too, but Keras cannot use it, for want of its driver or libraries"
            half = ", the 1 x 1 convolutions of what is fine-tuned in bfloat16" if self.pointwise == "bfloat16" else ""
            return f"{cores}, no GPU: training computes in float32{half}"
        spelled = _SPELLED.get(self.kind, self.kind)
        names = ", ".join(dict.fromkeys(self.names))
        what = f"{self.count} {spelled}{'s' if self.count > 1 else ''} ({names})"
        shared = f"each takes 1/{self.count} of every batch, and " if self.count > 1 else ""
        if self.dtype_policy == "float32":
            why = "not be faster there" if self.count == 1 else "not be faster, or not be safe, on several of these"
            return f"{what}: {shared}training computes in float32, for half precision would {why}"
        return f"{what}: {shared}training computes in {self.dtype_policy}, with its weights kept in float32"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "devices": list(self.devices), "names": list(self.names), "sentence": self.sentence}


def detect(precision: str = "auto") -> Hardware:
    """Look at the machine. Imports Keras only where there is a sign of an accelerator.

    Args:
        precision: One of `transferapp.backbones.engine.PRECISIONS`; `f32` keeps all of a CPU's training in float32.
    """
    devices = accelerator_devices()
    pointwise = "convolution" if devices else fastest_pointwise(precision)
    return hardware_of(devices, cores=cpu_cores(), idle=not devices and _left_idle(), pointwise=pointwise)


def hardware_of(
    devices: Sequence[Device], *, cores: int, idle: bool = False, pointwise: str = "convolution"
) -> Hardware:
    """What follows from a list of accelerators. Pure.

    Of several kinds, as a card and the graphics unit beside it may be, the kind of the first counts.

    Args:
        devices: From `accelerator_devices`.
        cores: CPU cores.
        idle: See `Hardware`.
        pointwise: See `Hardware`; counts where there is no accelerator.
    """
    if not devices:
        return Hardware(cores=cores, idle=idle, pointwise=pointwise)
    # TensorFlow and JAX may name a GPU after its maker's software.
    kind = "tpu" if devices[0].id.startswith("tpu") else "gpu"
    alike = [device for device in devices if device.id.partition(":")[0] == devices[0].id.partition(":")[0]]
    return Hardware(
        kind=kind,
        devices=tuple(device.id for device in alike),
        names=tuple(device.name for device in alike),
        cores=cores,
        dtype_policy=_dtype_policy(kind, alike),
    )


def _dtype_policy(kind: str, devices: Sequence[Device]) -> str:
    """On several cards never float16: it needs the loss scaled, and Keras' optimizer for that (3.15) asks TensorFlow's first
    device alone whether its gradients are finite, so that an overflow on another makes every weight NaN (seen)."""
    if kind == "tpu":
        return "mixed_bfloat16"
    slowest = min(device.compute_capability or (0, 0) for device in devices)
    if len(devices) > 1:
        return "mixed_bfloat16" if slowest >= BFLOAT_CORES else "float32"
    return "mixed_float16" if slowest >= TENSOR_CORES else "float32"


def _left_idle() -> bool:
    """Whether there is an accelerator that nobody has hidden on purpose. Only Linux shows it without a framework."""
    return sys.platform == "linux" and "CUDA_VISIBLE_DEVICES" not in os.environ and shows_accelerator()


def distributed(hardware: Hardware) -> AbstractContextManager[Any]:
    """A context for building, compiling, training and asking a model; it does nothing on one device.

    On several, the framework's own strategy is in force: TensorFlow's MirroredStrategy, Keras' DataParallel under JAX. Batches
    stay what they are: each device takes its share of one, and gradients are summed before the step. Only BatchNorm in
    training mode (`--scratch`) takes its statistics from the device's share.

    Args:
        hardware: From `detect`.

    Raises:
        ResourceError: Keras runs on a backend that cannot train on several devices.
    """
    return data_parallel(hardware.devices) if hardware.count > 1 else contextlib.nullcontext()
