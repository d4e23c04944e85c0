"""Training data as Keras datasets: cached activations, random views of decoded images, and mixed pairs."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from PIL import Image

from transferapp.backbones.feature_store import RandomViews, center_pixels
from transferapp.data.dataset import Record
from transferapp.errors import DataError, ImageError, TransferAppError
from transferapp.images.augment import LECTURE_AUGMENTATION, Augmentation, augmented_pixels, seeded_generator
from transferapp.images.views import RESAMPLE, Geometry, short_side_to_decode
from transferapp.training.settings import Batches, MakeBatches

BATCHES_AHEAD = 2
"""Batches that are prepared while the model works on the one before them."""

Labels = npt.NDArray[np.int32]


@dataclass(frozen=True)
class _PendingBatch:
    """A batch that threads are filling."""

    pixels: Pixels
    labels: Labels
    parts: list[Future[None]]

    def wait(self) -> tuple[Pixels, Labels]:
        try:
            for part in self.parts:
                part.result()
        except BaseException:
            self.cancel()
            raise
        return self.pixels, self.labels

    def cancel(self) -> None:
        for part in self.parts:
            part.cancel()


class _DecodedBatches(keras.utils.PyDataset):  # type: ignore[misc]  # Keras has no types
    """Batches that are decoded by threads, a few ahead.

    Attributes:
        error: The error of data or machine that stopped a batch; see `original_errors`.
    """

    def __init__(
        self,
        records: Sequence[Record],
        image_size: tuple[int, int],
        batch_size: int,
        cache: DecodedCache,
        workers: int,
    ) -> None:
        super().__init__(workers=1)
        if not records:
            raise DataError("There are no images to make batches of")
        self.error: TransferAppError | None = None
        self._records = tuple(records)
        self._labels = np.array([record.label for record in records], dtype=np.int32)
        self._image_size, self._batch_size, self._cache = image_size, batch_size, cache
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="images")
        self._lock = threading.RLock()
        self._pending: dict[int, _PendingBatch] = {}
        self._order = np.arange(len(self._records))

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return math.ceil(len(self._records) / self._batch_size)

    def __getitem__(self, index: int) -> tuple[Pixels, Labels]:
        _check_index(index, len(self))
        with self._lock:
            near = range(index, min(index + 1 + BATCHES_AHEAD, len(self)))
            for i in set(self._pending) - set(near):
                self._pending.pop(i).cancel()
            for i in near:
                if i not in self._pending:
                    self._pending[i] = self._start(i)
            batch = self._pending.pop(index)
        try:
            return batch.wait()
        except TransferAppError as error:
            self.error = error
            raise

    def _start(self, index: int) -> _PendingBatch:
        chosen = self._order[index * self._batch_size : (index + 1) * self._batch_size]
        pixels = np.empty((len(chosen), *self._image_size, 3), np.uint8)
        view = self._view()

        def fill(row: int, position: int) -> None:
            pixels[row] = view(position)

        parts = [self._threads.submit(fill, row, position) for row, position in enumerate(chosen.tolist())]
        return _PendingBatch(pixels, self._labels[chosen], parts)

    def _view(self) -> Callable[[int], Pixels]:
        """Return a function from an image's position to its pixels, to be called in other threads."""
        raise NotImplementedError


class CenterBatches(_DecodedBatches):
    """The center view of every image, in the order given: the validation data of whole-network training.

    Items are (uint8 (n, height, width, 3), values 0 to 255; int32 (n,) labels), where n is `batch_size`, or less for the last
    batch.

    Args:
        records: Audited images, one or more.
        image_size: (height, width) of the network's input.
        batch_size: Images in a batch.
        cache: From `center_views`; None makes one.
        workers: Threads.

    Raises:
        DataError: There are no images; or, for an item, one cannot be read any more.
    """

    def __init__(
        self,
        records: Sequence[Record],
        *,
        image_size: tuple[int, int],
        batch_size: int,
        geometry: Geometry,
        cache: DecodedCache | None = None,
        workers: int = 2,
    ) -> None:
        cache = center_views(image_size, geometry) if cache is None else cache
        super().__init__(records, image_size, batch_size, cache, workers)

    def _view(self) -> Callable[[int], Pixels]:
        return lambda position: self._cache.get(self._records[position])


