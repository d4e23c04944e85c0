"""Decide what each picture is used for: learning, choosing between candidates, or the final figure."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import defaultdict

from transferapp.data.dataset import Dataset, Record, Split
from transferapp.errors import DataError

VAL_FRACTION = 0.2
TEST_FRACTION = 0.2
MIN_TRAIN_PER_CLASS = 1


def assign_splits(
    dataset: Dataset, *, seed: int = 0, val_fraction: float = VAL_FRACTION, test_fraction: float = TEST_FRACTION
) -> Dataset:
    """Give every picture a split.

    Splits that the data came with are kept. Where there is no validation split, `val_fraction` of the training pictures of
    each class become one; where the data came with no split at all, `test_fraction` of each class becomes the test split
    first. Which pictures these are depends on the seed and on each picture's own content, not on names or order: identical
    copies in a class stay together, and of the pictures that were there before others were added, few change their split
    (two in a hundred when classes of 100 grow by a tenth, five when they double).

    Args:
        dataset: Audited: every record has its `sha256`.
        seed: Another seed, another split.
        val_fraction: In [0, 1).
        test_fraction: In [0, 1).

    Raises:
        DataError: A class has no picture to train on.
    """
    fresh_test = test_fraction if not dataset.given_splits else 0.0
    fresh_val = val_fraction if "val" not in dataset.given_splits else 0.0
    by_class: dict[int, list[Record]] = defaultdict(list)
    for record in dataset.records:
        if record.split in (None, "train"):
            by_class[record.label].append(record)
    fate: dict[tuple[int, str], Split] = {}
    for label, records in by_class.items():
        contents = sorted({record.sha256 for record in records}, key=lambda content: _rank(content, seed))
        num_test = _share(len(contents), fresh_test)
        num_val = _share(len(contents) - num_test, fresh_val)
        for position, content in enumerate(contents):
            fate[label, content] = (
                "test" if position < num_test else "val" if position < num_test + num_val else "train"
            )
    records = [
        r if r.split not in (None, "train") else dataclasses.replace(r, split=fate[r.label, r.sha256])
        for r in dataset.records
    ]
    result = dataset.with_records(records)
    for name, count in zip(result.class_names, result.part("train").counts(), strict=True):
        if count < MIN_TRAIN_PER_CLASS:
            raise DataError(
                f"Class {name!r} has no picture to train on in {dataset.origin}",
                hint="Every class needs pictures in the train folder",
            )
    return result


def _rank(content: str, seed: int) -> bytes:
    assert content, "pictures are split by content: audit them first"
    return hashlib.sha256(f"{seed}:{content}".encode()).digest()


def _share(count: int, fraction: float) -> int:
    """How many of `count` pictures a fraction takes: rounded, at least one where it is asked for, never all."""
    if fraction <= 0 or count < 2:
        return 0
    return min(max(round(count * fraction), 1), count - 1)
