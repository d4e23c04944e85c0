"""Image files sorted into folders by their answers, and put back again.

The folder keeps a manifest with a line for each file, written before the file is touched. No file is ever overwritten: a name
that is taken gets a number.
"""

from __future__ import annotations

import array
import filecmp
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from transferapp.bundle.format import only_writer
from transferapp.data.names import printable
from transferapp.errors import DataError, UsageError
from transferapp.recipes.answer_files import Answer
from transferapp.system.progress import Advance, Progress, Silent
from transferapp.system.storage import disk_errors, replacing, sha256_file

MANIFEST = "sorted.jsonl"

UNREADABLE, UNKNOWN, UNSURE = "unreadable", "unknown", "unsure"
PLACES = (UNREADABLE, UNKNOWN, UNSURE)
"""Folders of images that cannot be read, that look like none of the classes, and that could be of several."""

SURE_FROM = 0.5
"""Score from which a label is taken for sure where the bundle has no prediction sets."""

_UNFIT = re.compile(r'[\x00-\x1f\\/:*?"<>|]')
"""Characters that some systems do not take in names."""

_PART = ".transferapp.part"
"""Name of a file while it is copied."""

Method = Literal["move", "copy", "link"]


@dataclass(frozen=True)
class Undone:
    """Outcome of undoing.

    Attributes:
        num_restored: Files that are back where they were, and copies and links that are deleted.
        left: Files that were left alone, as (file, reason): they changed, or something else is in their former place.
    """

    num_restored: int
    left: tuple[tuple[str, str], ...]


def check_sort_folder(folder: Path, class_names: Sequence[str]) -> None:
    """Refuse a place to sort into where a file stands in the way of a folder, before any work is done.

    Raises:
        UsageError: It is a file, or what would be the folder of a class is one.
    """
    for place in (folder, *(folder / name for name in (*PLACES, *folder_names(class_names).values()))):
        if os.path.lexists(place) and not place.is_dir():
            raise UsageError(f"{place} is not a folder, so nothing can be sorted into it", hint="Name another place")


def folder_names(class_names: Sequence[str]) -> dict[str, str]:
    """Return the folder of each class: its name, changed where no folder can have it or where another has it."""
    taken, names = {*PLACES, MANIFEST}, {}
    for label in class_names:
        plain = _UNFIT.sub("_", label).strip(". ") or "_"
        name, number = plain, 1
        while name.casefold() in taken:
            number += 1
            name = f"{plain}-{number}"
        taken.add(name.casefold())
        names[label] = name
    return names


def place_of(answer: Answer) -> str:
    """Return the kind of folder of an answer: `unreadable`, `unknown`, `unsure`, or nothing for that of its label."""
    if answer.error:
        return UNREADABLE
    if answer.known is False:
        return UNKNOWN
    if answer.prediction_set is not None:
        return UNSURE if len(answer.prediction_set) != 1 else ""
    return UNSURE if answer.score is None or answer.score < SURE_FROM else ""


