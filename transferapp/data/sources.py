"""Data sources: `open_source` reads a folder, a table, an archive of these, or a dataset of tensorflow-datasets.

`docs/data.md` has an example of each.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from transferapp.data.archive import ARCHIVE_SUFFIXES, is_archive, unpack
from transferapp.data.dataset import SPLITS, Dataset, Ignored, Record, Split
from transferapp.data.folder import class_folders, read_folder
from transferapp.data.names import (
    TABLE_SUFFIXES,
    holds_images_only,
    is_litter,
    natural_order,
    printable,
    split_named,
    suffix_of,
    whole_numbers,
)
from transferapp.data.options import TABLE_OPTIONS, Source, SourceOptions
from transferapp.data.parquet_images import image_column, unpack_images
from transferapp.data.table import read_table
from transferapp.errors import DataError
from transferapp.system.progress import Progress, Silent

EXPECTED = (
    "a folder with one sub-folder of images a class, a .csv, .tsv, .jsonl or .parquet file, a zip "
    "or tar archive, or tfds:NAME"
)

_CONVERTIBLE = {
    ".xlsx": "Save it as CSV UTF-8",
    ".xls": "Save it as CSV UTF-8",
    ".ods": "Save it as CSV UTF-8",
    ".txt": "If it is a table, give it a name that ends in .csv or .tsv",
    ".json": "Write it as a CSV with the columns path and label",
    ".tfrecord": "Name a dataset of tensorflow-datasets, as in tfds:NAME, with --data-dir",
}
"""Hints for common kinds of files that are not read, by suffix."""


_MANY_VALUES = 20
"""Different numbers from which labels may be measurements; grades and years are mostly fewer."""
_FEW_IMAGES = 10
"""Images for each number below which fractions are measurements."""


def open_source(
    data: str,
    min_classes: int = 2,
    options: SourceOptions | None = None,
    *,
    progress: Progress | None = None,
) -> Dataset:
    """Read the data that `--data` names.

    Args:
        data: A folder with one sub-folder a class, or with `train/`, `val/`, `test/` folders of that form; a `.csv`, `.tsv`
            or `.parquet` file of paths and labels, or a folder with one such table beside its images; a zip or tar archive
            of any of these; or `tfds:NAME[/CONFIG][:VERSION]`.
        min_classes: Smallest number of classes: two for training, one for evaluation.
        options: Columns and places that the user named.
        progress: Receives progress updates.

    Returns:
        The dataset. Nothing has been decoded yet: see `transferapp.data.audit`.

    Raises:
        DataError: The data are missing, or are not images with classes.
        UsageError: An option does not apply to this kind of source, or names a missing column.
        ResourceError: The disk is full.
    """
    dataset = _open(data, min_classes, options or SourceOptions(), progress or Silent())
    if min_classes > 1:
        _refuse_measurements(dataset)
    return dataset


def _refuse_measurements(dataset: Dataset) -> None:
    """Refuse labels that are measured numbers, such as prices, instead of classes."""
    names, images = dataset.class_names, len(dataset)
    if len(names) < _MANY_VALUES or not all(map(_is_number, names)):
        return
    single = sum(count == 1 for count in dataset.counts())
    fractions = not whole_numbers(names)
    if (fractions and images < _FEW_IMAGES * len(names)) or 2 * single > len(names):
        raise DataError(
            f"The labels of {dataset.origin} look like measured numbers, not like classes",
            expected="a few classes with several images each",
            got=f"{len(names):,} different numbers in {images:,} images, such as {names[len(names) // 2]}",
            hint="Write ranges of the number, such as low and high, in a column of their own; or name another column with "
            "--label-column",
        )


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _open(data: str, min_classes: int, options: SourceOptions, progress: Progress) -> Dataset:
    if data.startswith("tfds:") and not os.path.lexists(data):
        options.refuse((*TABLE_OPTIONS, "encoding"), "datasets of tensorflow-datasets")
        from transferapp.data.tfds import read_tfds

        return read_tfds(data, options.data_dir, min_classes, progress)
    options.refuse(("data_dir",), "files and folders")
    path = Path(data)
    if path.is_dir():
        return _open_place(path, options, min_classes, progress, origin=data)
    if not path.exists():
        raise DataError(f"There is no file or folder {printable(data)}", expected=EXPECTED)
    if not path.is_file():
        raise DataError(f"{printable(data)} is neither a file nor a folder", expected=EXPECTED)
    if suffix_of(path.name) in TABLE_SUFFIXES:
        return _read_table(path, options, min_classes, progress, origin=data)
    if is_archive(data):
        unpacked = unpack(path, progress, options.encoding)
        _refuse_inner_archives(unpacked.folder, data)
        dataset = _open_place(unpacked.folder, options, min_classes, progress, origin=data, foreign=True)
        return dataclasses.replace(dataset, ignored=(*unpacked.ignored, *dataset.ignored))
    hint = _CONVERTIBLE.get(suffix_of(path.name))
    raise DataError(f"{printable(data)} is in a format that is not read", expected=EXPECTED, hint=hint)


def open_sources(sources: Sequence[Source], *, progress: Progress | None = None) -> Dataset:
    """Read several places as one dataset.

    The classes of the first keep their order unless another place adds classes; then all are in natural order. Names of images
    of the other places begin with the place. A file that several places name counts once, as of the first.

    Args:
        sources: The places; the first has two or more classes.
        progress: Receives progress updates.

    Raises:
        DataError, UsageError, ResourceError: As of `open_source`.
    """
    parts = [
        open_source(source.data, 1 if position else 2, source.options, progress=progress)
        for position, source in enumerate(sources)
    ]
    names = parts[0].class_names
    added = {name for part in parts for name in part.class_names} - set(names)
    if added:
        names = tuple(natural_order({*names, *added}))
    number = {name: index for index, name in enumerate(names)}
    records: dict[str, Record] = {}
    ignored: list[Ignored] = []
    for position, part in enumerate(parts):
        prefix = f"{printable(part.origin)}/" if position else ""
        for record in part.records:
            label = number[part.class_names[record.label]]
            placed = dataclasses.replace(record, name=f"{prefix}{record.name}", label=label)
            records.setdefault(os.path.abspath(record.location), placed)  # noqa: PTH100  # there may be a million
        ignored += [dataclasses.replace(item, name=f"{prefix}{item.name}") for item in part.ignored]
    given = tuple(split for split in SPLITS if any(split in part.given_splits for part in parts))
    ordered = tuple(sorted(records.values(), key=lambda record: (record.label, record.location)))
    origin = ", ".join(part.origin for part in parts)
    return Dataset(origin, names, ordered, tuple(ignored), given, tuple(sources))


def _open_place(
    folder: Path, options: SourceOptions, min_classes: int, progress: Progress, *, origin: str, foreign: bool = False
) -> Dataset:
    """Read a folder: by the table beside its images if there is one, otherwise as class folders.

    Args:
        folder: The folder.
        options: Columns that the user named.
        min_classes: Smallest number of classes.
        progress: Receives progress updates.
        origin: Name of the data in messages.
        foreign: Whether the folder comes from an archive; then a table in it may name no file outside.
    """
    tables = _tables(folder)
    if not tables and (inner := _parquet_folder(folder)) is not None:
        return _open_place(inner, options, min_classes, progress, origin=origin, foreign=foreign)
    within = folder if foreign else None
    if parts := _parquet_splits(tables):
        return _read_split_tables(parts, options, min_classes, progress, origin=origin, within=within)
    table = _label_table(folder, tables, options, origin) if tables else None
    if table is not None:
        name = f"{origin} ({printable(table.name)})"
        dataset = _read_table(table, options, min_classes, progress, origin=name, within=within)
        return dataclasses.replace(dataset, origin=origin)
    if parts := _split_tables(folder, options, origin):
        return _read_split_tables(parts, options, min_classes, progress, origin=origin, within=within)
    options.refuse(TABLE_OPTIONS if foreign else (*TABLE_OPTIONS, "encoding"), "class folders")
    with progress.task("looking for images", 0) as advance:
        dataset = read_folder(str(folder), min_classes, origin=origin, progress=advance)
    left = [Ignored(printable(t.name), "table", "is not read: the folders give the classes") for t in tables]
    return dataclasses.replace(dataset, ignored=(*dataset.ignored, *left))


def _read_table(
    table: Path,
    options: SourceOptions,
    min_classes: int,
    progress: Progress,
    *,
    origin: str,
    within: Path | None = None,
) -> Dataset:
    """Read a table; of a Parquet file that holds the images, the table of what is unpacked."""
    if suffix_of(table.name) == ".parquet" and (column := image_column(table)) is not None:
        table, within = unpack_images(table, column, origin, progress), None
        options.refuse(("encoding",), "Parquet files")
        options = dataclasses.replace(options, path_column="")
    with progress.task(f"reading {printable(table.name)}", 0) as advance:
        inside = str(within) if within else None
        return read_table(
            table, options, min_classes, origin=origin, within=inside, progress=advance, note=progress.note
        )


def _refuse_inner_archives(folder: Path, origin: str) -> None:
    """Refuse an archive of archives without images or tables, and name what is in it."""
    if class_folders(str(folder), 1) or _tables(folder):
        return
    files = [file for file in folder.rglob("*") if file.name.lower().endswith(ARCHIVE_SUFFIXES)]
    inner = sorted(str(file.relative_to(folder)) for file in files)
    if inner:
        raise DataError(
            f"{printable(origin)} has archives in it instead of images",
            expected="a zip or tar archive of images",
            got=", ".join(map(printable, inner[:5])),
            hint=f"Unpack it, and name what is in it with --data, such as {printable(inner[0])}",
        )


def _parquet_folder(folder: Path) -> Path | None:
    """Return the only sub-folder with Parquet files, as Hugging Face's `data/`; None where images are beside it."""
    if class_folders(str(folder), 1):  # stops at the first image, where the search for tables would list them all
        return None
    with contextlib.suppress(OSError):
        found = {file.parent for file in folder.glob("*/*.parquet") if not is_litter(file.parent.name)}
        if len(found) == 1:
            return found.pop()
    return None


