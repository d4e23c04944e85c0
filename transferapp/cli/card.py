"""The decision card and the other things a person reads at the end of a command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import ROUNDED
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

_CELLS = {
    ("small", "similar"): "new linear classifier\non the last stage",
    ("small", "different"): "linear classifier on\nan earlier stage",
    ("large", "similar"): "fine-tune the\nlast stages",
    ("large", "different"): "fine-tune the\nwhole network",
}
_IGNORED_SHOWN = 10
_WIDTH = 110


def _console() -> Console:
    console = Console(highlight=False)
    return (
        Console(highlight=False, width=min(console.width, _WIDTH))
        if console.is_terminal
        else Console(highlight=False, width=_WIDTH)
    )


def show_card(
    plan: Mapping[str, Any], candidates: Sequence[Mapping[str, Any]], ignored: Sequence[Mapping[str, Any]]
) -> None:
    """Print the decision card: what was measured, which quadrant, what follows, and what would change it."""
    heading = Text.assemble(
        (f"{plan['num_images']:,} training pictures", "bold"),
        ", ",
        (f"{plan['num_classes']} classes", "bold"),
        "   →   ",
        (plan["quadrant"], "bold green"),
    )
    parts: list[Any] = [heading, Text(), _quadrants(plan), Text()]
    parts += [_labelled(reason) for reason in plan["reasons"]]
    rate = plan["head_learning_rate"]
    steps = (
        f"head {rate:g}, backbone {plan['backbone_learning_rate']:g}, {plan['epochs']} epochs"
        if rate is not None
        else "none: backbone frozen, classifier solved to its optimum"
    )
    parts += [
        Text(),
        _labelled(f"now: {plan['backbone']} cut at {plan['cut']}; {plan['method']}"),
        _labelled(f"learning rate: {steps}"),
    ]
    if plan["tuned"] != "none":
        parts.append(
            _labelled(
                f"note: tuning ({plan['tuned']}) is not built yet; the best probe is trained, which it starts from"
            )
        )
    parts += [Text(), _candidates(candidates), Text(), Text("What would change this", style="bold")]
    parts += [Text(f"· {note}") for note in plan["would_change"]]
    console = _console()
    console.print(Panel(Group(*parts), title="decision card", box=ROUNDED, padding=(1, 2)))
    show_ignored(ignored, console)


def show_ignored(ignored: Sequence[Mapping[str, Any]], console: Console) -> None:
    """List files that were left out."""
    if not ignored:
        return
    console.print(f"{len(ignored)} file{'s were' if len(ignored) > 1 else ' was'} left out:", style="yellow")
    for item in ignored[:_IGNORED_SHOWN]:
        console.print(f"  {item['name']}: {item['reason']}", markup=False)
    if len(ignored) > _IGNORED_SHOWN:
        console.print(f"  ... and {len(ignored) - _IGNORED_SHOWN} more")


def _labelled(sentence: str) -> Text:
    label, _, rest = sentence.partition(": ")
    return Text.assemble((f"{label:>13}  ", "cyan"), rest, overflow="fold")


def _quadrants(plan: Mapping[str, Any]) -> Table:
    table = Table(box=ROUNDED, show_lines=True)
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


def _candidates(candidates: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("backbone", "cut", "cross-validated", "10-crop request", "accuracy by stage, earliest first"):
        table.add_column(heading, header_style="bold")
    for candidate in candidates:
        stages = "  ".join(
            f"{stage['accuracy']:.2f}{'*' if stage['stage'] == candidate['cut'] else ''}"
            for stage in candidate["stages"]
        )
        table.add_row(
            f"{'▶ ' if candidate['chosen'] else '  '}{candidate['backbone']}",
            candidate["cut"],
            f"{candidate['accuracy']:.3f}",
            f"{candidate['milliseconds']:.0f} ms",
            stages,
            style="green" if candidate["chosen"] else "",
        )
    return table


def show_outcome(manifest: Mapping[str, Any], path: Path, seconds: float) -> None:
    """Say how good the bundle is and what to do with it."""
    console = _console()
    for split, label in (("validation", "Validation"), ("test", "Test")):
        figures = manifest["metrics"][split]
        if figures:
            low, high = figures["accuracy_interval"]
            right = round(figures["accuracy"] * figures["num_images"])
            console.print(
                f"{label:<11} accuracy [bold]{figures['accuracy']:.3f}[/] ({right} of {figures['num_images']} unseen "
                f"pictures right, 95 % interval {low:.2f} to {high:.2f})"
            )
    parity = manifest["parity"][manifest["precision"]["served"]]
    console.print(
        f"{'Served':<11} in {parity['precision']}, at most {parity['max_difference']:.1g} from Keras in any probability "
        f"({parity['num_images']} pictures)"
    )
    console.print(f"{'Bundle':<11} {path}  (report: {path / 'report.html'}), {seconds:.1f} s in all\n")
    console.print(f"  transferapp predict {path} PICTURE...\n  transferapp serve {path}", style="cyan", markup=False)


def show_evaluation(evaluation: Mapping[str, Any]) -> None:
    """Print the figures of `transferapp evaluate`."""
    console = _console()
    low, high = evaluation["accuracy_interval"]
    console.print(
        f"[bold]accuracy {evaluation['accuracy']:.3f}[/] (95 % interval {low:.2f} to {high:.2f})   "
        f"top-5 {evaluation['top5_accuracy']:.3f}   loss {evaluation['loss']:.3f}   macro F1 {evaluation['macro_f1']:.3f}"
    )
    views = f"{evaluation['views']} view{'s' if evaluation['views'] > 1 else ''} each"
    console.print(f"{evaluation['num_images']} pictures, {views}, split: {evaluation['split']}")
    if evaluation["num_seen"]:
        verb = "are counted in" if evaluation["seen_included"] else "were left out"
        console.print(f"{evaluation['num_seen']} pictures that the bundle was trained on {verb}", style="yellow")
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("class", "pictures", "precision", "recall", "F1"):
        table.add_column(heading, header_style="bold", justify="left" if heading == "class" else "right")
    for name, figures in sorted(evaluation["per_class"].items(), key=lambda item: item[1]["recall"]):
        if figures["num_images"]:
            numbers = [f"{figures[key]:.3f}" for key in ("precision", "recall", "f1")]
            table.add_row(Text(name), str(figures["num_images"]), *numbers)
    console.print(table)
