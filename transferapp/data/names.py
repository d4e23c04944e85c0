"""Conventions of file and folder names: images, splits, classes and litter; and names in messages."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing SciPy takes a while
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
"""Suffixes of files that are read as images; of files with unknown suffixes, the first bytes decide."""

UNREAD_SUFFIXES = frozenset(
    ".ai .arw .cr2 .cr3 .dcm .dng .emf .eps .exr .fit .fits .hdr .ico .j2k .jp2 .jxl .nef .orf .pbm .pcx .pdf .pgm .pnm "  # noqa: SIM905
    ".ppm .ps .psd .raf .raw .rw2 .svg .svgz .tga .wmf .xcf".split()
)
"""Suffixes of image formats that are not read. Such files are listed, because someone may expect them to count."""

_OTHER_SUFFIXES = frozenset(
    ".avi .bin .cfg .csv .db .doc .docx .gz .h5 .hdf5 .html .ini .ipynb .json .jsonl .log .m4a .mat .md .mov .mp3 .mp4 .npy "  # noqa: SIM905
    ".npz .parquet .pkl .pt .pth .py .rar .rst .sh .tar .tfrecord .tsv .txt .wav .xls .xlsx .xml .yaml .yml .zip .7z".split()
)
"""Suffixes of files that lie beside images and are not opened."""

_MAGIC = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8[79]a|BM.{4}\0{4}|RIFF.{4}WEBP|II\*\0|MM\0\*"
    rb"|.{4}ftyp(avif|avis|heic|heix|hevc|heim|heis|mif1|msf1)",
    re.DOTALL,
)
"""First bytes of the formats that are read."""

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
_TABLE_NAMES = frozenset("annotations classes label labels metadata".split())  # noqa: SIM905
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
_FRACTION = re.compile(r"\.[0-9][^.]*")
_LONGEST = 160
"""Characters of the longest name that a message shows whole."""

_WHOLE = re.compile(r"[+-]?[0-9]{1,18}(\.0*)?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def suffix_of(name: str) -> str:
    """Return the suffix in lower case, with its dot; empty if there is none."""
    return os.path.splitext(name)[1].lower()


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry of a folder is a folder, or a link to one; False where that cannot be told."""
    try:
        return entry.is_dir()
    except OSError:  # in a folder that can be listed but not entered, or a link to itself
        return False


def is_image(path: str) -> bool:
    """Return whether a file is read as an image: by its suffix, or by its first bytes if the suffix is unknown."""
    suffix = suffix_of(path)
    if suffix in IMAGE_SUFFIXES:
        return True
    if suffix in UNREAD_SUFFIXES or suffix in _OTHER_SUFFIXES:
        return False
    try:
        if not os.path.isfile(path):  # opening a pipe may never end
            return False
        with open(path, "rb", buffering=0) as stream:
            return _MAGIC.match(stream.read(16)) is not None
    except OSError:
        return False


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


def is_generic(name: str) -> bool:
    """Return whether a name says nothing of what the data are: `data`, `images`, `train`, `labels`, `metadata`."""
    return holds_images_only(name) or name.lower().strip("_") in _TABLE_NAMES


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
    """Return whether a name is litter of systems, editors or notebooks: .DS_Store, Thumbs.db, .ipynb_checkpoints.

    A decimal fraction such as `.22` or `.45 ACP` is none: calibers are classes.
    """
    return (name.startswith(".") and not _FRACTION.fullmatch(name)) or name.lower() in _LITTER


def shortened(text: str) -> str:
    """Return a text as it is, or the ends of a long one and its length: a name in a message is no place for a page."""
    return text if len(text) <= _LONGEST else f"{text[:40]}...{text[-20:]} ({len(text):,} characters)"
