"""Files that are either wholly there or not there at all: atomic writes, checksums, the cache folder.

Everything the program leaves on disk goes through here. A write goes to a temporary name beside its target, is flushed
to the disk, and is renamed over the target, so a kill at any moment leaves the old file or the new one, never half.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from transferapp.errors import ResourceError, UsageError

_CHUNK = 1 << 20
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, None}
"""None: a library said that it could not write and not why, which most often means this."""


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in pieces so that memory stays flat."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sync_directory(path: Path) -> None:
    """Flush a folder's own entries, so that a rename in it survives a power cut. A no-op where the system lacks it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Replace `path` by `data` atomically, readable by whoever may read the files that the user makes.

    Raises:
        ResourceError: It cannot be written; what was at `path` is untouched.
    """
    with disk_errors(path):
        # Not `tempfile`, whose files are for their owner alone: a model is fitted by one user and served by another.
        part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
        try:
            with part.open("xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            part.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink()
            raise
        sync_directory(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by text in UTF-8, as `write_bytes` does."""
    write_bytes(path, text.encode("utf-8"))


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's complaints about writing `path` into a `ResourceError` that says how to mend them."""
    try:
        yield
    except OSError as error:
        full = error.errno in _DISK_FULL
        free = ""
        with contextlib.suppress(OSError):
            free = f", {free_bytes(path) / 1e6:.0f} MB free there" if full else ""
        raise ResourceError(
            f"Could not write {path}: {error.strerror or error}{free}",
            hint=f"{'Free some space or choose' if full else 'Choose'} another place, then run the same command again; "
            "nothing that was there is lost",
        ) from error


def free_bytes(path: Path) -> int:
    """What there is room for on the disk where `path` is, or would be."""
    return shutil.disk_usage(next(p for p in (path, *path.absolute().parents) if p.exists())).free


def cache_directory() -> Path:
    """The folder for what can always be computed again: features, converted networks.

    `TRANSFERAPP_CACHE` names it; otherwise it is `transferapp` in the user's own cache folder. Where that cannot be written
    (a read-only container, a user without a home) a folder in the system's temporary space takes its place.

    Raises:
        UsageError: `TRANSFERAPP_CACHE` is no path.
        ResourceError: There is no place that can be written.
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
    """The same folder each time, so that it serves as a cache; its name can be foreseen, so whose it is must be checked."""
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
