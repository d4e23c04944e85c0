"""The bake-off as a person at the terminal reads it: what was compared, what each cost, what its curves say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from transferapp.cli.streams import printable


def contest(contenders: Sequence[Mapping[str, Any]]) -> RenderableType:
    """A table of all contenders, and under it the reason and the findings of each.

    Args:
        contenders: From the manifest, the solved classifier first; not empty.
    """
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    columns: tuple[tuple[str, Any], ...] = (
        ("trained", "left"),
        ("frozen up to", "left"),
        ("validation", "right"),
        ("loss", "right"),
        ("epochs", "right"),
        ("time", "right"),
    )
    for heading, justify in columns:
        table.add_column(heading, header_style="", justify=justify)
    for contender in contenders:
        table.add_row(*_cells(contender), style="green" if contender["chosen"] else "")
    notes = Table.grid(padding=(0, 2, 0, 0))
    notes.add_column(style="cyan", no_wrap=True)
    notes.add_column()
    for contender in contenders:
        sentences = [contender["reason"], *(_finding(f) for f in contender["findings"])]
        for position, line in enumerate(s for s in sentences if s):
            notes.add_row(Text(printable(contender["name"]) if position == 0 else ""), Text(printable(line)))
    title = Text("What was compared on the validation images; ▶ ships", style="bold")
    return Group(title, table, "", notes)


def _cells(contender: Mapping[str, Any]) -> list[Text]:
    trained = contender["accuracy"] is not None
    epochs = f"{contender['epochs']} of {contender['planned_epochs']}" if contender["planned_epochs"] else ""
    return [
        Text(("▶ " if contender["chosen"] else "  ") + printable(contender["name"]), no_wrap=True),
        Text(printable(contender["cut"])),
        Text(f"{contender['accuracy']:.3f}" if trained else "-"),
        Text(f"{contender['loss']:.3f}" if trained else "-"),
        Text(epochs),
        Text(f"{contender['seconds']:.0f} s" if contender["seconds"] else ""),
    ]


def _finding(finding: Mapping[str, Any]) -> str:
    evidence = ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in finding["evidence"].items())
    return f"{finding['sentence']} [{evidence}] {finding['advice']}"