class ImageBatches(_DecodedBatches):
    """A new random view of every image each epoch, in a new order: the training data of whole-network training.

    Items as of `CenterBatches`. Call `fit` with `shuffle=False` (otherwise Keras reorders the batches by a generator of its
    own), with `FollowEpochs` among the callbacks, and within `original_errors`.

    Args:
        records: Audited images, one or more.
        image_size: (height, width) of the network's input.
        batch_size: Images in a batch.
        seed: Determines order and views.
        random_views: Distribution of the views.
        cache: From `training_images`; None makes one.
        workers: Threads.

    Attributes:
        epoch: The epoch whose batches are returned, counted from 0.

    Raises:
        DataError: There are no images; or, for an item, one cannot be read any more.
    """

    def __init__(
        self,
        records: Sequence[Record],
        *,
        image_size: tuple[int, int],
        batch_size: int,
        seed: int,
        random_views: RandomViews,
        cache: DecodedCache | None = None,
        workers: int = 2,
    ) -> None:
        cache = training_images(image_size, random_views.augmentation) if cache is None else cache
        super().__init__(records, image_size, batch_size, cache, workers)
        self._random_views, self._seed = random_views, seed
        self.epoch = 0

    @property
    def epoch(self) -> int:
        return self._epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        with self._lock:
            self._epoch = epoch
            self._order = seeded_generator("order", self._seed, epoch).permutation(len(self._records))
            while self._pending:
                self._pending.popitem()[1].cancel()

    def _view(self) -> Callable[[int], Pixels]:
        epoch = self._epoch  # read now: a thread may run the function after the epoch has changed

        def view(position: int) -> Pixels:
            record = self._records[position]
            rng = seeded_generator("view", self._seed, epoch, position, record.sha256)
            image = Image.fromarray(self._cache.get(record))
            drawn = self._random_views
            return augmented_pixels(image, rng, self._image_size, drawn.augmentation, drawn.pca, drawn.geometry)

        return view


class CachedBatches(keras.utils.PyDataset):  # type: ignore[misc]
    """Cached activations: every image once an epoch, each time in the next of its views.

    Items are (float32 (n, *shape), int32 (n,) labels).

    Args:
        rows: float16 or float32, shape (num_rows, size of `shape`), memory-mapped or not: all cached views.
        positions: int64, shape (num_images, views): the row of each view of each image.
        labels: int, shape (num_images,).
        shape: (height, width, channels) of an activation, or (channels,) of a pooled one.
        batch_size: Images in a batch.
        seed: Determines the order.

    Attributes:
        epoch: The epoch whose batches are returned, counted from 0.
    """

    def __init__(
        self,
        rows: np.ndarray,
        positions: np.ndarray,
        labels: np.ndarray,
        shape: tuple[int, ...],
        *,
        batch_size: int,
        seed: int,
    ) -> None:
        super().__init__(workers=1)
        self._rows, self._positions, self._shape = rows, positions, shape
        self._labels = np.asarray(labels, dtype=np.int32)
        self._batch_size, self._seed = batch_size, seed
        # Images begin with different views, so that an epoch holds views of all kinds.
        self._offset = np.random.default_rng([seed, 0]).permutation(len(labels)) % positions.shape[1]
        self.epoch = 0

    @property
    def epoch(self) -> int:
        return self._epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch = epoch
        self._order = np.random.default_rng([self._seed, 1, epoch]).permutation(len(self._labels))

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return math.ceil(len(self._labels) / self._batch_size)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        _check_index(index, len(self))
        chosen = self._order[index * self._batch_size : (index + 1) * self._batch_size]
        view = (self._epoch + self._offset[chosen]) % self._positions.shape[1]
        batch = self._rows[self._positions[chosen, view]].astype(np.float32)
        return batch.reshape(len(chosen), *self._shape), self._labels[chosen]


