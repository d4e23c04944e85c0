"""Data sources: every kind of `--data`, and the errors."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import zipfile
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from tests.helpers.folders import paint, tree
from transferapp.data.dataset import Dataset
from transferapp.data.options import Source, SourceOptions
from transferapp.data.sources import open_source, open_sources
from transferapp.errors import DataError, UsageError

TABLE = "path,label\nimages/000.png,cat\nimages/001.png,dog\nimages/002.png,cat\n"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFERAPP_CACHE", str(tmp_path_factory.mktemp("cache")))


def by_class(dataset: Dataset) -> dict[str, int]:
    return dict(zip(dataset.class_names, dataset.counts(), strict=True))


def codes(dataset: Dataset) -> dict[str, str]:
    return {item.name: item.code for item in dataset.ignored}


def table_of(root: Path, name: str = "labels.csv") -> Path:
    """A table of two cats and a dog beside its folder of images."""
    tree(root, {"images": 3})
    (root / name).write_text(TABLE)
    return root / name


def measured(root: Path, labels: list[str]) -> Path:
    """A table of one image a label."""
    tree(root, {"images": len(labels)})
    rows = [f"images/{number:03}.png,{label}" for number, label in enumerate(labels)]
    (root / "labels.csv").write_text("\n".join(["path,value", *rows]))
    return root


@pytest.mark.parametrize(
    "labels",
    [
        [f"{number / 7:.3f}" for number in range(1, 61)],
        [f"{number // 4 / 4}" for number in range(1, 200)],
        [f"{1e-3 * number:.2e}" for number in range(1, 41)],
        [str(100 * number) for number in range(60)],
        [str(-number) for number in (*range(40), *range(15))],
    ],
    ids=["prices", "quarters", "exponents", "whole", "negative"],
)
def test_measured_numbers_are_no_classes(tmp_path: Path, labels: list[str]) -> None:
    root = measured(tmp_path, labels)
    with pytest.raises(DataError, match="look like measured numbers") as caught:
        open_source(str(root))
    assert str(len(set(labels))) in str(caught.value)
    assert len(open_source(str(root), 1)) == len(labels), "an evaluation takes whatever the bundle knows"


@pytest.mark.parametrize(
    "labels",
    [
        [f"{number % 10 / 2}" for number in range(60)],
        [str(number % 30) for number in range(60)],
        [f"{number % 20}.5" for number in range(200)],
        [f"p{number}" for number in range(60)],
        [str(number) for number in range(19)],
    ],
    ids=["grades", "two of each", "ten of each", "words", "few"],
)
def test_numbers_can_be_classes(tmp_path: Path, labels: list[str]) -> None:
    assert len(open_source(str(measured(tmp_path, labels))).class_names) == len(set(labels))


def test_calibers_come_out_of_archives(tmp_path: Path) -> None:
    counts = {".22": 2, ".45": 3}
    archive = zipped(tree(tmp_path / "guns", counts), tmp_path / "guns.zip")
    assert by_class(open_source(str(archive))) == counts


def zipped(folder: Path, to: Path) -> Path:
    with zipfile.ZipFile(to, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return to


def test_a_folder_is_read_as_class_folders(tmp_path: Path) -> None:
    dataset = open_source(str(tree(tmp_path, {"cats": 1, "dogs": 1})))
    assert dataset.class_names == ("cats", "dogs")
    assert dataset.origin == str(tmp_path)


def test_a_place_that_is_not_there_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no file or folder .*nowhere") as caught:
        open_source(str(tmp_path / "nowhere"))
    assert caught.value.exit_code == 3


def test_a_image_alone_is_no_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.png is in a format that is not read"):
        open_source(str(paint(tmp_path / "a.png")))


@pytest.mark.parametrize(("name", "hint"), [("a.xlsx", "Save it as CSV"), ("a.json", "CSV"), ("a.txt", "ends in .csv")])
def test_files_that_people_have_and_that_are_not_read_say_what_to_do(tmp_path: Path, name: str, hint: str) -> None:
    (tmp_path / name).write_bytes(b"something")
    with pytest.raises(DataError, match=hint):
        open_source(str(tmp_path / name))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes here")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="neither a file nor a folder"):
        open_source(str(tmp_path / "pipe"))


def test_a_table_is_read_by_its_name_alone_or_by_that_of_its_folder(tmp_path: Path) -> None:
    table = table_of(tmp_path)
    for data in (table, tmp_path):
        dataset = open_source(str(data))
        assert by_class(dataset) == {"cat": 2, "dog": 1}
        assert [record.name for record in dataset.records] == ["images/000.png", "images/002.png", "images/001.png"]


def test_class_folders_win_over_a_table_and_it_is_listed(tmp_path: Path) -> None:
    tree(tmp_path, {"ants": 2, "bees": 1})
    (tmp_path / "notes.csv").write_text("path,label\nants/000.png,insect\n")
    dataset = open_source(str(tmp_path))
    assert by_class(dataset) == {"ants": 2, "bees": 1}
    assert codes(dataset) == {"notes.csv": "table"}


def test_split_folders_of_classes_win_over_a_table(tmp_path: Path) -> None:
    tree(tmp_path, {"train/ants": 2, "train/bees": 1, "test/ants": 1})
    (tmp_path / "classes.csv").write_text("class_id,name\n0,ants\n")
    assert open_source(str(tmp_path)).given_splits == ("test", "train")


def test_flat_train_and_test_folders_beside_a_table_are_no_classes(tmp_path: Path) -> None:
    tree(tmp_path, {"train": 2, "test": 1})
    (tmp_path / "labels.csv").write_text("id,breed\n000,cat\n001,dog\n")
    dataset = open_source(str(tmp_path))
    assert by_class(dataset) == {"cat": 1, "dog": 1}


def test_several_tables_are_for_the_person_to_choose_from(tmp_path: Path) -> None:
    table_of(tmp_path)
    shutil.copy(tmp_path / "labels.csv", tmp_path / "old.csv")
    with pytest.raises(DataError, match=r"several tables: labels\.csv, old\.csv.* Name the table itself"):
        open_source(str(tmp_path))


def test_naming_a_column_asks_for_the_table_even_where_folders_could_be_classes(tmp_path: Path) -> None:
    tree(tmp_path, {"ants": 2, "bees": 1})
    (tmp_path / "notes.csv").write_text("path,label,color\nants/000.png,x,red\nbees/000.png,y,blue\n")
    dataset = open_source(str(tmp_path), options=SourceOptions(label_column="color"))
    assert dataset.class_names == ("blue", "red")


@pytest.mark.parametrize(
    ("data", "option"),
    [
        ("folders", "label_column"),
        ("folders", "group_column"),
        ("folders", "data_dir"),
        ("table/labels.csv", "data_dir"),
        ("folders.zip", "path_column"),
        ("tfds:mnist", "split_column"),
    ],
)
def test_settings_that_mean_nothing_for_a_source_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str, option: str
) -> None:
    tree(tmp_path / "folders", {"ants": 1, "bees": 1})
    zipped(tmp_path / "folders", tmp_path / "folders.zip")
    table_of(tmp_path / "table")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=f"--{option.replace('_', '-')} means nothing for") as caught:
        open_source(data, options=SourceOptions(**{option: "x"}))
    assert caught.value.exit_code == 2


def test_an_archive_holds_class_folders_splits_or_a_table(tmp_path: Path) -> None:
    tree(tmp_path / "a" / "pets", {"cats": 2, "dogs": 1})
    tree(tmp_path / "b", {"train/cats": 2, "train/dogs": 1, "validation/cats": 1, "validation/dogs": 1})
    table_of(tmp_path / "c" / "inner")
    found = [open_source(str(zipped(tmp_path / name, tmp_path / f"{name}.zip"))) for name in "abc"]
    assert [by_class(dataset) for dataset in found] == [
        {"cats": 2, "dogs": 1},
        {"cats": 3, "dogs": 2},
        {"cat": 2, "dog": 1},
    ]
    assert [dataset.given_splits for dataset in found] == [(), ("train", "val"), ()]
    assert found[0].origin == str(tmp_path / "a.zip")
    assert [record.name for record in found[0].records] == ["cats/000.png", "cats/001.png", "dogs/000.png"]


def test_a_table_in_an_archive_may_name_nothing_outside_of_it(tmp_path: Path) -> None:
    secret = paint(tmp_path / "secret.png")
    table = table_of(tmp_path / "pack")
    up = os.path.relpath(secret, "/")
    table.write_text(f"{TABLE}{secret},spy\n../../../../../../../../../../../{up},spy\n")
    dataset = open_source(str(zipped(tmp_path / "pack", tmp_path / "pack.zip")))
    assert dataset.class_names == ("cat", "dog")
    assert codes(dataset) == {str(secret): "outside", f"../../../../../../../../../../../{up}": "outside"}
    assert "spy" in open_source(str(table)).class_names, "the person's own table may"


def test_an_empty_folder_and_an_empty_archive_say_so(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for data in (tmp_path / "empty", zipped(tmp_path / "empty", tmp_path / "empty.zip")):
        with pytest.raises(DataError, match=r"has no class folders with images.*no images at all"):
            open_source(str(data))


def test_progress_is_shown_while_a_folder_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import contextlib
    from collections.abc import Callable, Iterator

    monkeypatch.setattr("transferapp.data.folder.REPORT_EVERY", 2)
    shown: list[tuple[str, int]] = []

    class Watching:
        def note(self, text: str) -> None:
            raise AssertionError(text)

        @contextlib.contextmanager
        def task(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
            yield lambda done: shown.append((label, done))

    open_source(str(tree(tmp_path, {"ants": 3, "bees": 2})), progress=Watching())
    assert shown == [("looking for images", count) for count in (2, 4, 5)]


# Splits with a table each


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "_classes.csv"])
def test_the_table_of_each_split_is_read(tmp_path: Path, name: str) -> None:
    tree(tmp_path, {"train": 3, "test": 2, "unlabeled_test": 1})
    (tmp_path / "unlabeled_test").rename(tmp_path / "val")
    labels = {"train": ["cat", "dog", "cat"], "test": ["dog", "cat"]}
    for split, of in labels.items():
        if name == "_classes.csv":
            lines = [
                "filename, cat, dog",
                *(f"{i:03}.png, {word == 'cat':d}, {word == 'dog':d}" for i, word in enumerate(of)),
            ]
        elif name == "metadata.csv":
            lines = ["file_name,text,label", *(f"{i:03}.png,an image,{word}" for i, word in enumerate(of))]
        else:
            lines = [f'{{"file_name": "{i:03}.png", "label": "{word}"}}' for i, word in enumerate(of)]
        (tmp_path / split / name).write_text("\n".join(lines))
    dataset = open_source(str(tmp_path))
    assert by_class(dataset) == {"cat": 3, "dog": 2}
    assert dataset.given_splits == ("train", "test")
    assert [r.name for r in dataset.records if r.split == "test"] == ["test/001.png", "test/000.png"]
    assert codes(dataset) == {"val": "no_class"}


def test_one_split_with_a_table_is_no_split(tmp_path: Path) -> None:
    tree(tmp_path, {"train": 3})
    (tmp_path / "train" / "metadata.csv").write_text("file_name,label\n000.png,cat\n001.png,dog\n")
    dataset = open_source(str(tmp_path))
    assert by_class(dataset) == {"cat": 1, "dog": 1}
    assert dataset.given_splits == ()


def test_splits_whose_file_names_say_the_class_are_refused(tmp_path: Path) -> None:
    for index in range(4):
        paint(tmp_path / "train" / f"{'cat' if index % 2 else 'dog'}.{index}.jpg", index)
        paint(tmp_path / "test" / f"{index}.jpg", 10 + index)
    with pytest.raises(DataError, match="sort them into folders"):
        open_source(str(tmp_path))


# Archives with more than the images


@pytest.mark.parametrize("place", ["pets", "pets-main/pets", "a/b/c"])
def test_what_lies_beside_the_one_folder_of_images_is_passed_over(tmp_path: Path, place: str) -> None:
    root = tmp_path / "root"
    tree(root, {f"{place}/cats": 1, f"{place}/dogs": 2})
    for folder in [root, *list((root / place).parents)[: place.count("/")]]:
        (folder / "README.md").write_text("Pets")
        (folder / "LICENSE").write_text("MIT")
    (root / "docs").mkdir()
    (root / "docs" / "more.txt").write_text("More")
    assert by_class(open_source(str(zipped(root, tmp_path / "pets.zip")))) == {"cats": 1, "dogs": 2}


def test_an_archive_of_archives_names_them(tmp_path: Path) -> None:
    tree(tmp_path / "in", {"cats": 1, "dogs": 1})
    (tmp_path / "out" / "data").mkdir(parents=True)
    zipped(tmp_path / "in", tmp_path / "out" / "data" / "train.zip")
    (tmp_path / "out" / "README").write_text("Pets")
    with pytest.raises(DataError, match=r"has archives in it.*data/train\.zip") as caught:
        open_source(str(zipped(tmp_path / "out", tmp_path / "pets.zip")))
    assert "cache" not in str(caught.value)


def test_no_place_in_the_cache_is_advised(tmp_path: Path) -> None:
    cache = os.environ["TRANSFERAPP_CACHE"]
    paint(tree(tmp_path / "one", {"pets/cats": 1, "pets/dogs": 1}) / "loose.png", 9)
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "labels.csv").write_text("path,label\na.png,cat\nb.png,dog\n")
    for name in ("one", "two"):
        with pytest.raises(DataError) as caught:
            open_source(str(zipped(tmp_path / name, tmp_path / f"{name}.zip")))
        assert cache not in str(caught.value)
        assert cache not in (caught.value.hint or "")


# Parquet with images


def parquet_of_images(path: Path, *, plain: bool = False, names: bool = True) -> Path:
    images = [paint(path.parent / "made" / f"{i}.png", i).read_bytes() for i in range(4)]
    table = pyarrow.table(
        {
            "id": ["a", "b", "c", "d"],
            "image": [*images[:3], None] if plain else [{"bytes": data, "path": None} for data in images],
            "caption": ['one,\n"two"', "x", "y", "z"],
            "label": [0, 1, 1, 0],
        }
    )
    features = {"label": {"_type": "ClassLabel", "names": ["cat", "dog"]}, "image": {"_type": "Image"}}
    if names:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, path)
    shutil.rmtree(path.parent / "made")
    return path


def test_parquet_that_holds_the_images_is_read(tmp_path: Path) -> None:
    path = parquet_of_images(tmp_path / "train.parquet")
    dataset = open_source(str(path))
    assert by_class(dataset) == {"cat": 2, "dog": 2}
    assert dataset.origin == str(path)
    assert dataset.records[0].path.read_bytes().startswith(b"\x89PNG")
    assert by_class(open_source(str(tmp_path))) == {"cat": 2, "dog": 2}
    named = open_source(str(path), options=SourceOptions(path_column="image", label_column="caption"))
    assert len(named.class_names) == 4
    with pytest.raises(UsageError, match="--encoding means nothing for Parquet files"):
        open_source(str(path), options=SourceOptions(encoding="cp1251"))


def test_a_folder_of_hugging_face_has_its_parquet_one_level_deeper(tmp_path: Path) -> None:
    (tmp_path / "pets" / "data").mkdir(parents=True)
    for name in ("train-00000-of-00001", "test-00000-of-00001"):
        parquet_of_images(tmp_path / "pets" / "data" / f"{name}.parquet")
    (tmp_path / "pets" / "README.md").write_text("cats and dogs")
    dataset = open_source(str(tmp_path / "pets"))
    assert (dataset.origin, set(dataset.given_splits)) == (str(tmp_path / "pets"), {"train", "test"})


def test_a_lone_folder_of_images_needs_a_table(tmp_path: Path) -> None:
    (tree(tmp_path, {"images": 2}) / "annotations").mkdir()
    with pytest.raises(DataError, match="one class only, 'images'") as caught:
        open_source(str(tmp_path))
    assert caught.value.hint is not None
    assert "table" in caught.value.hint


def test_parquet_with_plain_bytes_and_gaps_is_read(tmp_path: Path) -> None:
    dataset = open_source(str(parquet_of_images(tmp_path / "train.parquet", plain=True, names=False)))
    assert by_class(dataset) == {"0": 1, "1": 2}
    assert [item.code for item in dataset.ignored] == ["no_path"]


def test_parquet_files_of_splits_are_read_as_splits(tmp_path: Path) -> None:
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        parquet_of_images(tmp_path / f"{name}.parquet")
    dataset = open_source(str(tmp_path))
    assert by_class(dataset) == {"cat": 6, "dog": 6}
    assert dataset.given_splits == ("train", "test")
    assert sum(record.split == "test" for record in dataset.records) == 4


def test_a_table_in_one_split_does_not_hide_the_class_folders_of_another(tmp_path: Path) -> None:
    tree(tmp_path, {"train/cats": 2, "train/dogs": 1, "test": 2})
    (tmp_path / "test" / "metadata.csv").write_text("file_name,label\n000.png,cats\n001.png,dogs\n")
    dataset = open_source(str(tmp_path))
    assert by_class(dataset) == {"cats": 2, "dogs": 1}
    assert codes(dataset) == {"test": "no_class"}


# Several places at once


def test_several_places_are_one_dataset_with_all_classes_in_natural_order(tmp_path: Path) -> None:
    tree(tmp_path / "old", {"class 2": 3, "class 10": 2})
    tree(tmp_path / "new", {"class 3": 1, "class 10": 2})
    (tmp_path / "new" / "class 3" / "drawing.svg").write_text("<svg/>")
    places = [Source(str(tmp_path / name)) for name in ("old", "new")]
    both = open_sources(places)
    assert both.class_names == ("class 2", "class 3", "class 10")
    assert by_class(both) == {"class 2": 3, "class 3": 1, "class 10": 4}
    assert both.sources == tuple(places)
    assert len({record.name for record in both.records}) == len(both)
    assert f"{tmp_path}/new/class 3/drawing.svg" in codes(both)
    one = open_source(str(tmp_path / "old"))
    assert [r for r in both.records if r.location.startswith(f"{tmp_path}/old")] == [
        dataclasses.replace(r, label={0: 0, 1: 2}[r.label]) for r in one.records
    ]


def test_a_file_that_two_places_name_counts_once(tmp_path: Path) -> None:
    tree(tmp_path / "old", {"cat": 3, "dog": 2})
    tree(tmp_path / "old" / "cat" / "more", {"cat": 2})
    again = Source(str(tmp_path / "old" / "cat" / "more"))
    both = open_sources([Source(str(tmp_path / "old")), again])
    assert by_class(both) == {"cat": 5, "dog": 2}


def test_splits_of_any_place_are_given_splits(tmp_path: Path) -> None:
    tree(tmp_path / "old", {"train/cat": 3, "train/dog": 2, "test/cat": 1, "test/dog": 1})
    tree(tmp_path / "new", {"cat": 2})
    both = open_sources([Source(str(tmp_path / name)) for name in ("old", "new")])
    assert both.given_splits == ("train", "test")
    assert [r.split for r in both.records if "/new/" in r.location] == [None, None]


def test_a_place_is_written_and_read_with_the_options_that_were_given() -> None:
    source = Source("a.csv", SourceOptions(path_column="file", encoding="gbk"))
    assert source.to_json() == {"data": "a.csv", "path_column": "file", "encoding": "gbk"}
    assert Source.from_json(source.to_json()) == source
    assert Source.from_json(Source("a").to_json()) == Source("a")
