"""Zip and tar archives: unpacked once into the cache, however hostile they are, and read like a folder from then on.

An archive is a stranger's. Nothing of it is written outside its own place, no link that leads out is kept, and what unpacks to
absurd sizes is stopped. What it unpacked to is found again by the content of the archive, whatever its name.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import os
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from transferapp.data.dataset import Ignored
from transferapp.data.kept import kept_in_cache
from transferapp.data.names import TABLE_SUFFIXES, is_litter, printable, suffix_of
from transferapp.errors import DataError, ResourceError, TransferAppError
from transferapp.system.progress import Advance, Progress
from transferapp.system.storage import disk_errors, sha256_file

MAX_FILES = 2_000_000
"""Files in an archive: ImageNet has 1.3 million."""

MAX_UNPACKED_BYTES = 500_000_000_000
"""Bytes that an archive may unpack to: three times ImageNet."""

MAX_RATIO = 200
"""How far an archive may expand, ..."""
RATIO_COUNTS_FROM = 100_000_000
"""... once so many bytes have come out of it. Images hardly shrink; drawings as uncompressed TIFF may do so fifty times."""

MAX_HEADER_BYTES = 1 << 24
"""Bytes that a tar header may ask for at once; long names take some hundreds."""

ARCHIVE_SUFFIXES = tuple(".zip .tar .tgz .tbz .tbz2 .txz .tar.gz .tar.bz2 .tar.xz".split())  # noqa: SIM905

_REVISION = 1
"""Raise this when what is unpacked changes."""

_CHUNK = 1 << 20
_BLOCK = 512
_MAX_NAME = 255
_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    OSError,
    ValueError,
    LookupError,
    OverflowError,
    NotImplementedError,
)
"""What the readers raise when an archive is not what it should be; OSError is gzip's way."""

_OTHERS = (
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard"),
)


class Unpacked(NamedTuple):
    """Where the files of an archive are, and what of it was left out."""

    folder: Path
    ignored: tuple[Ignored, ...]


def is_archive(path: str) -> bool:
    """Whether a file is a zip or tar archive, by its name or its content."""
    if path.lower().endswith(ARCHIVE_SUFFIXES):
        return True
    try:
        with open(path, "rb") as stream:
            head = stream.read(_BLOCK)
    except OSError:
        return False
    return head.startswith((b"PK\x03\x04", *(magic for magic, _ in _OTHERS))) or head[257:262] == b"ustar"


def unpack(path: Path, progress: Progress) -> Unpacked:
    """Unpack an archive into the cache, or find it there.

    Args:
        path: A zip file, or a tar file, which may be compressed with gzip, bzip2 or xz.
        progress: Who is told.

    Returns:
        Its place; a folder that is alone in the archive is stepped into.

    Raises:
        DataError: It is damaged, encrypted, hostile, or in a format that is not read.
        ResourceError: The disk is full.
    """
    name = printable(path.name)
    try:
        with progress.task(f"checking {name}", 0):
            content = sha256_file(path)
    except OSError as error:
        raise DataError(f"{printable(str(path))} cannot be read ({error.strerror or error})") from error

    def write(folder: Path) -> list[list[str]]:
        with progress.task(f"unpacking {name}", 0) as advance:
            unpacking = _Unpacking(name, path.stat().st_size, folder, advance)
            _read(path, name, unpacking)
            return unpacking.ignored

    kept = kept_in_cache(f"archive-{_REVISION}-{content[:32]}", write)
    return Unpacked(_step_in(kept.folder), tuple(Ignored(*item) for item in kept.note))


def _step_in(folder: Path) -> Path:
    """The folder, or the one in it that holds everything."""
    while True:
        inner = [child for child in folder.iterdir() if not is_litter(child.name)]
        if len(inner) != 1 or inner[0].is_symlink() or not inner[0].is_dir():
            return folder
        if not any(child.is_dir() or suffix_of(child.name) in TABLE_SUFFIXES for child in inner[0].iterdir()):
            return folder
        folder = inner[0]


def _read(path: Path, name: str, unpacking: _Unpacking) -> None:
    try:
        with path.open("rb") as stream:
            head = stream.read(_BLOCK)
            for magic, looks_like in _OTHERS:
                if head.startswith(magic):
                    raise DataError(f"{name} cannot be unpacked", expected="a zip or tar archive", got=looks_like)
            stream.seek(0)
            if head.startswith(b"PK") or zipfile.is_zipfile(path):
                _read_zip(path, unpacking)
            else:
                _read_tar(_decompressed(stream, head), unpacking)
        unpacking.finish()
    except TransferAppError:
        raise
    except _DAMAGE as error:
        reason = printable(str(error).splitlines()[0] if str(error) else type(error).__name__)[:160]
        raise DataError(
            f"{name} is cut short or damaged, or no zip or tar archive at all ({reason})",
            hint="Copy or download it again, or unpack it yourself and name the folder",
        ) from error