def _tables(folder: Path) -> list[Path]:
    try:
        names = [entry.name for entry in os.scandir(folder) if not is_litter(entry.name)]
    except OSError as error:
        raise DataError(f"{printable(str(folder))} cannot be read ({error.strerror or error})") from error
    names = [name for name in names if suffix_of(name) in TABLE_SUFFIXES]
    names = [name for name in names if suffix_of(name) != ".jsonl" or name == "metadata.jsonl"]  # others are often logs
    return [folder / name for name in sorted(names) if (folder / name).is_file()]


def _split_tables(folder: Path, options: SourceOptions, origin: str) -> dict[str, Path | None]:
    """Return the table of each split folder, such as `train/metadata.csv`.

    Empty if a folder of images has another name, or if there are no tables.
    """
    names = class_folders(str(folder), 32)
    if not names or not all(split_named(name) for name in names):
        return {}
    found = {name: _tables(folder / name) for name in names}
    parts = {
        name: _label_table(folder / name, tables, options, f"{origin}/{name}") if tables else None
        for name, tables in found.items()
    }
    nested = any(class_folders(str(folder / name), 1) for name, table in parts.items() if table is None)
    return parts if any(parts.values()) and not nested else {}


def _parquet_splits(tables: Sequence[Path]) -> dict[str, Path | None]:
    """Return Parquet files of images by their names if these are of splits, such as `train-00000-of-00001.parquet`."""
    parts: dict[str, Path | None] = {table.stem: table for table in tables}
    if len(parts) < 2 or not all(_split_of(part) for part in parts):
        return {}
    if not all(suffix_of(table.name) == ".parquet" and image_column(table) for table in tables):
        return {}
    return parts


