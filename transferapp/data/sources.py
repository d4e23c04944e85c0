"""Where pictures come from: whatever a person calls their data becomes a `Dataset`.

`open_source` asks each source in turn whether the argument is of its kind. Class folders are the one kind so far; a new kind
is one more entry in `SOURCES`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from transferapp.data.dataset import Dataset, Ignored, Record, Split
from transferapp.errors import DataError

IMAGE_SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".webp",
        ".gif",
        ".bmp",
        ".dib",
        ".tif",
        ".tiff",
        ".avif",
        ".heic",
        ".heif",
    ]
)
"""Names that promise a picture. What a file really is, its bytes say; a file of another name is passed over."""

_SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_LITTER = frozenset({"thumbs.db", "desktop.ini", "__macosx", "@eadir"})


class SourceKind(NamedTuple):
    """A kind of source: whether an argument is of it, and how it is read."""

    name: str
    accepts: Callable[[str], bool]
    read: Callable[[str, int], Dataset]


def open_source(data: str, min_classes: int = 2) -> Dataset:
    """Read what `--data` names.

    Args:
        data: A folder with one sub-folder a class, or with `train/`, `val/`, `test/` folders of that form.
        min_classes: Classes there must be: two to learn from, one to be measured on.

    Returns:
        The dataset. Nothing has been opened yet: see `transferapp.data.audit`.

    Raises:
        DataError: There is nothing there, or nothing that can be classified.
    """
    for kind in SOURCES:
        if kind.accepts(data):
            return kind.read(data, min_classes)
    path = Path(data)
    if not path.exists():
        raise DataError(f"There is no folder {data}", expected="a folder with one sub-folder of pictures a class")
    raise DataError(f"{data} is not a folder", expected="a folder with one sub-folder of pictures a class")


def read_folder(data: str, min_classes: int = 2) -> Dataset:
    """Read class folders; pictures may lie at any depth below their class."""
    root = Path(data)
    ignored: list[Ignored] = []
    splits = _split_folders(root)
    roots: list[tuple[Split | None, Path]] = [*splits.items()] if splits else [(None, root)]
    by_class: dict[str, list[tuple[Split | None, Path]]] = {}
    for split, folder in roots:
        class_folders = _children(folder, ignored, root)
        for class_folder in class_folders:
            files = by_class.setdefault(class_folder.name, [])
            files.extend((split, file) for file in _pictures(class_folder, root, ignored))
    _check_classes(data, root, by_class, [folder for _, folder in roots], min_classes)
    class_names = tuple(sorted(by_class))
    records = [
        Record(path, path.relative_to(root).as_posix(), label, split)
        for label, name in enumerate(class_names)
        for split, path in sorted(by_class[name], key=lambda item: item[1].as_posix())
    ]
    return Dataset(data, class_names, tuple(records), tuple(ignored), tuple(splits))


def _split_folders(root: Path) -> dict[Split, Path]:
    """The train, val and test folders, if that is how the data are laid out; otherwise nothing."""
    found: dict[Split, Path] = {}
    for child in _list(root):
        split = _SPLIT_NAMES.get(child.name.lower())
        if split and child.is_dir() and any(grandchild.is_dir() for grandchild in _list(child)):
            found.setdefault(split, child)
    return found if "train" in found and len(found) > 1 else {}


def _check_classes(
    data: str,
    root: Path,
    by_class: dict[str, list[tuple[Split | None, Path]]],
    folders: list[Path],
    min_classes: int,
) -> None:
    for name in [name for name, files in by_class.items() if not files]:
        del by_class[name]
    if len(by_class) >= min_classes:
        return
    if not by_class:
        loose = sum(1 for folder in folders for _ in _pictures(folder, root, []))
        raise DataError(
            f"{data} has no class folders with pictures",
            expected="one sub-folder a class, such as cats/ and dogs/",
            got=f"{loose} loose pictures" if loose else "no pictures at all",
        )
    (only,) = by_class
    raise DataError(
        f"{data} has one class only, {only!r}",
        expected="at least two classes, each a sub-folder of pictures",
        hint="Add a folder of pictures of anything else that the classifier is to tell apart",
    )


def _children(folder: Path, ignored: list[Ignored], root: Path) -> list[Path]:
    folders = []
    for child in _list(folder):
        if child.is_dir():
            folders.append(child)
        elif child.suffix.lower() in IMAGE_SUFFIXES:
            ignored.append(Ignored(child.relative_to(root).as_posix(), "no_class", "lies outside the class folders"))
    return folders


def _pictures(folder: Path, root: Path, ignored: list[Ignored]) -> Iterator[Path]:
    """Every file below `folder` that is named like a picture; links are followed, each real folder once."""
    visited: set[str] = set()

    def unreadable(error: OSError) -> None:
        name = Path(error.filename).relative_to(root).as_posix() if error.filename else str(folder)
        ignored.append(Ignored(name, "unreadable", error.strerror or "cannot be read"))

    for directory, subfolders, files in os.walk(folder, followlinks=True, onerror=unreadable):
        real = os.path.realpath(directory)
        if real in visited:  # a link back up: walking it again would never end
            subfolders.clear()
            continue
        visited.add(real)
        subfolders[:] = sorted(name for name in subfolders if not _is_litter(name))
        for name in files:
            if not _is_litter(name) and (path := Path(directory, name)).suffix.lower() in IMAGE_SUFFIXES:
                yield path


def _is_litter(name: str) -> bool:
    """What operating systems, editors and notebooks leave behind: .DS_Store, Thumbs.db, .ipynb_checkpoints."""
    return name.startswith(".") or name.lower() in _LITTER


def _list(folder: Path) -> list[Path]:
    try:
        return sorted(child for child in folder.iterdir() if not _is_litter(child.name))
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error.strerror or error})") from error


SOURCES: tuple[SourceKind, ...] = (SourceKind("class folders", os.path.isdir, read_folder),)
