"""Checkpoints of a training run, written atomically: a kill loses the epoch in progress and nothing else.

A *generation* is one file with everything that a run needs to go on: arrays (weights, optimizer state, best weights) and facts
(epoch, history). It is written to a temporary name, flushed and renamed, and its predecessor remains, so that one is always
readable. Keras' `BackupAndRestore` stores neither the state of callbacks nor a second copy, and `Model.save` writes in place.
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
"""Generations on disk: the newest, and its predecessor in case the disk damages the newest."""

_FACTS = "facts"
_NAME = re.compile(r"generation-(\d{6})\.npz")


@dataclass(frozen=True)
class Generation:
    """One saved state.

    Attributes:
        number: The number of the epoch, from 1.
        arrays: Arrays by name.
        facts: JSON values by name.
    """

    number: int
    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]


class CheckpointStore:
    """The generations of one run.

    Args:
        folder: Folder of this run alone; made when the first generation is saved.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, number: int, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        """Write a generation and remove all but the newest `KEPT`.

        Args:
            number: Larger than any saved before, 1 or more.
            arrays: Numeric arrays by name.
            facts: JSON values; NaN and infinite numbers are preserved.

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
        """Return the newest generation that can be read, or None."""
        for number, path in self._files():
            try:
                with np.load(path, allow_pickle=False) as content:
                    arrays = {name.removeprefix("array/"): content[name] for name in content.files if name != _FACTS}
                    return Generation(number, arrays, json.loads(content[_FACTS].tobytes()))
            except Exception:  # noqa: S112 - damaged in whatever way: its predecessor serves
                continue
        return None

    def _files(self) -> list[tuple[int, Path]]:
        """Return the generations on disk, newest first."""
        found = [(int(match[1]), path) for path in self._folder.glob("*.npz") if (match := _NAME.fullmatch(path.name))]
        return sorted(found, reverse=True)
