"""Label fixes from a CSV file that `transferapp doctor` writes and the user fills in."""

from __future__ import annotations

import csv
import dataclasses
import io
import unicodedata
from pathlib import Path

from transferapp.data.dataset import Dataset, Ignored, Record
from transferapp.errors import DataError, UsageError

DROP = "drop"
"""Value of the fix column that leaves an image out."""

FIX_COLUMNS = ("path", "given_label", "suggested_label", "confidence", "fix")
_NEEDED = ("path", "fix")
_HINT = "Write the list with `transferapp doctor`, and fill in the fix column"


def apply_label_fixes(dataset: Dataset, file: Path) -> Dataset:
    """Relabel images and leave images out according to a file.

    Args:
        dataset: Before or after its audit.
        file: A CSV with a header and at least the columns `path`, as in `Record.name`, and `fix`: the name of a class, `drop`
            to leave the image out, or nothing to keep it. Separated by commas, semicolons or tabs.

    Raises:
        DataError: The file cannot be read, or names an unknown image or class.
    """
    fixes = _read(file)
    labels = {name: label for label, name in enumerate(dataset.class_names)}
    if DROP in labels and DROP in fixes.values():
        raise DataError(
            f"{file} says {DROP!r}, which is both the name of a class and the word for leaving an image out",
            hint="Rename the class",
        )
    unknown = sorted(set(fixes) - {record.name for record in dataset.records})
    if unknown:
        raise DataError(
            f"{file} names {len(unknown)} image{'' if len(unknown) == 1 else 's'} that {dataset.origin} does not have: "
            f"{unknown[0]}{', ...' if len(unknown) > 1 else ''}",
            expected="paths below the data folder, as `transferapp doctor` writes them",
            hint="Use the list that was written for this folder",
        )
    kept: list[Record] = []
    dropped: list[Ignored] = []
    for record in dataset.records:
        fix = fixes.get(record.name, "")
        if fix == DROP:
            dropped.append(Ignored(record.name, "dropped", f"left out by {file.name}"))
        elif fix and fix not in labels:
            raise DataError(
                f"{file} gives {record.name} the class {fix!r}, which {dataset.origin} does not have",
                expected=f"{', '.join(dataset.class_names[:20])}{', ...' if len(dataset.class_names) > 20 else ''}, "
                f"or {DROP}",
            )
        else:
            kept.append(dataclasses.replace(record, label=labels[fix]) if fix else record)
    return dataclasses.replace(dataset, records=tuple(kept), ignored=(*dataset.ignored, *dropped))


def check_list_target(file: Path) -> None:
    """Refuse to overwrite a list that someone has filled in, or a file that is not such a list.

    Raises:
        UsageError: The list would be overwritten, or its folder is missing.
    """
    if file.suffix.lower() != ".csv":
        raise UsageError(f"{file} is not a valid name for the list", expected="a name that ends in .csv", got=file.name)
    if not file.parent.is_dir():
        raise UsageError(f"There is no folder {file.parent}", hint="Make it first, or name another place with --out")
    if not file.exists():
        return
    another = "Name another file with --out"
    try:
        fixes = _read(file)
    except DataError as error:
        raise UsageError(f"{file} exists and is not a list of labels, so it is left alone", hint=another) from error
    filled = sum(bool(fix) for fix in fixes.values())
    if filled:
        raise UsageError(
            f"{file} has {filled} fix{'' if filled == 1 else 'es'} filled in, which would be lost", hint=another
        )


def _read(file: Path) -> dict[str, str]:
    """Return the fix of each path in the file."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror or error})", hint=_HINT) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not text in UTF-8", hint="Save it as CSV in UTF-8") from error
    header = text.partition("\n")[0]
    separator = max(",;\t", key=header.count)  # spreadsheets use the separator of their country
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
    except csv.Error as error:
        raise DataError(f"{file} is not valid CSV ({error})", hint=_HINT) from error
    columns = [name.strip().lower() for name in rows[0]] if rows else []
    missing = [name for name in _NEEDED if name not in columns]
    if missing:
        raise DataError(
            f"{file} has no column {missing[0]!r}",
            expected=f"a first line with {' and '.join(_NEEDED)}",
            got=", ".join(columns)[:200] or "an empty file",
            hint=_HINT,
        )
    path_at, fix_at = (columns.index(name) for name in _NEEDED)
    fixes: dict[str, str] = {}
    for number, row in enumerate(rows[1:], start=2):
        if not any(cell.strip() for cell in row):
            continue
        if len(row) <= path_at or not row[path_at]:
            raise DataError(f"{file} names no image in line {number}", expected=f"{len(columns)} cells a line")
        path = row[path_at]
        fix = unicodedata.normalize("NFC", row[fix_at].strip()) if len(row) > fix_at else ""
        if path in fixes and fixes[path] != fix:
            raise DataError(
                f"{file} has two fixes for {path}, {fixes[path]!r} and {fix!r}", hint="Keep one of the two lines"
            )
        fixes[path] = fix
    return fixes
