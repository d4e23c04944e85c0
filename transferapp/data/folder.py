"""Class folders: one sub-folder of pictures a class, alone or within train, val and test folders."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from transferapp.data.dataset import Dataset, Ignored, Record, Split
from transferapp.errors import DataError

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .gif .bmp .dib .tif .tiff .avif .heic .heif".split()  # noqa: SIM905
)
"""Names that promise a picture. What a file really is, its bytes say; a file of another name is passed over."""

_UNREAD_SUFFIXES = frozenset(
    ".ai .arw .cr2 .cr3 .dcm .dng .emf .eps .exr .fit .fits .hdr .ico .j2k .jp2 .jxl .nef .orf .pbm .pcx .pdf .pgm .pnm "  # noqa: SIM905
    ".ppm .ps .psd .raf .raw .rw2 .svg .svgz .tga .wmf .xcf".split()
)
"""Names of pictures in formats that are not read: someone may expect them to count, so they are listed."""

_SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_LITTER = frozenset(
    [
        "thumbs.db",
        "desktop.ini",
        "__macosx",
        "__pycache__",
        "@eadir",
        "$recycle.bin",
        "system volume information",
        "lost+found",
    ]
)


def read_folder(data: str, min_classes: int = 2) -> Dataset:
    """Read class folders; pictures may lie at any depth below their class, and links are followed.

    A link that leads back to what is read anyway (the data folder, another class) is listed and not followed: its pictures
    would turn up under two labels. Class names are in Unicode's composed form (NFC), however the disk spells them.
    """
    root = Path(data)
    ignored: list[Ignored] = []
    roots = _split_folders(root, ignored)
    given = tuple(dict.fromkeys(split for split, _ in roots if split is not None))
    folders = [(split, child) for split, folder in roots for child in _children(folder, ignored, root)]
    claimed = {os.path.realpath(folder) for _, folder in folders if not folder.is_symlink()}
    by_class: dict[str, list[tuple[Split | None, Path]]] = {}
    for split, folder in folders:
        files = by_class.setdefault(unicodedata.normalize("NFC", _printable(folder.name)), [])
        before = len(files) + len(ignored)
        files.extend((split, file) for file in _pictures(folder, root, claimed, ignored))
        if len(files) + len(ignored) == before:
            ignored.append(Ignored(_name(folder, root), "empty_class", "has no pictures"))
    by_class = {name: files for name, files in by_class.items() if files}
    _check_classes(data, list(by_class), ignored, min_classes)
    class_names = tuple(sorted(by_class))
    records = [
        Record(path, _name(path, root), label, split)
        for label, name in enumerate(class_names)
        for split, path in sorted(by_class[name], key=lambda item: item[1].as_posix())
    ]
    return Dataset(data, class_names, tuple(records), tuple(ignored), given)


def _split_folders(root: Path, ignored: list[Ignored]) -> list[tuple[Split | None, Path]]:
    """The folders that hold class folders, and what each is for: train, val and test folders, or `root` itself.

    `train` and `test` can also be what classes are called. They are, if they hold pictures and no folders, or if other
    classes stand beside a lone one of them.
    """
    folders = [child for child in _list(root) if _is_folder(child)]
    named = [(split, folder) for folder in folders if (split := _SPLIT_NAMES.get(folder.name.lower()))]
    nested = [(split, folder) for split, folder in named if any(_is_folder(child) for child in _list(folder))]
    has_train = any(split == "train" for split, _ in nested)
    if not nested or not (len(named) == len(folders) or (has_train and len(named) > 1)):
        return [(None, root)]
    used, flat = [folder for _, folder in nested], [folder for _, folder in named]
    for child in _children(root, ignored, root):
        if child not in used:
            reason = "has no class folders" if child in flat else "lies beside the train, val and test folders"
            ignored.append(Ignored(_name(child, root), "no_class", reason))
    # A train folder alone is no split: it is where the pictures are.
    return [(None if {s for s, _ in nested} == {"train"} else split, folder) for split, folder in nested]


def _check_classes(data: str, class_names: list[str], ignored: list[Ignored], min_classes: int) -> None:
    if len(class_names) >= min_classes:
        return
    if not class_names:
        loose = sum(1 for item in ignored if item.code == "no_class")
        raise DataError(
            f"{data} has no class folders with pictures",
            expected="one sub-folder a class, such as cats/ and dogs/",
            got=f"{loose} loose picture{'' if loose == 1 else 's'}" if loose else "no pictures at all",
        )
    raise DataError(
        f"{data} has one class only, {class_names[0]!r}",
        expected="at least two classes, each a sub-folder of pictures",
        hint="Add a folder of pictures of anything else that the classifier is to tell apart",
    )


def _children(folder: Path, ignored: list[Ignored], root: Path) -> list[Path]:
    folders = []
    for child in _list(folder):
        if _is_folder(child):
            folders.append(child)
        elif child.suffix.lower() in IMAGE_SUFFIXES:
            ignored.append(Ignored(_name(child, root), "no_class", "lies outside the class folders"))
    return folders


def _pictures(folder: Path, root: Path, claimed: set[str], ignored: list[Ignored]) -> Iterator[Path]:
    """Every file below `folder` that is named like a picture; links are followed, each real folder once.

    Args:
        folder: A class folder.
        root: The data folder, for names.
        claimed: Real paths of the class folders; a class folder that is a link adds its own.
        ignored: Gets what is left out.
    """
    own = os.path.realpath(folder)
    visited: set[str] = set()

    def unreadable(error: OSError) -> None:
        name = _name(Path(error.filename or folder), root)
        ignored.append(Ignored(name, "unreadable", error.strerror or "cannot be read"))

    for directory, subfolders, files in os.walk(folder, followlinks=True, onerror=unreadable):
        real = os.path.realpath(directory)
        if real in visited:  # a link back up: walking it again would never end
            subfolders.clear()
            continue
        if Path(directory).is_symlink() and _leads_back(real, own, claimed):
            ignored.append(Ignored(_name(Path(directory), root), "link", "leads back to folders that are read anyway"))
            subfolders.clear()
            continue
        if directory == os.fspath(folder):
            claimed.add(own)
        visited.add(real)
        subfolders[:] = sorted(name for name in subfolders if not _is_litter(name))
        for name in sorted(files):
            path = Path(directory, name)
            suffix = path.suffix.lower()
            if _is_litter(name):
                continue
            if suffix in IMAGE_SUFFIXES:
                yield path
            elif suffix in _UNREAD_SUFFIXES:
                ignored.append(Ignored(_name(path, root), "unsupported_format", f"{suffix} files are not read"))


def _leads_back(real: str, own: str, claimed: set[str]) -> bool:
    """Whether the target of a link is, contains, or lies in another class's folder, or contains its own."""
    target = Path(real)
    if target in Path(own).parents:
        return True
    return any(
        real == other or target in Path(other).parents or Path(other) in target.parents
        for other in claimed
        if other != own or real == own
    )


def _name(path: Path, root: Path) -> str:
    """How people are told of a file: its path below the data folder, fit to be printed."""
    return _printable(path.relative_to(root).as_posix())


def _printable(name: str) -> str:
    """A file name as text that every terminal and file can hold: bytes that are no UTF-8, and control characters, escaped."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda match: f"\\x{ord(match[0]):02x}", text)


def _is_litter(name: str) -> bool:
    """What operating systems, editors and notebooks leave behind: .DS_Store, Thumbs.db, .ipynb_checkpoints."""
    return name.startswith(".") or name.lower() in _LITTER


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # in a folder that can be listed but not entered
        return False


def _list(folder: Path) -> list[Path]:
    try:
        return sorted(child for child in folder.iterdir() if not _is_litter(child.name))
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error.strerror or error})") from error
