"""Datasets: labeled images in a fixed order, as every source returns them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from transferapp.data.options import Source
from transferapp.images import DATASET_LIMITS, SAMPLE_BITS, DecodedImage, decode_image

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Record:
    """One image. There may be a million of them, so it is small: see `benchmarks/scale.py`.

    Attributes:
        location: The file, as text, because a `Path` takes several times as much memory.
        name: Name in messages: its path below the data folder, with `/`.
        label: Index into the dataset's `class_names`.
        split: Its split; None until it is assigned.
        sha256: Hex digest of its bytes; empty before the audit.
        size: (width, height) in pixels, upright; None before the audit.
        colors: RGB values of some pixels, three bytes each, for the color components of the set; only of a sample of images.
        form: Format of its bytes, such as `JPEG`; empty before the audit.
        notes: Codes of oddities: of `transferapp.images.NOTES`, or `featureless`.
        sample_bits: Depth of its 16-bit samples, the same for all such images of a set; 0 for an image without them.
        signature: From `transferapp.data.near_duplicates`; empty where it has none, and once duplicates are found.
        cluster: Identifies its duplicates and near-duplicates; empty if there are none.
        similar: Identifies images that a network sees as similar, which stay in one split; empty if there are none.
        group: The user's name for images that stay in one split, such as a patient; empty if there is none.
    """

    location: str
    name: str
    label: int
    split: Split | None = None
    sha256: str = ""
    size: tuple[int, int] | None = None
    colors: bytes = b""
    form: str = ""
    notes: tuple[str, ...] = ()
    sample_bits: int = 0
    signature: bytes = b""
    cluster: str = ""
    similar: str = ""
    group: str = ""

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.location)

    def decode(self, min_short_side: int, data: bytes | None = None) -> DecodedImage:
        """Decode the image as its set is read: within the limits of datasets, 16-bit samples at the depth of the set.

        Args:
            min_short_side: As of `decode_image`.
            data: Bytes of the file, if they have been read.

        Raises:
            ImageError: The image cannot be used.
        """
        return decode_image(
            self.path if data is None else data,
            limits=DATASET_LIMITS,
            min_short_side=min_short_side,
            sample_bits=self.sample_bits or max(SAMPLE_BITS),
            subject=self.location,
        )


@dataclass(frozen=True, slots=True)
class Ignored:
    """A file that is left out, with a stable `code` and a reason."""

    name: str
    code: str
    reason: str


def connected_groups(count: int, pairs: Sequence[tuple[int, int]] | np.ndarray) -> np.ndarray:
    """Return which of `count` items belong together, directly or through others: int64, shape (count,).

    Items of one group have the same number: the position of the first of them.

    Args:
        count: Number of items.
        pairs: Positions of two items that belong together: int, shape (num_pairs, 2).
    """
    left, right = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(left), dtype=bool), (left, right)), shape=(count, count))
    labels = connected_components(graph, directed=False)[1]
    _, first = np.unique(labels, return_index=True)
    groups: np.ndarray = first[labels]
    return groups


@dataclass(frozen=True)
class Earlier:
    """Images of an earlier fit, which keep their splits when others are added.

    Attributes:
        bundle: Name of its bundle, for messages.
        splits: The splits of each content, by SHA-256: one, except where given splits share it.
        names: Name of an image of each content.
    """

    bundle: str
    splits: Mapping[str, frozenset[Split]]
    names: Mapping[str, str]


@dataclass(frozen=True)
class Dataset:
    """Labeled images.

    Attributes:
        origin: The data as the user named them.
        class_names: In label order.
        records: In a fixed order.
        ignored: Files left out so far.
        given_splits: Splits of the data themselves, such as `train/` and `test/` folders.
        sources: Where the images came from, if from several places.
        earlier: The fit that these images are added to, if any.
        alike: Whether different images look so much alike that signatures do not tell crops of an image from other images.
    """

    origin: str
    class_names: tuple[str, ...]
    records: tuple[Record, ...]
    ignored: tuple[Ignored, ...] = ()
    given_splits: tuple[Split, ...] = ()
    sources: tuple[Source, ...] = ()
    earlier: Earlier | None = None
    alike: bool = False

    def __len__(self) -> int:
        return len(self.records)

    @property
    def labels(self) -> np.ndarray:
        """Labels: int64, shape (n,)."""
        return np.array([record.label for record in self.records], dtype=np.int64)

    def part(self, *splits: Split) -> Dataset:
        """Return the images of these splits."""
        return dataclasses.replace(self, records=tuple(r for r in self.records if r.split in splits))

    @property
    def sample_bits(self) -> int | None:
        """Depth of the 16-bit samples of an audited set; None where no image has them."""
        return next((record.sample_bits for record in self.records if record.sample_bits), None)

    def counts(self) -> list[int]:
        """Return the number of images per class, in label order."""
        counted = Counter(record.label for record in self.records)
        return [counted[label] for label in range(len(self.class_names))]

    def groups(self) -> np.ndarray:
        """Return which images must stay together: int64, shape (n,).

        Images joined by content, cluster, similarity or group have the same number, the position of the first of them.
        """
        first: dict[tuple[str, str], int] = {}
        pairs = [
            (first.setdefault((kind, value), position), position)
            for position, record in enumerate(self.records)
            for kind in ("sha256", "cluster", "similar", "group")
            if (value := getattr(record, kind))
        ]
        return connected_groups(len(self), pairs)

    def spread(self, count: int) -> Dataset:
        """Return at most `count` images, evenly spread over their order, which goes by class."""
        positions = np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).round().astype(int))
        return self.with_records([self.records[i] for i in positions])

    def drawn(self, count: int) -> Dataset:
        """Return at most `count` images, drawn by their content: a set that has grown a little gives most of them again.

        They must have been audited.
        """
        return self.with_records(sorted(self.records, key=lambda record: record.sha256)[:count])

    def with_records(self, records: Sequence[Record]) -> Dataset:
        return dataclasses.replace(self, records=tuple(records))

    def in_order_of_content(self) -> Dataset:
        """Return the images of each class ordered by content, so that results do not depend on names or kinds of source.

        They must have been audited.
        """
        return self.with_records(sorted(self.records, key=lambda record: (record.label, record.sha256, record.name)))

    def fingerprint(self) -> str:
        """Return twelve hex digits that identify the data: contents, labels and class names, in any order."""
        lines = sorted(f"{r.sha256} {self.class_names[r.label]} {r.split}" for r in self.records)
        return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:12]
