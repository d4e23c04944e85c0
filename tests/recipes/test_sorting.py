"""Sorting of files by their answers: places, names, kills at every step, and undoing."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from transferapp.errors import DataError, UsageError
from transferapp.recipes import sorting
from transferapp.recipes.answer_files import Answer
from transferapp.recipes.sorting import MANIFEST, Method, Sorter, check_sort_folder, folder_names, place_of, undo

CLASSES = ("cat", "dog")


def make(root: Path, *names: str) -> list[Path]:
    """Files whose content is their name."""
    files = [root / name for name in names]
    for file, name in zip(files, names, strict=True):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    return files


def answer(file: Path, label: str = "cat", **fields: Any) -> Answer:
    return Answer(str(file), **{"label": label, "score": 0.9, "location": str(file), **fields})


def sort(into: Path, answers: list[Answer], method: Method = "move") -> Sorter:
    into.mkdir(exist_ok=True)
    sorter = Sorter(into, CLASSES, method)
    sorter.sort(answers, lambda _done: None)
    return sorter


def tree(root: Path) -> dict[str, str]:
    """Contents by path, without the lock."""
    files = (path for path in root.rglob("*") if (path.is_file() or path.is_symlink()) and path.suffix != ".lock")
    return {str(path.relative_to(root)): path.read_text() for path in files}


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({}, ""),
        ({"score": 0.49}, "unsure"),
        ({"score": 0.5}, ""),
        ({"score": 0.2, "prediction_set": ("cat",)}, ""),
        ({"score": 0.9, "prediction_set": ("cat", "dog")}, "unsure"),
        ({"score": 0.9, "prediction_set": ()}, "unsure"),
        ({"known": True}, ""),
        ({"known": False}, "unknown"),
        ({"known": False, "prediction_set": ("cat", "dog")}, "unknown"),
        ({"label": "", "score": None, "error": "truncated"}, "unreadable"),
    ],
)
def test_the_place_of_an_answer(fields: dict[str, Any], place: str) -> None:
    assert place_of(answer(Path("a.jpg"), **fields)) == place


def test_every_class_has_a_folder_of_its_own_that_every_system_takes() -> None:
    names = ("cat", "Cat", "unsure", "a/b", "..", "a:b", " x. ", "\n", "é")
    folders = folder_names(names)
    assert list(folders) == list(names)
    assert len({folder.casefold() for folder in folders.values()}) == len(names)
    assert not {"unsure", "unknown", "unreadable"} & set(folders.values())
    for folder in folders.values():
        assert folder == Path(folder).name
        assert folder not in ("", ".", "..")
        assert not set('\\/:*?"<>|\n') & set(folder)
    assert (folders["cat"], folders["é"], folders[" x. "]) == ("cat", "é", "x")


@pytest.mark.parametrize("name", [".", "cat", "unknown"])
def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path: Path, name: str) -> None:
    check_sort_folder(tmp_path / "out", CLASSES)
    make(tmp_path, f"out/{name}" if name != "." else "out")
    with pytest.raises(UsageError):
        check_sort_folder(tmp_path / "out", CLASSES)


@pytest.mark.parametrize("method", ["move", "copy", "link"])
def test_files_are_sorted_and_put_back(tmp_path: Path, method: Method) -> None:
    files = make(tmp_path / "in", "a/1.jpg", "b/1.jpg", "b/2.jpg", "c.jpg", "d.jpg")
    before = tree(tmp_path)
    answers = [
        *(answer(file) for file in files[:2]),
        answer(files[2], "dog"),
        answer(files[3], known=False),
        answer(files[4], error="truncated"),
    ]
    sorter = sort(tmp_path / "out", answers, method)
    after = tree(tmp_path)
    assert {name: text for name, text in after.items() if name != f"out/{MANIFEST}"} == {
        **({} if method == "move" else before),
        "out/cat/1.jpg": "a/1.jpg",
        "out/cat/1-2.jpg": "b/1.jpg",
        "out/dog/2.jpg": "b/2.jpg",
        "out/unknown/c.jpg": "c.jpg",
        "out/unreadable/d.jpg": "d.jpg",
    }
    assert (tmp_path / "out/cat/1.jpg").is_symlink() == (method == "link")
    assert sorter.counts == {"cat": 2, "dog": 1, "unknown": 1, "unreadable": 1}
    undone = undo(tmp_path / "out")
    assert (undone.num_restored, undone.left) == (5, ())
    assert tree(tmp_path) == before
    assert not (tmp_path / "out").exists()


def test_nothing_is_ever_overwritten(tmp_path: Path) -> None:
    files = make(tmp_path / "in", "1.jpg", "x/1.jpg")
    make(tmp_path / "out", "cat/1.jpg", "cat/1-2.jpg", "cat/note.txt")
    before = tree(tmp_path)
    sort(tmp_path / "out", [answer(file) for file in files])
    after = tree(tmp_path)
    assert {after[f"out/cat/1-{number}.jpg"] for number in (3, 4)} == {"1.jpg", "x/1.jpg"}
    assert all(after[name] == text for name, text in before.items() if name.startswith("out/"))
    undo(tmp_path / "out")
    assert tree(tmp_path) == before


def test_many_files_of_one_name_take_one_look_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = make(tmp_path / "in", *(f"{number:03}/image.jpg" for number in range(200)))
    looks, lexists = [], os.path.lexists
    monkeypatch.setattr(sorting.os.path, "lexists", lambda path: looks.append(path) or lexists(path))
    sort(tmp_path / "out", [answer(file) for file in files])
    assert len(list((tmp_path / "out/cat").iterdir())) == 200
    assert len(looks) < 200 * 6


@pytest.mark.parametrize("method", ["copy", "link"])
def test_sorting_again_adds_nothing(tmp_path: Path, method: Method) -> None:
    files = make(tmp_path / "in", "a/1.jpg", "b/1.jpg", "c/1.jpg")
    for _ in range(2):
        sort(tmp_path / "out", [answer(file) for file in files], method)
    assert sorted(path.name for path in (tmp_path / "out/cat").iterdir()) == ["1-2.jpg", "1-3.jpg", "1.jpg"]


def test_a_sorted_folder_can_be_sorted_again_in_place(tmp_path: Path) -> None:
    files = make(tmp_path / "in", "1.jpg", "2.jpg")
    before = tree(tmp_path)
    sort(tmp_path / "in", [answer(files[0]), answer(files[1], known=False)])
    moved = [tmp_path / "in/cat/1.jpg", tmp_path / "in/unknown/2.jpg"]
    sort(tmp_path / "in", [answer(moved[0]), answer(moved[1], "dog")])
    assert {name for name in tree(tmp_path) if MANIFEST not in name} == {"in/cat/1.jpg", "in/dog/2.jpg"}
    undo(tmp_path / "in")
    assert tree(tmp_path) == before


def test_links_are_moved_and_still_lead_to_their_files(tmp_path: Path) -> None:
    (real,) = make(tmp_path, "elsewhere/1.jpg")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/l.jpg").symlink_to(Path("../elsewhere/1.jpg"))
    sort(tmp_path / "out", [answer(tmp_path / "in/l.jpg")])
    assert (tmp_path / "out/cat/l.jpg").samefile(real)
    assert not (tmp_path / "in/l.jpg").is_symlink()
    undo(tmp_path / "out")
    assert (tmp_path / "in/l.jpg").samefile(real)


def test_files_on_another_disk_are_copied_and_then_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def across(self: Path, target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", across)
    files = make(tmp_path / "in", "1.jpg")
    os.utime(files[0], (1e9, 1e9))
    before = tree(tmp_path)
    sort(tmp_path / "out", [answer(files[0])])
    assert not files[0].exists()
    assert (tmp_path / "out/cat/1.jpg").stat().st_mtime == 1e9
    undo(tmp_path / "out")
    assert tree(tmp_path) == before


def test_files_of_archives_are_copied_and_their_copies_deleted(tmp_path: Path) -> None:
    (cached,) = make(tmp_path, "cache/1.jpg")
    (tmp_path / "in.zip").write_text("an archive")
    given = answer(cached, unpacked=True)
    given = Answer(**{**{name: getattr(given, name) for name in Answer.__slots__}, "file": f"{tmp_path}/in.zip/1.jpg"})
    sort(tmp_path / "out", [given])
    assert tree(tmp_path)["out/cat/1.jpg"] == tree(tmp_path)["cache/1.jpg"] == "cache/1.jpg"
    cached.unlink()
    assert undo(tmp_path / "out").num_restored == 1
    assert not (tmp_path / "out").exists()


def test_missing_files_and_folders_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    answers = [
        answer(tmp_path / "gone.jpg"),
        Answer("row 3", error="no_path"),
        answer(tmp_path / "in", error="unreadable"),
    ]
    sort(tmp_path / "out", answers)
    assert tree(tmp_path) == {}
    with pytest.raises(DataError, match="nothing to undo"):
        undo(tmp_path / "out")


# What has changed since


def test_a_place_that_was_taken_meanwhile_is_left_alone(tmp_path: Path) -> None:
    files = make(tmp_path / "in", "1.jpg", "2.jpg")
    sort(tmp_path / "out", [answer(file) for file in files])
    files[0].write_text("another")
    undone = undo(tmp_path / "out")
    assert undone.num_restored == 1
    assert [name for name, _ in undone.left] == ["cat/1.jpg"]
    assert (tmp_path / "out/cat/1.jpg").exists()
    assert [file.read_text() for file in files] == ["another", "2.jpg"]
    files[0].unlink()
    assert undo(tmp_path / "out").left == ()
    assert files[0].read_text() == "1.jpg"


@pytest.mark.parametrize("change", ["edited", "original deleted", "original replaced"])
def test_a_copy_that_is_the_only_one_of_its_content_is_not_deleted(tmp_path: Path, change: str) -> None:
    files = make(tmp_path / "in", "1.jpg")
    sort(tmp_path / "out", [answer(files[0])], "copy")
    copied = tmp_path / "out/cat/1.jpg"
    if change == "edited":
        copied.write_text("touched up")
    elif change == "original deleted":
        files[0].unlink()
    else:
        files[0].write_text("another photo of that name")
    kept = copied.read_text()
    undone = undo(tmp_path / "out")
    assert (undone.num_restored, len(undone.left)) == (0, 1)
    assert copied.read_text() == kept


@pytest.mark.parametrize("method", ["move", "copy", "link"])
def test_files_without_a_content_do_not_stop_the_others(tmp_path: Path, method: Method) -> None:
    files = make(tmp_path / "in", "1.jpg", "2.jpg")
    odd = [tmp_path / "in/gone.jpg", tmp_path / "in/pipe.jpg"]
    odd[0].symlink_to("nowhere")
    os.mkfifo(odd[1])
    answers = [answer(files[0]), *(answer(file, error="unreadable") for file in odd), answer(files[1])]
    sorter = sort(tmp_path / "out", answers, method)
    assert sorter.counts == ({"cat": 2} if method == "copy" else {"cat": 2, "unreadable": 2})
    assert all(os.path.lexists(file) == (method != "move") for file in odd)
    assert (tmp_path / "out/cat/2.jpg").read_text() == "2.jpg"
    undo(tmp_path / "out")
    assert (odd[0].is_symlink(), odd[1].is_fifo(), files[1].read_text()) == (True, True, "2.jpg")


def test_a_pipe_stays_where_it_is_on_another_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, "another disk")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    monkeypatch.setattr(Path, "lstat", lambda self: os.stat_result((*os.lstat(self)[:2], -1, *os.lstat(self)[3:])))
    files = make(tmp_path / "in", "1.jpg", "2.jpg")
    files[0].unlink()
    os.mkfifo(files[0])
    sorter = sort(tmp_path / "out", [answer(files[0], error="unreadable"), answer(files[1])])
    assert (sorter.counts, files[0].is_fifo(), files[1].exists()) == ({"cat": 1}, True, False)


@pytest.mark.parametrize("method", ["move", "copy"])
def test_a_file_is_kept_where_its_former_folder_is_a_link_to_the_sorted_one(tmp_path: Path, method: Method) -> None:
    answers = [answer(file) for file in make(tmp_path / "in", "1.jpg", "2.jpg")]
    sort(tmp_path / "out", answers, method)
    shutil.rmtree(tmp_path / "in")
    (tmp_path / "in").symlink_to(tmp_path / "out/cat")
    sort(tmp_path / "out", answers, method)
    undo(tmp_path / "out")
    assert tree(tmp_path / "out") == {"cat/1.jpg": "1.jpg", "cat/2.jpg": "2.jpg"}


def test_files_in_the_place_of_folders_do_not_stop_the_others_from_being_put_back(tmp_path: Path) -> None:
    files = make(tmp_path / "in", "a/1.jpg", "2.jpg", "3.jpg")
    sort(tmp_path / "out", [answer(files[0]), answer(files[1], "dog"), answer(files[2])])
    (tmp_path / "in/a").rmdir()
    (tmp_path / "out/dog").rename(tmp_path / "dogs")
    make(tmp_path, "in/a", "out/dog")
    undone = undo(tmp_path / "out")
    assert (undone.num_restored, [name for name, _ in undone.left]) == (1, ["dog/2.jpg", "cat/1.jpg"])
    assert files[2].read_text() == "3.jpg"
    assert (tmp_path / "out/cat/1.jpg").read_text() == "a/1.jpg"
    assert (tmp_path / "out/dog").read_text() == "out/dog"


def test_a_manifest_never_leads_out_of_its_folder(tmp_path: Path) -> None:
    (victim,) = make(tmp_path, "victim.jpg")
    (tmp_path / "out").mkdir()
    lines = [
        {"method": "move", "from": str(tmp_path / "x"), "to": to} for to in ("../victim.jpg", str(victim), "a/../b")
    ]
    (tmp_path / "out" / MANIFEST).write_text("".join(json.dumps(line) + "\n" for line in lines) + "no JSON\n")
    assert undo(tmp_path / "out").num_restored == 0
    assert victim.exists()


# Kills


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def deadly(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Set the number of file operations that the process survives."""
    left = [10**9]

    def dying(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return function(*arguments, **options)

        return wrapped

    for name in ("hardlink_to", "symlink_to", "unlink", "rename", "mkdir", "rmdir"):
        monkeypatch.setattr(Path, name, dying(getattr(Path, name)))
    monkeypatch.setattr(shutil, "copy2", dying(shutil.copy2))

    def set_left(operations: int) -> None:
        left[0] = operations

    yield set_left
    left[0] = 10**9


@pytest.mark.parametrize("across", [False, True], ids=["one disk", "two disks"])
@pytest.mark.parametrize("method", ["move", "copy", "link"])
def test_a_kill_at_any_step_loses_nothing(
    tmp_path: Path, method: Method, across: bool, deadly: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    if across:
        monkeypatch.setattr(Path, "hardlink_to", lambda self, target: (_ for _ in ()).throw(OSError(18, "two disks")))
    for step in range(100):
        root = tmp_path / str(step)
        root.mkdir()
        files = make(root / "in", "a/1.jpg", "b/1.jpg", "2.jpg")
        before = tree(root)
        answers = [answer(file) for file in files]
        (root / "out").mkdir()
        deadly(step)
        try:
            sort(root / "out", answers, method)
            survived = True
        except Killed:
            survived = False
        deadly(10**9)
        sort(root / "out", answers, method)  # the run goes on
        after = tree(root)
        sorted_files = {name: text for name, text in after.items() if name.startswith("out/cat/")}
        assert sorted_files == {"out/cat/1.jpg": "a/1.jpg", "out/cat/1-2.jpg": "b/1.jpg", "out/cat/2.jpg": "2.jpg"}
        deadly(step // 2)
        try:
            undo(root / "out")
        except Killed:
            deadly(10**9)
            undo(root / "out")
        deadly(10**9)
        assert tree(root) == before
        if survived:
            assert step > 2
            return
    pytest.fail("it never came to an end")
