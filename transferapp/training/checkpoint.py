"""The state of a training run on disk, whole or not at all: what is lost to a kill is the epoch in progress.

A *generation* is one file that holds everything a run needs to go on: arrays (weights, optimizer state, best weights) and
facts (epoch, history, random state). It is written to a temporary name, flushed and renamed, and the one before it is kept,
so there is always a readable one. Keras' own `BackupAndRestore` keeps neither its callbacks' state nor a second copy, and
`Model.save` writes in place.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from transferapp.system.storage import disk_errors, write_bytes

KEPT = 2
"""Generations kept: the newest, and the one before in case the newest was damaged by the disk."""

_FACTS = "facts"
_NAME = re.compile(r"generation-(\d{6})\.npz")


@dataclass(frozen=True)
class Generation:
    """One saved state.

    Attributes:
        number: Counts up from 1; an epoch's number in training.
        arrays: By name, as they were saved.
        facts: Plain JSON values.
    """

    number: int
    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]


class CheckpointStore:
    """The generations of one run, in a folder of their own.

    Args:
        folder: Made when the first generation is saved.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, number: int, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        """Write a generation and remove all but the newest `KEPT`.

        Args:
            number: Larger than any saved before, 1 or more.
            arrays: Numeric arrays by name.
            facts: JSON values; numbers that are not finite survive.

        Raises:
            ResourceError: The disk is full or cannot be written.
        """
        text = np.frombuffer(json.dumps(dict(facts)).encode(), np.uint8)
        buffer = io.BytesIO()
        content: dict[str, Any] = {_FACTS: text, **{f"array/{name}": array for name, array in arrays.items()}}
        np.savez(buffer, **content)
        with disk_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        half_written = list(self._folder.glob(".*.part"))  # by a process that was killed
        write_bytes(self._folder / f"generation-{number:06d}.npz", buffer.getbuffer())
        for path in (*half_written, *(path for _, path in self._files()[KEPT:])):
            with contextlib.suppress(OSError):
                path.unlink()

    def latest(self) -> Generation | None:
        """The newest generation that can be read, or None where there is none."""
        for number, path in self._files():
            try:
                with np.load(path, allow_pickle=False) as content:
                    arrays = {name.removeprefix("array/"): content[name] for name in content.files if name != _FACTS}
                    return Generation(number, arrays, json.loads(content[_FACTS].tobytes()))
            except Exception:  # noqa: S112 - damaged in whatever way: the one before it will do
                continue
        return None

    def _files(self) -> list[tuple[int, Path]]:
        """Generations on disk, newest first."""
        found = [(int(match[1]), path) for path in self._folder.glob("*.npz") if (match := _NAME.fullmatch(path.name))]
        return sorted(found, reverse=True)
