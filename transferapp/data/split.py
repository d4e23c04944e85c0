"""Splits into training, validation and test images.

Duplicates, near-duplicates, images that a network sees as similar, and the groups that the user names stay in one split.
Otherwise test images would have been trained on, and the test accuracy would be too high.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from transferapp.data.dataset import SPLITS, Dataset, Record, Split
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
    depends on the seed and on the images' content, not on names or order: when images are added, few of the others change
    their split (two in a hundred when classes of 100 grow by a tenth, five when they double).

    Where the images were added to those of an earlier fit, the earlier ones keep the splits that they had there, and so do
    others of their groups. The rest are assigned such that the whole set comes nearest to the fractions.

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
    groups, held = _settle(dataset, groups, splits)
    for split, wanted in (("test", num_test), ("val", num_val)):
        taken, groups = _take(groups, Counter(wanted) - held[split], held["train"])
        for group in taken:
            for member in group.members:
                splits[member] = "test" if split == "test" else "val"
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


def check_earlier(dataset: Dataset) -> None:
    """Check that all images of the earlier fit are there, and others too.

    Args:
        dataset: Audited.

    Raises:
        DataError: Some are missing or were changed, or none is new.
    """
    if dataset.earlier is None:
        return
    names, contents = dataset.earlier.names, {record.sha256 for record in dataset.records}
    missing = sorted(names[content] for content in names.keys() - contents)
    if missing:
        raise DataError(
            f"Images that {dataset.earlier.bundle} was made from are missing or have changed",
            expected=f"all {len(names):,} of them in {dataset.origin}",
            got=f"{len(names) - len(missing):,}, without {missing[0]}",
            hint="Put them back, or fit again on what is there",
            code="earlier_images_missing",
        )
    if not contents - names.keys():
        raise DataError(
            f"{dataset.origin} has no image that {dataset.earlier.bundle} was not made from",
            expected="at least one new image",
            hint="Name a place with new images",
            code="nothing_new",
        )


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


def _settle(
    dataset: Dataset, groups: Sequence[_Group], splits: list[Split | None]
) -> tuple[list[_Group], dict[str, Counter[int]]]:
    """Give the images of an earlier fit the splits that they had, and the others of their groups that of the first of them.

    Args:
        dataset: The images.
        groups: Those that move as one.
        splits: Receives the splits.

    Returns:
        The groups without an earlier image, and the number of different contents in each split, by label.
    """
    held: dict[str, Counter[int]] = {split: Counter() for split in SPLITS}
    if dataset.earlier is None:
        return list(groups), held
    free = []
    for group in groups:
        known = {member: split for member in group.members if (split := _earlier_split(dataset, member))}
        if not known:
            free.append(group)
            continue
        first = next(iter(known.values()))
        placed = set()
        for member in group.members:
            splits[member] = known.get(member, first)
            record = dataset.records[member]
            placed.add((splits[member], record.label, record.sha256))
        for split, label, _ in placed:
            held[str(split)][label] += 1
    return free, held


def _earlier_split(dataset: Dataset, position: int) -> Split | None:
    """Return the split that an image had in the earlier fit. A given split is never that of an image without one."""
    assert dataset.earlier is not None
    had = dataset.earlier.splits.get(dataset.records[position].sha256, frozenset())
    return next(
        (split for split in SPLITS if split in had and (split == "train" or split not in dataset.given_splits)), None
    )


def _take(
    groups: Sequence[_Group], wanted: Mapping[int, int], kept: Mapping[int, int]
) -> tuple[list[_Group], list[_Group]]:
    """Take groups in their order as long as that brings the classes closer to the wanted numbers.

    Every class keeps a group, and gives one if it should and has two or more.

    Args:
        groups: Those that can be taken.
        wanted: Number of different contents to take, by label.
        kept: Number of them in groups that cannot be taken, by label.

    Returns:
        (taken, left).
    """
    left = _totals(groups)
    left.update(kept)
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
