"""Class folders: nested, linked, with litter, split or not, in any alphabet."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.folders import paint, tree
from transferapp.data.dataset import Dataset
from transferapp.data.folder import read_folder
from transferapp.errors import DataError


def names(dataset: Dataset) -> list[str]:
    return [record.name for record in dataset.records]


def codes(dataset: Dataset) -> dict[str, str]:
    return {item.name: item.code for item in dataset.ignored}


def by_class(dataset: Dataset) -> dict[str, int]:
    return dict(zip(dataset.class_names, dataset.counts(), strict=True))


def test_each_sub_folder_is_a_class_in_the_order_of_names(tmp_path: Path) -> None:
    dataset = read_folder(str(tree(tmp_path, {"dogs": 2, "cats": 1})))
    assert dataset.class_names == ("cats", "dogs")
    assert names(dataset) == ["cats/000.png", "dogs/000.png", "dogs/001.png"]
    assert dataset.labels.tolist() == [0, 1, 1]
    assert [record.split for record in dataset.records] == [None] * 3
    assert dataset.given_splits == ()
    assert dataset.ignored == ()


def test_images_lie_at_any_depth_and_have_any_case(tmp_path: Path) -> None:
    paint(tmp_path / "cats" / "2019" / "May" / "A.png").rename(tmp_path / "cats" / "2019" / "May" / "A.JPeG")
    paint(tmp_path / "cats" / "b.png").rename(tmp_path / "cats" / "b.WEBP")
    paint(tmp_path / "dogs" / "x.png")
    assert names(read_folder(str(tmp_path))) == ["cats/2019/May/A.JPeG", "cats/b.WEBP", "dogs/x.png"]


def test_names_may_be_in_any_alphabet_with_spaces_and_emoji(tmp_path: Path) -> None:
    for number, name in enumerate(["Größe 12", "猫", "🐕 my dog", "a'b\"c;$(d)", "👩\u200d🌾"]):
        paint(tmp_path / name / "ein Bild №1.png", number)
    dataset = read_folder(str(tmp_path))
    assert set(dataset.class_names) == {"Größe 12", "猫", "🐕 my dog", "a'b\"c;$(d)", "👩\u200d🌾"}
    assert all(record.path.is_file() for record in dataset.records)


def test_one_class_spelt_in_two_unicode_forms_is_one_class(tmp_path: Path) -> None:
    paint(tmp_path / "train" / "caf\u00e9" / "a.png", 1)
    paint(tmp_path / "test" / "cafe\u0301" / "b.png", 2)
    paint(tmp_path / "train" / "tea" / "c.png", 3)
    dataset = read_folder(str(tmp_path))
    assert dataset.class_names == ("caf\u00e9", "tea")
    assert sorted(str(r.split) for r in dataset.records if r.label == 0) == ["test", "train"]
    assert all(record.path.is_file() for record in dataset.records)


def test_names_that_differ_by_case_alone_are_two_classes(tmp_path: Path) -> None:
    tree(tmp_path, {"Rose": 1, "rose": 1})
    if len(list(tmp_path.iterdir())) < 2:
        pytest.skip("this file system does not tell case")
    assert read_folder(str(tmp_path)).class_names == ("Rose", "rose")


def test_bytes_that_are_no_unicode_and_control_characters_are_shown_escaped(tmp_path: Path) -> None:
    try:
        paint(tmp_path / os.fsdecode(b"caf\xe9") / "x.png")
    except OSError:
        pytest.skip("this file system wants Unicode")
    paint(tmp_path / "bell\x07\n" / "y.png")
    dataset = read_folder(str(tmp_path))
    assert dataset.class_names == ("bell\\x07\\x0a", "caf\\xe9")
    assert names(dataset) == ["bell\\x07\\x0a/y.png", "caf\\xe9/x.png"]
    "".join(names(dataset)).encode("utf-8")
    assert all(record.path.is_file() for record in dataset.records)


def test_what_systems_and_editors_leave_behind_is_passed_over(tmp_path: Path) -> None:
    tree(tmp_path, {"cats": 1, "dogs": 1})
    for litter in (
        "cats/.DS_Store",
        "cats/Thumbs.db",
        "cats/._000.png",
        "cats/.ipynb_checkpoints/000-checkpoint.png",
        ".hidden/a.png",
        "__MACOSX/cats/a.png",
        "@eaDir/cats/a.png",
        "cats/@eaDir/a.png",
        "$RECYCLE.BIN/a.png",
    ):
        paint((tmp_path / litter).with_suffix(".png")).rename(tmp_path / litter)
    (tmp_path / "cats" / "notes.txt").write_text("not an image")
    dataset = read_folder(str(tmp_path))
    assert by_class(dataset) == {"cats": 1, "dogs": 1}
    assert [(item.name, item.code) for item in dataset.ignored] == [(".hidden", "hidden")]


def test_calibers_are_classes(tmp_path: Path) -> None:
    calibers = {".22": 2, ".45 ACP": 1, ".30-06": 1}
    assert by_class(read_folder(str(tree(tmp_path, {**calibers, "9mm": 3, ".22.old": 1})))) == {**calibers, "9mm": 3}
    split = {f"{part}/{name}": count for part in ("train", "test") for name, count in calibers.items()}
    dataset = read_folder(str(tree(tmp_path / "split", split)))
    assert by_class(dataset) == {name: 2 * count for name, count in calibers.items()}
    assert set(dataset.given_splits) == {"train", "test"}


def test_images_of_formats_that_are_not_read_are_listed(tmp_path: Path) -> None:
    tree(tmp_path, {"cats": 1, "dogs": 1})
    for name in ("a.svg", "b.EPS", "c.psd", "d.fits"):
        (tmp_path / "dogs" / name).write_bytes(b"anything")
    dataset = read_folder(str(tmp_path))
    assert codes(dataset) == {f"dogs/{name}": "unsupported_format" for name in ("a.svg", "b.EPS", "c.psd", "d.fits")}


def test_loose_images_beside_class_folders_are_listed(tmp_path: Path) -> None:
    paint(tree(tmp_path, {"cats": 1, "dogs": 1}) / "loose.png")
    assert codes(read_folder(str(tmp_path))) == {"loose.png": "no_class"}


def test_an_empty_class_is_listed_and_is_no_class(tmp_path: Path) -> None:
    dataset = read_folder(str(tree(tmp_path, {"cats": 1, "dogs": 1, "unicorns": 0})))
    assert dataset.class_names == ("cats", "dogs")
    assert codes(dataset) == {"unicorns": "empty_class"}


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, "no class folders with images.*got no images at all"),
        ({".": 3}, "no class folders with images.*got 3 loose images"),
        ({".": 1}, "got 1 loose image\\."),
        ({"cats": 0, "dogs": 0}, "no class folders with images"),
        ({"cats": 3}, "one class only, 'cats'"),
        ({"cats": 3, "dogs": 0}, "one class only, 'cats'"),
        ({"train/cats": 3}, "one class only, 'cats'"),
    ],
)
def test_what_cannot_be_classified_is_refused_in_one_sentence(
    tmp_path: Path, counts: dict[str, int], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_folder(str(tree(tmp_path, counts)))
    assert caught.value.exit_code == 3
    assert str(tmp_path) in str(caught.value)


def test_one_class_is_enough_to_be_measured_on(tmp_path: Path) -> None:
    assert read_folder(str(tree(tmp_path, {"cats": 2})), min_classes=1).class_names == ("cats",)


# Splits that the data come with


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val", "VALID"])
def test_train_val_and_test_folders_are_splits(tmp_path: Path, val: str) -> None:
    tree(tmp_path, {f"{part}/{name}": 2 for part in ("Train", val, "test") for name in ("cats", "dogs")})
    dataset = read_folder(str(tmp_path))
    assert dataset.class_names == ("cats", "dogs")
    assert set(dataset.given_splits) == {"train", "val", "test"}
    assert {record.name.split("/")[0]: record.split for record in dataset.records} == {
        "Train": "train",
        val: "val",
        "test": "test",
    }


def test_two_folders_of_one_split_are_both_used(tmp_path: Path) -> None:
    tree(tmp_path, {f"{part}/{name}": 1 for part in ("train", "val", "valid") for name in ("cats", "dogs")})
    assert len(read_folder(str(tmp_path)).part("val")) == 4


def test_a_train_folder_alone_is_where_the_images_are(tmp_path: Path) -> None:
    dataset = read_folder(str(tree(tmp_path, {"train/cats": 2, "train/dogs": 1})))
    assert by_class(dataset) == {"cats": 2, "dogs": 1}
    assert dataset.given_splits == ()
    assert {record.split for record in dataset.records} == {None}
    assert names(dataset)[0] == "train/cats/000.png"


def test_a_test_folder_alone_is_a_test_split(tmp_path: Path) -> None:
    dataset = read_folder(str(tree(tmp_path, {"test/cats": 2, "test/dogs": 1})))
    assert dataset.given_splits == ("test",)
    assert {record.split for record in dataset.records} == {"test"}


def test_a_test_folder_without_labels_is_listed_and_is_no_class(tmp_path: Path) -> None:
    dataset = read_folder(str(tree(tmp_path, {"train/cats": 2, "train/dogs": 2, "test": 3})))
    assert by_class(dataset) == {"cats": 2, "dogs": 2}
    assert codes(dataset) == {"test": "no_class"}


def test_folders_beside_the_splits_are_listed(tmp_path: Path) -> None:
    tree(tmp_path, {"train/cats": 1, "train/dogs": 1, "test/cats": 1, "unlabeled": 4})
    assert codes(read_folder(str(tmp_path))) == {"unlabeled": "no_class"}


def test_train_and_test_that_hold_images_themselves_are_classes(tmp_path: Path) -> None:
    dataset = read_folder(str(tree(tmp_path, {"train": 2, "test": 2, "bus": 1})))
    assert by_class(dataset) == {"bus": 1, "test": 2, "train": 2}
    assert dataset.given_splits == ()


def test_a_nested_train_among_other_classes_is_a_class(tmp_path: Path) -> None:
    dataset = read_folder(str(tree(tmp_path, {"train/steam": 2, "train/electric": 1, "bus": 1, "plane": 1})))
    assert by_class(dataset) == {"bus": 1, "plane": 1, "train": 3}


@pytest.mark.parametrize(
    ("name", "split"),
    [("validation", "val"), ("dev", "val"), ("Test_Images", "test"), ("holdout", "test"), ("val2017", "val")],
)
def test_splits_may_be_called_otherwise(tmp_path: Path, name: str, split: str) -> None:
    folders = {f"{part}/{animal}": 1 for part in ("train_set", name) for animal in ("cats", "dogs")}
    dataset = read_folder(str(tree(tmp_path, folders)))
    assert by_class(dataset) == {"cats": 2, "dogs": 2}
    assert set(dataset.given_splits) == {"train", split}


def test_a_class_that_the_splits_spell_in_different_cases_is_one_class(tmp_path: Path) -> None:
    dataset = read_folder(str(tree(tmp_path, {"train/Cats": 2, "train/dogs": 1, "val/cats": 1, "val/DOGS": 1})))
    assert by_class(dataset) == {"Cats": 3, "dogs": 2}


def test_two_classes_of_a_split_that_differ_by_case_alone_stay_two_in_all_splits(tmp_path: Path) -> None:
    tree(tmp_path, {"train/Rose": 2, "train/rose": 1, "val/rose": 1, "val/Rose": 1})
    if len(list((tmp_path / "train").iterdir())) < 2:
        pytest.skip("this file system does not tell case")
    assert by_class(read_folder(str(tmp_path))) == {"Rose": 3, "rose": 2}


def test_one_class_that_holds_folders_may_be_the_folder_that_was_meant(tmp_path: Path) -> None:
    tree(tmp_path, {"pets/cats": 1, "pets/dogs": 1})
    with pytest.raises(DataError, match=r"one class only, 'pets'.*If its sub-folders, such as 'cats', are the classes"):
        read_folder(str(tmp_path))


# Links


def test_a_link_that_loops_is_walked_once(tmp_path: Path) -> None:
    tree(tmp_path, {"cats/old": 2, "dogs": 1})
    (tmp_path / "cats" / "old" / "again").symlink_to(tmp_path / "cats", target_is_directory=True)
    (tmp_path / "dogs" / "itself").symlink_to("itself")
    assert by_class(read_folder(str(tmp_path))) == {"cats": 2, "dogs": 1}


@pytest.mark.parametrize("target", ["..", "../dogs", "../..", "../dogs/big"])
def test_a_link_back_into_the_data_never_labels_a_image_twice(tmp_path: Path, target: str) -> None:
    root = tree(tmp_path / "data", {"cats": 2, "dogs": 1, "dogs/big": 2})
    (root / "cats" / "more").symlink_to(target, target_is_directory=True)
    dataset = read_folder(str(root))
    assert by_class(dataset) == {"cats": 2, "dogs": 3}
    assert codes(dataset) == {"cats/more": "link"}


def test_a_class_that_is_a_link_to_another_is_listed(tmp_path: Path) -> None:
    root = tree(tmp_path, {"cats": 2, "dogs": 1})
    (root / "alias").symlink_to("cats", target_is_directory=True)
    dataset = read_folder(str(root))
    assert by_class(dataset) == {"cats": 2, "dogs": 1}
    assert codes(dataset) == {"alias": "link"}


def test_two_classes_that_are_links_to_one_folder_are_told_of(tmp_path: Path) -> None:
    tree(tmp_path, {"outside/images": 2, "data/real": 1})
    for name in ("first", "second"):
        (tmp_path / "data" / name).symlink_to("../outside/images", target_is_directory=True)
    dataset = read_folder(str(tmp_path / "data"))
    assert by_class(dataset) == {"first": 2, "real": 1}
    assert codes(dataset) == {"second": "link"}


def test_links_out_of_the_folder_are_followed(tmp_path: Path) -> None:
    tree(tmp_path, {"store/cats": 2, "store/more": 1, "data/dogs": 1})
    (tmp_path / "data" / "cats").symlink_to("../store/cats", target_is_directory=True)
    (tmp_path / "data" / "dogs" / "more").symlink_to("../../store/more", target_is_directory=True)
    (tmp_path / "data" / "dogs" / "one.png").symlink_to(tmp_path / "store" / "more" / "000.png")
    dataset = read_folder(str(tmp_path / "data"))
    assert names(dataset) == [
        "cats/000.png",
        "cats/001.png",
        "dogs/000.png",
        "dogs/more/000.png",
        "dogs/one.png",
    ]


# Permissions


@pytest.fixture
def ordinary_folder() -> Iterator[Path]:
    """A folder of a user who is not the administrator, and this process as that user."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not hasattr(os, "geteuid") or os.geteuid() != 0:
            yield folder
        else:
            os.chown(folder, 65534, -1)
            os.seteuid(65534)
            try:
                yield folder
            finally:
                os.seteuid(0)