class Sorter:
    """Puts files into the folders of their answers.

    Args:
        into: The folder of these folders; it is made.
        class_names: Classes of the bundle.
        method: Whether files are moved, copied, or linked to. Files from archives are copied instead of moved.
    """

    def __init__(self, into: Path, class_names: Sequence[str], method: Method) -> None:
        self._into, self._method = into, method
        self._names = folder_names(class_names)
        self._numbers: dict[Path, int] = {}
        self.counts: Counter[str] = Counter()

    def sort(self, answers: Iterable[Answer], advance: Advance) -> None:
        """Sort the files of these answers. Files that are in their place already, and missing ones, stay as they are.

        So do those without a readable content, such as links to nothing and pipes, where they would have to be copied.

        Raises:
            ResourceError: The disk is full, or a folder cannot be written.
        """
        with disk_errors(self._into):
            with (self._into / MANIFEST).open("ab") as manifest:
                if manifest.tell() and not _ends_whole(self._into / MANIFEST):
                    manifest.write(b"\n")
                self._finish_move()
                for count, answer in enumerate(answers, start=1):
                    place = place_of(answer) or self._names[answer.label]
                    # `is_dir` of a path raises an error in folders that may be listed but not entered.
                    is_folder = os.path.isdir(answer.location)  # noqa: PTH112
                    if answer.location and not is_folder and self._can_be_put(answer):
                        self.counts[place] += 1
                        self._put(answer, self._into / place, manifest)
                    advance(count)
            if not (self._into / MANIFEST).stat().st_size:
                (self._into / MANIFEST).unlink()

    def _can_be_put(self, answer: Answer) -> bool:
        """Return whether a file need not be copied, or can be: one that is no readable image may be unreadable as a file."""
        source = Path(answer.location)
        if not answer.error or self._method == "link" or (os.access(source, os.R_OK) and source.is_file()):
            return True
        if self._method == "copy":
            return False
        # Links are made anew, and what is missing has been moved before.
        return not os.path.lexists(source) or source.is_symlink() or source.lstat().st_dev == self._into.stat().st_dev

    def _put(self, answer: Answer, folder: Path, manifest: IO[bytes]) -> None:
        source = Path(answer.location).absolute()
        method = "copy" if answer.unpacked else self._method
        if not os.path.lexists(source):  # moved before the run was killed, or deleted since
            return
        if folder.is_dir() and source.parent.samefile(folder):
            return
        target = self._free_name(source, folder, method)
        if target is None:
            return
        entry = {"method": method, "from": str(source), "to": f"{folder.name}/{target.name}"}
        if method == "copy":
            original = Path(answer.file).absolute() if answer.unpacked else source
            entry |= {"from": str(original), "sha256": sha256_file(source)}
        manifest.write(json.dumps(entry).encode() + b"\n")
        manifest.flush()
        folder.mkdir(exist_ok=True)
        if method == "link":
            target.symlink_to(source)
        elif method == "copy":
            _copy(source, target)
        else:
            _move(source, target)

    def _free_name(self, source: Path, folder: Path, method: str) -> Path | None:
        """Return a name that is free in the folder; None if the file is there already."""
        wanted = folder / source.name
        number = self._numbers.get(wanted, 1)
        while True:
            target = wanted if number == 1 else wanted.with_name(f"{wanted.stem}-{number}{wanted.suffix}")
            if not os.path.lexists(target):
                break
            number += 1
            if _is_there(source, target, method):
                break
        if number > 1:
            self._numbers[wanted] = number
        return None if os.path.lexists(target) else target

    def _finish_move(self) -> None:
        """Finish the last move, if it was killed between its two steps: both files are there and the same."""
        entry = next(_Entries(self._into / MANIFEST).last_first(), None)
        if entry is None or entry["method"] != "move":
            return
        source, target = Path(entry["from"]), self._into / entry["to"]
        if _is_same_place(source, target):
            return
        if source.is_symlink() == target.is_symlink() and _is_there(source, target, "copy"):
            source.unlink()


def _is_same_place(source: Path, target: Path) -> bool:
    """Return whether two paths are one entry of one folder, reached through a link to it: deleting one deletes both."""
    return source.name == target.name and os.path.realpath(source.parent) == os.path.realpath(target.parent)


def _is_there(source: Path, target: Path, method: str) -> bool:
    """Return whether a file has been copied or linked to already."""
    if method == "link":
        return target.is_symlink() and target.readlink() == source
    return method == "copy" and source.is_file() and target.is_file() and filecmp.cmp(source, target, shallow=False)


def _move(source: Path, target: Path) -> None:
    """Move a file to a name that is free; on another disk, copy it and then delete it."""
    if source.is_symlink():
        target.symlink_to(source.parent / source.readlink())  # a relative link would lead elsewhere
    else:
        try:
            target.hardlink_to(source)  # never overwrites, other than a rename
        except FileExistsError:
            raise
        except OSError:  # another disk, or one without hard links
            _copy(source, target)
    source.unlink()


def _copy(source: Path, target: Path) -> None:
    """Copy a file with its times, in one step, to a name that is free."""
    part = target.with_name(_PART)
    shutil.copy2(source, part)
    if os.path.lexists(target):
        raise FileExistsError(f"{target} has just been made by another program")
    part.rename(target)


