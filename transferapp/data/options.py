"""Options of data sources: columns of tables, and the place of prepared datasets."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from transferapp.errors import UsageError


@dataclass(frozen=True)
class SourceOptions:
    """Options of a source, named like the flags of the command line; empty ones were not given.

    Attributes:
        path_column: Column of a table with the paths of the images.
        label_column: Column with their classes.
        split_column: Column with their splits.
        group_column: Column whose equal values share a split, such as a patient.
        data_dir: Folder of prepared data of tensorflow-datasets.
        encoding: Encoding of the text of a table, or of the names in a zip; by default it is detected.

    Raises:
        UsageError: There is no such encoding.
    """

    path_column: str = ""
    label_column: str = ""
    split_column: str = ""
    group_column: str = ""
    data_dir: str = ""
    encoding: str = ""

    def __post_init__(self) -> None:
        try:
            "".encode(self.encoding or "utf-8")
        except (LookupError, ValueError) as error:
            raise UsageError(
                "--encoding is not known",
                expected="a name such as utf-8, cp1251, gbk or shift_jis",
                got=repr(self.encoding),
            ) from error

    def refuse(self, names: tuple[str, ...], kind: str) -> None:
        """Refuse options that do not apply to a kind of source.

        Args:
            names: Names of the options.
            kind: Kind of the source, in the plural, for the message.

        Raises:
            UsageError: One of them was given.
        """
        for name in names:
            if getattr(self, name):
                flag = f"--{name.replace('_', '-')}"
                others = {"data_dir": "tfds:NAME", "encoding": "a .csv or .tsv file, or a zip archive"}
                fits = others.get(name, "a .csv, .tsv or .parquet file")
                raise UsageError(f"{flag} means nothing for {kind}", expected=f"{flag} with --data {fits}")


@dataclass(frozen=True)
class Source:
    """A place of images and how it is read.

    Attributes:
        data: As of `--data`.
        options: Columns and places that the user named.
    """

    data: str
    options: SourceOptions = dataclasses.field(default_factory=SourceOptions)

    def to_json(self) -> dict[str, str]:
        given = {name: value for name, value in vars(self.options).items() if value}
        return {"data": self.data, **given}

    @classmethod
    def from_json(cls, values: Mapping[str, str]) -> Source:
        """Return what `to_json` has written."""
        return cls(values["data"], SourceOptions(**{name: v for name, v in values.items() if name != "data"}))


TABLE_OPTIONS = tuple(f.name for f in dataclasses.fields(SourceOptions) if f.name.endswith("_column"))
"""Options that apply to tables only."""
