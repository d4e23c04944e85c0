"""The decision card and the other things a person reads at the end of a command.

On a terminal the card has a frame and colors and is as wide as the window, up to a comfortable line. In a pipe or a log it is
the same text without either.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import ASCII2, ROUNDED
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from transferapp.cli.contest import contest
from transferapp.cli.crops import crops
from transferapp.cli.found import found
from transferapp.cli.layout import grid, page_console, show
from transferapp.cli.streams import printable
from transferapp.cli.terminal import duration
from transferapp.evaluation.report.charts import percent
from transferapp.evaluation.report.wording import backbone_reason, by_topic, data_sentences, leak_sentences

_CELLS = {
    ("small", "similar"): "new linear classifier\non the last stage",
    ("small", "different"): "linear classifier on\nan earlier stage",
    ("large", "similar"): "fine-tune the\nlast stages",
    ("large", "different"): "fine-tune the\nwhole network",
}
_IGNORED_SHOWN = 10
_CLASSES_SHOWN = 30
_UNLIMITED = 10_000

_WORDS = (
    ("backbone", "the network that has learned from ImageNet, a million photos in 1000 classes; here it is reused"),
    ("stage", "a part of it: the first ones see edges and textures, the last one whole objects"),
    ("cut", "the stage that the new classifier reads; what lies below it is the backbone's share"),
    ("D", "how badly ImageNet's classes predict these labels: 0 is perfectly, 1 is not at all"),
    ("cross-validated", "measured on training images, each held out in turn"),
)
"""What the card's terms mean, for those who meet them for the first time."""


def show_card(
    plan: Mapping[str, Any],
    candidates: Sequence[Mapping[str, Any]],
    ignored: Sequence[Mapping[str, Any]],
    contenders: Sequence[Mapping[str, Any]] = (),
    hardware: Mapping[str, Any] | None = None,
    findings: Mapping[str, Any] | None = None,
    class_weights: Mapping[str, Any] | None = None,
) -> None:
    """Print the decision card: what was measured, which quadrant, what follows, what came of it, what would change it."""
    console = page_console()
    card = Group(
        _heading(plan),
        "",
        _quadrants(plan, console),
        "",
        grid([*_data_rows(findings, class_weights), *_argument(plan, candidates, hardware)]),
        "",
        _Candidates(candidates),
        "",
        *([contest(contenders), ""] if contenders else []),
        Text("What would change this", style="bold"),
        grid([("·", Text(printable(note["text"]))) for note in plan["would_change"]], style=""),
        "",
        Text("The words", style="bold"),
        grid([(word, Text(meaning, style="dim")) for word, meaning in _WORDS], style="dim"),
    )
    if console.is_terminal:
        show(console, Panel(card, title="decision card", box=ROUNDED, padding=(1, 2)))
    else:
        show(console, Group("DECISION CARD", "", card))
    show_ignored(ignored, console)


def _heading(plan: Mapping[str, Any]) -> Text:
    return Text.assemble(
        (f"{plan['num_images']:,} training images", "bold"),
        ", ",
        (f"{plan['num_classes']} classes", "bold"),
        "   →   ",
        (plan["quadrant"], "bold green"),
    )


def _argument(
    plan: Mapping[str, Any], candidates: Sequence[Mapping[str, Any]], hardware: Mapping[str, Any] | None
) -> list[tuple[str, RenderableType]]:
    """The reasons in the order of the argument, and what is done because of them."""
    rows: list[tuple[str, RenderableType]] = []
    for label, sentences in by_topic(plan["reasons"]):
        rows += [(label if first else "", Text(printable(s))) for first, s in _first(sentences)]
    if len(candidates) > 1:
        rows.append(("backbone", Text(printable(f"{plan['backbone']}. {backbone_reason(candidates)}"))))
    if hardware is not None:
        rows.append(("hardware", Text(printable(hardware["sentence"]))))
    rows.append(("method", Text(printable(f"{plan['method']}, on {plan['backbone']}"), "bold")))
    return rows


def _data_rows(
    findings: Mapping[str, Any] | None, class_weights: Mapping[str, Any] | None
) -> list[tuple[str, RenderableType]]:
    """What the audit found, and how much each class counts."""
    sentences = data_sentences(findings) if findings else []
    rows: list[tuple[str, RenderableType]] = [
        ("data" if first else "", Text(printable(sentence))) for first, sentence in _first(sentences)
    ]
    if class_weights:
        rows.append(("classes", Text(printable(class_weights["reason"]["text"]))))
    return rows


