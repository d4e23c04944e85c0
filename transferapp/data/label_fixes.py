"""Label fixes from a CSV file that `transferapp doctor` writes and the user fills in."""

from __future__ import annotations

import dataclasses
import unicodedata
from pathlib import Path

from transferapp.data.dataset import Dataset, Ignored, Record
from transferapp.data.table_files import open_table
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
    unknown = sorted(set(fixes) - {record.name.strip() for record in dataset.records})
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
        fix = fixes.get(record.name.strip(), "")  # cells of tables are stripped
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
    table = open_table(file, str(file))
    columns = [name.lower() for name in table.columns]
    missing = [name for name in _NEEDED if name not in columns]
    if missing:
        raise DataError(
            f"{file} has no column {missing[0]!r}",
            expected=f"a first line with {' and '.join(_NEEDED)}",
            got=", ".join(columns)[:200],
            hint=_HINT,
        )
    fixes: dict[str, str] = {}
    for line, (path, cell) in table.rows([columns.index(name) for name in _NEEDED]):
        if not path:
            raise DataError(f"{file} names no image in line {line}", expected="a path in every line", hint=_HINT)
        fix = unicodedata.normalize("NFC", cell)
        if fixes.setdefault(path, fix) != fix:
            raise DataError(
                f"{file} has two fixes for {path}, {fixes[path]!r} and {fix!r}", hint="Keep one of the two lines"
            )
    return fixes
