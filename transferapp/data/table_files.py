"""Table files: CSV in its dialects and encodings, JSON lines, and Parquet, read as columns and rows of text."""

from __future__ import annotations

import codecs
import csv
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transferapp.data.names import IMAGE_SUFFIXES, printable, suffix_of
from transferapp.data.text_encodings import LEGACY, MAX_WORDS, WORD_ENDS, guess_encoding
from transferapp.errors import DataError

Row = tuple[int, list[str]]
"""Number of a row, counted from 1, and its cells."""

SAMPLE_ROWS = 20
"""Rows that are read to find out what a column holds."""

_BATCH = 8192
_DELIMITERS = ",;\t|"
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True)
class TableFile:
    """An open table.

    Attributes:
        columns: Names of the columns; `1`, `2`, ... if the table has no header.
        sample: The first rows.
        rows: Returns all rows with the cells of these columns, in this order; missing cells are empty. Row numbers are lines
            of the file if it has lines.
        guessed: The encoding, if it is a guess; otherwise empty.
    """

    columns: tuple[str, ...]
    sample: tuple[tuple[str, ...], ...]
    rows: Callable[[Sequence[int]], Iterator[Row]]
    guessed: str = ""


def open_table(path: Path, name: str, encoding: str = "") -> TableFile:
    """Open a table by its suffix.

    Args:
        path: A .csv, .tsv, .jsonl or .parquet file.
        name: Name of the table in messages.
        encoding: Encoding of a .csv or .tsv file without a mark; empty to detect it.

    Raises:
        DataError: The file cannot be read, or is not a table.
    """
    try:
        openers = {".parquet": _open_parquet, ".jsonl": _open_json_lines}
        if opener := openers.get(suffix_of(path.name)):
            return opener(path, name)
        return _open_text(path, name, encoding)
    except OSError as error:
        raise DataError(f"{name} cannot be read ({error.strerror or error})") from error


def _open_text(path: Path, name: str, named: str) -> TableFile:
    encoding, guessed = _encoding(path, name, named)
    first = _first_line(path, encoding, name)
    skipped = 0
    if match := re.fullmatch(r"sep=(.)", first.strip()):  # Excel names the delimiter like this
        delimiter, skipped = match[1], 1
    else:
        delimiter = _delimiter(first, suffix_of(path.name))

    def cells() -> Iterator[Row]:
        with path.open(encoding=encoding, newline="") as stream:
            for _ in range(skipped):
                stream.readline()
            reader = csv.reader(stream, delimiter=delimiter, strict=True)
            try:
                for row in reader:
                    if any(cell.strip() for cell in row):
                        yield reader.line_num + skipped, row
            except csv.Error as error:
                if "field limit" in str(error):
                    raise DataError(
                        f"{name} has a cell of more than {csv.field_size_limit():,} characters in line "
                        f"{reader.line_num + skipped}",
                        expected="paths of images and their labels",
                        hint="Images in cells are not read: write them to files; a quote that is opened must be closed",
                    ) from error
                raise DataError(
                    f"{name} is not a well-formed table: line {reader.line_num + skipped}: {error}",
                    hint="Fix that line; a quote that is opened must be closed",
                ) from error
            except UnicodeError as error:
                raise _undecodable(name) from error

    head = list(itertools.islice(cells(), SAMPLE_ROWS + 1))
    if not head:
        raise DataError(f"{name} is empty", expected="a row of column names, then one row an image")
    names = [cell.strip() for cell in head[0][1]]
    headless = any(suffix_of(cell) in IMAGE_SUFFIXES for cell in names)
    if headless:
        names = [str(number) for number in range(1, len(names) + 1)]
    sample = tuple(tuple(_padded(row, range(len(names)))) for _, row in head[0 if headless else 1 :])

    def rows(columns: Sequence[int]) -> Iterator[Row]:
        for line, row in itertools.islice(cells(), 0 if headless else 1, None):
            yield line, _padded(row, columns)

    return TableFile(tuple(names), sample, rows, encoding if guessed else "")


def _open_json_lines(path: Path, name: str) -> TableFile:
    """Open a table with one JSON object a line; the first lines give the columns."""

    def objects() -> Iterator[tuple[int, dict[str, Any]]]:
        with path.open(encoding="utf-8-sig") as stream:
            try:
                for line, text in enumerate(stream, start=1):
                    if text.strip():
                        document = json.loads(text)
                        if not isinstance(document, dict):
                            raise ValueError("it is no object")
                        yield line, document
            except (ValueError, RecursionError) as error:  # includes bytes that are not UTF-8
                raise DataError(
                    f"{name} is not a well-formed table: {printable(str(error))[:160]}",
                    expected='one JSON object a line, such as {"file_name": "1.jpg", "label": "cat"}',
                ) from error

    head = [document for _, document in itertools.islice(objects(), SAMPLE_ROWS)]
    names = list(dict.fromkeys(key for document in head for key in document))
    if not names:
        raise DataError(f"{name} is empty", expected="one JSON object a line")

    def rows(columns: Sequence[int]) -> Iterator[Row]:
        for line, document in objects():
            yield line, [cell_text(document.get(names[index])) for index in columns]

    sample = tuple(tuple(cell_text(document.get(key)) for key in names) for document in head)
    return TableFile(tuple(names), sample, rows)


