"""Tables of paths and labels: the roles of columns, the files that rows name, and faulty rows."""

from __future__ import annotations

import itertools
import os
import re
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from transferapp.data.dataset import SPLITS, Dataset, Ignored, Record, Split
from transferapp.data.names import (
    IMAGE_SUFFIXES,
    UNREAD_SUFFIXES,
    class_name,
    holds_images_only,
    is_litter,
    natural_order,
    printable,
    shortened,
    split_named,
    suffix_of,
    whole_numbers,
)
from transferapp.data.options import TABLE_OPTIONS, SourceOptions
from transferapp.data.table_files import SAMPLE_ROWS, Row, TableFile, open_table
from transferapp.data.text_encodings import describe_guess
from transferapp.errors import DataError, UsageError
from transferapp.system.progress import Advance

REPORT_EVERY = 1000
"""Rows between two reports of progress."""

PATH_NAMES = tuple(
    "path filepath imagepath imgpath imagepath file filename imagefile imagename imgname image img image photo "  # noqa: SIM905
    "imageid imgid id".split()
)
"""Names of path columns, in order of preference; case, blanks and punctuation are ignored."""

LABEL_NAMES = frozenset(
    "label labels class classname classlabel labelname category categoryname target species breed".split()  # noqa: SIM905
)
"""Names of label columns. If a table has two of them, the user must choose."""

SPLIT_NAMES = ("split", "subset", "partition")

_SUFFIXES_TRIED = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
"""Suffixes that are appended to paths without the suffix of an image."""

_NAMES_ARE_LOOSE = sys.platform in ("darwin", "win32")
"""True on systems whose disks take names in another case or Unicode form for the same."""

_EMBEDDED = re.compile(
    r"data:image/|<PIL\.|\{?'bytes': b|b['\"]\\x|\d{1,3}([ ,;]+\d{1,3}){63}"
    r"|(/9j/|iVBORw0KGgo|R0lGOD|UklGR|SUkq|TU0A|Qk0)[\w+/\s-]{100}"
)
"""Beginnings of cells with images instead of paths: base64 of the known formats, bytes, the values of pixels."""

_ONES, _ZEROS = frozenset(("1", "1.0")), frozenset(("0", "0.0"))

_IS_INDEX = re.compile(r"$|unnamed\d|indexlevel\d")
"""Index columns that pandas writes, without blanks and punctuation."""


@dataclass(frozen=True)
class Columns:
    """Indices of the columns that are read; None for a missing one."""

    path: int
    label: int
    split: int | None
    group: int | None
    split_guessed: bool


def read_table(
    table: Path,
    options: SourceOptions,
    min_classes: int = 2,
    *,
    origin: str | None = None,
    within: str | None = None,
    progress: Advance | None = None,
    note: Callable[[str], None] | None = None,
) -> Dataset:
    """Read a table with one row per image.

    Paths are looked up beside the table and in folders there with names such as `images`. Rows without a file or a label, and
    repeated rows, are listed. A file with two different labels is left out, because either could be right. Classes are in
    natural order: 2 before 10.

    Args:
        table: A .csv, .tsv, .jsonl or .parquet file.
        options: Columns that the user named.
        min_classes: Smallest number of classes.
        origin: Name of the data in messages; the table by default.
        within: A folder that the images must be in, for tables from archives.
        progress: Called now and then with the number of rows read so far.
        note: Called with a sentence if the encoding is a guess.

    Raises:
        DataError: The table cannot be read, has no such columns, or none of its images exists.
        UsageError: A column that was named is missing.
    """
    name = origin or str(table)
    opened = open_table(table, name, options.encoding)
    if note is not None and opened.guessed:
        note(describe_guess(name, opened.guessed))
    file = _with_one_label(opened, options)
    columns = choose_columns(file, options, name)
    rows = _Rows(_Lookup(table, within), table.name)
    wanted = [index for index in (columns.path, columns.label, columns.split, columns.group) if index is not None]
    count = 0
    for count, (line, cells) in enumerate(file.rows(wanted), start=1):
        rest = cells[2:]
        split = rest.pop(0) if columns.split is not None else _first_folder(cells[0])
        rows.add(line, cells[0], cells[1], split, rest[0] if rest else "")
        if progress is not None and count % REPORT_EVERY == 0:
            progress(count)
    if progress is not None:
        progress(count)
    if not rows:
        missing = [item.name for item in rows.ignored if item.code == "missing_file"]
        place = "the folder of the table" if within else printable(rows.lookup.root)
        raise DataError(
            f"{name} names no image that is there",
            expected=f"paths below {place} in column {file.columns[columns.path]!r}",
            got=f"{len(missing)} files that are not there, such as {missing[0]}" if missing else f"{count} rows",
            hint="Download the images first; addresses are not read"
            if missing and missing[0].lower().startswith(("http://", "https://"))
            else "Put the table beside its images, or name another column with --path-column",
        )
    dataset = rows.dataset(name, columns)
    if len(dataset.class_names) < min_classes:
        found = ", ".join(map(repr, dataset.class_names)) or "none"
        raise DataError(f"{name} has too few classes", expected="at least two different labels", got=found)
    return dataset