def test_folders_that_may_not_be_read_are_listed_or_refused(ordinary_folder: Path) -> None:
    root = tree(ordinary_folder, {"cats": 2, "dogs": 2, "dogs/secret": 1, "locked": 1, "listed only": 1})
    (root / "dogs" / "secret").chmod(0o000)
    (root / "locked").chmod(0o000)
    (root / "listed only").chmod(0o400)  # names can be seen, nothing behind them
    try:
        dataset = read_folder(str(root))
        root.chmod(0o000)
        with pytest.raises(DataError, match="cannot be read"):
            read_folder(str(root))
    finally:
        root.chmod(0o700)
        for name in ("dogs/secret", "locked", "listed only"):
            (root / name).chmod(0o700)
    assert by_class(dataset) == {"cats": 2, "dogs": 2, "listed only": 1}
    assert codes(dataset) == {"dogs/secret": "unreadable", "locked": "unreadable"}


@pytest.mark.parametrize("folders", [("train", "test"), ("train",), ("train_images", "val2017", "test")])
def test_splits_without_classes_are_refused(tmp_path: Path, folders: tuple[str, ...]) -> None:
    tree(tmp_path, dict.fromkeys(folders, 3))
    with pytest.raises(DataError, match=r"nothing that gives their classes.*metadata\.csv"):
        read_folder(str(tmp_path), min_classes=1)


