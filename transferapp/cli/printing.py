"""Layout of printed text: its width, tables, and labels beside sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from transferapp.cli.streams import printable

_WIDTH = 110
_PLAIN_WIDTH = 100

Rows = list[tuple[str, RenderableType]]


def page_console() -> Console:
    """Return a console as wide as the terminal, up to a comfortable line; 100 columns in a file or a pipe."""
    console = Console(highlight=False)
    width = min(console.width, _WIDTH) if console.is_terminal else _PLAIN_WIDTH
    return Console(highlight=False, width=width)


def show(console: Console, renderable: RenderableType) -> None:
    """Print; without blanks at the ends of lines in a file or a pipe."""
    if console.is_terminal:
        console.print(renderable)
        return
    with console.capture() as captured:
        console.print(renderable)
    console.file.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))
    console.file.flush()


def text(content: str, style: str = "") -> Text:
    """Return text in which control characters are escaped."""
    return Text(printable(content), style)


def grid(rows: Sequence[tuple[str, RenderableType]], style: str = "cyan") -> Table:
    """Lay out right-aligned labels beside texts, which wrap below their own first line."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(justify="right", style=style, no_wrap=True)
    grid.add_column()
    for label, content in rows:
        grid.add_row(printable(label), content)
    return grid


def labeled(label: str, sentences: Sequence[str], style: str = "") -> Rows:
    """Return rows for `grid`: one for each sentence, the label beside the first."""
    return [("" if index else label, text(sentence, style)) for index, sentence in enumerate(sentences)]


def table(*headings: str, header: bool = True, style: str = "") -> Table:
    """Return a table without lines; a heading that begins with `>` is right-aligned.

    Args:
        headings: Headings of the columns.
        header: Whether to show them.
        style: Style of the headings.
    """
    made = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=header, header_style="none")
    for heading in headings:
        alignment: Any = "right" if heading.startswith(">") else "left"
        made.add_column(heading.removeprefix(">"), header_style=style, justify=alignment)
    return made