class ImagePath(NamedTuple):
    """A row of a table as it names an image: its number, the path as it is written, the file, and an error code or nothing."""

    line: int
    path: str
    location: str
    error: str = ""


def image_paths(
    table: Path, options: SourceOptions, *, origin: str, note: Callable[[str], None] | None = None
) -> Iterator[ImagePath]:
    """Open a table and return its rows lazily, with the file that each names; labels are not needed.

    Args:
        table: A .csv, .tsv, .jsonl or .parquet file.
        options: Column of the paths, and encoding.
        origin: Name of the table in messages.
        note: Called with a sentence if the encoding is a guess.

    Raises:
        DataError: The table cannot be read, or has no column of paths.
        UsageError: A column that was named is missing.
    """
    file = open_table(table, origin, options.encoding)
    if note is not None and file.guessed:
        note(describe_guess(origin, file.guessed))
    column = _path_column(file, options, origin, frozenset())
    lookup = _Lookup(table, None)
    return (_image_path(lookup, line, path) for line, (path,) in file.rows([column]))


def _image_path(lookup: _Lookup, line: int, path: str) -> ImagePath:
    if not path:
        return ImagePath(line, "", "", "no_path")
    location = lookup.find(path)
    return ImagePath(line, path, location, "") if location else ImagePath(line, path, "", "missing_file")


def _with_one_label(file: TableFile, options: SourceOptions) -> TableFile:
    """Return a table with one column a class, which is 1 in the rows of that class, as a table with a label column."""
    plain = [_plain(column) for column in file.columns]
    roles = {*PATH_NAMES, *SPLIT_NAMES, *(_plain(getattr(options, name)) for name in TABLE_OPTIONS)}
    classes = [i for i, name in enumerate(plain) if name not in roles and not _IS_INDEX.match(name)]
    marks = [[row[i] in _ONES for i in classes] for row in file.sample]
    if (
        options.label_column
        or LABEL_NAMES.intersection(plain)
        or len(classes) < 2
        or not all(row[i] in _ONES | _ZEROS for row in file.sample for i in classes)
        or {sum(row) for row in marks} not in ({1}, {0, 1})
    ):
        return file
    others = [i for i in range(len(plain)) if i not in classes]

    def rows(columns: Sequence[int]) -> Iterator[Row]:
        for line, cells in file.rows([*others, *classes]):
            marked = [file.columns[i] for i, cell in zip(classes, cells[len(others) :], strict=True) if cell in _ONES]
            for label in marked or [""]:  # several are several rows, which are left out for their conflict
                row = [*cells[: len(others)], label]
                yield line, [row[i] for i in columns]

    sample = tuple(tuple(row) for _, row in itertools.islice(rows(range(len(others) + 1)), SAMPLE_ROWS))
    return TableFile((*(file.columns[i] for i in others), "label"), sample, rows)


def _plain(column: str) -> str:
    return re.sub(r"[\W_]+", "", column.lower())


