"""Files of a batch prediction: its journal, which survives a kill, and the finished answers as CSV, JSON Lines or Parquet."""

from __future__ import annotations

import csv
import itertools
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Self

from transferapp.data.image_files import ImageFile
from transferapp.errors import DataError, UsageError
from transferapp.recipes.unfinished import require_same
from transferapp.system.storage import disk_errors, replacing

COLUMNS = ("file", "label", "score", "novelty", "known", "prediction_set", "error")
"""Columns of the finished answers, in this order."""

FORMATS = (".csv", ".jsonl", ".parquet")

_ROW_GROUP = 65_536
"""Rows of a Parquet file that are held in memory at once."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer to one image.

    Attributes:
        file: Name of the image, as in `ImageFile`.
        label: The most probable class; empty for an image that cannot be read.
        score: Its probability in [0, 1].
        novelty, known, prediction_set: As in `Prediction`; None where the bundle cannot say.
        error: Code of the reason that the image cannot be read; otherwise empty.
        location: The file; empty where there is none.
        unpacked: Whether the file is in the cache, as in `ImageFile`.
    """

    file: str
    label: str = ""
    score: float | None = None
    novelty: float | None = None
    known: bool | None = None
    prediction_set: tuple[str, ...] | None = None
    error: str = ""
    location: str = ""
    unpacked: bool = False


