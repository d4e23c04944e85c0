"""Zip and tar archives, unpacked once into the cache and read like a folder from then on.

An archive may come from anyone. Names that lead out of it are refused, no link is ever created on the disk, and limits stop
archives that unpack to absurd sizes. `tarfile`'s `data` filter is not used: it creates links and resolves them on the disk, and
was escaped from that way (CVE-2025-4517). The cache finds an unpacked archive by its content, whatever its name.
"""

from __future__ import annotations

import bz2
import codecs
import contextlib
import gzip
import io
import lzma
import os
import posixpath
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from transferapp.data.dataset import Ignored
from transferapp.data.folder import class_folders
from transferapp.data.names import TABLE_SUFFIXES, is_image, is_litter, printable, suffix_of
from transferapp.data.text_encodings import LEGACY_ZIP, WORD_ENDS, describe_guess, guess_encoding
from transferapp.errors import DataError, ResourceError, TransferAppError
from transferapp.system.cache import cached_folder
from transferapp.system.progress import Advance, Progress
from transferapp.system.storage import disk_errors, sha256_file

MAX_FILES = 2_000_000
"""Files in an archive: ImageNet has 1.3 million."""

MAX_UNPACKED_BYTES = 500_000_000_000
"""Bytes that an archive may unpack to: three times ImageNet."""

MAX_RATIO = 200
"""Largest ratio of unpacked to packed bytes. Images hardly shrink; drawings as uncompressed TIFF may do so fifty times."""

RATIO_COUNTS_FROM = 100_000_000
"""Unpacked bytes from which `MAX_RATIO` applies."""

MAX_HEADER_BYTES = 1 << 24
"""Bytes that a tar header may ask for at once; long names take some hundreds."""

ARCHIVE_SUFFIXES = tuple(".zip .tar .tgz .tbz .tbz2 .txz .tar.gz .tar.bz2 .tar.xz".split())  # noqa: SIM905

_REVISION = 4
"""Raise this when what is unpacked changes."""

_CHUNK = 1 << 20
_BLOCK = 512
_MAX_NAME = 255
_MAX_LINK = 4096
_MAX_HOPS = 40
"""Symbolic links in a row that are followed to a file; as many as Linux follows."""

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
"""Errors that the standard library's readers raise for damaged archives; gzip raises OSError."""

_COMPRESSIONS: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
_UNSUPPORTED = {
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive",
    b"Rar!": "a RAR archive",
    b"\x28\xb5\x2f\xfd": "compressed with Zstandard",
}


class Unpacked(NamedTuple):
    """An unpacked archive: the folder with its files, and what was left out."""

    folder: Path
    ignored: tuple[Ignored, ...]


class _Entry(NamedTuple):
    """One member of an archive.

    Attributes:
        name: Its path in the archive, with `/`.
        kind: One of `file`, `folder`, `hard link`, `symlink` and `other`, which are devices and pipes.
        content: The bytes of a file, to be read before the next entry is taken.
        link: For links, the path in the archive that it points to.
    """

    name: str
    kind: str
    content: IO[bytes] | None = None
    link: str = ""


class _RefusedError(Exception):
    """An archive that is not unpacked: what it is or has, to follow its name in a sentence, and a hint."""


def is_archive(path: str) -> bool:
    """Return whether a file is a zip or tar archive, by its name or its content."""
    if path.lower().endswith(ARCHIVE_SUFFIXES):
        return True
    try:
        with open(path, "rb") as stream:
            head = stream.read(_BLOCK)
    except OSError:
        return False
    return head.startswith((b"PK\x03\x04", *_UNSUPPORTED)) or head[257:262] == b"ustar"


