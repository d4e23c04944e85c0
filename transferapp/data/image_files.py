"""Image files without labels: what files, folders, tables and archives on a command line stand for, one after the other."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from transferapp.data.names import TABLE_SUFFIXES, UNREAD_SUFFIXES, is_folder, is_image, is_litter, printable, suffix_of
from transferapp.data.options import SourceOptions
from transferapp.errors import DataError
from transferapp.system.progress import Progress, Silent

_REASONS = {
    "no_path": "names no file",
    "missing_file": "is not there",
}


class ImageFile(NamedTuple):
    """An image file to classify.

    Attributes:
        name: The path as the user gave it, or below a folder or an archive that the user gave, or as a table spells it.
        location: The file, or its address; empty where there is none.
        error: Code of the reason that it cannot be read, known before it is opened; otherwise empty.
        reason: That reason, to follow the name in a sentence.
        unpacked: Whether the file is in the cache, because it came in an archive or inside a table.
    """

    name: str
    location: str
    error: str = ""
    reason: str = ""
    unpacked: bool = False


def list_images(
    paths: Sequence[Path | str],
    options: SourceOptions | None = None,
    *,
    leave_out: Path | None = None,
    progress: Progress | None = None,
) -> Iterator[ImageFile]:
    """Check the paths, and return their images lazily, in an order that depends on the names alone.

    A file stands for itself, a folder for all images in it and below it, an archive for those in it, and a table for those in
    its column of paths. Links to folders are followed unless they lead back. Memory is bounded by the names in the folders on
    the way to the present file, and for tables by those in the folders that they name.

    Args:
        paths: Files, folders, tables (.csv, .tsv, .jsonl, .parquet) and zip or tar archives; as strings, addresses of images
            or of folders, whose names are listed at once.
        options: Column of paths, and encoding.
        leave_out: A folder that is not walked when it is met below one of the paths.
        progress: Receives progress updates.

    Raises:
        DataError: A folder or an archive has no image, or a table or an archive cannot be read.
        UsageError: A column that was named is missing.
        ResourceError: The disk is full.
    """
    options, progress = options or SourceOptions(), progress or Silent()
    skipped = os.path.realpath(leave_out) if leave_out else None
    return itertools.chain.from_iterable([_images(path, options, skipped, progress) for path in paths])


def _images(path: Path | str, options: SourceOptions, skipped: str | None, progress: Progress) -> Iterator[ImageFile]:
    if isinstance(path, str):
        from transferapp.data.remote import list_addresses

        return (ImageFile(address, address) for address in list_addresses(path))
    if path.is_dir():
        _require(path, _walk(os.fspath(path), skipped))
        return _walk(os.fspath(path), skipped)
    if path.is_file() and suffix_of(path.name) in TABLE_SUFFIXES:
        return _table(path, options, progress)
    if path.is_file() and suffix_of(path.name) not in UNREAD_SUFFIXES and not is_image(os.fspath(path)):
        from transferapp.data.archive import is_archive

        if is_archive(os.fspath(path)):
            return _archive(path, options, progress)
    return iter([ImageFile(str(path), os.fspath(path))])


def _require(path: Path, images: Iterator[ImageFile]) -> None:
    if next(images, None) is None:
        raise DataError(
            f"{printable(str(path))} has no images",
            expected="an image, a folder or an archive with images in it, or a table of their paths",
        )


def _walk(root: str, skipped: str | None) -> Iterator[ImageFile]:
    """Yield the images below a folder; each folder's entries in the order of their names, sub-folders among them."""
    real = os.path.realpath(root)
    walked = [(real, _entries(root, real))]
    while walked:
        found = next(walked[-1][1], None)
        if found is None:
            walked.pop()
        elif isinstance(found, ImageFile):
            yield found
        else:
            folder, real = found
            if real != skipped and all(real != above for above, _ in walked):  # a link back up would never end
                walked.append((real, _entries(folder, real)))


def _entries(folder: str, real: str) -> Iterator[ImageFile | tuple[str, str]]:
    """Yield the images in a folder, and its sub-folders with their real paths."""
    names, folders, links = [], set(), set()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_litter(entry.name):
                    continue
                names.append(entry.name)
                if is_folder(entry):
                    folders.add(entry.name)
                    if entry.is_symlink():
                        links.add(entry.name)
    except OSError as error:
        reason = f"cannot be read ({error.strerror or error})"
        yield ImageFile(folder, folder, "unreadable", reason)
        return
    names.sort()
    for name in names:
        path = os.path.join(folder, name)
        if name in folders:
            yield path, os.path.realpath(path) if name in links else os.path.join(real, name)
        elif is_image(path) or suffix_of(name) in UNREAD_SUFFIXES:
            yield ImageFile(path, path)


def _archive(path: Path, options: SourceOptions, progress: Progress) -> Iterator[ImageFile]:
    from transferapp.data.archive import unpack

    unpacked = unpack(path, progress, options.encoding)
    root = os.fspath(unpacked.folder)
    _require(path, _walk(root, None))
    inside = (
        image._replace(name=f"{path}/{os.path.relpath(image.location, root).replace(os.sep, '/')}", unpacked=True)
        for image in _walk(root, None)
    )
    left_out = (ImageFile(f"{path}/{item.name}", "", item.code, item.reason) for item in unpacked.ignored)
    return itertools.chain(inside, left_out)


def _table(path: Path, options: SourceOptions, progress: Progress) -> Iterator[ImageFile]:
    from transferapp.data.parquet_images import image_column, unpack_images
    from transferapp.data.table import image_paths

    table, prefix = path, ""
    if suffix_of(path.name) == ".parquet" and (column := image_column(path)) is not None:
        table, prefix = unpack_images(path, column, str(path), progress), f"{path}/"
        options = SourceOptions()
    rows = image_paths(table, options, origin=str(path), note=progress.note)
    return (
        ImageFile(
            f"{prefix}{row.path}" if row.path else f"{path}, row {row.line}",
            row.location,
            row.error,
            _REASONS.get(row.error, ""),
            unpacked=bool(prefix),
        )
        for row in rows
    )
