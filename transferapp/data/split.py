"""Splits into training, validation and test images.

Duplicates, near-duplicates and the groups that the user names stay in one split. Otherwise test images would have been trained
on, and the test accuracy would be too high.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence

from transferapp.data.dataset import Dataset, Record, Split
from transferapp.errors import DataError

VAL_FRACTION = 0.2
TEST_FRACTION = 0.2
MIN_TRAIN_PER_CLASS = 1


@dataclasses.dataclass(frozen=True)
class _Group:
    """Images that stay together: their positions in the dataset, and their number of different contents by label."""

    members: tuple[int, ...]
    contents: Counter[int]
    rank: bytes


def assign_splits(
    dataset: Dataset, *, seed: int = 0, val_fraction: float = VAL_FRACTION, test_fraction: float = TEST_FRACTION
) -> Dataset:
    """Give every image a split.

    Given splits are kept. Without a validation split, `val_fraction` of the training images of each class become one; without
    any split, `test_fraction` of each class becomes the test split first. Fractions are of different contents. The assignment
    depends on the seed and on each image's content, not on names or order: when images are added, few of the others change
    their split (two in a hundred when classes of 100 grow by a tenth, five when they double).

    The groups of `Dataset.groups` move as one, ranked by their first member. A class of few large groups can miss its
    fraction; it still gives one group to each split if it has enough of them.

    Args:
        dataset: Audited: every record has its `sha256`.
        seed: Seed of the assignment.
        val_fraction: In [0, 1).
        test_fraction: In [0, 1).

    Raises:
        DataError: A class has no image to train on.
    """
    fresh_test = test_fraction if not dataset.given_splits else 0.0
    fresh_val = val_fraction if "val" not in dataset.given_splits else 0.0
    groups = _groups(dataset, seed)
    totals = _totals(groups)
    num_test = {label: _share(count, fresh_test) for label, count in totals.items()}
    num_val = {label: _share(count - num_test[label], fresh_val) for label, count in totals.items()}
    splits: list[Split | None] = [record.split for record in dataset.records]
    for name, wanted in (("test", num_test), ("val", num_val)):
        taken, groups = _take(groups, wanted)
        for group in taken:
            for member in group.members:
                splits[member] = "test" if name == "test" else "val"
    for group in groups:
        for member in group.members:
            splits[member] = "train"
    result = dataset.with_records(
        [dataclasses.replace(record, split=split) for record, split in zip(dataset.records, splits, strict=True)]
    )
    for class_name, count in zip(result.class_names, result.part("train").counts(), strict=True):
        if count < MIN_TRAIN_PER_CLASS:
            raise DataError(
                f"Class {class_name!r} has no image to train on in {dataset.origin}",
                hint="Every class needs images in the train folder",
            )
    return result


def _groups(dataset: Dataset, seed: int) -> list[_Group]:
    """Return the groups of images without a fixed split, ranked by content and seed."""
    members: dict[int, list[int]] = defaultdict(list)
    for position, group in enumerate(dataset.groups().tolist()):
        if dataset.records[position].split in (None, "train"):
            members[group].append(position)
    groups = []
    for positions in members.values():
        records = [dataset.records[position] for position in positions]
        contents = Counter(label for label, _ in {(record.label, record.sha256) for record in records})
        groups.append(_Group(tuple(positions), contents, min(_rank(record, seed) for record in records)))
    return sorted(groups, key=lambda group: group.rank)


def _take(groups: Sequence[_Group], wanted: dict[int, int]) -> tuple[list[_Group], list[_Group]]:
    """Take groups in their order as long as that brings the classes closer to the wanted numbers.

    Every class keeps a group, and gives one if it should and has two or more.

    Returns:
        (taken, left).
    """
    left = _totals(groups)
    missing = Counter(wanted)
    chosen: set[int] = set()

    def take(index: int) -> None:
        chosen.add(index)
        missing.subtract(groups[index].contents)
        left.subtract(groups[index].contents)

    def spares(group: _Group) -> bool:
        return all(left[label] > count for label, count in group.contents.items())

    for index, group in enumerate(groups):
        nearer = sum(abs(missing[label] - count) - abs(missing[label]) for label, count in group.contents.items()) < 0
        if nearer and spares(group):
            take(index)
    for label, number in sorted(wanted.items()):
        if number and missing[label] == number:  # no group was taken: take the smallest possible
            able = [i for i, f in enumerate(groups) if i not in chosen and f.contents[label] and spares(f)]
            if able:
                take(min(able, key=lambda i: (groups[i].contents.total(), i)))
    return [groups[i] for i in sorted(chosen)], [f for i, f in enumerate(groups) if i not in chosen]


def _totals(groups: Sequence[_Group]) -> Counter[int]:
    totals: Counter[int] = Counter()
    for group in groups:
        totals.update(group.contents)
    return totals


def _rank(record: Record, seed: int) -> bytes:
    assert record.sha256, "images are split by content: audit them first"
    return hashlib.sha256(f"{seed}:{record.sha256}".encode()).digest()


def _share(count: int, fraction: float) -> int:
    """Return a fraction of `count` images: rounded, at least one if the fraction is not 0, never all."""
    if fraction <= 0 or count < 2:
        return 0
    return min(max(round(count * fraction), 1), count - 1)