class CachedCenters(keras.utils.PyDataset):  # type: ignore[misc]
    """Cached activations of the center view of every image, in order: validation data, as items (float32 (n, *shape),).

    Args:
        rows, shape, batch_size: As of `CachedBatches`.
        positions: int64, shape (num_images,): the row of each image.
    """

    def __init__(self, rows: np.ndarray, positions: np.ndarray, shape: tuple[int, ...], *, batch_size: int) -> None:
        super().__init__(workers=1)
        self._rows, self._positions, self._shape, self._batch_size = rows, positions, shape, batch_size

    def __len__(self) -> int:
        return math.ceil(len(self._positions) / self._batch_size)

    def __getitem__(self, index: int) -> tuple[np.ndarray]:
        _check_index(index, len(self))
        chosen = self._positions[index * self._batch_size : (index + 1) * self._batch_size]
        return (self._rows[chosen].astype(np.float32).reshape(len(chosen), *self._shape),)


def _check_index(index: int, num_batches: int) -> None:
    if not 0 <= index < num_batches:
        raise IndexError(f"There are {num_batches} batches, got index {index}.")


class FollowEpochs(keras.callbacks.Callback):  # type: ignore[misc]
    """Callback that sets the epoch of training data to the one that `fit` begins, with `initial_epoch` too.

    Args:
        batches: The training data of the same call of `fit`: an object with a settable `epoch`.
    """

    def __init__(self, batches: Any) -> None:
        super().__init__()
        self._batches = batches

    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
        self._batches.epoch = epoch


@contextlib.contextmanager
def original_errors(*batches: Any) -> Iterator[None]:
    """Raise an image's error as it was where the backend has wrapped it in its own.

    TensorFlow turns every error of an input thread into one of its own whose message is a traceback.

    Args:
        batches: The training and validation data in use; `SoftBatches` stand for the batches in them.

    Raises:
        TransferAppError: In place of the exception, where one of the batches met it.
    """
    sources = [getattr(each, "batches", each) for each in batches]
    decoded = [source for source in sources if isinstance(source, _DecodedBatches)]
    for source in decoded:
        source.error = None
    try:
        yield
    except Exception as error:
        for source in decoded:
            if source.error is not None and source.error is not error:
                raise source.error from error
        raise


CACHE_BYTES = 1_000_000_000
"""Memory for decoded images. For a 224-pixel input one takes 0.7 to 0.9 MB, or less if the file is smaller."""

Pixels = npt.NDArray[np.uint8]


