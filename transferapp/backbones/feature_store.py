"""Cache on disk of the features that a trunk computes for views of images.

Every row (all taps of one view of one image) is keyed by the image's content and the view: adding images costs only the new
ones, a second fit costs nothing, and an interrupted run goes on where it stopped. Random views are drawn from a generator
seeded by content, so they are the same each time.

On disk, a store is two files that only grow: `rows.float32`, fixed-size rows, and `keys.bin`, one 16-byte key per row. Rows are
flushed before their keys, so a kill leaves at worst rows without keys, which the next run overwrites. A lock beside the store
lets one process at a time use it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from filelock import BaseFileLock, FileLock, Timeout
from PIL import Image

from transferapp.backbones.engine import BATCH_SIZE
from transferapp.data.dataset import Record
from transferapp.errors import DataError, UsageError
from transferapp.images.augment import (
    LECTURE_AUGMENTATION,
    Augmentation,
    ColorJitter,
    PCAColor,
    augmented_pixels,
    seeded_generator,
)
from transferapp.images.changes import CONDITIONS
from transferapp.images.views import (
    SHORT_SIDE,
    Geometry,
    center_index,
    center_view,
    render,
    render_batch,
    short_side_to_decode,
    ten_crops,
)
from transferapp.system.cache import cache_directory
from transferapp.system.cluster import parallel
from transferapp.system.storage import disk_errors

CENTER = "center"
"""Name of the center view: short side 256, the middle 224 × 224 (scaled to the network's input size), or the whole image."""

CHANGED_VIEWS = {f"changed-{condition.key}": condition for condition in CONDITIONS}
"""Names of the views that are the center view, changed."""

TEN_CROPS = tuple(CENTER if index == center_index(10) else f"crop-{index}" for index in range(10))
"""Names of the views that are `ten_crops`, in their order; one of them is the center view."""

_PIXELS_REVISION = 4
"""Increase this when decoding or cropping changes the pixels of a view."""

_KEY_BYTES = 16
DEFAULT_CACHE_LIMIT = 4_000_000_000
"""Bytes of features on disk; `TRANSFERAPP_CACHE_LIMIT` overrides. Beyond it, the least recently used stores are deleted."""

_PATIENCE = 2.0
"""Seconds of waiting for another process after which a note explains it."""

_turns: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
"""Locks by folder for the threads of this process, which wait for each other without a note."""

Progress = Callable[[int], None]


def random_view_name(index: int, seed: int) -> str:
    """Return the name of the `index`-th random training view under a seed."""
    return f"random-{seed}-{index}"


class RowSource(Protocol):
    """Protocol of trunks, which turn pixels into rows: `Trunk` and `CutTrunk`."""

    @property
    def name(self) -> str: ...
    @property
    def key(self) -> str: ...
    @property
    def image_size(self) -> tuple[int, int]: ...
    @property
    def row_size(self) -> int: ...
    def rows(self, batch: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class RandomViews:
    """Distribution of the random views of a set of images.

    Attributes:
        augmentation: Ranges of scale, crop, flip and color.
        pca: The set's color components; may be None where `augmentation.color.pca_std` is 0.
        geometry: Whether views are cropped from the image, or from the whole image resized or padded; of the center view too.
    """

    augmentation: Augmentation = LECTURE_AUGMENTATION
    pca: PCAColor | None = None
    geometry: Geometry = "crop"

    @functools.cached_property
    def digest(self) -> str:
        """Part of the key of random views: views of another distribution have other keys."""
        components = self.pca.to_json() if self.pca else None
        distribution = [asdict(self.augmentation), components, self.geometry]
        return hashlib.sha256(json.dumps(distribution).encode()).hexdigest()[:16]


WITHOUT_COLOR = RandomViews(Augmentation(color=ColorJitter(0.0, 0.0, 0.0)))
"""Random crops, scales and flips alone, for sets whose color components are not known."""


def view_pixels(
    image: Image.Image,
    view_name: str,
    sha256: str,
    image_size: tuple[int, int],
    random_views: RandomViews = WITHOUT_COLOR,
) -> np.ndarray:
    """Return the pixels of a named view of an image.

    Args:
        image: The decoded image, a Pillow image in RGB.
        view_name: `CENTER`, one of `CHANGED_VIEWS` or `TEN_CROPS`, or from `random_view_name`.
        sha256: Hash of the image's file, which seeds its random views and changes.
        image_size: (height, width) of the view.
        random_views: Distribution of random views, and the geometry of all.

    Returns:
        uint8, shape (height, width, 3).
    """
    geometry = random_views.geometry
    if _fixed(view_name):
        return _fixed_pixels(image, [view_name], sha256, image_size, geometry)[0]
    rng = seeded_generator(view_name, sha256)
    return augmented_pixels(image, rng, image_size, random_views.augmentation, random_views.pca, geometry)


def center_pixels(record: Record, image_size: tuple[int, int], geometry: Geometry) -> np.ndarray:
    """Return the center view of an audited image: uint8, shape (height, width, 3)."""
    image = record.decode(short_side_to_decode(SHORT_SIDE, image_size)).image
    return render(image, center_view(image.size, image_size, geometry), image_size)


def _fixed(view_name: str) -> bool:
    """Return whether the box of a view does not depend on the distribution of random views."""
    return view_name in TEN_CROPS or view_name in CHANGED_VIEWS


def _fixed_pixels(
    image: Image.Image, view_names: Sequence[str], sha256: str, image_size: tuple[int, int], geometry: Geometry
) -> list[np.ndarray]:
    """Return views for which `_fixed` holds, as of `view_pixels`; mirror images share one resize."""
    boxes = ten_crops(image.size, image_size, geometry=geometry)
    places = [TEN_CROPS.index(CENTER if name in CHANGED_VIEWS else name) for name in view_names]
    crops = render_batch(image, [boxes[place] for place in places], image_size)
    return [changed_pixels(crop, name, sha256) for crop, name in zip(crops, view_names, strict=True)]


def changed_pixels(center: np.ndarray, view_name: str, sha256: str) -> np.ndarray:
    """Return the center view as one of `CHANGED_VIEWS`, or pixels as they are: uint8, of the same shape.

    Args:
        center: From `center_pixels`, or another view's pixels.
        view_name: The view.
        sha256: Hash of the image's file, which seeds the change.
    """
    condition = CHANGED_VIEWS.get(view_name)
    return center if condition is None else condition.apply(center, seeded_generator(view_name, sha256))


class FeatureStore:
    """The cached rows of one trunk.

    Args:
        trunk: Computes the rows.
        workers: Threads that decode, crop and run the trunk.
        random_views: Distribution of random views, and the geometry of all.
        dtype: Type of the rows: `float32`, or `float16` for feature maps, which are large.
        folder: Folder of the store; None for one in the cache.
        note: Receives a sentence where the store waits for another process.
    """

    def __init__(
        self,
        trunk: RowSource,
        *,
        workers: int = 2,
        random_views: RandomViews = WITHOUT_COLOR,
        dtype: str = "float32",
        folder: Path | None = None,
        note: Callable[[str], None] | None = None,
    ) -> None:
        self.trunk = trunk
        self._note = note
        self.random_views = random_views
        self._dtype = np.dtype(dtype)
        self._workers = workers
        self._folder = folder or cache_directory() / "features" / f"{trunk.name}-{trunk.key}"
        self._rows_file = self._folder / f"rows.{dtype}"
        self._keys_file = self._folder / "keys.bin"
        self._row_bytes = self._dtype.itemsize * trunk.row_size

    def for_trunk(self, trunk: RowSource) -> FeatureStore:
        """Return the store of the same views for another trunk."""
        return FeatureStore(trunk, workers=self._workers, random_views=self.random_views, note=self._note)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_note": None}  # only this process talks to the user

    def collect(
        self, records: Sequence[Record], view_names: Sequence[str], progress: Progress | None = None
    ) -> np.ndarray:
        """Return the rows of these views of these images, computing those that are missing.

        Args:
            records: Audited images.
            view_names: `CENTER`, those of `CHANGED_VIEWS` and `TEN_CROPS`, or from `random_view_name`.
            progress: Receives the number of views done so far.

        Returns:
            Shape (len(records), len(view_names), trunk.row_size). Where the rows are in this order on disk (as after a first
            run) it is the mapped file itself, read-only; otherwise a copy in memory.

        Raises:
            DataError: An image is missing, or has changed since the audit.
            ResourceError: The disk is full.
        """
        rows, positions = self.locate(records, view_names, progress)
        shape = (*positions.shape, self.trunk.row_size)
        if not positions.size:
            return np.empty(shape, self._dtype)
        first, last = positions.flat[0], positions.flat[-1]
        one_run = np.array_equal(positions.ravel(), np.arange(first, last + 1))
        chosen: np.ndarray = rows[slice(first, last + 1) if one_run else positions]
        return chosen.reshape(shape)

    def locate(
        self, records: Sequence[Record], view_names: Sequence[str], progress: Progress | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the positions on disk of the rows of these views, after computing those that are missing.

        Arguments and errors as of `collect`.

        Returns:
            (rows, positions): all rows of the store, mapped read-only, shape (n, trunk.row_size); and for each image and
            view the index of its row, int64, shape (len(records), len(view_names)).
        """
        keys = [[self._key(record, view) for view in view_names] for record in records]
        with disk_errors(self._folder):
            self._folder.parent.mkdir(parents=True, exist_ok=True)
        with disk_errors(self._folder), self._locked():
            self._folder.mkdir(exist_ok=True)
            os.utime(self._folder)  # `trim_cache` reads it
            index, count = self._index()
            missing = [
                (record, [v for v, key in dict(zip(view_names, row, strict=True)).items() if key not in index])
                for record, row in zip(records, keys, strict=True)
            ]
            missing = list({r.sha256: (r, views) for r, views in missing if views}.values())
            done = len(records) * len(view_names) - sum(len(views) for _, views in missing)
            if progress is not None:
                progress(done)
            if missing:
                self._compute(missing, count, done, progress)
                index, count = self._index()
            positions = np.array([[index[key] for key in row] for row in keys], dtype=np.int64)
            positions = positions.reshape(len(records), len(view_names))
            if not count:
                return np.empty((0, self.trunk.row_size), self._dtype), positions
            # The file may be longer than `count` rows, by rows that a kill has left incomplete.
            mapped = np.memmap(self._rows_file, self._dtype, "r", shape=(count, self.trunk.row_size))
            return np.asarray(mapped), positions

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the store's lock, with a note where another process keeps it for a while."""
        lock = _lock(self._folder)
        with _turns[str(self._folder)]:
            try:
                lock.acquire(timeout=_PATIENCE)
            except Timeout:
                if self._note is not None:
                    self._note(f"Another process is using the features of {self.trunk.name}; waiting until it is done")
                lock.acquire()
            try:
                yield
            finally:
                lock.release()

    def _key(self, record: Record, view_name: str) -> bytes:
        drawn_from = self.random_views.geometry if _fixed(view_name) else self.random_views.digest
        text = f"{record.sha256}:{view_name}:{drawn_from}:{record.sample_bits}:{_PIXELS_REVISION}"
        return hashlib.sha256(text.encode()).digest()[:_KEY_BYTES]

    def _index(self) -> tuple[dict[bytes, int], int]:
        """Return the position of each key's row, and the number of complete rows."""
        try:
            raw = self._keys_file.read_bytes()
            rows = self._rows_file.stat().st_size // self._row_bytes
        except FileNotFoundError:
            return {}, 0
        count = min(len(raw) // _KEY_BYTES, rows)
        return {raw[i * _KEY_BYTES : (i + 1) * _KEY_BYTES]: i for i in range(count)}, count

    def _compute(
        self, missing: list[tuple[Record, list[str]]], count: int, done: int, progress: Progress | None
    ) -> None:
        with self._open(self._rows_file) as rows, self._open(self._keys_file) as keys:
            rows.truncate(count * self._row_bytes)
            rows.seek(0, os.SEEK_END)
            keys.truncate(count * _KEY_BYTES)
            keys.seek(0, os.SEEK_END)
            for batch_keys, batch_rows in parallel(self._run, _batches(missing), threads=self._workers, group=4):
                assert batch_rows.shape == (len(batch_keys), self.trunk.row_size)
                assert batch_rows.dtype == np.float32
                rows.write(batch_rows.astype(self._dtype).tobytes())
                rows.flush()
                keys.write(b"".join(batch_keys))
                keys.flush()
                done += len(batch_keys)
                if progress is not None:
                    progress(done)
            for stream in (rows, keys):
                os.fsync(stream.fileno())

    @staticmethod
    def _open(path: Path) -> BinaryIO:
        return path.open("r+b" if path.exists() else "w+b")

    def _run(self, batch: list[tuple[Record, list[str]]]) -> tuple[list[bytes], np.ndarray]:
        keys, pixels = [], []
        size, views = self.trunk.image_size, self.random_views
        largest = views.augmentation.short_sides[1]
        for record, view_names in batch:
            data = _read_unchanged(record)
            # Each kind of view is cut from an image decoded to the size that it needs, so that a view's pixels do not depend
            # on the other views.
            fixed = [view for view in view_names if _fixed(view)]
            if fixed:
                image = record.decode(short_side_to_decode(SHORT_SIDE, size), data).image
                pixels += _fixed_pixels(image, fixed, record.sha256, size, views.geometry)
            random = [view for view in view_names if not _fixed(view)]
            if random:
                image = record.decode(short_side_to_decode(largest, size), data).image
                pixels += [view_pixels(image, view, record.sha256, size, views) for view in random]
            keys += [self._key(record, view) for view in (*fixed, *random)]
        return keys, self.trunk.rows(np.stack(pixels))


def _read_unchanged(record: Record) -> bytes:
    """Return the bytes of a file, which must be those that the audit read: rows are stored under their hash."""
    try:
        data = record.path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{record.path} can no longer be read ({error.strerror or error})", hint="Run the same command again"
        ) from error
    if hashlib.sha256(data).hexdigest() != record.sha256:
        raise DataError(
            f"{record.path} has changed since it was first read",
            hint="Let nothing write to the images meanwhile, and run the same command again",
        )
    return data


def _batches(missing: list[tuple[Record, list[str]]]) -> Iterator[list[tuple[Record, list[str]]]]:
    """Group images into groups of about `BATCH_SIZE` views."""
    batch: list[tuple[Record, list[str]]] = []
    size = 0
    for record, views in missing:
        batch.append((record, views))
        size += len(views)
        if size >= BATCH_SIZE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _lock(folder: Path, *, blocking: bool = True) -> BaseFileLock:
    """Return the lock of a store, which lies beside its folder, so that deleting the folder leaves the lock."""
    return FileLock(folder.with_name(f".{folder.name}.lock"), blocking=blocking)


def trim_cache(limit: int | None = None) -> None:
    """Delete the least recently used feature stores until the rest is within `limit` bytes.

    Stores in use by a process stay.

    Raises:
        UsageError: `TRANSFERAPP_CACHE_LIMIT` is not a number.
    """
    if limit is None:
        named = os.environ.get("TRANSFERAPP_CACHE_LIMIT") or str(DEFAULT_CACHE_LIMIT)
        if not named.isdecimal():
            raise UsageError("TRANSFERAPP_CACHE_LIMIT is invalid", expected="a number of bytes", got=repr(named))
        limit = int(named)
    root = cache_directory() / "features"
    stores = []
    for folder in root.glob("*/"):
        with contextlib.suppress(OSError):
            size = sum(file.stat().st_size for file in folder.iterdir())
            stores.append((folder.stat().st_mtime, size, folder))
    total = sum(size for _, size, _ in stores)
    for _, size, folder in sorted(stores, key=lambda store: store[0]):
        if total <= limit:
            return
        with contextlib.suppress(Timeout), _lock(folder, blocking=False):
            shutil.rmtree(folder, ignore_errors=True)
            total -= size
