"""What files, folders, tables and archives stand for when images are classified."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from transferapp.data import image_files
from transferapp.data.image_files import ImageFile, list_images
from transferapp.data.options import SourceOptions
from transferapp.errors import DataError, UsageError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFERAPP_CACHE", str(tmp_path_factory.mktemp("cache")))


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (20, 20), "red").save(stream, "PNG")
    return stream.getvalue()


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png())
    return root


def names(*paths: Path, root: Path, **options: Path) -> list[str]:
    return [os.path.relpath(image.name, root) for image in list_images(paths, **options)]


def test_a_folder_is_walked_in_the_order_of_sorted_paths(tmp_path: Path) -> None:
    make(tmp_path, "b/2.png", "b/10.png", "b.png", "a.png", "b/c/1", "c/x.JPG", "b/c.png", "é.png")
    make(tmp_path, ".hidden.png", "b/Thumbs.db", ".ipynb_checkpoints/a.png", "__MACOSX/b.png")
    (tmp_path / "notes.txt").write_text("no image")
    found = [Path(image.name) for image in list_images([tmp_path])]
    assert found == sorted(found)
    assert len(found) == 8
    assert all(Path(image.location).is_file() for image in list_images([tmp_path]))


def test_formats_that_are_not_read_count_as_images(tmp_path: Path) -> None:
    make(tmp_path, "a.png")
    (tmp_path / "b.svg").write_text("<svg/>")
    assert names(tmp_path, root=tmp_path) == ["a.png", "b.svg"]


def test_only_the_folders_on_the_way_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        make(tmp_path, *(f"{number:02}/{index}.png" for index in range(3)))
    read, scandir = [], os.scandir
    monkeypatch.setattr(image_files.os, "scandir", lambda folder: read.append(folder) or scandir(folder))
    images = list_images([tmp_path])
    read.clear()
    for _ in range(4):
        next(images)
    assert [Path(folder).name for folder in read] == [tmp_path.name, "00", "01"]


def test_links_are_followed_unless_they_lead_back(tmp_path: Path) -> None:
    make(tmp_path, "in/a/1.png", "elsewhere/2.png")
    (tmp_path / "in/a/back").symlink_to(tmp_path / "in")
    (tmp_path / "in/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/c").symlink_to(tmp_path / "in/c")
    (tmp_path / "in/d.png").symlink_to(tmp_path / "in/a/1.png")
    assert names(tmp_path / "in", root=tmp_path) == ["in/a/1.png", "in/b/2.png", "in/d.png"]


def test_a_folder_can_be_left_out_below_a_path_but_not_as_one(tmp_path: Path) -> None:
    make(tmp_path, "a.png", "sorted/cat/b.png")
    assert names(tmp_path, root=tmp_path, leave_out=tmp_path / "sorted") == ["a.png"]
    assert names(tmp_path / "sorted", root=tmp_path, leave_out=tmp_path / "sorted") == ["sorted/cat/b.png"]


def test_a_folder_that_cannot_be_read_is_an_item_with_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a/1.png", "b/2.png", "c/3.png")
    scandir = os.scandir

    def refusing(folder: str) -> object:
        if folder.endswith("b"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(image_files.os, "scandir", refusing)
    found = list(list_images([tmp_path]))
    assert [image.error for image in found] == ["", "unreadable", ""]
    assert found[1].name == str(tmp_path / "b")
    assert "Permission denied" in found[1].reason


def test_files_stand_for_themselves_whether_they_are_there_or_not(tmp_path: Path) -> None:
    make(tmp_path, "a.png")
    (tmp_path / "b.txt").write_text("no image")
    paths = [tmp_path / name for name in ("a.png", "b.txt", "missing.png")]
    assert list(list_images(paths)) == [ImageFile(str(path), str(path)) for path in paths]


def test_the_rows_of_a_table_keep_their_spelling(tmp_path: Path) -> None:
    make(tmp_path, "images/1.png", "images/2.png")
    table = tmp_path / "list.csv"
    table.write_text("file,when\n1.png,Monday\n/home/bob/images/2.png,Monday\nimages/gone.png,\n,Monday\nimages/1,\n")
    found = list(list_images([table]))
    assert [image.name for image in found] == [
        "1.png",
        "/home/bob/images/2.png",
        "images/gone.png",
        f"{table}, row 5",
        "images/1",
    ]
    at = [str(tmp_path / "images" / name) for name in ("1.png", "2.png")]
    assert [image.location for image in found] == [at[0], at[1], "", "", at[0]]
    assert [image.error for image in found] == ["", "", "missing_file", "no_path", ""]
    assert not any(image.unpacked for image in found)


def test_a_table_needs_a_column_of_paths_alone(tmp_path: Path) -> None:
    make(tmp_path, "1.png")
    (tmp_path / "list.csv").write_text("who,where,label,class\nBob,x,a,b\n")
    with pytest.raises(DataError, match="--path-column"):
        list_images([tmp_path / "list.csv"])
    (tmp_path / "list.csv").write_text("who,where,label,class\nBob,1.png,a,b\n")
    for column in ("", "where"):
        (image,) = list_images([tmp_path / "list.csv"], SourceOptions(path_column=column))
        assert image.location == str(tmp_path / "1.png")
    with pytest.raises(UsageError, match="has no column 'nowhere'"):
        list_images([tmp_path / "list.csv"], SourceOptions(path_column="nowhere"))


def test_an_archive_stands_for_the_images_in_it(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for name in ("a/2.png", "a/1.png", "b/1.png", "notes.txt"):
            archive.writestr(name, png())
    found = list(list_images([tmp_path / "in.zip"]))
    assert [image.name for image in found] == [
        f"{tmp_path}/in.zip/{name}" for name in ("a/1.png", "a/2.png", "b/1.png")
    ]
    assert all(image.unpacked for image in found)
    assert all(Path(image.location).read_bytes() == png() for image in found)


def test_a_parquet_file_may_hold_the_images(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"image": [png(), png()], "label": [0, 1]}), tmp_path / "in.parquet")
    found = list(list_images([tmp_path / "in.parquet"]))
    assert len(found) == 2
    assert all(image.unpacked and image.name.startswith(f"{tmp_path}/in.parquet/") for image in found)
    assert all(Path(image.location).read_bytes() == png() for image in found)


def test_what_has_no_image_is_an_error_before_anything_is_done(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    make(tmp_path, "full/1.png")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("notes.txt", "no image")
    for name in ("empty", "empty.zip"):
        with pytest.raises(DataError, match=f"{name} has no images"):
            list_images([tmp_path / "full", tmp_path / name])
