"""Conventions of file and folder names: images, splits, classes and litter; and names in messages."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable

from transferapp.data.dataset import Split

FORMAT_SUFFIXES = {
    "JPEG": frozenset((".jpg", ".jpeg", ".jpe", ".jfif")),
    "PNG": frozenset((".png",)),
    "WEBP": frozenset((".webp",)),
    "GIF": frozenset((".gif",)),
    "BMP": frozenset((".bmp", ".dib")),
    "TIFF": frozenset((".tif", ".tiff")),
    "AVIF": frozenset((".avif",)),
    "HEIF": frozenset((".heic", ".heif")),
}
"""Suffixes of the formats that are read. The bytes of a file decide which of them it is in."""

IMAGE_SUFFIXES = frozenset().union(*FORMAT_SUFFIXES.values())
"""Suffixes of files that are read as images; files with other suffixes are skipped."""

UNREAD_SUFFIXES = frozenset(
    ".ai .arw .cr2 .cr3 .dcm .dng .emf .eps .exr .fit .fits .hdr .ico .j2k .jp2 .jxl .nef .orf .pbm .pcx .pdf .pgm .pnm "  # noqa: SIM905
    ".ppm .ps .psd .raf .raw .rw2 .svg .svgz .tga .wmf .xcf".split()
)
"""Suffixes of image formats that are not read. Such files are listed, because someone may expect them to count."""

TABLE_SUFFIXES = frozenset((".csv", ".tsv", ".jsonl", ".parquet"))

_SPLITS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
    "holdout": "test",
}
_NEUTRAL_WORDS = frozenset("data dataset image images img imgs photos pictures set split".split())  # noqa: SIM905
"""Words beside a split's name, as in `train_images` or `Test set`."""

_IMAGE_FOLDERS = _NEUTRAL_WORDS | {"all", "files", "jpeg", "jpeg images", "jpegimages", "jpegs", "jpg", "jpgs", "png"}
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
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}(\.0*)?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def suffix_of(name: str) -> str:
    """Return the suffix in lower case, with its dot; empty if there is none."""
    return os.path.splitext(name)[1].lower()


def split_named(name: str) -> Split | None:
    """Return the split that a folder or a value in a table names: `train`, `Validation`, `test_images`, `train2017`."""
    words = re.findall(r"[^\W\d_]+", name.lower())
    found = [_SPLITS[word] for word in words if word in _SPLITS]
    if len(found) == 1 and all(word in _SPLITS or word in _NEUTRAL_WORDS for word in words):
        return found[0]
    return None


def holds_images_only(name: str) -> bool:
    """Return whether a folder's name is neutral, not that of a class: `images`, `train`, `JPEGImages`."""
    return name.lower() in _IMAGE_FOLDERS or split_named(name) is not None


def whole_numbers(labels: Iterable[str]) -> bool:
    """Return whether all labels are whole numbers; `3.0` is one."""
    return all(_WHOLE.fullmatch(label) for label in labels)


def natural_order(names: Iterable[str]) -> list[str]:
    """Return names in the order of the numbers in them: `2` before `10`, `class 2` before `class 10`."""
    names = list(names)
    if whole_numbers(names):
        return sorted(names, key=lambda name: (int(name.partition(".")[0]), name))
    return sorted(names, key=_natural_key)


def _natural_key(name: str) -> tuple[list[tuple[int, str]], str]:
    """Return text and digits in turn; digits by their number first, so that they compare like the number they are."""
    parts = re.split(r"([0-9]+)", name)
    digits = [part.lstrip("0") if index % 2 else part for index, part in enumerate(parts)]
    return [(len(part) if index % 2 else 0, part) for index, part in enumerate(digits)], name


def class_name(name: str) -> str:
    """Return a folder's name, or a label in a table, as the name of a class: printable, in Unicode's composed form (NFC)."""
    return unicodedata.normalize("NFC", printable(name))


def printable(name: str) -> str:
    """Return a file name as text for any terminal: bytes that are not UTF-8, and control characters, are escaped."""
    if name.isascii() and name.isprintable():
        return name
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def is_litter(name: str) -> bool:
    """Return whether a name is litter of systems, editors or notebooks: .DS_Store, Thumbs.db, .ipynb_checkpoints."""
    return name.startswith(".") or name.lower() in _LITTER