def unpack(path: Path, progress: Progress, encoding: str = "") -> Unpacked:
    """Unpack an archive into the cache, or find it there.

    Args:
        path: A zip file, or a tar file, which may be compressed with gzip, bzip2 or xz.
        progress: Receives progress updates, and a note if the encoding of names is a guess.
        encoding: Encoding of the names in a zip that does not mark them as UTF-8; empty to detect it.

    Returns:
        The unpacked archive. If everything lies in one folder, that folder.

    Raises:
        DataError: The archive is damaged, encrypted, hostile, or in a format that is not read.
        ResourceError: The disk is full.
    """
    name = printable(path.name)
    try:
        with progress.task(f"checking {name}", 0):
            content = sha256_file(path)
    except OSError as error:
        raise DataError(f"{printable(str(path))} cannot be read ({error.strerror or error})") from error

    def write(folder: Path) -> dict[str, Any]:
        with progress.task(f"unpacking {name}", 0) as advance:
            unpacking = _Unpacking(name, path.stat().st_size, folder, advance)
            guessed = _read(path, name, unpacking, encoding)
            return {"ignored": unpacking.ignored, "guessed": guessed}

    kept = cached_folder(f"archive-{_REVISION}-{content[:32]}{encoding and '-' + codecs.lookup(encoding).name}", write)
    if kept.note["guessed"]:
        progress.note(describe_guess(name, kept.note["guessed"]))
    return Unpacked(_step_in(kept.folder), tuple(Ignored(*item) for item in kept.note["ignored"]))


def _step_in(folder: Path) -> Path:
    """Return the folder, or the one in it that holds all images and tables; a README may lie beside it."""
    while True:
        inner = [child for child in folder.iterdir() if not is_litter(child.name)]
        if any(
            child.is_file() and (suffix_of(child.name) in TABLE_SUFFIXES or is_image(str(child))) for child in inner
        ):
            return folder
        holding = class_folders(str(folder), 2) or [child.name for child in inner if child.is_dir()]
        if len(holding) != 1:
            return folder
        below = folder / holding[0]
        if not any(child.is_dir() or suffix_of(child.name) in TABLE_SUFFIXES for child in below.iterdir()):
            return folder
        folder = below


def _read(path: Path, name: str, unpacking: _Unpacking, encoding: str) -> str:
    """Unpack an archive, and return the encoding of its names if it is a guess."""
    guessed = ""
    try:
        with path.open("rb") as stream:
            head = stream.read(_BLOCK)
            for magic, looks_like in _UNSUPPORTED.items():
                if head.startswith(magic):
                    raise DataError(f"{name} cannot be unpacked", expected="a zip or tar archive", got=looks_like)
            stream.seek(0)
            if head.startswith(b"PK") or zipfile.is_zipfile(path):
                with zipfile.ZipFile(stream) as archive:
                    infos = archive.infolist()
                    unpacking.expect(len(infos), sum(info.file_size for info in infos))
                    guessed = "" if encoding else _guessed_encoding(infos)
                    unpacking.add(_zip_entry(archive, info, encoding or guessed or "utf-8") for info in infos)
            else:
                opener = next((_COMPRESSIONS[magic] for magic in _COMPRESSIONS if head.startswith(magic)), None)
                unpacking.add(_tar_entries(opener(stream) if opener else stream))
        return guessed
    except _RefusedError as error:
        what, hint = error.args
        raise DataError(f"{name} {what}", hint=hint) from error
    except TransferAppError:
        raise
    except _DAMAGE as error:
        reason = printable(str(error).splitlines()[0] if str(error) else type(error).__name__)[:160]
        raise DataError(
            f"{name} is cut short or damaged, or no zip or tar archive at all ({reason})",
            hint="Copy or download it again, or unpack it yourself and name the folder",
        ) from error


def _unmarked(info: zipfile.ZipInfo) -> bytes:
    """Return the bytes of a name that is not marked as UTF-8, which `zipfile` takes for code page 437; otherwise nothing."""
    with contextlib.suppress(UnicodeError):  # some versions of Python replace the name by one in an extra field
        return b"" if info.flag_bits & 0x800 else info.filename.encode("cp437")
    return b""


def _guessed_encoding(infos: Sequence[zipfile.ZipInfo]) -> str:
    """Return the likeliest encoding of the names; empty if they are ASCII or UTF-8, whose mark may be missing by mistake."""
    names = [name for name in map(_unmarked, infos) if not name.isascii()]
    try:
        for name in names:
            name.decode("utf-8")
    except UnicodeError:
        return guess_encoding((word for name in names for word in WORD_ENDS.split(name)), LEGACY_ZIP)[0]
    return ""


