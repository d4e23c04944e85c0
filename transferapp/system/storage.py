"""Atomic writes, checksums, and errors of the disk.

A write goes to a temporary name beside its target, is flushed to the disk, and is renamed over the target, so a kill at any
moment leaves the old file or the new one, never half.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from transferapp.errors import ResourceError

_CHUNK = 1 << 20
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, None}
"""Error numbers of a full disk. None: a library could not write and did not say why, which most often means this."""


def sha256_file(path: Path) -> str:
    """Return the hex SHA-256 of a file's bytes; memory stays flat."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sync_directory(path: Path) -> None:
    """Flush the entries of a folder, so that a rename in it survives a power cut. Does nothing where the system cannot."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Replace `path` by `data` atomically, with the permissions that the user's files have by default.

    Raises:
        ResourceError: It cannot be written; what was at `path` is untouched.
    """
    with replacing(path) as part, part.open("xb") as stream:
        stream.write(data)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the name of a new file beside `path`; when the block has written it, flush it and rename it over `path`.

    Raises:
        ResourceError: It cannot be written; what was at `path` is untouched.
    """
    with disk_errors(path):
        # `tempfile` makes files that only their owner may read, but a model may be fitted by one user and served by another.
        part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
        try:
            yield part
            with part.open("rb") as stream:
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
    """Turn operating-system errors about writing `path` into a `ResourceError` with a hint."""
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
    """Return the free bytes on the disk where `path` is, or would be."""
    return shutil.disk_usage(next(p for p in (path, *path.absolute().parents) if p.exists())).free
