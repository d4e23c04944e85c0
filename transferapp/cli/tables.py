"""Printed results of `audit`, `doctor`, `evaluate`, `predict` and `search`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from transferapp.cli.card import macro_words, show_ignored
from transferapp.cli.printing import Rows, grid, labeled, page_console, show, table, text
from transferapp.cli.streams import printable
from transferapp.evaluation.report.charts import percent
from transferapp.evaluation.report.wording import counted, data_sentences, search_best, search_course, sentence

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
    rows = labeled("found", data_sentences(document))
    if document["sizes"]:
        least, median, most = (
            " x ".join(map(str, document["sizes"][key])) for key in ("smallest", "median", "largest")
        )
        rows.append(("sizes", f"{least} to {most} pixels, median {median}"))
        rows.append(("formats", ", ".join(f"{count:,} {form}" for form, count in document["forms"].items())))
    examples = [(odd, f"{'' if odd['count'] == 1 else 'such as '}{odd['examples'][0]}") for odd in document["odd"]]
    rows += labeled("odd", [f"{odd['count']:,}: {odd['reason']} ({example})" for odd, example in examples])
    show(console, grid(rows))
    console.print()
    show(console, _classes(document["counts"]))
    _show_clusters(document, console)
    if document["similar"]:
        console.print("\nSimilar to the network:", style="bold")
        pairs = [(pair["cosine"], pair["first"]["name"], pair["second"]["name"]) for pair in document["similar"]]
        rows = [(f"{cosine:.2f}", text(f"{first}, {second}")) for cosine, first, second in pairs[:_CLUSTERS_SHOWN]]
        show(console, grid([*rows, *_more(document["num_similar"] - _CLUSTERS_SHOWN, "pair")]))
    if document["ignored"]:
        console.print()
    show_ignored(document["ignored"], console)


def _classes(counts: Mapping[str, int]) -> Table:
    made = table("class", ">images", "", style="bold")
    largest = max(counts.values(), default=1) or 1
    for name, count in list(counts.items())[:_CLASSES_SHOWN]:
        made.add_row(text(name), f"{count:,}", Text("█" * round(_BAR * count / largest), "cyan"))
    if len(counts) > _CLASSES_SHOWN:
        made.add_row(f"... and {len(counts) - _CLASSES_SHOWN:,} more", "", "")
    return made


def _show_clusters(document: Mapping[str, Any], console: Console) -> None:
    rows: Rows = []
    for cluster in document["clusters"][:_CLUSTERS_SHOWN]:
        names = [member["name"] for member in cluster["members"][:_MEMBERS_SHOWN]]
        rest = cluster["num_images"] - len(names)
        listed = ", ".join(names) + (f" and {rest:,} more" if rest else "")
        marks = [
            counted(cluster[key], noun)
            for key, noun in (("num_labels", "label"), ("num_splits", "split"))
            if cluster[key] > 1
        ]
        rows.append(
            (cluster["kind"], Text.assemble(printable(listed), (f"  [{', '.join(marks)}]" if marks else "", "yellow")))
        )
    if rows:
        console.print("\nDuplicates:", style="bold")
        show(console, grid([*rows, *_more(document["num_clusters"] - _CLUSTERS_SHOWN, "group")]))


def _more(count: int, noun: str) -> Rows:
    return [("", f"... and {counted(count, f'more {noun}')}")] if count > 0 else []


def show_diagnosis(document: Mapping[str, Any], files: Sequence[str]) -> None:
    """Print the outcome of `transferapp doctor`.

    Args:
        document: `Diagnosis.to_json()`.
        files: Files that were written.
    """
    console = page_console()
    console.print(
        f"{document['num_suspected']:,} of {document['num_images']:,} labels look wrong "
        f"({document['accuracy']:.1%} agree with a classifier trained without the image)",
        style="bold",
    )
    made = table("image", "label", "suggestion", ">probability", style="bold")
    suspected = [image for image in document["images"] if image["suspected"]]
    for image in suspected[:_LABELS_SHOWN]:
        made.add_row(
            *(text(image[key]) for key in ("path", "given_label", "suggested_label")), f"{image['confidence']:.0%}"
        )
    if suspected:
        show(console, made)
    if document["num_suspected"] > _LABELS_SHOWN:
        console.print(f"... and {document['num_suspected'] - _LABELS_SHOWN:,} more")
    console.print()
    for file in files:
        console.print(printable(f"  {file}"), markup=False, soft_wrap=True)
    hint = "\nFill in the fix column (a class, drop, or nothing), then add --label-fixes FILE to transferapp fit."
    console.print(hint, soft_wrap=True)


def show_search(search: Mapping[str, Any]) -> None:
    """Print the course and the outcome of a search.

    Args:
        search: From the manifest.
    """
    rows: Rows = [
        *labeled("searched", search_course(search)),
        *labeled("narrowed", [f"to {note}" for note in search["narrowed"]]),
        ("found", text(search_best(search), "bold")),
        *labeled(
            "warning", [sentence(f"{edge}; better values may lie beyond it") for edge in search["edges"]], "yellow"
        ),
        ("chosen by", text(search["chosen_by"])),
        ("final figure", text(search["final_figure"])),
    ]
    show(page_console(), Group("", Text("Search", style="bold"), "", grid(rows)))


def show_evaluation(evaluation: Mapping[str, Any]) -> None:
    """Print the figures of `transferapp evaluate`."""
    console = page_console()
    low, high = evaluation["accuracy_interval"]
    images = f"{counted(evaluation['num_images'], 'image')}, {counted(evaluation['views'], 'crop')} each"
    rows: Rows = [
        (
            "accuracy",
            Text.assemble((f"{evaluation['accuracy']:.3f}", "bold"), f" (95 % interval {low:.2f} to {high:.2f})"),
        ),
        *([("top 5", f"{evaluation['top5_accuracy']:.3f}")] if len(evaluation["per_class"]) > 5 else []),
        ("by class", macro_words(evaluation)),
        ("loss", f"{evaluation['loss']:.3f} nats"),
        ("measured on", f"{images}, split: {evaluation['split']}"),
    ]
    notes = []
    if evaluation["num_seen"]:
        verb = "are included" if evaluation["seen_included"] else "were left out"
        notes.append(f"{counted(evaluation['num_seen'], 'image')} that the bundle was trained on {verb}")
    if evaluation["num_ignored"]:
        notes.append(f"{counted(evaluation['num_ignored'], 'file')} could not be read and were left out")
    show(console, grid([*rows, *labeled("note", notes, "yellow")]))
    console.print()
    show(console, _per_class(evaluation["per_class"]))


def _per_class(per_class: Mapping[str, Mapping[str, Any]]) -> RenderableType:
    """Return a table of the classes, lowest recall first."""
    made = table("class", ">images", ">precision", ">recall", ">F1", style="bold")
    judged = sorted(((name, f) for name, f in per_class.items() if f["num_images"]), key=lambda item: item[1]["recall"])
    for name, figures in judged[:_CLASSES_SHOWN]:
        numbers = [f"{figures[key]:.3f}" for key in ("precision", "recall", "f1")]
        made.add_row(text(name), f"{figures['num_images']:,}", *numbers)
    rest = len(judged) - _CLASSES_SHOWN
    return Group(made, f"... and {rest:,} classes with a higher recall; --json lists all") if rest > 0 else made


def show_prediction(file: Path, notes: Sequence[str], scores: Sequence[tuple[str, float]]) -> None:
    """Print the classes of an image, most probable first."""
    console = page_console()
    remarks = f"  ({', '.join(notes)})" if notes else ""
    console.print(printable(f"{file}{remarks}"), markup=False, soft_wrap=True)
    made = table("", ">", "", header=False)
    for label, score in scores:
        made.add_row(text(f"  {label}"), percent(score), "█" * round(30 * score))
    show(console, made)