def _read_zip(path: Path, unpacking: _Unpacking) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        unpacking.expect(len(entries), sum(entry.file_size for entry in entries))
        for entry in entries:
            if entry.flag_bits & 1:
                unpacking.refuse("is encrypted", "Unpack it yourself and name the folder")
            name = _zip_name(entry)
            kind = stat.S_IFMT(entry.external_attr >> 16)
            if entry.is_dir():
                unpacking.folder(name)
            elif kind == stat.S_IFLNK:
                unpacking.link(name, archive.read(entry)[:4096].decode("utf-8", "surrogateescape"))
            elif kind not in (0, stat.S_IFREG):
                unpacking.refuse_device(name)
            else:
                with archive.open(entry) as stream:
                    unpacking.file(name, stream)


def _zip_name(entry: zipfile.ZipInfo) -> str:
    """An entry's name with `/`; where its encoding is not given, UTF-8 is tried before the old code page."""
    name = entry.filename.replace("\\", "/")
    if not entry.flag_bits & 0x800 and not name.isascii():
        with contextlib.suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return name


def _decompressed(stream: IO[bytes], head: bytes) -> IO[bytes]:
    openers: tuple[tuple[bytes, Callable[..., Any]], ...] = (
        (b"\x1f\x8b", gzip.GzipFile),
        (b"BZh", bz2.BZ2File),
        (b"\xfd7zXZ\0", lzma.LZMAFile),
    )
    for magic, opener in openers:
        if head.startswith(magic):
            return cast("IO[bytes]", opener(fileobj=stream) if opener is gzip.GzipFile else opener(stream))
    return stream