def undo(folder: Path, progress: Progress | None = None) -> Undone:
    """Put back what was sorted into a folder: move files to where they were, and delete copies and links.

    A copy is deleted only if it and its original are unchanged; of an original in an archive, if the archive is there. Nothing
    is overwritten; what cannot be undone stays, with its line in the manifest.

    Raises:
        DataError: Nothing was sorted into this folder, or another command is writing to it.
        ResourceError: A folder cannot be written.
    """
    progress = progress or Silent()
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise DataError(
            f"{folder} has no {MANIFEST}, so there is nothing to undo",
            expected="a folder that `transferapp predict --sort-into` has filled",
        )
    with only_writer(manifest), disk_errors(folder):
        entries = _Entries(manifest)
        left: list[tuple[str, str, dict[str, Any]]] = []
        folders: set[Path] = set()
        restored = 0
        with progress.task(f"undoing {len(entries)} files", len(entries)) as advance:
            for count, entry in enumerate(entries.last_first(), start=1):
                folders.add(folder / Path(entry["to"]).parent)
                reason = _put_back(folder / entry["to"], entry)
                if reason is None:
                    restored += 1
                elif reason:
                    left.append((entry["to"], reason, entry))
                advance(count)
        for each in folders:
            if each.is_dir() and not any(each.iterdir()):
                each.rmdir()
        if left:
            with replacing(manifest) as part:
                part.write_text("".join(json.dumps(entry) + "\n" for *_, entry in reversed(left)))
        else:
            manifest.unlink()
    if not left:
        (folder / f".{MANIFEST}.lock").unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()
    return Undone(restored, tuple((name, reason) for name, reason, _ in left))


def _put_back(target: Path, entry: dict[str, Any]) -> str | None:
    """Undo one line of the manifest.

    Returns:
        None if that was done, an empty text if there was nothing to do, otherwise why it was not done.
    """
    if target.parent.is_dir():
        target.with_name(_PART).unlink(missing_ok=True)  # of a kill during a copy
    source, method = Path(entry["from"]), entry["method"]
    shown = printable(entry["from"])
    if not os.path.lexists(target):
        return "is no longer there" if method == "move" and not os.path.lexists(source) else ""
    if _is_same_place(source, target):
        return ""
    if method == "move":
        if os.path.lexists(source):
            if not _is_there(source, target, "copy"):
                return f"{shown} exists"
            target.unlink()  # killed between the two steps of a move
            return None
        try:
            source.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            return f"{printable(str(source.parent))} is no longer a folder"
        _move(target.absolute(), source)
    elif method == "link":
        if not target.is_symlink() or target.readlink() != source:
            return "is no longer the link that was made"
        target.unlink()
    else:
        if not any(path.is_file() for path in (source, *source.parents)):  # the original, or the archive that it is in
            return f"its original, {shown}, is no longer there"
        if not target.is_file() or sha256_file(target) != entry["sha256"]:
            return "has changed since it was copied"
        if source.is_file() and sha256_file(source) != entry["sha256"]:
            return f"its original, {shown}, has changed since"
        target.unlink()
    return None


class _Entries:
    """Lines of a manifest, read from the last to the first without keeping them."""

    def __init__(self, manifest: Path) -> None:
        self._manifest = manifest
        self._starts = array.array("Q")
        position = 0
        with manifest.open("rb") as stream:
            for line in stream:
                if _entry(line) is not None:
                    self._starts.append(position)
                position += len(line)

    def __len__(self) -> int:
        return len(self._starts)

    def last_first(self) -> Iterator[dict[str, Any]]:
        """Yield the entries, last first."""
        with self._manifest.open("rb") as stream:
            for start in reversed(self._starts):
                stream.seek(start)
                entry = _entry(stream.readline())
                assert entry is not None
                yield entry


def _entry(line: bytes) -> dict[str, Any] | None:
    """Return an entry; None for a line that was only half written, whose file was not touched."""
    try:
        entry = json.loads(line) if line.endswith(b"\n") else {}
        parts = Path(entry["to"]).parts
        return entry if len(parts) == 2 and ".." not in parts and {"method", "from"} <= set(entry) else None
    except (ValueError, KeyError, TypeError):
        return None


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read() == b"\n"