def _first(sentences: Sequence[str]) -> list[tuple[bool, str]]:
    return [(index == 0, sentence) for index, sentence in enumerate(sentences)]


def show_ignored(ignored: Sequence[Mapping[str, Any]], console: Console) -> None:
    """List files that were left out."""
    if not ignored:
        return
    console.print(f"{len(ignored)} file{'s were' if len(ignored) > 1 else ' was'} left out:", style="yellow")
    rows = [Text(printable(f"{item['name']}: {item['reason']}")) for item in ignored[:_IGNORED_SHOWN]]
    if len(ignored) > _IGNORED_SHOWN:
        rows.append(Text(f"... and {len(ignored) - _IGNORED_SHOWN:,} more"))
    show(console, grid([("", row) for row in rows]))


def _quadrants(plan: Mapping[str, Any], console: Console) -> Table:
    table = Table(box=ROUNDED if console.is_terminal else ASCII2, show_lines=True, safe_box=True)
    table.add_column("")
    for similarity in ("similar", "different"):
        table.add_column(f"{similarity}{' to ImageNet' if similarity == 'similar' else ''}", justify="center")
    for size in ("small", "large"):
        cells = []
        for similarity in ("similar", "different"):
            chosen = (size, similarity) == (plan["size"], plan["similarity"])
            text = _CELLS[size, similarity]
            cells.append(Text(f"▶ {text}" if chosen else text, style="bold green" if chosen else "dim"))
        table.add_row(size, *cells)
    return table


class _Candidates:
    """The backbones that were tried: one table where it fits the width, otherwise one below the other."""

    _COLUMNS = (("backbone", "left"), ("cut at", "left"), ("accuracy", "right"), ("10 crops", "right"))
    _STAGES = "accuracy by stage, earliest first (* cut)"

    def __init__(self, candidates: Sequence[Mapping[str, Any]]) -> None:
        self._candidates = candidates

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text("What was tried: cross-validated accuracy, time of a request of ten crops", style="bold")
        together = self._table([*self._COLUMNS, (self._STAGES, "left")], lambda c: [*_facts(c), _profile(c)])
        if Measurement.get(console, options.update(max_width=_UNLIMITED), together).maximum <= options.max_width:
            yield together
            return
        yield self._table(self._COLUMNS, _facts)
        yield Text(f"\n{self._STAGES}")
        yield self._table((("backbone", "left"), ("", "left")), lambda c: [_facts(c)[0], _profile(c)], header=False)

    def _table(self, columns: Sequence[tuple[str, Any]], cells: Any, *, header: bool = True) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=header)
        for heading, justify in columns:
            table.add_column(heading, header_style="", justify=justify)
        for candidate in self._candidates:
            table.add_row(*cells(candidate), style="green" if candidate["chosen"] else "")
        return table


def _facts(candidate: Mapping[str, Any]) -> list[Text]:
    mark = "▶ " if candidate["chosen"] else "  "
    accuracy, cost = f"{candidate['accuracy']:.3f}", f"{candidate['milliseconds']:.0f} ms"
    return [
        Text(mark + printable(candidate["backbone"]), no_wrap=True),
        Text(printable(candidate["cut"])),
        Text(accuracy),
        Text(cost),
    ]


def _profile(candidate: Mapping[str, Any]) -> Text:
    figures = [
        f"{stage['accuracy']:.2f}{'*' if stage['stage'] == candidate['cut'] else ' '}" for stage in candidate["stages"]
    ]
    return Text(" ".join(figures).rstrip())


