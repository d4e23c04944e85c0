"""Parquet files that hold the images themselves, as Hugging Face writes them, unpacked into files in the cache and a table."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transferapp.data.names import is_generic, printable
from transferapp.data.table_files import cell_text
from transferapp.errors import DataError
from transferapp.system.cache import cached_folder
from transferapp.system.progress import Progress
from transferapp.system.storage import disk_errors, sha256_file

_REVISION = 1
"""Raise this when what is written changes."""

_BATCH = 64
_FOLDER = 1000
"""Images in one folder."""

_MAX_TEXT = 1000
"""Characters of a cell that are kept; captions may be long."""


def image_column(path: Path) -> str | None:
    """Return the column of a Parquet file with encoded images: `{bytes, path}`, or bytes in a column such as `image`.

    None if there is no such column, or if the file cannot be read, which `open_table` reports.
    """
    import pyarrow
    from pyarrow import parquet, types

    try:
        with parquet.ParquetFile(path) as file:
            fields = list(file.schema_arrow)
    except (pyarrow.ArrowException, ValueError, OSError):
        return None

    def is_bytes(kind: Any) -> bool:
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    nested = [field.name for field in fields if types.is_struct(field.type) and _has_bytes(field.type, is_bytes)]
    plain = [field.name for field in fields if is_bytes(field.type)]
    named = [name for name in plain if is_generic(name) or "image" in name.lower() or name.lower() == "bytes"]
    return next(iter([*nested, *named]), None)


def _has_bytes(kind: Any, is_bytes: Any) -> bool:
    return any(
        kind.field(index).name == "bytes" and is_bytes(kind.field(index).type) for index in range(kind.num_fields)
    )


def unpack_images(path: Path, column: str, name: str, progress: Progress) -> Path:
    """Write the images of a Parquet file into the cache, or find them there.

    Args:
        path: The file.
        column: Its column of images.
        name: Name of the file in messages.
        progress: Receives progress updates.

    Returns:
        A CSV table of the files with the other columns. Numbers of classes are replaced by their names if the file has them.

    Raises:
        DataError: The file is damaged.
        ResourceError: The disk is full.
    """

    def write(folder: Path) -> None:
        import pyarrow

        try:
            with progress.task(f"unpacking the images of {printable(path.name)}", 0) as advance:
                _write(path, column, folder, advance)
        except (pyarrow.ArrowException, ValueError) as error:
            reason = printable(str(error).splitlines()[0] if str(error) else type(error).__name__)[:160]
            raise DataError(f"{name} is not a readable Parquet file ({reason})") from error

    with progress.task(f"checking {printable(path.name)}", 0):
        content = sha256_file(path)
    return cached_folder(f"parquet-{_REVISION}-{content[:32]}", write).folder / "labels.csv"


def _write(path: Path, column: str, folder: Path, advance: Any) -> None:
    from pyarrow import parquet, types

    with parquet.ParquetFile(path) as file, disk_errors(folder):
        schema = file.schema_arrow
        others = [
            field.name
            for field in schema
            if not (types.is_nested(field.type) or types.is_binary(field.type) or types.is_large_binary(field.type))
            and field.name.lower() != "path"
        ]
        classes = _class_names(schema.metadata or {})
        numbers = itertools.count()
        with (folder / "labels.csv").open("w", encoding="utf-8", errors="backslashreplace", newline="") as stream:
            table = csv.writer(stream)
            table.writerow(["path", *others])
            for batch in file.iter_batches(batch_size=_BATCH, columns=[column, *others]):
                read = batch.to_pydict()
                for image, *cells in zip(read[column], *(read[other] for other in others), strict=True):
                    number = next(numbers)
                    data = image.get("bytes") if isinstance(image, dict) else image
                    texts = [_named(cell, classes.get(key, ())) for key, cell in zip(others, cells, strict=True)]
                    table.writerow([_write_image(folder, number, data) if data else "", *texts])
                    if number % _FOLDER == 0:
                        advance(number)


def _write_image(folder: Path, number: int, data: bytes) -> str:
    """Write an image and return its path below the folder."""
    suffix = ".png" if data.startswith(b"\x89PNG") else ".jpg" if data.startswith(b"\xff\xd8") else ".img"
    inner = f"images/{number // _FOLDER:06}/{number:09}{suffix}"
    target = folder / inner
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
    return inner


def _named(cell: Any, names: Sequence[str]) -> str:
    if names and isinstance(cell, int):
        return names[cell] if 0 <= cell < len(names) else ""
    return cell_text(cell)[:_MAX_TEXT]


def _class_names(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """Return the names of classes by column, as Hugging Face stores them in the schema."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return {
            key: [str(name) for name in feature["names"]]
            for key, feature in features.items()
            if isinstance(feature, dict)
            and feature.get("_type") == "ClassLabel"
            and isinstance(feature.get("names"), list)
        }
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}