def test_splits_below_the_classes_are_splits(tmp_path: Path) -> None:
    tree(tmp_path, {"cats/train": 3, "cats/test": 2, "dogs/train": 2, "dogs/Test": 1})
    dataset = read_folder(str(tmp_path))
    assert by_class(dataset) == {"cats": 5, "dogs": 3}
    assert dataset.given_splits == ("train", "test")
    assert [record.split for record in dataset.records].count("test") == 3


def test_splits_below_some_classes_alone_are_parts_of_them(tmp_path: Path) -> None:
    dataset = read_folder(str(tree(tmp_path, {"cats/train": 3, "cats/test": 2, "dogs": 2})))
    assert by_class(dataset) == {"cats": 5, "dogs": 2}
    assert dataset.given_splits == ()
    assert codes(dataset) == {"cats": "mixed_splits"}


def test_classes_are_in_natural_order(tmp_path: Path) -> None:
    assert read_folder(str(tree(tmp_path / "a", dict.fromkeys(["10", "1", "2", "11"], 1)))).class_names == (
        "1",
        "2",
        "10",
        "11",
    )
    words = dict.fromkeys(["class 10", "class 2", "a"], 1)
    assert read_folder(str(tree(tmp_path / "b", words))).class_names == ("a", "class 2", "class 10")


@pytest.mark.parametrize("name", ["image1", "a.jpg_large", "a.jpg!d", "a.pjpeg"])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_bytes_decide_where_the_suffix_is_unknown(tmp_path: Path, name: str, form: str) -> None:
    tree(tmp_path, {"cats": 1, "dogs": 1})
    Image.new("RGB", (20, 20)).save(tmp_path / "cats" / name, format=form)
    Image.new("RGB", (20, 20)).save(tmp_path / "loose", format=form)
    (tmp_path / "cats" / "notes").write_text("BM")
    (tmp_path / "cats" / "list.txt").write_bytes(b"\xff\xd8\xff")
    dataset = read_folder(str(tmp_path))
    assert names(dataset)[:2] == sorted(["cats/000.png", f"cats/{name}"])
    assert by_class(dataset) == {"cats": 2, "dogs": 1}
    assert codes(dataset) == {"loose": "no_class"}
