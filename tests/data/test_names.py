"""Names that users give to folders: splits, and folders that only say that images are in them."""

from __future__ import annotations

import pytest

from transferapp.data.names import holds_images_only, split_named


@pytest.mark.parametrize("name", ["train", "Training", "train_images", "train_pictures", "train photos", "train2017"])
def test_a_split_is_known_by_its_name_and_neutral_words_beside_it(name: str) -> None:
    assert split_named(name) == "train"


@pytest.mark.parametrize("name", ["trains", "train_station", "train_test", "images", "cats", ""])
def test_other_names_are_not_splits(name: str) -> None:
    assert split_named(name) is None


@pytest.mark.parametrize("name", ["images", "Pictures", "photos", "imgs", "JPEGImages", "validation", "all"])
def test_folders_of_images_are_not_classes(name: str) -> None:
    assert holds_images_only(name)


def test_folders_with_other_names_may_be_classes() -> None:
    assert not any(map(holds_images_only, ["cats", "photographers", "pngs of dogs"]))
