"""The input of whole-network training: fresh random views of every image each epoch, through Keras' own `PyDataset`.

Which images make a batch, and every pixel of it, follow from the seed, the number of the epoch, the image's content and
its place in the list, never from the order of threads or of earlier calls. So a resumed run sees what the interrupted one
would have seen.

Views are made in threads of this module, a few batches ahead (Pillow lets other threads run while it decodes and resizes).
Keras could do so too, with `PyDataset(workers=n)`, but in Keras 3.15 its queue begins to fill before it says that an epoch
begins, and what is left in it when an iteration is broken off is handed out in the next one. JAX and distribution strategies
break one off before the first epoch, and from then on each epoch would be given the views of the one before.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import keras
import numpy as np
import numpy.typing as npt
from PIL import Image

from transferapp.data.dataset import Record
from transferapp.errors import DataError, TransferAppError
from transferapp.images.augment import LECTURE_AUGMENTATION, Augmentation, augmented_pixels, seeded_generator
from transferapp.images.color_jitter import PCAColor
from transferapp.training.image_cache import DecodedCache, Pixels, center_views, training_images
from transferapp.training.settings import Batches

BATCHES_AHEAD = 2
"""Batches in preparation beside the one that is asked for."""

Labels = npt.NDArray[np.int32]


@dataclass(frozen=True)
class _Batch:
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


class _Batches(keras.utils.PyDataset):  # type: ignore[misc]  # Keras has no types
    """What `ImageBatches` and `CenterBatches` share: threads, looking ahead, and keeping the error that stopped them.

    Attributes:
        error: What stopped a batch, where that was a fault of data or machine; see `original_errors`.
    """

    def __init__(
        self,
        records: Sequence[Record],
        labels: Sequence[int] | np.ndarray,
        image_size: tuple[int, int],
        batch_size: int,
        cache: DecodedCache,
        workers: int,
    ) -> None:
        super().__init__(workers=1)  # no threads of Keras' own: see the top of this module
        if not records:
            raise DataError("There are no images to make batches of")
        if len(records) != len(labels):
            raise ValueError(f"There are {len(records)} images and {len(labels)} labels.")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        self.error: TransferAppError | None = None
        self._records = tuple(records)
        self._labels = np.asarray(labels, dtype=np.int32)
        self._image_size = image_size
        self._batch_size = batch_size
        self._cache = cache
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="images")
        self._lock = threading.RLock()
        self._ahead: dict[int, _Batch] = {}
        self._order = np.arange(len(self._records))

    def __len__(self) -> int:
        """Batches in an epoch."""
        return (len(self._records) + self._batch_size - 1) // self._batch_size

    def __getitem__(self, index: int) -> tuple[Pixels, Labels]:
        if not 0 <= index < len(self):
            raise IndexError(f"There are {len(self)} batches, got index {index}.")
        with self._lock:
            near = range(index, min(index + 1 + BATCHES_AHEAD, len(self)))
            for i in set(self._ahead) - set(near):
                self._ahead.pop(i).cancel()
            for i in near:
                if i not in self._ahead:
                    self._ahead[i] = self._start(i)
            batch = self._ahead.pop(index)
        try:
            return batch.wait()
        except TransferAppError as error:
            self.error = error
            raise

    def _start(self, index: int) -> _Batch:
        chosen = self._order[index * self._batch_size : (index + 1) * self._batch_size]
        pixels = np.empty((len(chosen), *self._image_size, 3), np.uint8)
        view = self._view()

        def fill(row: int, position: int) -> None:
            pixels[row] = view(position)

        parts = [self._threads.submit(fill, row, position) for row, position in enumerate(chosen.tolist())]
        return _Batch(pixels, self._labels[chosen], parts)

    def _view(self) -> Callable[[int], Pixels]:
        """What makes the view of the image at a position; called later, in other threads."""
        raise NotImplementedError


class CenterBatches(_Batches):
    """The center view of every image, in the order given: what validation is measured on.

    Item i is (uint8 (n, height, width, 3), values 0 to 255; int32 (n,) labels), where n is `batch_size` but for the last
    batch, which may be smaller. Good for `fit(validation_data=...)`, `evaluate` and `predict`.

    Args:
        records: Audited images, one or more.
        labels: A class index for each.
        image_size: (height, width) of the network's input.
        batch_size: Images in a batch.
        cache: From `center_views`; None makes one.
        workers: Threads.

    Raises:
        DataError: There are no images; or, of an item, one cannot be read any more.
    """

    def __init__(
        self,
        records: Sequence[Record],
        labels: Sequence[int] | np.ndarray,
        *,
        image_size: tuple[int, int],
        batch_size: int,
        cache: DecodedCache | None = None,
        workers: int = 2,
    ) -> None:
        cache = center_views(image_size) if cache is None else cache
        super().__init__(records, labels, image_size, batch_size, cache, workers)

    def _view(self) -> Callable[[int], Pixels]:
        return lambda position: self._cache.get(self._records[position])


class ImageBatches(_Batches):
    """A fresh random view of every image each epoch, in a fresh order.

    Items as of `CenterBatches`. Give it to `fit` with `shuffle=False` (Keras' default would reorder the batches by a
    generator that no seed of ours reaches; that is noticed and refused), with `FollowEpochs` among the callbacks, and within
    `original_errors`. Left alone, it goes on to the next epoch when Keras reports the end of one in which the last batch
    was handed out.

    Args:
        records: Audited images, one or more.
        labels: A class index for each.
        image_size: (height, width) of the network's input.
        batch_size: Images in a batch.
        seed: Decides order and views.
        augmentation: What varies.
        pca: The training set's color components (`fit_pca_color`); needed unless `pca_std` is 0.
        cache: From `training_images`; None makes one.
        workers: Threads.
        epoch: The epoch to begin with, counted from 0 as by `fit(initial_epoch=...)`.

    Raises:
        DataError: There are no images; or, of an item, one cannot be read any more.
        ValueError: `pca` is missing; or, of an item, the batches of an epoch are not taken in their order.
    """

    def __init__(
        self,
        records: Sequence[Record],
        labels: Sequence[int] | np.ndarray,
        *,
        image_size: tuple[int, int],
        batch_size: int,
        seed: int,
        augmentation: Augmentation = LECTURE_AUGMENTATION,
        pca: PCAColor | None = None,
        cache: DecodedCache | None = None,
        workers: int = 2,
        epoch: int = 0,
    ) -> None:
        if augmentation.color.pca_std and pca is None:
            raise ValueError("Offsets along principal components need the components: see fit_pca_color.")
        cache = training_images(image_size, augmentation) if cache is None else cache
        super().__init__(records, labels, image_size, batch_size, cache, workers)
        self._augmentation = augmentation
        self._pca = pca
        self._seed = seed
        self._within_epoch = False
        self.epoch = epoch

    @property
    def epoch(self) -> int:
        """The epoch whose batches are handed out, counted from 0."""
        return self._epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        with self._lock:
            self._epoch = epoch
            self._last = -1
            self._order = seeded_generator("order", self._seed, epoch).permutation(len(self._records))
            while self._ahead:
                self._ahead.popitem()[1].cancel()

    def __getitem__(self, index: int) -> tuple[Pixels, Labels]:
        with self._lock:
            if self._within_epoch:
                if index not in (0, self._last + 1):
                    raise ValueError(
                        f"Batch {index} was asked for after batch {self._last} of an epoch. An epoch takes all batches in "
                        "their order: call fit(shuffle=False), without steps_per_epoch."
                    )
                self._last = index
        return super().__getitem__(index)

    def on_epoch_begin(self) -> None:
        """Keras: an epoch begins. Also called before the first one, by JAX and distribution strategies."""
        self._within_epoch = True
        self._last = -1

    def on_epoch_end(self) -> None:
        """Keras: an epoch is over. Also called before the first one, by every backend."""
        if self._within_epoch and self._last == len(self) - 1:
            self.epoch += 1
        self._within_epoch = False

    def _view(self) -> Callable[[int], Pixels]:
        epoch = self._epoch  # as it is now, not when a thread comes to it

        def view(position: int) -> Pixels:
            record = self._records[position]
            rng = seeded_generator("view", self._seed, epoch, position, record.sha256)
            image = Image.fromarray(self._cache.get(record))
            return augmented_pixels(image, rng, self._image_size, self._augmentation, self._pca)

        return view


class FollowEpochs(keras.callbacks.Callback):  # type: ignore[misc]  # Keras has no types
    """Keeps batches at the epoch that `fit` is in: exact also with `initial_epoch`, and where Keras' hooks fire in between.

    Args:
        batches: The training data of the same call of `fit`.
    """

    def __init__(self, batches: Batches) -> None:
        super().__init__()
        self._batches = batches

    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
        self._batches.epoch = epoch


@contextlib.contextmanager
def original_errors(*batches: ImageBatches | CenterBatches) -> Iterator[None]:
    """Within it, an image's error that a backend has wrapped in its own comes out as it was.

    TensorFlow turns whatever goes wrong in an input thread into an error of its own with a traceback for text.

    Args:
        batches: The training and validation data in use.

    Raises:
        TransferAppError: In place of whatever came out, where one of the batches met it.
    """
    for each in batches:
        each.error = None
    try:
        yield
    except Exception as error:
        for each in batches:
            if each.error is not None and each.error is not error:
                raise each.error from error
        raise


class CachedBatches(keras.utils.PyDataset):  # type: ignore[misc]  # Keras has no types
    """Training data from cached activations: every image once an epoch, each time in the next of its views.

    Order and views follow from the seed and the epoch alone. Items are (float32 (n, *shape), int32 (n,)).

    Args:
        rows: float16 or float32, shape (num_rows, size of `shape`), memory-mapped or not: all cached views.
        positions: int64, shape (n, views): where each image's views are in `rows`.
        labels: int, shape (n,).
        shape: (height, width, channels) of an activation; (channels,) where it is pooled.
        batch_size: Images in a batch.
        seed: Decides the order.
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
        # Each image begins with another of its views, so that an epoch holds all kinds of them.
        self._offset = np.random.default_rng([seed, 0]).permutation(len(labels)) % positions.shape[1]
        self.epoch = 0

    @property
    def epoch(self) -> int:
        """The epoch whose batches are handed out, counted from 0."""
        return self._epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch = epoch
        self._order = np.random.default_rng([self._seed, 1, epoch]).permutation(len(self._labels))

    def __len__(self) -> int:
        """Batches in an epoch."""
        return math.ceil(len(self._labels) / self._batch_size)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        if not 0 <= index < len(self):
            raise IndexError(f"There are {len(self)} batches, got index {index}.")
        chosen = self._order[index * self._batch_size : (index + 1) * self._batch_size]
        view = (self._epoch + self._offset[chosen]) % self._positions.shape[1]
        batch = self._rows[self._positions[chosen, view]].astype(np.float32)
        return batch.reshape(len(chosen), *self._shape), self._labels[chosen]


class CachedCenters(keras.utils.PyDataset):  # type: ignore[misc]
    """Validation data from cached activations: the center view of every image, in order. Arguments as `CachedBatches`."""

    def __init__(self, rows: np.ndarray, positions: np.ndarray, shape: tuple[int, ...], *, batch_size: int) -> None:
        super().__init__(workers=1)
        self._rows, self._positions, self._shape, self._batch_size = rows, positions, shape, batch_size

    def __len__(self) -> int:
        return math.ceil(len(self._positions) / self._batch_size)

    def __getitem__(self, index: int) -> tuple[np.ndarray]:
        if not 0 <= index < len(self):
            raise IndexError(f"There are {len(self)} batches, got index {index}.")
        chosen = self._positions[index * self._batch_size : (index + 1) * self._batch_size]
        return (self._rows[chosen].astype(np.float32).reshape(len(chosen), *self._shape),)
