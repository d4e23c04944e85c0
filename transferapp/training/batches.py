"""Training and validation data as Keras datasets: views of images, or cached activations of the trunk.

Order and pixels of a batch follow from the seed, the epoch, and the content and position of the images, never from the order
of threads or of earlier calls. A resumed run therefore sees what the interrupted one would have seen.

Threads of this module decode images a few batches ahead. Those of Keras, `PyDataset(workers=n)`, do not suit: in Keras 3.15
their queue fills before an epoch begins, and what an abandoned iteration leaves in it is returned by the next one.
"""

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

from transferapp.backbones.feature_store import RandomViews
from transferapp.data.dataset import Record
from transferapp.errors import DataError, TransferAppError
from transferapp.images.augment import augmented_pixels, seeded_generator
from transferapp.training.image_cache import DecodedCache, Pixels, center_views, training_images

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
        cache: DecodedCache | None = None,
        workers: int = 2,
    ) -> None:
        cache = center_views(image_size) if cache is None else cache
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
            return augmented_pixels(
                image, rng, self._image_size, self._random_views.augmentation, self._random_views.pca
            )

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
