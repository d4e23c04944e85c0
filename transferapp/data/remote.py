"""Images at addresses that `fsspec` reads: `s3://bucket/folder`, `gs://...`, `https://...`, `file:///folder`."""

from __future__ import annotations

import re
from typing import Any

from transferapp.data.names import IMAGE_SUFFIXES, suffix_of
from transferapp.errors import DataError, ImageError, UsageError, first_line

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_address(text: str) -> bool:
    """Return whether this is an address and not a path: it begins with a scheme and two slashes."""
    return _ADDRESS.match(text) is not None


def list_addresses(address: str) -> list[str]:
    """Return the address of an image itself, or those of all images below a folder, in the order of their names.

    Raises:
        DataError: There is none, or the store does not answer.
        UsageError: The package for this kind of store is not installed.
    """
    try:
        system, root = _open(address)
        if system.isfile(root):
            return [address]
        names = sorted(name for name in system.find(root) if suffix_of(name) in IMAGE_SUFFIXES)
    except UsageError:
        raise
    except Exception as error:  # each kind of store has exceptions of its own
        raise DataError(f"{address} cannot be listed ({first_line(error)})") from error
    if not names:
        raise DataError(f"There are no images at {address}", expected="an image, or a folder with images below it")
    return [system.unstrip_protocol(name) for name in names]


def read_address(address: str) -> bytes:
    """Return the content of a file.

    Raises:
        ImageError: It cannot be read, with the code `unreadable`.
    """
    try:
        system, path = _open(address)
        content: bytes = system.cat_file(path)
    except UsageError:
        raise
    except Exception as error:  # as above
        raise ImageError(f"{address} cannot be read ({first_line(error)})", code="unreadable") from error
    return content


def _open(address: str) -> tuple[Any, str]:
    """Return the store of an address, and the path in it."""
    import fsspec  # takes longer to import than the rest of a prediction of local files

    try:
        system, path = fsspec.core.url_to_fs(address)
    except ImportError as error:  # its text names the package: "Install s3fs to access S3"
        raise UsageError(f"{address} cannot be read", hint=first_line(error)) from error
    except ValueError as error:
        raise UsageError(f"{address} cannot be read ({first_line(error)})") from error
    return system, path
