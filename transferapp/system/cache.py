"""The cache: its place, and folders in it that are there whole or not at all, found again by their key."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from filelock import BaseFileLock, FileLock, Timeout

from transferapp.errors import ResourceError, UsageError
from transferapp.system.storage import disk_errors, write_bytes

UNUSED_DAYS = 30
"""Cached folders that were not used for so long are deleted when another is written."""


class CachedFolder(NamedTuple):
    """A folder in the cache, and the note of its writer."""

    folder: Path
    note: Any


def cache_directory() -> Path:
    """Return the folder for what can always be computed again: features, converted networks, unpacked archives.

    `TRANSFERAPP_CACHE` names it; otherwise it is `transferapp` in the user's own cache folder. If that is not writable
    (a read-only container, a user without a home), it is a folder in the system's temporary space.

    Raises:
        UsageError: `TRANSFERAPP_CACHE` is not a path.
        ResourceError: No such place is writable.
    """
    named = os.environ.get("TRANSFERAPP_CACHE")
    if named:
        try:
            path = Path(named).expanduser()
        except RuntimeError as error:
            raise UsageError("TRANSFERAPP_CACHE names no folder", expected="a path", got=named) from error
        with disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        return path
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: there is no home
        base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
        path = (Path(base) if base else Path.home() / ".cache") / "transferapp"
        path.mkdir(parents=True, exist_ok=True)
        if os.access(path, os.W_OK | os.X_OK):
            return path
    return _temporary_cache()


def _temporary_cache() -> Path:
    """Return the same folder each time, so that it serves as a cache. Its name is predictable, so its owner is checked."""
    user = os.getuid() if hasattr(os, "getuid") else None
    path = Path(tempfile.gettempdir()) / f"transferapp-cache-{'user' if user is None else user}"
    with disk_errors(path):
        path.mkdir(mode=0o700, exist_ok=True)
        foreign = user is not None and path.lstat().st_uid != user
    if foreign:
        raise ResourceError(
            f"The folder {path} belongs to another user, who could choose what is read from it",
            hint="Set TRANSFERAPP_CACHE to a folder of your own",
        )
    return path


def cached_folder(key: str, write: Callable[[Path], Any]) -> CachedFolder:
    """Find a folder in the cache, or write it.

    It appears under its name when it is complete, so a kill leaves nothing incomplete. It is used again only if it has as many
    files and bytes as it had then, because people and programs delete things in caches.

    Args:
        key: Names the content; fit to be a file name.
        write: Fills an empty folder, and returns the note: JSON values.

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
            _delete_unused(root, key)
            part = root / f"{key}.part"
            with disk_errors(root):
                for left_over in (part, folder):
                    shutil.rmtree(left_over, ignore_errors=True)
                part.mkdir()
            try:
                found = {"note": write(part), "size": _size(part)}
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
    return CachedFolder(folder, found["note"])


def _size(folder: Path) -> list[int]:
    """Return [number of files, their bytes] at any depth; links are not followed."""
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
    """Return the note of a folder if it is as it was then."""
    try:
        found = json.loads(note.read_bytes())
        return dict(found) if found["size"] == _size(folder) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _delete_unused(root: Path, key: str) -> None:
    """Delete folders that nobody has used for long, and what killed processes have left, unless they are locked."""
    long_ago = time.time() - UNUSED_DAYS * 86_400
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
