"""Where pictures come from: whatever a person calls their data becomes a `Dataset`.

`open_source` asks each source in turn whether the argument is of its kind. Class folders are the one kind so far; a new kind
is one more entry in `SOURCES`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from transferapp.data.dataset import Dataset
from transferapp.data.folder import read_folder
from transferapp.errors import DataError


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


SOURCES: tuple[SourceKind, ...] = (SourceKind("class folders", os.path.isdir, read_folder),)
