"""What a search has found, as a person at the terminal reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from transferapp.cli.streams import printable
from transferapp.evaluation.report.wording import search_best, search_course


def found(search: Mapping[str, Any]) -> RenderableType:
    """How it went from coarse to fine, what is best, and what speaks against it.

    Args:
        search: From the manifest.
    """
    rows = [
        *(("searched", Text(printable(sentence))) for sentence in search_course(search)),
        *(("narrowed", Text(printable(f"to {note}"))) for note in search["narrowed"]),
        ("found", Text(printable(search_best(search)), style="bold")),
        *(("warning", Text(printable(f"{edge}: better ones may lie beyond"), "yellow")) for edge in search["edges"]),
        ("chosen by", Text(search["chosen_by"])),
        ("final figure", Text(search["final_figure"])),
    ]
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(justify="right", style="cyan", no_wrap=True)
    grid.add_column()
    before = ""
    for label, text in rows:
        grid.add_row(label if label != before else "", text)
        before = label
    return Group("", Text("What was searched", style="bold"), "", grid)
