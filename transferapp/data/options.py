"""What a person may say about a source beside its name."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from transferapp.errors import UsageError


@dataclass(frozen=True)
class SourceOptions:
    """Settings of a source; an empty one was not given. Their names are those of the command line's flags.

    Attributes:
        path_column: The column of a table that names the images.
        label_column: The one with their classes.
        split_column: The one that says what each is for.
        group_column: The one that says which images must share a split, such as a patient.
        data_dir: Where tensorflow-datasets keeps prepared data.
    """

    path_column: str = ""
    label_column: str = ""
    split_column: str = ""
    group_column: str = ""
    data_dir: str = ""

    def refuse(self, names: tuple[str, ...], kind: str) -> None:
        """Complain of settings that mean nothing to this kind of source.

        Args:
            names: The settings in question.
            kind: What the source is, in the plural.

        Raises:
            UsageError: One of them was given.
        """
        for name in names:
            if getattr(self, name):
                flag = f"--{name.replace('_', '-')}"
                fits = "tfds:NAME" if name == "data_dir" else "a .csv, .tsv or .parquet file"
                raise UsageError(f"{flag} means nothing for {kind}", expected=f"{flag} with --data {fits}")


TABLE_OPTIONS = tuple(f.name for f in dataclasses.fields(SourceOptions) if f.name.endswith("_column"))
"""Those that are about tables."""