class DecodedCache:
    """Images as arrays, stored while there is room. Thread-safe.

    Nothing is evicted: training passes through all images in turn, where least-recently-used eviction would remove each image
    just before it is needed. Images that find no room are decoded again each time, to the same pixels.

    Args:
        decode: Returns the pixels of an image, uint8 (height, width, 3).
        max_bytes: Limit on the sum of the stored arrays.
    """

    def __init__(self, decode: Callable[[Record], Pixels], *, max_bytes: int = CACHE_BYTES) -> None:
        self._decode = decode
        self._max_bytes = max_bytes
        self._stored: dict[str, Pixels] = {}
        self._nbytes = 0
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Sum of the stored arrays, in bytes."""
        return self._nbytes

    def __len__(self) -> int:
        """Return the number of stored images."""
        return len(self._stored)

    def get(self, record: Record) -> Pixels:
        """Return the pixels of an image: uint8 (height, width, 3), read-only.

        Raises:
            DataError: The file, which the error names, cannot be read any more.
            ResourceError: There is not enough memory to decode it.
        """
        key = record.sha256 or str(record.path)
        pixels = self._stored.get(key)
        if pixels is not None:
            return pixels
        try:
            pixels = self._decode(record)
        except ImageError as error:
            raise DataError(
                f"{record.name} could be read when the images were checked, and now it cannot ({error})",
                hint="Put the file back, leave the folder alone while a model is trained from it, and start again",
                code=error.code,
            ) from error
        pixels.flags.writeable = False
        with self._lock:
            if key not in self._stored and self._nbytes + pixels.nbytes <= self._max_bytes:
                self._stored[key] = pixels
                self._nbytes += pixels.nbytes
        return pixels


def training_images(
    image_size: tuple[int, int], augmentation: Augmentation = LECTURE_AUGMENTATION, *, max_bytes: int = CACHE_BYTES
) -> DecodedCache:
    """Return a cache of whole images, reduced to what the largest training scale needs.

    Args:
        image_size: (height, width) of the network's input.
        augmentation: Its largest scale determines the size.
        max_bytes: As of `DecodedCache`.
    """
    short_side = short_side_to_decode(augmentation.short_sides[1], image_size)

    def decode(record: Record) -> Pixels:
        image = record.decode(short_side).image
        shorter = min(image.size)
        if shorter > short_side:
            width, height = (round(side * short_side / shorter) for side in image.size)
            image = image.resize((width, height), RESAMPLE)
        return np.asarray(image)

    return DecodedCache(decode, max_bytes=max_bytes)


def center_views(image_size: tuple[int, int], geometry: Geometry) -> DecodedCache:
    """Return a cache of center views, (height, width) in size, with the pixels that a served model sees."""
    return DecodedCache(lambda record: center_pixels(record, image_size, geometry))


class SoftBatches(keras.utils.PyDataset):  # type: ignore[misc]  # Keras has no types
    """Batches whose labels are probabilities, mixed in pairs where asked for.

    Items are (x, float32 (n, num_classes)); x is float32 where it is mixed, and otherwise as it was.

    Args:
        batches: Batches of (x, int labels (n,)).
        num_classes: Number of classes.
        mixup: Alpha of the Beta distribution of lambda; 0 for no mixup.
        cutmix: The same for the share of the area that stays. With both, each batch draws one of the two. Pooled features, of
            shape (n, channels), have no area: there CutMix is mixup.
        seed: Determines the pairs and shares.
    """

    def __init__(self, batches: Batches, num_classes: int, *, mixup: float, cutmix: float, seed: int) -> None:
        super().__init__(workers=1)
        self.batches: Any = batches
        self._num_classes, self._mixup, self._cutmix, self._seed = num_classes, mixup, cutmix, seed

    @property
    def epoch(self) -> int:
        """Epoch of the batches, counted from 0."""
        return int(self.batches.epoch)

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self.batches.epoch = epoch

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        x, labels = self.batches[index]
        y = np.eye(self._num_classes, dtype=np.float32)[labels]
        if not (self._mixup or self._cutmix):
            return x, y
        rng = np.random.default_rng([self._seed, 2, self.epoch, index])
        cuts = rng.random() < 0.5 if self._mixup and self._cutmix else bool(self._cutmix)
        return mixed(x, y, rng, self._cutmix if cuts else self._mixup, cut=cuts)


def soft(make_batches: MakeBatches, num_classes: int, *, mixup: float, cutmix: float, seed: int) -> MakeBatches:
    """Return a function that makes `SoftBatches` of the batches that another makes. Arguments as of `SoftBatches`."""

    def make(batch_size: int) -> Batches:
        return SoftBatches(make_batches(batch_size), num_classes, mixup=mixup, cutmix=cutmix, seed=seed)

    return make


def mixed(
    x: np.ndarray, y: np.ndarray, rng: np.random.Generator, alpha: float, *, cut: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Mix each image of a batch with another: one share for all, partners by a permutation.

    Args:
        x: Shape (n, height, width, channels) or (n, channels), any number type.
        y: float32, shape (n, num_classes): rows sum to 1.
        rng: Source of all random numbers.
        alpha: Positive: the share of the image itself follows Beta(alpha, alpha).
        cut: Whether a box is pasted (CutMix). Otherwise, and where x has no area, images are blended (mixup).

    Returns:
        float32 arrays of the same shapes.
    """
    own = float(rng.beta(alpha, alpha))
    partners = rng.permutation(len(x))
    x = x.astype(np.float32)
    if cut and x.ndim == 4:
        rows, columns = _box(rng, x.shape[1], x.shape[2], 1 - own)
        pasted = x.copy()
        pasted[:, rows, columns] = x[partners][:, rows, columns]
        own = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (x.shape[1] * x.shape[2])
        x = pasted
    else:
        x = own * x + np.float32(1 - own) * x[partners]
    return x, np.float32(own) * y + np.float32(1 - own) * y[partners]


def _box(rng: np.random.Generator, height: int, width: int, area: float) -> tuple[slice, slice]:
    """Return a box of a share of the area around a random point, clipped at the borders, as the CutMix paper has it."""
    sides = []
    for size in (height, width):
        half = size * np.sqrt(area) / 2
        middle = rng.uniform(0, size)
        low, high = (int(np.clip(np.rint(middle + sign * half), 0, size)) for sign in (-1, 1))
        sides.append(slice(low, high))
    return sides[0], sides[1]