def _split_of(part: str) -> Split | None:
    """Return the split that a folder, or a part of a Parquet dataset, is named after."""
    return split_named(re.sub(r"-[0-9]+-of-[0-9]+$", "", part))


def _read_split_tables(
    parts: Mapping[str, Path | None],
    options: SourceOptions,
    min_classes: int,
    progress: Progress,
    *,
    origin: str,
    within: Path | None,
) -> Dataset:
    """Read a folder that has a table for each split; split folders without one are listed.

    Args:
        parts: Tables by the name of their folder, or of their file.
        options: Columns that the user named.
        min_classes: Smallest number of classes.
        progress: Receives progress updates.
        origin: Name of the data in messages.
        within: A folder that the images must be in, for archives.
    """
    records: list[tuple[Split | None, str, Record]] = []
    ignored: list[Ignored] = []
    for part, table in parts.items():
        if table is None:
            ignored.append(Ignored(printable(part), "no_class", "has neither class folders nor a table of labels"))
            continue
        name = f"{origin} ({printable(part)}, {printable(table.name)})"
        dataset = _read_table(table, options, 0, progress, origin=name, within=within)
        records += [(_split_of(part), dataset.class_names[r.label], _below(part, r)) for r in dataset.records]
        ignored += [dataclasses.replace(item, name=f"{printable(part)}/{item.name}") for item in dataset.ignored]
    names = natural_order({label for _, label, _ in records})
    if len(names) < min_classes:
        found = ", ".join(map(repr, names)) or "none"
        raise DataError(f"{origin} has too few classes", expected="at least two different labels", got=found)
    splits = {split for split, _, _ in records}
    given = tuple(split for split in SPLITS if split in splits) if splits != {"train"} else ()
    number = {label: index for index, label in enumerate(names)}
    placed = [
        dataclasses.replace(record, label=number[label], split=split if given else None)
        for split, label, record in records
    ]
    placed.sort(key=lambda record: (record.label, record.location))
    return Dataset(origin, tuple(names), tuple(placed), tuple(ignored), given)


def _below(part: str, record: Record) -> Record:
    return dataclasses.replace(record, name=f"{printable(part)}/{record.name}")


def _label_table(folder: Path, tables: Sequence[Path], options: SourceOptions, origin: str) -> Path | None:
    """Return the table with the labels of a folder's images; None if its sub-folders are the classes.

    Sub-folders that hold images are classes, unless their names are neutral, such as `images` or `train`.
    """
    named = any(getattr(options, name) for name in TABLE_OPTIONS)
    holding = class_folders(str(folder), 32)
    class_like = [name for name in holding if not holds_images_only(name)]
    parted = any(class_folders(str(folder / name), 1) for name in holding if split_named(name))
    if not named and (len(class_like) > 1 or parted):
        return None
    if len(tables) > 1:
        raise DataError(
            f"{printable(origin)} has several tables: {', '.join(printable(t.name) for t in tables[:5])}",
            expected="one table beside the images, or class folders",
            hint="Name the table itself with --data" + (", after unpacking" if is_archive(origin) else ""),
        )
    return tables[0]