def show_outcome(manifest: Mapping[str, Any], path: Path, seconds: float) -> None:
    """Say how good the bundle is and what to do with it."""
    console = page_console()
    show(console, crops(manifest["test_views"]))
    rows: list[tuple[str, RenderableType]] = []
    leaks = leak_sentences(manifest.get("leaks"))
    for split in ("validation", "test"):
        figures = manifest["metrics"][split]
        if figures:
            low, high = figures["accuracy_interval"]
            right = round(figures["accuracy"] * figures["num_images"])
            kind = "test images" if split == "test" and leaks else "unseen images"
            rows.append(
                (
                    split,
                    Text.assemble(
                        (f"accuracy {figures['accuracy']:.3f}", "bold"),
                        f": {right} of {figures['num_images']} {kind} right by their center view, 95 % interval "
                        f"{low:.2f} to {high:.2f}",
                    ),
                )
            )
            rows.append(("", macro_words(figures)))
    for first, sentence in _first(leaks):
        rows.append(("honest" if first else "", Text(printable(sentence), "yellow")))
    parity = manifest["parity"][manifest["precision"]["served"]]
    rows += [
        (
            "served",
            f"in {parity['precision']}; no probability differs from the Keras model's by more than "
            f"{parity['max_difference']:.1g} ({parity['num_images']} images compared)",
        ),
        ("report", Text(printable(str(path / "report.html")))),
        ("bundle", Text(printable(f"{path}, after {duration(seconds)}"))),
    ]
    console.print()
    show(console, grid(rows))
    named = shlex.quote(str(path))
    console.print()
    for line in (f"transferapp predict {named} IMAGE...", f"transferapp serve {named}"):
        console.print(f"  {printable(line)}", style="cyan", markup=False, soft_wrap=True)


def macro_words(figures: Mapping[str, Any]) -> str:
    """The figures in which every class counts the same, beside the plain one."""
    return f"mean recall {figures['macro_recall']:.3f}, mean F1 {figures['macro_f1']:.3f}: every class counts the same"


def show_search(search: Mapping[str, Any]) -> None:
    """Print what a search has found."""
    show(page_console(), found(search))


def show_evaluation(evaluation: Mapping[str, Any]) -> None:
    """Print the figures of `transferapp evaluate`."""
    console = page_console()
    low, high = evaluation["accuracy_interval"]
    views = f"{evaluation['views']} view{'s' if evaluation['views'] > 1 else ''} each"
    rows: list[tuple[str, RenderableType]] = [
        (
            "accuracy",
            Text.assemble((f"{evaluation['accuracy']:.3f}", "bold"), f", 95 % interval {low:.2f} to {high:.2f}"),
        ),
        ("top 5", f"{evaluation['top5_accuracy']:.3f}"),
        ("by class", macro_words(evaluation)),
        ("loss", f"{evaluation['loss']:.3f} nats"),
        ("measured on", f"{evaluation['num_images']:,} images, {views}, split: {evaluation['split']}"),
    ]
    if evaluation["num_seen"]:
        verb = "are counted in" if evaluation["seen_included"] else "were left out"
        rows.append(
            ("note", Text(f"{evaluation['num_seen']:,} images that the bundle was trained on {verb}", "yellow"))
        )
    if evaluation["num_ignored"]:
        rows.append(
            ("note", Text(f"{evaluation['num_ignored']:,} files could not be read and were left out", "yellow"))
        )
    show(console, grid(rows))
    console.print()
    show(console, _per_class(evaluation["per_class"]))


def _per_class(per_class: Mapping[str, Mapping[str, Any]]) -> RenderableType:
    """The classes, hardest first."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for heading in ("class", "images", "precision", "recall", "F1"):
        table.add_column(heading, header_style="bold", justify="left" if heading == "class" else "right")
    judged = sorted(((name, f) for name, f in per_class.items() if f["num_images"]), key=lambda item: item[1]["recall"])
    for name, figures in judged[:_CLASSES_SHOWN]:
        numbers = [f"{figures[key]:.3f}" for key in ("precision", "recall", "f1")]
        table.add_row(Text(printable(name)), f"{figures['num_images']:,}", *numbers)
    rest = len(judged) - _CLASSES_SHOWN
    return Group(table, f"... and {rest:,} classes that are easier; --json has them all") if rest > 0 else table


def show_prediction(file: Path, notes: Sequence[str], scores: Sequence[tuple[str, float]]) -> None:
    """Print an image's classes, most probable first."""
    console = page_console()
    said = f"  ({', '.join(notes)})" if notes else ""
    console.print(printable(f"{file}{said}"), markup=False, soft_wrap=True)
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    for label, score in scores:
        table.add_row(Text(f"  {printable(label)}"), percent(score), "█" * round(30 * score))
    show(console, table)
