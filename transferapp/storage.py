"""Files that are either wholly there or not there at all: atomic writes, checksums, the cache folder.

Everything the program leaves on disk goes through here. A write goes to a temporary name beside its target, is flushed
to the disk, and is renamed over the target, so a kill at any moment leaves the old file or the new one, never half.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from transferapp.errors import ResourceError

_CHUNK = 1 << 20


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


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data` atomically."""
    with disk_errors(path):
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            Path(name).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(name).unlink()
            raise
        sync_directory(path.parent)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's complaints about writing `path` into a `ResourceError` that says how to mend them."""
    try:
        yield
    except OSError as error:
        free = ""
        with contextlib.suppress(OSError):
            parent = next(p for p in (path, *path.parents) if p.exists())
            free = f", {shutil.disk_usage(parent).free / 1e6:.0f} MB free there"
        raise ResourceError(
            f"Could not write {path}: {error.strerror or error}{free}",
            hint="Free some space or choose another place, then run the same command again; nothing that was there is lost",
        ) from error


def cache_directory() -> Path:
    """The folder for what can always be computed again: features, converted networks.

    `TRANSFERAPP_CACHE` names it; otherwise it is `transferapp` in the user's own cache folder. Where that cannot be written
    (a read-only container, say) a folder in the system's temporary space takes its place.
    """
    named = os.environ.get("TRANSFERAPP_CACHE")
    if named:
        path = Path(named).expanduser()
        with disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        return path
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    path = (Path(base) if base else Path.home() / ".cache") / "transferapp"
    try:
        path.mkdir(parents=True, exist_ok=True)
        if os.access(path, os.W_OK):
            return path
    except (OSError, RuntimeError):
        pass
    fallback = Path(tempfile.gettempdir()) / f"transferapp-cache-{os.getuid() if hasattr(os, 'getuid') else 'user'}"
    with disk_errors(fallback):
        fallback.mkdir(parents=True, exist_ok=True)
    return fallback
