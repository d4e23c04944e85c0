"""Class folders: one sub-folder of images per class, alone or within train, val and test folders.

A tree may hold a million files, so it is read with `os.scandir`, and a file is one string until it becomes a record.
"""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from transferapp.data.dataset import SPLITS, Dataset, Ignored, Record, Split
from transferapp.data.names import (
    IMAGE_SUFFIXES,
    UNREAD_SUFFIXES,
    class_name,
    holds_images_only,
    is_folder,
    is_image,
    is_litter,
    natural_order,
    printable,
    split_named,
    suffix_of,
)
from transferapp.errors import DataError
from transferapp.system.progress import Advance

REPORT_EVERY = 1000
"""Files between two reports of progress."""

_MANY = 64
"""Folders that are looked at to see what their names are; more are never all splits."""

_MIXED = "its folders with names of splits are read without splits, because other images of classes lie outside of such folders"

_Runs = dict[str, list[tuple[Split | None, list[str]]]]
"""The folders of each class: a split, and the files in order."""


def read_folder(
    data: str, min_classes: int = 2, *, origin: str | None = None, progress: Advance | None = None
) -> Dataset:
    """Read class folders; images may lie at any depth below their class, and links are followed.

    A link that leads back to folders that are read anyway (the data folder, another class) is listed and not followed,
    because its images would appear under two labels. Class names are in Unicode's composed form (NFC), and a class that the
    splits spell in different cases is one class.

    Args:
        data: The folder.
        min_classes: Smallest number of classes.
        origin: Name of the data in messages; the folder by default.
        progress: Called now and then with the number of images found so far.

    Raises:
        DataError: The folder cannot be read, or has too few classes.
    """
    root = os.fspath(Path(data))
    origin = origin or data
    ignored: list[Ignored] = []
    roots = _split_folders(root, ignored)
    if roots == [(None, root)]:
        _refuse_bare_splits(root, origin)
    given = tuple(dict.fromkeys(split for split, _ in roots if split is not None))
    folders = [(split, child) for split, folder in roots for child in _children(folder, ignored, root)]
    spelling = _spellings(folders)
    if below := _splits_below(folders):
        given = tuple(split for split in SPLITS if split in {split for split, _ in below})
        spelling = {folder: spelling[os.path.dirname(folder)] for _, folder in below}
        folders = below
    elif roots == [(None, root)]:
        ignored += [
            Ignored(_name(folder, root), "mixed_splits", _MIXED) for _, folder in folders if _has_splits(folder)
        ]
    claims = _Claims(folder for _, folder in folders if not os.path.islink(folder))
    by_class: _Runs = defaultdict(list)
    found = 0
    for split, folder in folders:
        before = len(ignored)
        files = []
        for file in _images(folder, root, claims, ignored):
            files.append(file)
            found += 1
            if progress is not None and found % REPORT_EVERY == 0:
                progress(found)
        if files:
            files.sort()
            by_class[spelling[folder]].append((split, files))
        elif len(ignored) == before:
            ignored.append(Ignored(_name(folder, root), "empty_class", "has no images"))
    if progress is not None:
        progress(found)
    _check_classes(origin, root, list(by_class), ignored, min_classes)
    class_names = tuple(natural_order(by_class))
    return Dataset(origin, class_names, tuple(_records(by_class, class_names, root)), tuple(ignored), given)


def class_folders(root: str, at_most: int) -> list[str]:
    """Return the names of the first sub-folders that hold images at any depth, at most `at_most`."""
    found: list[str] = []
    for folder in _subfolders(root):
        if len(found) >= at_most:
            break
        if next(_images(folder, root, _Claims(()), []), None) is not None:
            found.append(os.path.basename(folder))
    return found


def _records(by_class: _Runs, class_names: tuple[str, ...], root: str) -> Iterator[Record]:
    """Yield the records in order, and free the file lists class by class, so that memory does not double."""
    for label, name in enumerate(class_names):
        for split, files in sorted(by_class.pop(name), key=lambda run: run[1]):
            for file in files:
                yield Record(file, _name(file, root), label, split)


