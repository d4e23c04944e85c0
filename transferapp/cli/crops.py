"""How many crops a bundle averages, as a person at the terminal reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from transferapp.cli.streams import printable
from transferapp.evaluation.report.charts import points


def crops(test_views: Mapping[str, Any]) -> RenderableType:
    """A small table of what each number of views gains and costs, and why one of them is the default.

    Args:
        test_views: From the manifest.
    """
    title = Text(f"Views that are averaged in a prediction: {test_views['views']} by default", style="bold")
    reasons = [Text(printable(reason)) for reason in test_views["reasons"]]
    if not test_views["tried"]:
        return Group("", title, *reasons)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for heading, justify in (("views", "left"), ("accuracy", "right"), ("gain", "right"), ("a request", "right")):
        table.add_column(heading, header_style="", justify=justify)  # type: ignore[arg-type]
    for tried in test_views["tried"]:
        chosen = tried["views"] == test_views["views"]
        table.add_row(
            f"{'▶' if chosen else ' '} {tried['views']}",
            f"{tried['accuracy']:.3f}",
            ""
            if tried["gain"] is None
            else f"{points(tried['gain'])} ± {points(tried['standard_error'], signed=False)}",
            f"{tried['milliseconds']:.0f} ms",
            style="green" if chosen else "",
        )
    return Group("", title, table, *reasons)