def choose_columns(file: TableFile, options: SourceOptions, name: str) -> Columns:
    """Return the roles of the columns: as the user named them, otherwise by their names.

    Raises:
        DataError: No column, or more than one, fits a role.
        UsageError: A column that was named is missing.
    """
    plain = [_plain(column) for column in file.columns]
    split, group = (_named_column(file, options, option, name) for option in ("split_column", "group_column"))
    guessed = split is None
    if split is None:
        split = next((plain.index(word) for word in SPLIT_NAMES if word in plain), None)
    label = _named_column(file, options, "label_column", name)
    path = _path_column(file, options, name, {label, group, split})
    if label is None:
        others = [i for i, p in enumerate(plain) if i not in (path, split, group) and not _IS_INDEX.match(p)]
        found = [i for i in others if plain[i] in LABEL_NAMES]
        if len(found) > 1:
            raise DataError(
                f"{name} has several columns that could be the label",
                got=", ".join(file.columns[i] for i in found),
                hint=f"Name one of them, as in --label-column {file.columns[found[0]]}",
            )
        label = found[0] if found else others[0] if len(others) == 1 else None
    if label is None:
        raise _no_column(file, name, "label", "a column of classes, called label, class or category")
    return Columns(path, label, split if split not in (path, label) else None, group, guessed)


def _named_column(file: TableFile, options: SourceOptions, option: str, name: str) -> int | None:
    """Return the column that the user named with an option; None without it."""
    wanted = getattr(options, option)
    if not wanted:
        return None
    for spell in (str, lambda text: text.strip().casefold()):
        for index, column in enumerate(file.columns):
            if spell(column) == spell(wanted):
                return index
    raise UsageError(
        f"{name} has no column {wanted!r} (--{option.replace('_', '-')})",
        expected=f"one of {', '.join(file.columns[:20])}",
    )


def _path_column(file: TableFile, options: SourceOptions, name: str, taken: Collection[int | None]) -> int:
    """Return the column of paths: as the user named it, otherwise by its name, otherwise the only one of image names."""
    path = _named_column(file, options, "path_column", name)
    plain = [_plain(column) for column in file.columns]
    if path is None:
        path = next((i for word in PATH_NAMES for i, p in enumerate(plain) if p == word and i not in taken), None)
    if path is not None:
        _refuse_embedded(file, path, name)
        return path
    looks = [i for i in range(len(plain)) if any(suffix_of(row[i]) in IMAGE_SUFFIXES for row in file.sample)]
    if len(looks) != 1:
        for index in range(len(plain)):
            _refuse_embedded(file, index, name)
        raise _no_column(file, name, "path", "a column of paths, called path, file or image")
    return looks[0]


def _refuse_embedded(file: TableFile, column: int, name: str) -> None:
    """Refuse a column that holds images, or text made of them, where their paths should be."""
    found = next((row[column] for row in file.sample if _EMBEDDED.match(row[column])), None)
    if found is not None:
        raise DataError(
            f"{name} holds the images themselves in column {file.columns[column]!r}",
            expected="a column with their paths",
            got=shortened(printable(found)),
            hint="Write the images to files, in one folder a class",
        )


def _no_column(file: TableFile, name: str, which: str, expected: str) -> DataError:
    return DataError(
        f"{name} has no column that is known to be the {which}",
        expected=expected,
        got=", ".join(file.columns[:20]),
        hint=f"Name it with --{which}-column",
    )


def _first_folder(path: str) -> str:
    folders = [part for part in path.replace("\\", "/").split("/")[:-1] if part not in ("", ".")]
    return folders[0] if folders else ""


class _Row(NamedTuple):
    """A row that names an image: its number and its cells."""

    line: int
    label: str
    split: str
    group: str


