"""The dataset every source delivers: a list of labelled pictures, in a fixed order."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class Record:
    """One picture.

    Attributes:
        path: The file.
        name: Its path below the data folder, with `/`: how people are told of it.
        label: Index into the dataset's `class_names`.
        split: What it is used for; None until that is decided.
        sha256: Hex digest of its bytes; empty until the audit has read it.
        size: (width, height) in pixels, as a person sees it; None until the audit has read it.
        colours: RGB values of some of its pixels, three bytes each, for the colour components of the set; only of a sample
            of the pictures.
    """

    path: Path
    name: str
    label: int
    split: Split | None = None
    sha256: str = ""
    size: tuple[int, int] | None = None
    colours: bytes = b""


@dataclass(frozen=True)
class Ignored:
    """A file that is left out, and why: a stable `code` and a sentence."""

    name: str
    code: str
    reason: str


@dataclass(frozen=True)
class Dataset:
    """Labelled pictures.

    Attributes:
        origin: What the person named on the command line.
        class_names: In label order.
        records: In a fixed order.
        ignored: Files left out so far.
        given_splits: The splits that the data came with, such as `train/` and `test/` folders.
    """

    origin: str
    class_names: tuple[str, ...]
    records: tuple[Record, ...]
    ignored: tuple[Ignored, ...] = ()
    given_splits: tuple[Split, ...] = ()

    def __len__(self) -> int:
        return len(self.records)

    @property
    def labels(self) -> np.ndarray:
        """int64, shape (n,)."""
        return np.array([record.label for record in self.records], dtype=np.int64)

    def part(self, *splits: Split) -> Dataset:
        """The pictures of these splits alone."""
        return dataclasses.replace(self, records=tuple(r for r in self.records if r.split in splits))

    def counts(self) -> list[int]:
        """Pictures a class, in label order."""
        counted = Counter(record.label for record in self.records)
        return [counted[label] for label in range(len(self.class_names))]

    def spread(self, count: int) -> Dataset:
        """At most `count` of the pictures, evenly spread over their order, which goes by class."""
        positions = np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).round().astype(int))
        return self.with_records([self.records[i] for i in positions])

    def with_records(self, records: Sequence[Record]) -> Dataset:
        return dataclasses.replace(self, records=tuple(records))

    def fingerprint(self) -> str:
        """Twelve hex digits of what the data are: contents, labels and class names, in any order."""
        lines = sorted(f"{r.sha256} {self.class_names[r.label]} {r.split}" for r in self.records)
        return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:12]
