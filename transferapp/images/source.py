"""The bytes of an image, from a file or from memory, behind one guarded stream."""

from __future__ import annotations

import contextlib
import io
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from PIL import ImageFile

from transferapp.errors import ImageError
from transferapp.images.limits import ImageLimits


class DiskError(Exception):
    """The source could not be read; not an OSError, which decoders raise for bad bytes as well."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.reason = error.strerror or str(error)


class Stream:
    """The file object given to Pillow: keeps failing disks and early ends apart from broken images.

    Having neither a descriptor nor a name, it also keeps Pillow from mapping the file into memory, where another program
    truncating it would kill the process, and libtiff from reading past this class.

    Attributes:
        size: Bytes in all.
        starved: Whether more was asked for, in some small read, than was there.
    """

    def __init__(self, raw: BinaryIO, size: int) -> None:
        self._raw = raw
        self.size = size
        self.starved = False

    def read(self, count: int = -1) -> bytes:
        try:
            # A buffered file allocates what it is asked for, and a chunk's length is the image's own claim.
            data = self._raw.read(min(count, self.size))
        except OSError as error:
            raise DiskError(error) from error
        # Decoders read ahead in large blocks, so a short large block is no sign of a short file; an empty one is.
        self.starved |= count > 0 and (not data or len(data) < count < ImageFile.MAXBLOCK)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()

    def peek_at(self, offset: int, count: int) -> bytes:
        """Up to `count` bytes from `offset`, without counting as a read past the end."""
        before = self.starved
        self.seek(offset)
        data = self.read(count)
        self.starved = before
        return data


@contextlib.contextmanager
def opened(source: Path | bytes, limits: ImageLimits, subject: str) -> Iterator[Stream]:
    """Open the source, refusing what is not a file, has no bytes or has too many."""
    with contextlib.ExitStack() as stack:
        raw: BinaryIO
        if isinstance(source, Path):
            try:
                status = source.stat()
                if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for a writer for ever
                    raise unreadable(subject, "not a file")
                raw = stack.enter_context(source.open("rb"))
            except (OSError, ValueError) as error:  # ValueError: a NUL in the name
                raise unreadable(subject, getattr(error, "strerror", None) or str(error)) from error
            size = status.st_size
        else:
            raw, size = io.BytesIO(source), len(source)
        if size == 0:
            raise ImageError(f"{subject} is empty", expected="an image", got="0 bytes", code="empty_file")
        if limits.max_bytes is not None and size > limits.max_bytes:
            raise ImageError(
                f"{subject} is too large a file",
                expected=f"at most {limits.max_bytes:,} bytes",
                got=f"{size:,}",
                hint="Compress it, make it smaller, or raise max_bytes",
                code="too_many_bytes",
            )
        yield Stream(raw, size)


def unreadable(subject: str, reason: str) -> ImageError:
    """The error for a source that the operating system will not give."""
    return ImageError(
        f"{subject} cannot be read",
        got=printable(reason),
        hint="Check that it is a file, and that you may read it",
        code="unreadable",
    )


def printable(text: str) -> str:
    """The text with line breaks, control characters and half-decoded bytes escaped, so that one message stays one line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