class _Rows:
    """The rows of a table by the file that they name, and those that are left out."""

    def __init__(self, lookup: _Lookup, table: str) -> None:
        self.lookup = lookup
        self.ignored: list[Ignored] = []
        self._table = table
        self._rows: dict[str, _Row] = {}
        self._words: dict[str, str] = {}  # each label, split and group once, to save memory
        self._conflicts: dict[str, list[str]] = defaultdict(list)

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, line: int, path: str, label: str, split: str, group: str) -> None:
        location, label = None, class_name(label)
        if not path:
            code, reason = "no_path", f"row {line} of {self._table} names no file"
        elif not label:
            code, reason = "no_label", f"has no label in row {line} of {self._table}"
        elif suffix_of(path) in UNREAD_SUFFIXES:
            code, reason = "unsupported_format", f"{suffix_of(path)} files are not read"
        elif (location := self.lookup.find(path)) is None:
            code, reason = "missing_file", f"is in row {line} of {self._table} and is not there"
        elif location == "":
            code, reason = "outside", "lies outside the archive that the table came in"
        elif (first := self._rows.get(location)) is None:
            self._rows[location] = _Row(line, *(self._words.setdefault(word, word) for word in (label, split, group)))
            return
        elif first.label != label:
            self._conflicts[location].append(f"{label!r} (row {line})")
            return
        else:
            code, reason = "duplicate_row", f"is in row {first.line} of {self._table} already"
        self.ignored.append(Ignored(shortened(printable(path)) or f"{self._table}, row {line}", code, reason))

    def dataset(self, origin: str, columns: Columns) -> Dataset:
        """Return the dataset of all rows."""
        splits = self._known_splits(columns)
        kept = []
        for location, row in self._rows.items():
            if location in self._conflicts:
                labels = ", ".join([f"{row.label!r} (row {row.line})", *self._conflicts[location]])
                self._leave_out(location, "conflicting_labels", f"has several labels: {labels}")
            elif splits and row.split not in splits:
                self._leave_out(location, "unknown_split", f"{row.split!r} is none of train, val and test")
            else:
                kept.append(location)
        order, spelled = class_order({self._rows[location].label for location in kept})
        position = {name: index for index, name in enumerate(order)}
        number = {label: position[name] for label, name in spelled.items()}
        kept.sort(key=lambda location: (number[self._rows[location].label], location))
        used = {splits.get(self._rows[location].split) for location in kept}
        given = tuple(split for split in SPLITS if split in used)
        if given == ("train",):
            given, splits = (), {}  # a train folder alone is not a split
        records = tuple(
            Record(location, self.lookup.name(location), number[row.label], splits.get(row.split), group=row.group)
            for location in kept
            for row in [self._rows[location]]
        )
        return Dataset(origin, tuple(order), records, tuple(self.ignored), given)

    def _leave_out(self, location: str, code: str, reason: str) -> None:
        self.ignored.append(Ignored(self.lookup.name(location), code, reason))

    def _known_splits(self, columns: Columns) -> dict[str, Split | None]:
        """Return the split of each word in the split column; empty if the column turns out to be something else.

        Without one, the words are the first folders of the paths, which give the splits if all of them are named so.
        """
        words = {row.split for row in self._rows.values()}
        known: dict[str, Split | None] = {word: split for word in words if (split := split_named(word)) is not None}
        if columns.split is None:
            splits = set(known.values())
            return known if len(known) == len(words) and "train" in splits and len(splits) > 1 else {}
        if not known and columns.split_guessed:
            return {}
        unknown = sorted(words - {*known, ""})
        if unknown and not columns.split_guessed:
            raise DataError(
                f"{self._table} has splits that are not known: {', '.join(map(repr, unknown[:5]))}",
                expected="train, val or test in the column named with --split-column",
            )
        return {"": None, **known}


def class_order(labels: set[str]) -> tuple[list[str], dict[str, str]]:
    """Return the classes in natural order, and the class of each label.

    If all labels are whole numbers, `3.0` is 3, because programs write them like this if one of them is missing.
    """
    numbers = whole_numbers(labels)
    spelled = {label: label.partition(".")[0] if numbers else label for label in labels}
    return natural_order(set(spelled.values())), spelled


