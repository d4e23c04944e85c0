"""How what a command prints is laid out: its width, and labels beside texts."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, RenderableType
from rich.table import Table

from transferapp.cli.streams import printable

_WIDTH = 110
_PLAIN_WIDTH = 100


def page_console() -> Console:
    """A console for what a command prints at its end: as wide as the window, up to a comfortable line."""
    console = Console(highlight=False)
    width = min(console.width, _WIDTH) if console.is_terminal else _PLAIN_WIDTH
    return Console(highlight=False, width=width)


def show(console: Console, renderable: RenderableType) -> None:
    """Print; what goes to a file or a pipe has no blanks at the ends of its lines."""
    if console.is_terminal:
        console.print(renderable)
        return
    with console.capture() as captured:
        console.print(renderable)
    console.file.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))
    console.file.flush()


def grid(rows: Sequence[tuple[str, RenderableType]], style: str = "cyan") -> Table:
    """Labels, right-aligned, and beside each its text, which wraps under its own first line."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(justify="right", style=style, no_wrap=True)
    grid.add_column()
    for label, text in rows:
        grid.add_row(printable(label), text)
    return grid