def _zip_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo, encoding: str) -> _Entry:
    if info.flag_bits & 1:
        raise _RefusedError("is encrypted", "Unpack it yourself and name the folder")
    name, raw = info.filename, _unmarked(info)
    if not raw.isascii():
        try:
            name = raw.decode(encoding)
        except UnicodeError as error:
            hint = "Leave --encoding out to have it detected"
            raise _RefusedError(
                f"has names that are not valid in {encoding}, such as {printable(name)}", hint
            ) from error
    name = name.replace("\\", "/")  # not before: it is a part of some characters
    mode = stat.S_IFMT(info.external_attr >> 16)
    if info.is_dir():
        return _Entry(name, "folder")
    if mode == stat.S_IFLNK:
        with archive.open(info) as content:
            link = content.read(_MAX_LINK).decode("utf-8", "replace")
        return _Entry(name, "symlink", link=_from_root(name, link))
    return _Entry(name, "file", archive.open(info)) if mode in (0, stat.S_IFREG) else _Entry(name, "other")


def _from_root(name: str, link: str) -> str:
    """Return where a symbolic link points to, as a path in the archive."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), link))


class _Watched(io.RawIOBase):
    """The bytes of a tar, as `tarfile` reads them: limits what a header may ask for, and keeps the last block."""

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


def _tar_entries(stream: IO[bytes]) -> Iterator[_Entry]:
    watched = _Watched(stream)
    with tarfile.TarFile(fileobj=cast("Any", watched), mode="r", errors="surrogateescape") as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # it would keep every header
            if member.issym():
                yield _Entry(member.name, "symlink", link=_from_root(member.name, member.linkname))
            elif member.islnk():
                yield _Entry(member.name, "hard link", link=member.linkname)
            elif member.isfile():
                yield _Entry(member.name, "file", archive.extractfile(member))
            else:
                yield _Entry(member.name, "folder" if member.isdir() else "other")
        # tarfile takes a broken header for the end; the true end is a block of zeros, and what follows has a checksum.
        if len(watched.last) < _BLOCK or watched.last.strip(b"\0"):
            raise tarfile.ReadError("it ends without an end mark")
        stream.read(_CHUNK)


class _Unpacking:
    """Writes the entries of an archive into an empty folder, within the limits.

    Only folders and regular files are written, so nothing that an archive names can lead anywhere else. A link becomes a
    copy of the file that it points to.

    Args:
        archive: Name of the archive, for messages.
        packed_bytes: Its size.
        root: The folder to write into.
        advance: Called with the number of files so far.
    """

    def __init__(self, archive: str, packed_bytes: int, root: Path, advance: Advance) -> None:
        self.ignored: list[list[str]] = []
        self._archive, self._packed, self._advance = archive, packed_bytes, advance
        self._root = str(root)
        self._files = self._bytes = 0
        self._written: set[str] = set()

    def expect(self, files: int, size: int) -> None:
        """Check what the archive says of itself, before anything is written."""
        self._check(files, size)
        free = shutil.disk_usage(self._root).free
        if size > free:
            raise ResourceError(
                f"{self._archive} unpacks to {size / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free in {self._root}",
                hint="Free some space, or name another place with TRANSFERAPP_CACHE",
            )

    def add(self, entries: Iterable[_Entry]) -> None:
        """Write all entries, and copies in the place of links."""
        links: dict[str, str] = {}
        for name, kind, content, link in entries:
            target = self._target(name)
            if kind == "other":
                what = f"has something that is neither a file nor a folder: {printable(name)}"
                raise _RefusedError(what, "Pack it again without it")
            if kind == "folder":
                if target is not None:
                    with _conflicts(target, name):
                        os.makedirs(target, exist_ok=True)
                continue
            self._count()
            if kind == "file":
                self._write(target, name, content)
            elif kind == "hard link":
                original = self._target(link)
                if target is None or original is None:  # litter
                    continue
                if original not in self._written:
                    what = f"has a link, {printable(name)}, to what is not in it"
                    raise _RefusedError(what, "Pack it again without links")
                self._copy(original, target, name)
            elif _leads_out(link):
                what = f"has a link that leads out of it, {printable(name)}"
                raise _RefusedError(what, "Pack it again without links")
            elif target is not None:  # may point to a later file
                links[target] = os.path.join(self._root, *link.split("/"))
        for target, aim in links.items():
            original = aim
            for _ in range(_MAX_HOPS):
                original = links.get(original, original)
            name = os.path.relpath(target, self._root)
            if original not in self._written:
                reason = "points to no file of the archive; links to folders are not followed"
                self.ignored.append([printable(name), "link", reason])
            elif target not in self._written:  # otherwise a file has the same name
                self._copy(original, target, name)

    def _copy(self, original: str, target: str | None, name: str) -> None:
        with open(original, "rb") as content:
            self._write(target, name, content)

    def _write(self, target: str | None, name: str, content: IO[bytes] | None) -> None:
        """Write a file and close its source. Litter, which has no target, is read too, so that it counts."""
        assert content is not None
        with content, self._opened(target, name) as stream:
            while chunk := content.read(_CHUNK):
                self._grow(len(chunk))
                with disk_errors(Path(target or self._root)):
                    stream.write(chunk)
        self._written.add(target or "")

    def _target(self, name: str) -> str | None:
        """Return the path that an entry is written to, None for litter; refuse names that lead out of the archive."""
        if _leads_out(name):
            raise _RefusedError(
                f"has an entry that would be written outside of it, {printable(name)}",
                "Do not trust this archive; pack the images again if they are yours",
            )
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if any(len(os.fsencode(part)) > _MAX_NAME for part in parts):
            raise _RefusedError(f"has a name of more than {_MAX_NAME} bytes, {printable(name)[:80]}...", "Shorten it")
        if any(is_litter(part) for part in parts):
            return None
        return os.path.join(self._root, *parts)

    def _opened(self, target: str | None, name: str) -> IO[bytes]:
        """Open a file to write. What comes twice is replaced; what the disk takes for the same name is left out."""
        if target is None:
            return open(os.devnull, "wb")
        with _conflicts(target, name):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            try:
                return open(target, "wb" if target in self._written else "xb")
            except FileExistsError:
                if os.path.isdir(target):
                    raise
        reason = "differs from another name by case alone, which this disk cannot tell"
        self.ignored.append([printable(name), "case_clash", reason])
        return open(os.devnull, "wb")

    def _count(self) -> None:
        self._files += 1
        self._advance(self._files)
        self._check(self._files, self._bytes)

    def _grow(self, size: int) -> None:
        self._bytes += size
        self._check(self._files, self._bytes)

    def _check(self, files: int, size: int) -> None:
        if files > MAX_FILES:
            raise _RefusedError(f"has more than {MAX_FILES:,} files", "Unpack it yourself and name the folder")
        absurd = size > RATIO_COUNTS_FROM and size > MAX_RATIO * self._packed
        if absurd or size > MAX_UNPACKED_BYTES:
            raise DataError(
                f"{self._archive} unpacks to more than images could have been packed from",
                expected=f"at most {MAX_RATIO} times its size and {MAX_UNPACKED_BYTES / 1e9:,.0f} GB",
                got=f"{size:,} bytes from {self._packed:,}",
                hint="If it is no trap, unpack it yourself and name the folder",
            )


@contextlib.contextmanager
def _conflicts(target: str, name: str) -> Iterator[None]:
    """Turn the errors of making files and folders into those that name the cause."""
    with disk_errors(Path(target)):
        try:
            yield
        except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
            what = f"has a file and a folder of one name, {printable(name)}"
            raise _RefusedError(what, "Rename one of them") from error


def _leads_out(name: str) -> bool:
    """Return whether a path in an archive leads out of it, on any system."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return name.startswith("/") or ".." in parts or "\0" in name or bool(parts and re.fullmatch("[A-Za-z]:", parts[0]))
