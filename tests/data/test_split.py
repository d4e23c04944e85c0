"""Splits: stratified, seeded, and by content."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transferapp.data.dataset import Dataset, Earlier, Record, Split
from transferapp.data.split import assign_splits, check_earlier
from transferapp.errors import DataError


def record(label: int, number: int, split: Split | None = None) -> Record:
    content = hashlib.sha256(f"{label} {number}".encode()).hexdigest()
    return Record(f"{label}-{number}", f"{label}/{number}.png", label, split, content)


def dataset(records: Sequence[Record], given: tuple[Split, ...] = ()) -> Dataset:
    num_classes = 1 + max(r.label for r in records)
    return Dataset("images", tuple("abcdefgh"[:num_classes]), tuple(records), given_splits=given)


def unsplit(*counts: int) -> Dataset:
    return dataset([record(label, number) for label, count in enumerate(counts) for number in range(count)])


def fates(split: Dataset) -> dict[str, Split | None]:
    return {r.sha256: r.split for r in split.records}


def sizes(split: Dataset) -> list[tuple[int, int, int]]:
    """(train, val, test) of each class."""
    parts = [split.part(name).counts() for name in ("train", "val", "test")]
    return list(zip(*parts, strict=True))


def test_a_fifth_is_for_testing_and_a_fifth_of_the_rest_for_validation() -> None:
    # 100: 20 to test, of the 80 left 16 to validate. 11: 2.2 and then 1.8, rounded.
    assert sizes(assign_splits(unsplit(100, 11))) == [(64, 16, 20), (7, 2, 2)]


def test_small_classes_keep_a_training_image_and_give_one_where_they_can() -> None:
    assert sizes(assign_splits(unsplit(1, 2, 3, 4))) == [(1, 0, 0), (1, 0, 1), (1, 1, 1), (2, 1, 1)]


def test_fractions_of_nothing_take_nothing() -> None:
    assert sizes(assign_splits(unsplit(10, 2), val_fraction=0, test_fraction=0)) == [(10, 0, 0), (2, 0, 0)]
    assert sizes(assign_splits(unsplit(10), val_fraction=0.99, test_fraction=0)) == [(1, 9, 0)]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(0, 5), st.floats(0, 0.99), st.floats(0, 0.99))
def test_every_image_gets_one_split_and_every_class_trains(
    counts: list[int], seed: int, val: float, test: float
) -> None:
    split = assign_splits(unsplit(*counts), seed=seed, val_fraction=val, test_fraction=test)
    for count, (in_train, in_val, in_test) in zip(counts, sizes(split), strict=True):
        assert in_train + in_val + in_test == count
        assert in_train >= 1
        assert abs(in_test - test * count) <= 1


def test_the_same_seed_gives_the_same_split_and_another_seed_another() -> None:
    data = unsplit(50, 50)
    assert assign_splits(data, seed=3) == assign_splits(data, seed=3)
    moved = sum(fates(assign_splits(data, seed=3))[k] != v for k, v in fates(assign_splits(data, seed=4)).items())
    assert moved > 25


def test_names_and_order_decide_nothing() -> None:
    data = unsplit(40, 25)
    renamed = [dataclasses.replace(r, name=f"new/{i}", location=f"new{i}") for i, r in enumerate(data.records)]
    random.Random(0).shuffle(renamed)
    assert fates(assign_splits(data)) == fates(assign_splits(data.with_records(renamed)))


@pytest.mark.parametrize(("before", "added", "at_most"), [(100, 1, 0.02), (100, 10, 0.05), (400, 40, 0.03)])
def test_few_images_change_their_split_when_others_are_added(before: int, added: int, at_most: float) -> None:
    shares = []
    for seed in range(20):
        old = fates(assign_splits(unsplit(before, before), seed=seed))
        new = fates(assign_splits(unsplit(before + added, before + added), seed=seed))
        shares.append(sum(new[content] != split for content, split in old.items()) / len(old))
    assert sum(shares) / len(shares) <= at_most


def test_copies_of_one_image_stay_together() -> None:
    originals = [record(label, number) for label in (0, 1) for number in range(30)]
    copies = [
        dataclasses.replace(r, name=f"copy {copy} of {r.name}")
        for r in originals
        if int(r.sha256, 16) % 3 == 0
        for copy in range(3)
    ]
    split = assign_splits(dataset(originals + copies))
    seen: dict[str, set[Split | None]] = {}
    for r in split.records:
        seen.setdefault(r.sha256, set()).add(r.split)
    assert len(copies) > 30
    assert all(len(splits) == 1 for splits in seen.values())
    # Shares are of different images: of 30 a class 6 to test, and of the 24 left 4.8, rounded, to validate.
    assert Counter(next(iter(splits)) for splits in seen.values()) == {"train": 38, "val": 10, "test": 12}


def test_a_class_of_copies_of_one_image_is_trained_on() -> None:
    copies = [dataclasses.replace(record(0, 0), name=f"0/{i}.png") for i in range(6)]
    assert sizes(assign_splits(dataset([*copies, *(record(1, i) for i in range(10))]))) == [(6, 0, 0), (6, 2, 2)]


def test_one_image_under_two_labels_does_not_crash() -> None:
    twin = dataclasses.replace(record(1, 0), sha256=record(0, 0).sha256)
    split = assign_splits(dataset([record(0, i) for i in range(5)] + [twin] + [record(1, i) for i in range(1, 5)]))
    assert sum(map(sum, sizes(split))) == 10


def test_splits_that_the_data_came_with_are_kept() -> None:
    parts: list[tuple[Split, int]] = [("train", 10), ("val", 3), ("test", 4)]
    records = [
        record(label, 100 * index + number, split)
        for label in (0, 1)
        for index, (split, count) in enumerate(parts)
        for number in range(count)
    ]
    data = dataset(records, ("train", "val", "test"))
    assert assign_splits(data) == data


def test_validation_is_made_of_training_images_where_the_data_bring_a_test_split_alone() -> None:
    records = [record(label, number, "train") for label in (0, 1) for number in range(20)]
    records += [record(label, number, "test") for label in (0, 1) for number in range(100, 105)]
    split = assign_splits(dataset(records, ("train", "test")))
    assert sizes(split) == [(16, 4, 5), (16, 4, 5)]
    assert {r.sha256 for r in split.part("test").records} == {r.sha256 for r in records if r.split == "test"}


def test_a_given_validation_split_without_a_test_split_is_all_there_is() -> None:
    records = [record(label, number, "train") for label in (0, 1) for number in range(20)]
    records += [record(label, number, "val") for label in (0, 1) for number in range(100, 105)]
    assert sizes(assign_splits(dataset(records, ("train", "val")))) == [(20, 5, 0), (20, 5, 0)]


def test_a_class_that_is_only_tested_is_refused_by_name() -> None:
    records = [record(0, i, "train") for i in range(5)] + [record(1, i, "test") for i in range(5)]
    with pytest.raises(DataError, match="Class 'b' has no image to train on") as caught:
        assign_splits(dataset(records, ("train", "test")))
    assert caught.value.exit_code == 3


# What belongs together


def in_groups(num_groups: int, size: int, label: int = 0) -> list[Record]:
    return [
        dataclasses.replace(record(label, 1000 * group + number), group=f"patient {label} {group}")
        for group in range(num_groups)
        for number in range(size)
    ]


def group_fates(split: Dataset) -> dict[str, set[Split | None]]:
    found: dict[str, set[Split | None]] = {}
    for r in split.records:
        found.setdefault(r.group or r.cluster or r.sha256, set()).add(r.split)
    return found


def test_groups_are_never_torn_apart_and_shares_are_met_as_nearly_as_they_allow() -> None:
    split = assign_splits(dataset(in_groups(20, 10) + in_groups(40, 5, label=1)))
    assert all(len(splits) == 1 for splits in group_fates(split).values())
    # 200 a class: 40 to test, 32 of the other 160 to validate: four and three groups of ten, eight and six of five.
    assert sizes(split) == [(130, 30, 40), (130, 30, 40)]


def test_near_copies_stay_together_across_classes() -> None:
    records = [record(label, number) for label in (0, 1) for number in range(40)]
    records += [dataclasses.replace(record(1, 100 + i), cluster=f"c{i}") for i in range(20)]
    records[:20] = [dataclasses.replace(r, cluster=f"c{i}") for i, r in enumerate(records[:20])]
    split = assign_splits(dataset(records))
    assert all(len(splits) == 1 for splits in group_fates(split).values())
    for count, (_, in_val, in_test) in zip((40, 60), sizes(split), strict=True):
        assert abs(in_test - 0.2 * count) <= 3
        assert abs(in_val - 0.16 * count) <= 3


def test_a_class_of_two_large_groups_gives_one_of_them_and_of_one_group_none() -> None:
    split = assign_splits(dataset(in_groups(2, 10) + in_groups(1, 10, label=1) + in_groups(3, 7, label=2)))
    assert sizes(split) == [(10, 0, 10), (10, 0, 0), (7, 7, 7)]


def test_a_group_that_shares_a_image_with_another_goes_where_that_goes() -> None:
    records = in_groups(10, 4)
    records[4] = dataclasses.replace(records[4], sha256=records[0].sha256)
    fates_of = group_fates(assign_splits(dataset(records)))
    assert fates_of["patient 0 0"] == fates_of["patient 0 1"]


@given(st.lists(st.integers(1, 12), min_size=2, max_size=15), st.integers(0, 20), st.floats(0, 0.95))
def test_whatever_the_groups_every_class_trains_and_none_is_torn(
    group_sizes: list[int], seed: int, test: float
) -> None:
    records = [
        dataclasses.replace(record(label, 100 * group + number), group=f"{group}")
        for group, size in enumerate(group_sizes)
        for number in range(size)
        for label in (number % 3,)
    ]
    present = sorted({r.label for r in records})
    records = [dataclasses.replace(r, label=present.index(r.label)) for r in records]
    split = assign_splits(dataset(records), seed=seed, test_fraction=test)
    assert all(len(splits) == 1 for splits in group_fates(split).values())
    assert all(train >= 1 for train, _, _ in sizes(split))


def test_few_groups_move_when_others_are_added() -> None:
    shares = []
    for seed in range(20):
        old = group_fates(assign_splits(dataset(in_groups(50, 4)), seed=seed))
        new = group_fates(assign_splits(dataset(in_groups(55, 4)), seed=seed))
        shares.append(sum(new[group] != splits for group, splits in old.items()) / len(old))
    assert sum(shares) / len(shares) <= 0.06


# Images that are added to those of an earlier fit


def added(before: Dataset, more: Sequence[Record], given: tuple[Split, ...] = ()) -> Dataset:
    """The images of a fit with others, as an update reads them."""
    splits = {r.sha256: frozenset({r.split}) for r in before.records}
    earlier = Earlier("bundle", splits, {r.sha256: r.name for r in before.records})  # type: ignore[arg-type]
    blank = [dataclasses.replace(r, split=None) if not given else r for r in before.records]
    return dataclasses.replace(dataset([*blank, *more], given), earlier=earlier)


@given(st.lists(st.integers(2, 30), min_size=1, max_size=3), st.lists(st.integers(1, 60), min_size=1, max_size=4))
def test_earlier_images_keep_their_split_and_the_whole_set_its_fractions(before: list[int], more: list[int]) -> None:
    first = assign_splits(unsplit(*before), seed=3)
    new = [record(label, 1000 + number) for label, count in enumerate(more) for number in range(count)]
    both = added(first, new)
    split = assign_splits(both)
    assert {content: fates(split)[content] for content in fates(first)} == fates(first)
    fresh = assign_splits(dataclasses.replace(both, earlier=None))
    assert sizes(split) == sizes(fresh)


def test_images_added_one_at_a_time_reach_every_split() -> None:
    split = assign_splits(unsplit(10))
    for number in range(100, 150):
        split = assign_splits(added(split, [record(0, number)]))
    assert sizes(split) == sizes(assign_splits(unsplit(60)))


def test_a_new_duplicate_goes_where_the_earlier_image_is() -> None:
    first = assign_splits(dataset([dataclasses.replace(record(0, n), cluster=f"c{n}") for n in range(10)]))
    new = [dataclasses.replace(record(0, 100 + n), cluster=f"c{n}") for n in range(10)]
    split = assign_splits(added(first, new))
    by_cluster = [{r.split for r in split.records if r.cluster == f"c{n}"} for n in range(10)]
    assert all(len(splits) == 1 for splits in by_cluster)


def test_a_new_image_between_two_earlier_ones_moves_neither() -> None:
    first = assign_splits(unsplit(10))
    a = next(r for r in first.records if r.split == "train")
    b = next(r for r in first.records if r.split == "test")
    linked = [dataclasses.replace(r, cluster="x") if r in (a, b) else r for r in first.records]
    split = assign_splits(added(first.with_records(linked), [dataclasses.replace(record(0, 99), cluster="x")]))
    assert {content: fates(split)[content] for content in fates(first)} == fates(first)


def test_given_splits_of_earlier_images_stay_and_new_images_without_one_train() -> None:
    given: tuple[Split, ...] = ("train", "test")
    records = [record(0, n, "test" if n < 5 else "train") for n in range(25)]
    shared = dataclasses.replace(records[0], split="train", name="copy.png")  # the user's own test set has it too
    first = assign_splits(dataset([*records, shared], given))
    again = added(dataset([*records, shared], given), [record(0, 100 + n) for n in range(20)], given)
    splits: dict[str, set[Split]] = {}
    for r in first.records:
        splits.setdefault(r.sha256, set()).add(r.split)  # type: ignore[arg-type]
    assert again.earlier is not None
    frozen = {content: frozenset(found) for content, found in splits.items()}
    split = assign_splits(dataclasses.replace(again, earlier=dataclasses.replace(again.earlier, splits=frozen)))
    assert [r.split for r in split.records[:26]] == [r.split for r in first.records]
    assert Counter(r.split for r in split.records)["test"] == 5
    assert sizes(split) == [(33, 8, 5)]


def test_earlier_images_that_are_gone_or_no_new_ones_are_an_error() -> None:
    first = assign_splits(unsplit(10))
    check_earlier(first)
    check_earlier(added(first, [record(0, 50)]))
    with pytest.raises(DataError) as caught:
        check_earlier(added(first, []))
    assert caught.value.code == "nothing_new"
    whole = added(first, [record(0, 50)])
    with pytest.raises(DataError, match=r"0/3\.png") as caught:
        check_earlier(whole.with_records([r for r in whole.records if r.name != "0/3.png"]))
    assert caught.value.code == "earlier_images_missing"
