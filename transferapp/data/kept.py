"""What sources leave in the cache: folders that are there whole or not at all, found again by their key."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from filelock import BaseFileLock, FileLock, Timeout

from transferapp.system.storage import cache_directory, disk_errors, write_bytes

KEPT_DAYS = 30
"""What was not used for so long is deleted when something else is written."""


class Kept(NamedTuple):
    """A folder in the cache, and what its writer noted about it."""

    folder: Path
    note: Any


def kept_in_cache(key: str, write: Callable[[Path], Any]) -> Kept:
    """A folder in the cache: found there whole, or written.

    It appears under its name only when it is written, so that a kill leaves nothing half-used, and it is used again only if
    as many files and bytes are there as were then, for caches are places where people and programs delete.

    Args:
        key: What tells its content from any other's; fit to be a file name.
        write: Fills an empty folder, and gives what is to be noted: JSON values.

    Raises:
        ResourceError: The disk is full.
    """
    root = cache_directory() / "sources"
    folder, note = root / key, root / f"{key}.json"
    with disk_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        lock = _lock(root, key)
        lock.acquire()
    try:
        found = _whole(folder, note)
        if found is None:
            _forget_unused(root, key)
            part = root / f"{key}.part"
            with disk_errors(root):
                for left_over in (part, folder):
                    shutil.rmtree(left_over, ignore_errors=True)
                part.mkdir()
            try:
                found = {"note": write(part), "size": measure_folder(part)}
                with disk_errors(folder):
                    part.rename(folder)
            except BaseException:
                shutil.rmtree(part, ignore_errors=True)
                raise
            write_bytes(note, json.dumps(found).encode())
        with disk_errors(note):
            os.utime(note)
    finally:
        lock.release()
    return Kept(folder, found["note"])


def measure_folder(folder: Path) -> list[int]:
    """[files, their bytes] at any depth; links are not followed."""
    files = size = 0
    pending: list[str | Path] = [folder]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                else:
                    files += 1
                    size += entry.stat(follow_symlinks=False).st_size
    return [files, size]


def _whole(folder: Path, note: Path) -> dict[str, Any] | None:
    """What was noted of a folder, if it is as it was then."""
    try:
        found = json.loads(note.read_bytes())
        return dict(found) if found["size"] == measure_folder(folder) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _forget_unused(root: Path, key: str) -> None:
    """Delete what nobody has used for long, and what kills have left behind, unless someone is at it."""
    long_ago = time.time() - KEPT_DAYS * 86_400
    old: Sequence[str] = [note.stem for note in root.glob("*.json") if note.stat().st_mtime < long_ago]
    for unused in {*old, *(part.stem for part in root.glob("*.part"))} - {key}:
        try:
            with _lock(root, unused, blocking=False):
                shutil.rmtree(root / f"{unused}.part", ignore_errors=True)
                if unused in old:
                    (root / f"{unused}.json").unlink(missing_ok=True)
                    shutil.rmtree(root / unused, ignore_errors=True)
        except (Timeout, OSError):
            continue


def _lock(root: Path, key: str, *, blocking: bool = True) -> BaseFileLock:
    return FileLock(root / f".{key}.lock", blocking=blocking)
