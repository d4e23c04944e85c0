"""The audit: images that are kept, images that are left out, and sets that are refused."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.folders import paint, tree
from transferapp.data.audit import audit
from transferapp.data.dataset import Dataset
from transferapp.data.folder import read_folder
from transferapp.errors import DataError
from transferapp.images import ImageLimits


def audited(root: Path, **options: object) -> Dataset:
    return audit(read_folder(str(root)), **options)  # type: ignore[arg-type]


def test_every_image_gets_the_hash_of_its_bytes(tmp_path: Path) -> None:
    dataset = audited(tree(tmp_path, {"cats": 2, "dogs": 2}))
    assert [record.sha256 for record in dataset.records] == [
        hashlib.sha256(record.path.read_bytes()).hexdigest() for record in dataset.records
    ]
    assert [record.name for record in dataset.records] == [r.name for r in read_folder(str(tmp_path)).records]


def test_what_cannot_be_used_is_left_out_with_its_reason(tmp_path: Path) -> None:
    root = tree(tmp_path, {"cats": 50, "dogs": 50})
    (root / "cats" / "empty.jpg").write_bytes(b"")
    (root / "cats" / "page.jpg").write_bytes(b"<html>not found</html>")
    whole = (root / "dogs" / "000.png").read_bytes()
    (root / "dogs" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (root / "dogs" / "gone.png").symlink_to("nowhere.png")
    dataset = audited(root)
    assert len(dataset) == 100
    assert {item.name: item.code for item in dataset.ignored} == {
        "cats/empty.jpg": "empty_file",
        "cats/page.jpg": "unsupported_format",
        "dogs/cut.png": "truncated",
        "dogs/gone.png": "unreadable",
    }
    assert all(item.reason for item in dataset.ignored)


def test_a_pipe_or_a_device_named_like_a_image_is_not_waited_for(tmp_path: Path) -> None:
    root = tree(tmp_path, {"cats": 30, "dogs": 30})
    os.mkfifo(root / "cats" / "pipe.jpg")
    (root / "cats" / "zero.jpg").symlink_to("/dev/zero")
    assert {item.name: item.code for item in audited(root).ignored} == {
        "cats/pipe.jpg": "unreadable",
        "cats/zero.jpg": "unreadable",
    }


@pytest.mark.parametrize(("good", "bad", "refused"), [(38, 2, False), (37, 2, True), (10, 1, False), (10, 2, True)])
def test_more_than_one_in_twenty_unreadable_is_too_many_unless_it_is_one_file(
    tmp_path: Path, good: int, bad: int, refused: bool
) -> None:
    root = tree(tmp_path, {"cats": 5, "dogs": good - 5})
    for index in range(bad):
        (root / "dogs" / f"bad {index}.png").write_bytes(b"no image")
    if refused:
        with pytest.raises(DataError, match=rf"{bad} of {good + bad} images.*dogs/bad 0.png.*at most 5%") as caught:
            audited(root)
        assert caught.value.exit_code == 3
    else:
        assert len(audited(root)) == good


def test_a_class_with_one_usable_image_is_refused_by_name(tmp_path: Path) -> None:
    root = tree(tmp_path, {"cats": 30, "dogs": 1})
    (root / "dogs" / "bad.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"'dogs'.* has 1 usable image\. Expected at least 2") as caught:
        audited(root)
    assert caught.value.exit_code == 3
    assert audited(root, min_per_class=1).counts() == [30, 1]


def test_a_image_larger_than_an_upload_may_be_is_learned_from(tmp_path: Path) -> None:
    root = tree(tmp_path, {"cats": 2, "dogs": 1})
    Image.new("1", (6000, 5000)).save(root / "dogs" / "large.png")
    assert len(audited(root)) == 4
    with pytest.raises(DataError, match="'dogs'"):
        audited(root, limits=ImageLimits())


def test_progress_counts_every_image_and_threads_change_nothing(tmp_path: Path) -> None:
    root = tree(tmp_path, {"cats": 30, "dogs": 7})
    paint(root / "dogs" / "bad.png").write_bytes(b"no image")
    seen: list[int] = []
    one = audited(root, workers=1, progress=seen.append)
    assert seen == list(range(1, 39))
    assert one == audited(root, workers=5)
