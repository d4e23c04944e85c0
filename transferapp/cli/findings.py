"""What an audit and the label doctor found, as a person at the terminal reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from transferapp.cli.card import show_ignored
from transferapp.cli.layout import grid, page_console, show
from transferapp.cli.streams import printable
from transferapp.evaluation.report.wording import data_sentences

_CLASSES_SHOWN = 30
_CLUSTERS_SHOWN = 10
_MEMBERS_SHOWN = 3
_LABELS_SHOWN = 20
_BAR = 24


def show_findings(document: Mapping[str, Any]) -> None:
    """Print the outcome of `transferapp audit`.

    Args:
        document: `Audit.to_json()`.
    """
    console = page_console()
    rows: list[tuple[str, RenderableType]] = [
        ("found" if not at else "", Text(printable(sentence))) for at, sentence in enumerate(data_sentences(document))
    ]
    if document["sizes"]:
        least, middle, most = (
            " x ".join(map(str, document["sizes"][key])) for key in ("smallest", "median", "largest")
        )
        rows.append(("sizes", f"{least} to {most} pixels, {middle} in the middle"))
        rows.append(("formats", ", ".join(f"{count:,} {form}" for form, count in document["forms"].items())))
    for at, odd in enumerate(document["odd"]):
        example = f" ({odd['examples'][0]})" if odd["count"] == 1 else f" (such as {odd['examples'][0]})"
        rows.append(("odd" if not at else "", Text(printable(f"{odd['count']:,}: {odd['reason']}{example}"))))
    show(console, grid(rows))
    console.print()
    show(console, _classes(document["counts"]))
    _show_clusters(document, console)
    if document["similar"]:
        console.print("\nAlike to the network:", style="bold")
        show(console, _pairs(document["similar"], document["num_similar"]))
    if document["ignored"]:
        console.print()
    show_ignored(document["ignored"], console)


def _classes(counts: Mapping[str, int]) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for heading, justify in (("class", "left"), ("images", "right"), ("", "left")):
        table.add_column(heading, header_style="bold", justify=justify)  # type: ignore[arg-type]
    largest = max(counts.values(), default=1) or 1
    for name, count in list(counts.items())[:_CLASSES_SHOWN]:
        table.add_row(Text(printable(name)), f"{count:,}", Text("█" * round(_BAR * count / largest), "cyan"))
    if len(counts) > _CLASSES_SHOWN:
        table.add_row(f"... and {len(counts) - _CLASSES_SHOWN:,} more", "", "")
    return table


def _show_clusters(document: Mapping[str, Any], console: Console) -> None:
    clusters = document["clusters"]
    if not clusters:
        return
    console.print("\nCopies:", style="bold")
    rows: list[tuple[str, RenderableType]] = []
    for cluster in clusters[:_CLUSTERS_SHOWN]:
        names = [member["name"] for member in cluster["members"][:_MEMBERS_SHOWN]]
        rest = cluster["num_images"] - len(names)
        said = ", ".join(names) + (f" and {rest:,} more" if rest else "")
        marks = [f"{cluster['num_labels']} labels"] if cluster["num_labels"] > 1 else []
        marks += [f"{cluster['num_splits']} splits"] if cluster["num_splits"] > 1 else []
        rows.append(
            (cluster["kind"], Text.assemble(printable(said), (f"  [{', '.join(marks)}]", "yellow") if marks else ""))
        )
    if document["num_clusters"] > _CLUSTERS_SHOWN:
        rows.append(("", f"... and {document['num_clusters'] - _CLUSTERS_SHOWN:,} more groups"))
    show(console, grid(rows))


def _pairs(alike: Sequence[Mapping[str, Any]], total: int) -> RenderableType:
    rows: list[tuple[str, RenderableType]] = [
        (f"{pair['cosine']:.2f}", Text(printable(f"{pair['first']['name']}, {pair['second']['name']}")))
        for pair in alike[:_CLUSTERS_SHOWN]
    ]
    if total > _CLUSTERS_SHOWN:
        rows.append(("", f"... and {total - _CLUSTERS_SHOWN:,} more pairs"))
    return grid(rows)


def show_diagnosis(document: Mapping[str, Any], files: Sequence[str]) -> None:
    """Print the outcome of `transferapp doctor`.

    Args:
        document: `Diagnosis.to_json()`.
        files: What was written.
    """
    console = page_console()
    console.print(
        f"{document['num_suspected']:,} of {document['num_images']:,} labels look wrong "
        f"({document['accuracy']:.1%} agree with a classifier that had not seen the image)",
        style="bold",
    )
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for heading in ("image", "label", "rather", "sure"):
        table.add_column(heading, header_style="bold", justify="right" if heading == "sure" else "left")
    for image in document["images"][:_LABELS_SHOWN]:
        if image["suspected"]:
            words = [Text(printable(image[key])) for key in ("path", "given_label", "suggested_label")]
            table.add_row(*words, f"{image['confidence']:.0%}")
    if document["num_suspected"]:
        show(console, table)
    rest = document["num_suspected"] - _LABELS_SHOWN
    if rest > 0:
        console.print(f"... and {rest:,} more")
    console.print()
    for file in files:
        console.print(printable(f"  {file}"), markup=False, soft_wrap=True)
    console.print(
        "\nFill in the fix column (a class, drop, or nothing), then add --label-fixes FILE to transferapp fit.",
        soft_wrap=True,
    )
