"""Decide what each image is used for: learning, choosing between candidates, or the final figure.

Images that belong together are never separated: copies, near copies, and what the person has put into one group. Otherwise
what was learned by heart would be asked again in the test, and the figures would flatter.
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
class _Family:
    """Images that stay together: their places in the dataset, and how many different contents of each label they are."""

    members: tuple[int, ...]
    contents: Counter[int]
    rank: bytes


def assign_splits(
    dataset: Dataset, *, seed: int = 0, val_fraction: float = VAL_FRACTION, test_fraction: float = TEST_FRACTION
) -> Dataset:
    """Give every image a split.

    Splits that the data came with are kept. Where there is no validation split, `val_fraction` of the training images of
    each class become one; where the data came with no split at all, `test_fraction` of each class becomes the test split
    first. Shares are of different contents. Which images these are depends on the seed and on each image's own content,
    not on names or order: of the images that were there before others were added, few change their split (two in a hundred
    when classes of 100 grow by a tenth, five when they double).

    What `Dataset.groups` says belongs together moves as one, in the order of its member that comes first. A class of few large
    families can miss its share; it gives one family to each split all the same, if it has enough of them.

    Args:
        dataset: Audited: every record has its `sha256`.
        seed: Another seed, another split.
        val_fraction: In [0, 1).
        test_fraction: In [0, 1).

    Raises:
        DataError: A class has no image to train on.
    """
    fresh_test = test_fraction if not dataset.given_splits else 0.0
    fresh_val = val_fraction if "val" not in dataset.given_splits else 0.0
    families = _families(dataset, seed)
    totals = _totals(families)
    num_test = {label: _share(count, fresh_test) for label, count in totals.items()}
    num_val = {label: _share(count - num_test[label], fresh_val) for label, count in totals.items()}
    fates: list[Split | None] = [record.split for record in dataset.records]
    for name, wanted in (("test", num_test), ("val", num_val)):
        taken, families = _take(families, wanted)
        for family in taken:
            for member in family.members:
                fates[member] = "test" if name == "test" else "val"
    for family in families:
        for member in family.members:
            fates[member] = "train"
    result = dataset.with_records(
        [dataclasses.replace(record, split=fate) for record, fate in zip(dataset.records, fates, strict=True)]
    )
    for class_name, count in zip(result.class_names, result.part("train").counts(), strict=True):
        if count < MIN_TRAIN_PER_CLASS:
            raise DataError(
                f"Class {class_name!r} has no image to train on in {dataset.origin}",
                hint="Every class needs images in the train folder",
            )
    return result


def _families(dataset: Dataset, seed: int) -> list[_Family]:
    """The images that are still to be divided, by what must stay together, in the order that content and seed give."""
    members: dict[int, list[int]] = defaultdict(list)
    for position, group in enumerate(dataset.groups().tolist()):
        if dataset.records[position].split in (None, "train"):
            members[group].append(position)
    families = []
    for positions in members.values():
        records = [dataset.records[position] for position in positions]
        contents = Counter(label for label, _ in {(record.label, record.sha256) for record in records})
        families.append(_Family(tuple(positions), contents, min(_rank(record, seed) for record in records)))
    return sorted(families, key=lambda family: family.rank)


def _take(families: Sequence[_Family], wanted: dict[int, int]) -> tuple[list[_Family], list[_Family]]:
    """Take families in their order for as long as that brings the classes nearer to the numbers that are wanted.

    Every class keeps something, and gives something where it is asked to and has two families or more.
    """
    left = _totals(families)
    missing = Counter(wanted)
    chosen: set[int] = set()

    def take(index: int) -> None:
        chosen.add(index)
        missing.subtract(families[index].contents)
        left.subtract(families[index].contents)

    def spares(family: _Family) -> bool:
        return all(left[label] > count for label, count in family.contents.items())

    for index, family in enumerate(families):
        nearer = sum(abs(missing[label] - count) - abs(missing[label]) for label, count in family.contents.items()) < 0
        if nearer and spares(family):
            take(index)
    for label, number in sorted(wanted.items()):
        if number and missing[label] == number:  # nothing came: the least that can
            able = [i for i, f in enumerate(families) if i not in chosen and f.contents[label] and spares(f)]
            if able:
                take(min(able, key=lambda i: (families[i].contents.total(), i)))
    return [families[i] for i in sorted(chosen)], [f for i, f in enumerate(families) if i not in chosen]


def _totals(families: Sequence[_Family]) -> Counter[int]:
    totals: Counter[int] = Counter()
    for family in families:
        totals.update(family.contents)
    return totals


def _rank(record: Record, seed: int) -> bytes:
    assert record.sha256, "images are split by content: audit them first"
    return hashlib.sha256(f"{seed}:{record.sha256}".encode()).digest()


def _share(count: int, fraction: float) -> int:
    """How many of `count` images a fraction takes: rounded, at least one where it is asked for, never all."""
    if fraction <= 0 or count < 2:
        return 0
    return min(max(round(count * fraction), 1), count - 1)