def _padded(row: Sequence[str], columns: Sequence[int]) -> list[str]:
    return [row[index].strip() if index < len(row) else "" for index in columns]


def _encoding(path: Path, name: str, named: str) -> tuple[str, bool]:
    """Return the encoding, and whether it is a guess.

    It is that of the mark, otherwise the one that was named, otherwise UTF-8 if that is valid, otherwise the likeliest.
    """
    with path.open("rb") as file:
        start = file.read(4)
    for mark, encoding in _BOMS:
        if start.startswith(mark):
            return encoding, False
    if named:
        if _is_text(path, named):
            return named, False
        hint = "Leave --encoding out to have it detected"
        raise DataError(f"{name} is not text that can be read", expected=f"a table in {named}", hint=hint)
    if _is_text(path, "utf-8"):
        return "utf-8", False
    words: set[bytes] = set()
    with path.open("rb") as lines:
        for line in lines:
            if not line.isascii():
                words.update(word for word in WORD_ENDS.split(line) if not word.isascii())
            if len(words) > MAX_WORDS:
                break
    for encoding in guess_encoding(words, LEGACY):
        if _is_text(path, encoding):
            return encoding, True
    raise _undecodable(name)


def _is_text(path: Path, encoding: str) -> bool:
    """Return whether a whole file is valid in an encoding, and has no zero bytes as binary files do."""
    with path.open(encoding=encoding, newline="") as text:
        try:
            return not any("\0" in chunk for chunk in iter(lambda: text.read(1 << 20), ""))
        except UnicodeError:
            return False


def _undecodable(name: str) -> DataError:
    return DataError(f"{name} is not text that can be read", expected="a table in UTF-8", hint="Save it as CSV UTF-8")


def _first_line(path: Path, encoding: str, name: str) -> str:
    with path.open(encoding=encoding, newline="") as stream:
        try:
            return stream.readline(csv.field_size_limit())
        except UnicodeError as error:
            raise _undecodable(name) from error


def _delimiter(header: str, suffix: str) -> str:
    """Return the delimiter that splits the header into most columns; in a tie, the one of the suffix."""

    def columns(delimiter: str) -> int:
        try:
            return len(next(csv.reader([header], delimiter=delimiter), []))
        except csv.Error:
            return 0

    promised = "\t" if suffix == ".tsv" else ","
    return max(_DELIMITERS, key=lambda delimiter: (columns(delimiter), delimiter == promised))


def _open_parquet(path: Path, name: str) -> TableFile:
    import pyarrow
    from pyarrow import parquet

    def unreadable(error: Exception) -> DataError:
        return DataError(f"{name} is not a readable Parquet file ({printable(str(error).splitlines()[0])[:160]})")

    try:
        with parquet.ParquetFile(path) as file:
            names = [str(column) for column in file.schema_arrow.names]
            kinds = [file.schema_arrow.field(index).type for index in range(len(names))]
    except (pyarrow.ArrowException, ValueError) as error:
        raise unreadable(error) from error
    flat = [i for i, kind in enumerate(kinds) if not (pyarrow.types.is_nested(kind) or pyarrow.types.is_binary(kind))]
    texts = (pyarrow.types.is_string, pyarrow.types.is_large_string, pyarrow.types.is_dictionary)
    if len(flat) < len(names) and not any(is_text(kinds[i]) for i in flat for is_text in texts):
        raise DataError(
            f"{name} holds the images themselves",
            expected="a column with their paths",
            hint="Write the images to files, in one folder a class",
        )

    def rows(columns: Sequence[int]) -> Iterator[Row]:
        wanted = [names[flat[index]] for index in columns]
        number = 0
        try:
            with parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=_BATCH, columns=list(dict.fromkeys(wanted))):
                    read = batch.to_pydict()
                    for cells in zip(*(read[column] for column in wanted), strict=True):
                        number += 1
                        yield number, [cell_text(cell) for cell in cells]
        except (pyarrow.ArrowException, ValueError) as error:
            raise unreadable(error) from error

    sample = [tuple(row) for _, row in itertools.islice(rows(range(len(flat))), SAMPLE_ROWS)]
    return TableFile(tuple(names[index] for index in flat), tuple(sample), rows)


def cell_text(cell: Any) -> str:
    """Return a cell as text: whole numbers without a fraction, missing values as an empty string."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell).strip()