def _split_folders(root: str, ignored: list[Ignored]) -> list[tuple[Split | None, str]]:
    """Return the folders that hold class folders, with their splits: train, val and test folders, or `root` itself.

    A single one of them beside other classes is a class itself.
    """
    folders = list(_subfolders(root))
    named = [(split, folder) for folder in folders if (split := split_named(os.path.basename(folder)))]
    nested = [(split, folder) for split, folder in named if next(_subfolders(folder, strict=False), None)]
    has_train = any(split == "train" for split, _ in nested)
    if not nested or not (len(named) == len(folders) or (has_train and len(named) > 1)):
        return [(None, root)]
    used, flat = {folder for _, folder in nested}, {folder for _, folder in named}
    for child in _children(root, ignored, root):
        if child not in used:
            reason = "has no class folders" if child in flat else "lies beside the train, val and test folders"
            ignored.append(Ignored(_name(child, root), "no_class", reason))
    # A train folder alone is not a split: the images are just in there.
    return [(None if {s for s, _ in nested} == {"train"} else split, folder) for split, folder in nested]


def _splits_below(folders: Sequence[tuple[Split | None, str]]) -> list[tuple[Split | None, str]]:
    """Return the split folders if all images are in splits below their class, as in `cats/train`; otherwise nothing."""
    below: list[tuple[Split | None, str]] = []
    for above, folder in folders:
        inner = class_folders(folder, _MANY)
        if above is not None or not all(split_named(name) for name in inner) or _has_images(folder):
            return []
        below += [(split_named(name), os.path.join(folder, name)) for name in inner]
    splits = {split for split, _ in below}
    return below if "train" in splits and len(splits) > 1 else []


def _has_splits(folder: str) -> bool:
    """Return whether a class has train folders and others of splits."""
    splits = {split_named(os.path.basename(child)) for child in _subfolders(folder, strict=False)} - {None}
    return "train" in splits and len(splits) > 1


def _has_images(folder: str) -> bool:
    try:
        return any(not is_folder(entry) and is_image(entry.path) for entry in _scan(folder))
    except DataError:
        return False


def _refuse_bare_splits(root: str, origin: str) -> None:
    """Refuse folders that are all named like splits and hold images without classes."""
    holding = class_folders(root, _MANY)
    if not holding or not all(split_named(name) for name in holding):
        return
    inside = f"{printable(holding[0])}/"
    raise DataError(
        f"{origin} has images in {', '.join(printable(name) for name in holding)} and nothing that gives their classes",
        expected=f"a folder a class in them, such as {inside}cats/, or a table, such as {inside}metadata.csv with the "
        "columns file_name and label",
        hint="Names of splits are never classes; if the names of the files say the class, sort them into folders",
    )


def _spellings(folders: list[tuple[Split | None, str]]) -> dict[str, str]:
    """Return the class of each folder.

    If each split has one spelling of a name, such as `train/Cats` and `test/cats`, it is one class. Folders in one place whose
    names differ by case alone are two classes.
    """
    spellings: dict[str, list[str]] = defaultdict(list)
    beside: set[tuple[str, str]] = set()
    clashing = set()
    for _, folder in folders:
        name = class_name(os.path.basename(folder))
        folded = name.casefold()
        place = (os.path.dirname(folder), folded)
        if place in beside and name not in spellings[folded]:
            clashing.add(folded)
        beside.add(place)
        spellings[folded].append(name)
    return {
        folder: name if name.casefold() in clashing else spellings[name.casefold()][0]
        for _, folder in folders
        for name in [class_name(os.path.basename(folder))]
    }


def _check_classes(data: str, root: str, class_names: list[str], ignored: list[Ignored], min_classes: int) -> None:
    if len(class_names) >= min_classes:
        return
    if not class_names:
        loose = sum(1 for item in ignored if item.code == "no_class")
        raise DataError(
            f"{data} has no class folders with images",
            expected="one sub-folder a class, such as cats/ and dogs/, or a table of paths and labels",
            got=f"{loose} loose image{'' if loose == 1 else 's'}" if loose else "no images at all",
        )
    inner = os.path.join(root, class_names[0])
    below = class_folders(inner, 2) if os.path.isdir(inner) else []
    hint = "Add a folder of images of anything else that the classifier is to tell apart"
    if holds_images_only(class_names[0]):
        hint = "That name says nothing of classes: sort the images into a folder a class, or put a table of labels beside it"
    if len(below) > 1:
        where = printable(inner)
        if Path(data) != Path(root):  # an archive in the cache
            where = f"the folder {class_names[0]!r} of what you unpack"
        hint = f"If its sub-folders, such as {printable(below[0])!r}, are the classes, point --data at {where}"
    raise DataError(
        f"{data} has one class only, {class_names[0]!r}",
        expected="at least two classes, each a sub-folder of images",
        hint=hint,
    )