class Journal:
    """Answers of an unfinished run, one JSON object a line, from which the same run goes on after a kill.

    The first line identifies the run. A line that was only half written is dropped.

    Args:
        path: The file.
        identity: Everything that the answers depend on beside the images, as JSON values.

    Raises:
        DataError: The file is the journal of another run.
        ResourceError: The disk is full.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        self._identity = json.loads(json.dumps(dict(identity)))
        self._started = time.time()
        self._stream: IO[bytes] | None = None
        self._end = 0
        if path.exists():
            self._read_head()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._stream is not None:
            self._stream.close()

    def resume(self, images: Iterator[ImageFile]) -> tuple[int, Iterator[ImageFile]]:
        """Keep the answers to the first images, as far as those are still the same, and drop all others.

        Args:
            images: All images, in the order of the run that was killed.

        Returns:
            The number of answers that are kept, and the images without an answer.
        """
        kept = 0
        if self._end:
            for answer, end in self._lines():
                image = next(images, None)
                if image is None:
                    break
                if answer.file != image.name or self._modified(image, answer):
                    images = itertools.chain([image], images)
                    break
                self._end, kept = end, kept + 1
        with disk_errors(self.path):
            self._stream = self.path.open("r+b" if self._end else "wb")
            self._stream.truncate(self._end)
            self._stream.seek(self._end)
            if not self._end:
                self._write({"identity": self._identity, "started": self._started})
        return kept, images

    def add(self, answer: Answer) -> None:
        """Write an answer; a kill after this call does not lose it."""
        self._write(asdict(answer))

    def complete(self) -> None:
        """Mark the journal as complete: its answers hold from now on, whatever becomes of the images."""
        assert self._stream is not None
        self._write({"complete": True})
        os.fsync(self._stream.fileno())

    @property
    def is_complete(self) -> bool:
        """Whether all answers were there when the run was killed."""
        if not self._end:
            return False
        with self.path.open("rb") as stream:
            stream.seek(-min(self.path.stat().st_size, 64), os.SEEK_END)
            return stream.read().endswith(b'\n{"complete": true}\n')

    def answers(self) -> Iterator[Answer]:
        """Read the answers, in the order of the images."""
        return (answer for answer, _ in self._lines())

    def discard(self) -> None:
        """Delete the journal."""
        with disk_errors(self.path):
            self.path.unlink(missing_ok=True)

    def _read_head(self) -> None:
        with disk_errors(self.path), self.path.open("rb") as stream:
            line = stream.readline()
        try:
            head = json.loads(line) if line.endswith(b"\n") else {}
            before, self._started = dict(head["identity"]), float(head["started"])
        except (ValueError, KeyError, TypeError):
            return  # killed before the first line was whole
        require_same(
            f"{self.path} holds the unfinished answers of another run",
            before,
            self._identity,
            expected="the same bundle, images and options, to go on with it",
            hint="Run the command as it was, name another place, or delete the file to begin anew",
        )
        self._end = len(line)

    def _lines(self) -> Iterator[tuple[Answer, int]]:
        """Yield each answer with the position behind its line."""
        with disk_errors(self.path), self.path.open("rb") as stream:
            position = len(stream.readline())
            for line in stream:
                position += len(line)
                try:
                    values = json.loads(line) if line.endswith(b"\n") else {}
                    classes = values.get("prediction_set")
                    answer = Answer(**{**values, "prediction_set": classes if classes is None else tuple(classes)})
                except (ValueError, TypeError, AttributeError):
                    return  # half written, or the mark of a complete journal
                yield answer, position

    def _modified(self, image: ImageFile, answer: Answer) -> bool:
        """Return whether the answer may be that of a former content: the file was changed after the run had begun.

        The time of the last change of its entry tells a file that was put in its place with an earlier date. Files in the cache
        are written during the run, and their place there depends on the content of the archive.
        """
        if image.unpacked:
            return image.location != answer.location
        try:
            status = Path(image.location).stat() if image.location else None
        except OSError:
            return False
        return status is not None and max(status.st_mtime, status.st_ctime) > self._started

    def _write(self, document: Mapping[str, Any]) -> None:
        assert self._stream is not None
        with disk_errors(self.path):
            self._stream.write(json.dumps(document).encode() + b"\n")
            self._stream.flush()


def check_answer_file(path: Path) -> None:
    """Refuse a place for answers where something else would be overwritten, before any work is done.

    Raises:
        UsageError: Its suffix is not one of `FORMATS`, its folder is missing, or there is a file that `predict` did not write.
    """
    if path.suffix.lower() not in FORMATS:
        raise UsageError(
            f"{path} is not a valid name for the answers",
            expected=f"a name that ends in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}",
        )
    if not path.parent.is_dir():
        raise UsageError(f"There is no folder {path.parent}", hint="Make it first, or name another place with --out")
    if not os.path.lexists(path):
        return
    try:
        from transferapp.data.table_files import open_table

        columns = set(open_table(path, str(path)).columns)
    except DataError:
        columns = set()
    if not {"file", "label", "score", "error"} <= columns <= set(COLUMNS):
        raise UsageError(
            f"{path} exists and is not a file of answers, so it is left alone", hint="Name another file with --out"
        )


def write_answers(answers: Iterable[Answer], path: Path) -> None:
    """Write answers in the format of the suffix, in one step; memory stays flat.

    Raises:
        ResourceError: The disk is full.
    """
    writers = {".csv": _write_csv, ".jsonl": _write_json_lines, ".parquet": _write_parquet}
    with replacing(path) as part:
        writers[path.suffix.lower()](answers, part)


def _write_csv(answers: Iterable[Answer], path: Path) -> None:
    with path.open("x", encoding="utf-8", errors="backslashreplace", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        for answer in answers:
            writer.writerow([_cell(getattr(answer, column)) for column in COLUMNS])


def _cell(value: Any) -> str:
    if isinstance(value, tuple):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


def _write_json_lines(answers: Iterable[Answer], path: Path) -> None:
    with path.open("x", encoding="utf-8", errors="backslashreplace") as stream:
        for answer in answers:
            stream.write(json.dumps(_values(answer), ensure_ascii=False) + "\n")


def _values(answer: Answer) -> dict[str, Any]:
    """Return the columns of an answer; an empty label or error is missing."""
    values = {column: getattr(answer, column) for column in COLUMNS}
    return {**values, "label": answer.label or None, "error": answer.error or None}


def _write_parquet(answers: Iterable[Answer], path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    text, number = pyarrow.string(), pyarrow.float64()
    kinds = (text, text, number, number, pyarrow.bool_(), pyarrow.list_(text), text)
    schema = pyarrow.schema(list(zip(COLUMNS, kinds, strict=True)))
    remaining = iter(answers)
    with parquet.ParquetWriter(path, schema) as writer:
        while rows := [_values(answer) for answer in itertools.islice(remaining, _ROW_GROUP)]:
            # Names of files that are not Unicode contain lone surrogates, which Arrow refuses.
            named = [{**row, "file": row["file"].encode("utf-8", "backslashreplace").decode()} for row in rows]
            writer.write_table(pyarrow.Table.from_pylist(named, schema=schema))
