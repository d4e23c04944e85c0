"""Images at addresses."""

from __future__ import annotations

import sys
from pathlib import Path

import fsspec
import pytest

from tests.helpers.numeric_trunk import paint_hues
from tests.helpers.tiny_bundle import make_tiny_bundle
from transferapp.data.image_files import ImageFile, list_images
from transferapp.data.remote import is_address, list_addresses, read_address
from transferapp.errors import DataError, ImageError, UsageError
from transferapp.recipes.predict import BatchSettings, predict_images


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = paint_hues(tmp_path_factory.mktemp("images"), {"red": 3, "green": 2})
    (root / "red" / "notes.txt").write_text("no image")
    (root / "red" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return root


@pytest.mark.parametrize(
    ("text", "expected"),
    [("s3://b/x", True), ("file:///x", True), ("/x", False), ("C:\\x", False), ("a:/b", False), ("x://", True)],
)
def test_what_is_an_address(text: str, expected: bool) -> None:
    assert is_address(text) is expected


def test_a_folder_is_listed_in_order_and_an_image_is_itself(folder: Path) -> None:
    found = list_addresses(f"file://{folder}")
    files = sorted(path for path in folder.rglob("*") if path.suffix == ".png")
    assert found == [f"file://{path}" for path in files]
    assert list_addresses(found[0]) == found[:1]
    assert read_address(found[0]) == files[0].read_bytes()
    assert list(list_images([found[0]])) == [ImageFile(found[0], found[0])]


def test_answers_are_those_of_the_files(folder: Path, tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    store.put(f"{folder}/", "/bucket/", recursive=True)
    bundle = make_tiny_bundle(tmp_path / "tiny")
    remote = predict_images(bundle, ["memory://bucket"], BatchSettings(tmp_path / "remote.csv", views=1))
    local = predict_images(bundle, [folder], BatchSettings(tmp_path / "local.csv", views=1))
    assert (remote.labels, remote.errors) == (local.labels, local.errors) == ({"red": 3, "green": 2}, {"truncated": 1})
    answers = [
        (tmp_path / name).read_text().replace(str(folder), "memory:///bucket") for name in ("remote.csv", "local.csv")
    ]
    assert answers[0] == answers[1]


def test_what_cannot_be_read(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="no images at memory://nowhere"):
        list_addresses("memory://nowhere")
    with pytest.raises(ImageError) as caught:
        read_address(f"file://{folder}/gone.png")
    assert caught.value.code == "unreadable"
    with pytest.raises(UsageError, match="nothing://x"):
        list_addresses("nothing://x")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UsageError, match="s3fs"):
        list_addresses("s3://bucket/images")
    with pytest.raises(UsageError, match="--sort-into takes files of this machine only"):
        predict_images(tmp_path, [f"file://{folder}"], BatchSettings(sort_into=tmp_path / "sorted"))