def _children(folder: str, ignored: list[Ignored], root: str) -> list[str]:
    """Return the class folders in a folder; loose images beside them are listed."""
    folders, loose = [], []
    for entry in _scan(folder):
        if is_folder(entry):
            folders.append(entry.path)
        elif is_image(entry.path):
            loose.append(entry.path)
    for path in sorted(loose):
        ignored.append(Ignored(_name(path, root), "no_class", "lies outside the class folders"))
    for path in _hidden_folders(folder):
        reason = "begins with a dot and has images; give it another name if it is a class"
        ignored.append(Ignored(_name(path, root), "hidden", reason))
    return sorted(folders)


def _hidden_folders(folder: str) -> list[str]:
    """Return the folders with names that begin with a dot and that hold images, in order."""
    found = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") and is_litter(entry.name) and is_folder(entry):
                with contextlib.suppress(OSError), os.scandir(entry.path) as inner:
                    if any(suffix_of(each.name) in IMAGE_SUFFIXES for each in inner):
                        found.append(entry.path)
    return sorted(found)


def _subfolders(folder: str, *, strict: bool = True) -> Iterator[str]:
    """Yield sub-folders in the order of names. An unreadable folder is an error, or has none if not `strict`."""
    try:
        yield from sorted(entry.path for entry in _scan(folder) if is_folder(entry))
    except DataError:
        if strict:
            raise


def _images(folder: str, root: str, claims: _Claims, ignored: list[Ignored]) -> Iterator[str]:
    """Yield every image file below `folder`; links are followed, each real folder once.

    Args:
        folder: A class folder.
        root: The data folder, for names.
        claims: The class folders; a class folder that is a link is added.
        ignored: Receives what is left out.
    """
    own = os.path.realpath(folder)
    visited: set[str] = set()
    pending = [(folder, own, os.path.islink(folder))]
    while pending:
        directory, real, is_link = pending.pop()
        if real in visited:  # a link back up, which would never end
            continue
        if is_link and claims.leads_back(real, own):
            ignored.append(Ignored(_name(directory, root), "link", "leads back to folders that are read anyway"))
            continue
        if directory == folder:
            claims.add(own)
        visited.add(real)
        subfolders = []
        try:
            for entry in _scan(directory, errors=OSError):
                if is_folder(entry):
                    link = entry.is_symlink()
                    target = os.path.realpath(entry.path) if link else os.path.join(real, entry.name)
                    subfolders.append((entry.path, target, link))
                    continue
                suffix = suffix_of(entry.name)
                if is_image(entry.path):
                    yield entry.path
                elif suffix in UNREAD_SUFFIXES:
                    reason = f"{suffix} files are not read"
                    ignored.append(Ignored(_name(entry.path, root), "unsupported_format", reason))
        except OSError as error:
            reason = error.strerror or "cannot be read"
            ignored.append(Ignored(_name(directory, root), "unreadable", reason))
        subfolders.sort(reverse=True)
        pending.extend(subfolders)


class _Claims:
    """Real paths of class folders, to find links to what is read anyway."""

    def __init__(self, folders: Iterator[str] | tuple[()]) -> None:
        self._claimed: set[str] = set()
        self._above: set[str] = set()
        for folder in folders:
            self.add(os.path.realpath(folder))

    def add(self, real: str) -> None:
        self._claimed.add(real)
        self._above.update(_parents(real))

    def leads_back(self, real: str, own: str) -> bool:
        """Return whether a link's target is, contains, or lies in another class's folder, or contains its own.

        Args:
            real: The target.
            own: The class folder that the link is in.
        """
        if real in self._claimed or real in self._above or real in _parents(own):
            return True
        return any(parent in self._claimed and parent != own for parent in _parents(real))


def _parents(path: str) -> list[str]:
    return [str(parent) for parent in Path(path).parents]


def _scan(folder: str, errors: type[Exception] = DataError) -> Iterator[os.DirEntry[str]]:
    """Yield the entries of a folder, in any order and without litter."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not is_litter(entry.name):
                    yield entry
    except OSError as error:
        if errors is OSError:
            raise
        raise DataError(f"{printable(folder)} cannot be read ({error.strerror or error})") from error


def _name(path: str, root: str) -> str:
    """Return the name of a file in messages: its path below the data folder."""
    inner = path[len(root) :].lstrip(os.sep) if root != "." else path.removeprefix("." + os.sep)
    return printable(inner.replace(os.sep, "/"))