class _Lookup:
    """Finds the files that a table names.

    Args:
        table: The table. Paths start in its folder, or in folders of images there.
        within: A folder that files must be in, or None.
    """

    def __init__(self, table: Path, within: str | None) -> None:
        self.root = os.fspath(table.parent)
        self._within = os.path.realpath(within) if within is not None else None
        like_table = re.compile(rf"{re.escape(table.stem.lower())}($|[ _-])")
        with os.scandir(self.root) as entries:
            folders = {e.name: e.path for e in entries if not is_litter(e.name) and os.path.isdir(e.path)}
        likely = [p for n, p in folders.items() if holds_images_only(n) or like_table.match(n.lower())]
        self._folders = frozenset(folders)
        self._bases = [self.root, *sorted(likely if len(folders) > 1 else folders.values())]
        self._suffixes = list(_SUFFIXES_TRIED)
        self._listings: dict[str, frozenset[str]] = {}

    def find(self, path: str) -> str | None:
        """Return the file; None if it is missing, empty if it may not be used."""
        for spelled in _spellings(path):
            for base in self._bases:
                whole = os.path.join(base, spelled)
                if (found := self._with_suffix(whole)) is not None:
                    self._first(self._bases, base)
                    return found if self._allowed(found) else ""
                if os.path.isabs(spelled):
                    break
        return self._by_tail(path)

    def _by_tail(self, path: str) -> str | None:
        """Return the file of a path from another machine: the longest end of it that is here, unless several fit.

        A folder that is here too, or that names a split, is never left out of the path: `train/1.jpg` is not `test/1.jpg`.
        """
        parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".")]
        for start in range(1, len(parts) if ".." not in parts else 0):
            left = parts[start - 1]
            if left != os.path.basename(self.root) and (split_named(left) or left in self._folders):
                return None
            tail = os.path.join(*parts[start:])
            found = {file for base in self._bases if (file := self._with_suffix(os.path.join(base, tail))) is not None}
            if found:
                file = found.pop()
                return None if found else file if self._allowed(file) else ""
        return None

    def name(self, location: str) -> str:
        """Return the name of a file in messages: its path below the table's folder, or in full."""
        inner = location.removeprefix(self.root + os.sep) if self.root != "." else location.removeprefix("." + os.sep)
        return printable(inner.replace(os.sep, "/"))

    def _with_suffix(self, path: str) -> str | None:
        if self._is_file(path):
            return path
        stem, suffix = os.path.splitext(path)
        if suffix.lower() in IMAGE_SUFFIXES:
            found = [p for p in {stem + suffix.lower(), stem + suffix.upper()} if self._is_file(p)]
            return found[0] if len(found) == 1 else None
        for suffix in self._suffixes:
            if self._is_file(path + suffix):
                self._first(self._suffixes, suffix)
                return path + suffix
        return None

    def _is_file(self, path: str) -> bool:
        """Return whether a file exists. Each folder is listed once, which is much faster than a million single checks."""
        folder, name = os.path.split(path)
        if (names := self._listings.get(folder)) is None:
            try:
                with os.scandir(folder or ".") as entries:
                    names = frozenset(entry.name for entry in entries if _is_file(entry))
            except (OSError, ValueError):  # ValueError: a NUL in the name
                names = frozenset()
            self._listings[folder] = names
        return name in names or (_NAMES_ARE_LOOSE and os.path.isfile(path))

    def _allowed(self, path: str) -> bool:
        return self._within is None or os.path.realpath(path).startswith(self._within + os.sep)

    @staticmethod
    def _first(choices: list[str], choice: str) -> None:
        """Move a choice to the front, because what fits one row mostly fits the next."""
        if choices[0] != choice:
            choices.remove(choice)
            choices.insert(0, choice)


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link to itself
        return False


def _spellings(path: str) -> Iterator[str]:
    """Yield a path as it is in the table, then in the form of another system or Unicode form."""
    forms: list[Callable[[str], str]] = [str]
    if "\\" in path:
        forms.append(lambda text: text.replace("\\", "/"))
    if not path.isascii():
        forms += [lambda text, form=form: unicodedata.normalize(form, text) for form in ("NFC", "NFD")]  # type: ignore[misc]
    for form in forms:
        spelled = form(path)
        yield spelled if ".." in spelled else os.path.normpath(spelled)