class _Watched(io.RawIOBase):
    """A tar's bytes, as `tarfile` reads them: no header may ask for much, and how it ended can be seen afterwards."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.last = b""

    def read(self, count: int = -1) -> bytes:
        if not 0 <= count <= max(MAX_HEADER_BYTES, _CHUNK):
            raise tarfile.ReadError("a header of absurd size")
        self.last = self._stream.read(count)
        return self.last

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()


def _read_tar(stream: IO[bytes], unpacking: _Unpacking) -> None:
    watched = _Watched(stream)
    with tarfile.TarFile(fileobj=cast("Any", watched), mode="r", errors="surrogateescape") as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # it would keep every header
            if member.isdir():
                unpacking.folder(member.name)
            elif member.issym():
                unpacking.link(member.name, member.linkname)
            elif member.islnk():
                unpacking.copy(member.name, member.linkname)
            elif not member.isfile():
                unpacking.refuse_device(member.name)
            elif (content := archive.extractfile(member)) is not None:
                unpacking.file(member.name, content)
        # tarfile takes a broken header for the end; the true end is a block of zeros, and what follows has a checksum.
        if len(watched.last) < _BLOCK or watched.last.strip(b"\0"):
            raise tarfile.ReadError("it ends without an end mark")
        stream.read(_CHUNK)


class _Unpacking:
    """The writing side: every name, link and byte of an archive comes past here.

    Args:
        archive: Its name, for messages.
        packed_bytes: Its size.
        root: Where to write.
        advance: Called with the number of files so far.
    """

    def __init__(self, archive: str, packed_bytes: int, root: Path, advance: Advance) -> None:
        self.ignored: list[list[str]] = []
        self._archive, self._packed, self._advance = archive, packed_bytes, advance
        self._root = os.path.realpath(root)
        self._files = self._bytes = 0
        self._written: set[str] = set()
        self._links: dict[str, str] = {}

    def expect(self, files: int, size: int) -> None:
        """Judge what the archive says of itself, before anything is written."""
        self._check(files, size)
        free = shutil.disk_usage(self._root).free
        if size > free:
            raise ResourceError(
                f"{self._archive} unpacks to {size / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free in {self._root}",
                hint="Free some space, or name another place with TRANSFERAPP_CACHE",
            )

    def folder(self, name: str) -> None:
        if (target := self._target(name)) is not None:
            self._make(target)

    def file(self, name: str, content: IO[bytes]) -> None:
        target = self._target(name)
        self._count()
        if target is None:  # litter, but to be read past
            while chunk := content.read(_CHUNK):
                self._grow(len(chunk))
            return
        self._make(os.path.dirname(target))
        self._links.pop(target, None)
        with self._opened(target, name) as stream:
            while chunk := content.read(_CHUNK):
                self._grow(len(chunk))
                with disk_errors(Path(target)):
                    stream.write(chunk)
        self._written.add(target)

    def copy(self, name: str, of: str) -> None:
        """A hard link: the same file again."""
        target, original = self._target(name), self._target(of)
        if target is None or original is None:
            return
        if original not in self._written:
            self.refuse(f"has a link, {printable(name)}, to what is not in it", "Pack it again without links")
        with open(original, "rb") as content:
            self.file(name, content)

    def link(self, name: str, to: str) -> None:
        """A symbolic link; it is made at the end, so that nothing is ever written through one."""
        self._count()
        if (target := self._target(name)) is None:
            return
        aim = os.path.normpath(os.path.join(os.path.dirname(target), to))
        if os.path.isabs(to) or "\0" in to or not self._inside(aim):
            self.refuse(f"has a link that leads out of it, {printable(name)}", "Pack it again without links")
        self._links[target] = to

    def finish(self) -> None:
        """Make the links, and judge where they really lead."""
        for target, to in self._links.items():
            self._make(os.path.dirname(target))
            try:
                os.symlink(to, target)
            except FileExistsError:
                continue
            except OSError as error:  # a system without links
                name = printable(os.path.relpath(target, self._root))
                self.ignored.append([name, "link", error.strerror or "cannot be made"])
        for target in self._links:
            if not self._inside(os.path.realpath(target)):
                self.refuse(
                    f"has a link that leads out of it, {printable(os.path.relpath(target, self._root))}",
                    "Pack it again without links",
                )

    def refuse(self, what: str, hint: str) -> None:
        raise DataError(f"{self._archive} {what}", hint=hint)

    def refuse_device(self, name: str) -> None:
        self.refuse(f"has something that is neither a file nor a folder: {printable(name)}", "Pack it again without it")

    def _inside(self, path: str) -> bool:
        return path == self._root or path.startswith(self._root + os.sep)

    def _target(self, name: str) -> str | None:
        """Where an entry goes; None for litter. Refuses what would go anywhere else."""
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if name.startswith("/") or ".." in parts or "\0" in name or (parts and re.fullmatch("[A-Za-z]:", parts[0])):
            self.refuse(
                f"has an entry that would be written outside of it, {printable(name)}",
                "Do not trust this archive; pack the images again if they are yours",
            )
        if any(len(os.fsencode(part)) > _MAX_NAME for part in parts):
            self.refuse(f"has a name of more than {_MAX_NAME} bytes, {printable(name)[:80]}...", "Shorten it")
        if any(is_litter(part) for part in parts):
            return None
        return os.path.join(self._root, *parts)

    def _make(self, folder: str) -> None:
        try:
            os.makedirs(folder, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            name = printable(os.path.relpath(folder, self._root))
            raise DataError(f"{self._archive} has a file and a folder of one name, {name}") from error
        except OSError as error:
            with disk_errors(Path(folder)):
                raise error

    def _opened(self, target: str, name: str) -> IO[bytes]:
        """The file to write. What comes twice is replaced; what the disk takes for the same name is listed."""
        try:
            return open(target, "wb" if target in self._written else "xb")
        except (FileExistsError, IsADirectoryError) as error:
            if os.path.isdir(target):
                what = f"{self._archive} has a file and a folder of one name, {printable(name)}"
                raise DataError(what) from error
            reason = "differs from another name by case alone, which this disk cannot tell"
            self.ignored.append([printable(name), "case_clash", reason])
            return open(os.devnull, "wb")
        except OSError as error:
            with disk_errors(Path(target)):
                raise error

    def _count(self) -> None:
        self._files += 1
        self._advance(self._files)
        self._check(self._files, self._bytes)

    def _grow(self, size: int) -> None:
        self._bytes += size
        self._check(self._files, self._bytes)

    def _check(self, files: int, size: int) -> None:
        if files > MAX_FILES:
            self.refuse(f"has more than {MAX_FILES:,} files", "Unpack it yourself and name the folder")
        absurd = size > RATIO_COUNTS_FROM and size > MAX_RATIO * self._packed
        if absurd or size > MAX_UNPACKED_BYTES:
            raise DataError(
                f"{self._archive} unpacks to more than images could have been packed from",
                expected=f"at most {MAX_RATIO} times its size and {MAX_UNPACKED_BYTES / 1e9:,.0f} GB",
                got=f"{size:,} bytes from {self._packed:,}",
                hint="If it is no trap, unpack it yourself and name the folder",
            )
