"""Text that commands print: the decision card, the outcome of a fit, findings, evaluations and predictions."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import ASCII2, ROUNDED
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from transferapp.cli.printing import Rows, grid, labeled, page_console, show, table, text
from transferapp.cli.streams import printable
from transferapp.cli.terminal import duration
from transferapp.evaluation.report.charts import percent, points
from transferapp.evaluation.report.wording import (
    backbone_reason,
    by_topic,
    counted,
    data_sentences,
    forecast_sentence,
    leak_sentences,
    novelty_sentence,
    robustness_sentence,
    search_best,
    search_course,
    seen_as,
    selected_on_validation,
    sentence,
    sets_sentence,
    uniform_sentence,
)
from transferapp.recipes.sorting import UNKNOWN, UNSURE

if TYPE_CHECKING:
    from transferapp.bundle.predictor import Prediction

_CELLS = {
    ("small", "similar"): "new linear classifier\non the last stage",
    ("small", "different"): "linear classifier on\nearlier stages",
    ("large", "similar"): "fine-tune the\nlast stages",
    ("large", "different"): "fine-tune the\nwhole network",
}
_DOUBTS = ((UNKNOWN, "they look like none of the classes"), (UNSURE, "they could be of several classes"))
_SPLIT_NAMES = (("train", "training"), ("val", "validation"), ("test", "test"))
_IGNORED_SHOWN = 10
_UNLIMITED = 10_000

_TERMS = (
    ("backbone", "the network pretrained on ImageNet, a million images of 1000 classes, and reused here"),
    ("stage", "a part of the backbone: the first ones respond to edges and textures, the last to whole objects"),
    ("cut", "the stage that the linear classifier reads; the backbone up to it stays frozen"),
    ("mixture", "several stages, each with a linear classifier; the weighted sum of these decides"),
    ("D", "the loss of predicting these labels from ImageNet's classes: 0 is perfect, 1 is guessing"),
    ("cross-validated", "measured on training images, each predicted by a classifier trained without it"),
)


def show_card(manifest: Mapping[str, Any]) -> None:
    """Print the decision card: the measurements, the quadrant, what is trained, the results, what would change the decision.

    Args:
        manifest: A bundle's manifest, or its keys `plan`, `backbones`, `data`, `hardware` and `class_weights` of a plan.
    """
    console = page_console()
    plan, candidates = manifest["plan"], manifest.get("candidates") or ()
    card = Group(
        Text.assemble(
            (counted(plan["num_images"], "training image"), "bold"),
            ", ",
            (counted(plan["num_classes"], "class"), "bold"),
            "   →   ",
            (plan["quadrant"], "bold green"),
        ),
        "",
        _quadrants(plan, console),
        "",
        grid(_argument(manifest)),
        "",
        _Backbones(manifest["backbones"]),
        "",
        *([*candidates_table(candidates), ""] if candidates else []),
        Text("What would change the decision", style="bold"),
        grid([("·", text(reason["text"])) for reason in plan["would_change"]], style=""),
        "",
        Text("Terms", style="bold"),
        grid([(term, text(meaning, "dim")) for term, meaning in _TERMS], style="dim"),
    )
    if console.is_terminal:
        show(console, Panel(card, title="decision card", box=ROUNDED, padding=(1, 2)))
    else:
        show(console, Group("DECISION CARD", "", card))
    show_ignored(manifest["data"]["ignored"], console)


def _argument(manifest: Mapping[str, Any]) -> Rows:
    """Return the data, the reasons in order, and what is trained because of them."""
    plan, backbones, findings = manifest["plan"], manifest["backbones"], manifest["data"].get("findings")
    rows: Rows = labeled("data", data_sentences(findings)) if findings else []
    if manifest.get("class_weights"):
        rows += labeled("classes", [manifest["class_weights"]["reason"]["text"]])
    for topic, sentences in by_topic(plan["reasons"]):
        rows += labeled(topic, sentences)
    if len(backbones) > 1:
        rows += labeled("backbone", [backbone_reason(backbones)])
    rows += labeled("hardware", [sentence(manifest["hardware"]["sentence"])])
    return [*rows, ("trained", text(f"{plan['method']}, on {plan['backbone']}", "bold"))]


def show_ignored(ignored: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Print the files that were left out, and why."""
    if not ignored:
        return
    verb = "was" if len(ignored) == 1 else "were"
    console.print(f"{counted(len(ignored), 'file')} {verb} left out:", style="yellow")
    rows: Rows = [("", text(f"{item['name']}: {item['reason']}")) for item in ignored[:_IGNORED_SHOWN]]
    if len(ignored) > _IGNORED_SHOWN:
        rows.append(("", f"... and {len(ignored) - _IGNORED_SHOWN:,} more"))
    show(console, grid(rows))


def _quadrants(plan: Mapping[str, Any], console: Console) -> Table:
    made = Table(box=ROUNDED if console.is_terminal else ASCII2, show_lines=True, safe_box=True)
    for heading in ("", "similar to ImageNet", "different"):
        made.add_column(heading, justify="center" if heading else "left")
    for size in ("small", "large"):
        cells = []
        for similarity in ("similar", "different"):
            chosen = (size, similarity) == (plan["size"], plan["similarity"])
            content = _CELLS[size, similarity]
            cells.append(Text(f"▶ {content}" if chosen else content, style="bold green" if chosen else "dim"))
        made.add_row(size, *cells)
    return made


class _Backbones:
    """The backbones that were tried: one table where it fits the width, otherwise two, one below the other."""

    _COLUMNS = ("backbone", "cut", ">accuracy", ">ten crops")
    _STAGES = "accuracy by stage, earliest first (* cut)"

    def __init__(self, backbones: Sequence[Mapping[str, Any]]) -> None:
        self._backbones = backbones

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text("Backbones: cross-validated accuracy, time per request of ten crops", style="bold")
        together = self._table([*self._COLUMNS, self._STAGES], lambda b: [*self._figures(b), self._profile(b)])
        if Measurement.get(console, options.update(max_width=_UNLIMITED), together).maximum <= options.max_width:
            yield together
            return
        yield self._table(self._COLUMNS, self._figures)
        yield Text(f"\n{self._STAGES}")
        yield self._table(("backbone", ""), lambda b: [self._figures(b)[0], self._profile(b)], header=False)

    def _table(self, headings: Sequence[str], cells: Any, *, header: bool = True) -> Table:
        made = table(*headings, header=header)
        for backbone in self._backbones:
            made.add_row(*cells(backbone), style="green" if backbone["chosen"] else "")
        return made

    def _figures(self, backbone: Mapping[str, Any]) -> list[Text]:
        return [
            _marked(backbone["chosen"], backbone["backbone"]),
            text("mixture" if backbone.get("mixture") else backbone["cut"]),
            Text(f"{backbone['accuracy']:.3f}"),
            Text(f"{backbone['milliseconds']:.0f} ms"),
        ]

    def _profile(self, backbone: Mapping[str, Any]) -> Text:
        stages = backbone["stages"]
        cut = "" if backbone.get("mixture") else backbone["cut"]
        cells = [f"{s['accuracy']:.2f}{'*' if s['stage'] == cut else ' '}" for s in stages]
        return Text(" ".join(cells).rstrip())


def _marked(chosen: bool, name: object) -> Text:
    """Return a name behind the mark of the chosen row."""
    return text(f"{'▶' if chosen else ' '} {name}")


def candidates_table(candidates: Sequence[Mapping[str, Any]]) -> list[RenderableType]:
    """Return the title, a table of the candidates, and below it the reason and the findings of each.

    Args:
        candidates: From the manifest, the linear classifier first; not empty.
    """
    made = table("candidate", "frozen up to", ">accuracy", ">loss", ">epochs", ">time")
    notes: list[RenderableType] = []
    for candidate in candidates:
        trained = candidate["accuracy"] is not None
        made.add_row(
            _marked(candidate["chosen"], candidate["name"]),
            text(candidate["cut"]),
            f"{candidate['accuracy']:.3f}" if trained else "-",
            f"{candidate['loss']:.3f}" if candidate["loss"] is not None else "-",
            f"{candidate['epochs']} of {candidate['planned_epochs']}" if candidate["planned_epochs"] else "",
            f"{candidate['seconds']:.0f} s" if candidate["seconds"] else "",
            style="green" if candidate["chosen"] else "",
        )
        sentences = [sentence(candidate["reason"]), *map(_finding, candidate["findings"])]
        if any(sentences):
            indented = [Padding(text(each), (0, 0, 0, 2)) for each in sentences if each]
            notes += [text(candidate["name"], "cyan"), *indented]
    return [Text("Candidates on the validation images (▶ ships)", style="bold"), made, "", *notes]


def _finding(finding: Mapping[str, Any]) -> str:
    evidence = ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in finding["evidence"].items())
    return f"{finding['sentence']} [{evidence}] {finding['advice']}"


def show_outcome(manifest: Mapping[str, Any], path: Path, seconds: float) -> None:
    """Print the figures of a bundle, and the commands to use it."""
    console = page_console()
    show(console, crops_table(manifest["test_views"]))
    leaks = leak_sentences(manifest.get("leaks"))
    selected = selected_on_validation(manifest)
    rows: Rows = []
    for split in ("validation", "test"):
        if figures := manifest["metrics"][split]:
            kind = "held-out test images" if split == "test" and not leaks else f"{split} images"
            note = "; these images also selected the model" if split == "validation" and selected else ""
            low, high = figures["accuracy_interval"]
            right = round(figures["accuracy"] * figures["num_images"])
            accuracy = Text.assemble(
                (f"accuracy {figures['accuracy']:.3f}", "bold"),
                f" (95 % interval {low:.2f} to {high:.2f}): {right:,} of {figures['num_images']:,} {kind} are classified "
                f"correctly from {seen_as(manifest)}{note}",
            )
            rows += [(split, accuracy), ("", macro_words(figures))]
    parity = manifest["parity"][manifest["precision"]["served"]]
    compared, reference = counted(parity["num_images"], "image") + " compared", "the Keras model's"
    if manifest.get("parity_before"):
        if parity["precision"] == "f32":
            compared += " in an earlier fit with this backbone"
        else:
            reference = "those in f32"
    served = (
        f"in {parity['precision']}; probabilities differ from {reference} by at most {parity['max_difference']:.1g} "
        f"({compared})"
    )
    rows += [
        *labeled("overlap", leaks or list(filter(None, [uniform_sentence(manifest.get("leaks"))])), "yellow"),
        *labeled("unknown", list(filter(None, [novelty_sentence(manifest)]))),
        *labeled("sets", list(filter(None, [sets_sentence(manifest)]))),
        *labeled("changes", list(filter(None, [robustness_sentence(manifest)]))),
        *labeled("forecast", list(filter(None, [forecast_sentence(manifest)]))),
        ("served", served),
        ("report", text(str(path / "report.html"))),
        ("bundle", text(f"{path}, after {duration(seconds)}")),
    ]
    console.print()
    show(console, grid(rows))
    console.print()
    for line in (
        f"transferapp predict {shlex.quote(str(path))} IMAGE...",
        f"transferapp serve {shlex.quote(str(path))}",
    ):
        console.print(f"  {printable(line)}", style="cyan", markup=False, soft_wrap=True)


def crops_table(test_views: Mapping[str, Any]) -> RenderableType:
    """Return a table of the accuracy and the cost of each number of crops, and the reasons for the default.

    Args:
        test_views: From the manifest.
    """
    title = Text(f"Crops averaged in a prediction: {test_views['views']} by default", style="bold")
    reasons = [text(reason["text"]) for reason in test_views["reasons"]]
    if not test_views["tried"]:
        return Group("", title, *reasons)
    made = table("crops", ">accuracy", ">gain", ">request")
    for tried in test_views["tried"]:
        chosen, gain = tried["views"] == test_views["views"], tried["gain"]
        made.add_row(
            _marked(chosen, tried["views"]),
            f"{tried['accuracy']:.3f}",
            "" if gain is None else f"{points(gain)} ± {points(tried['standard_error'], signed=False)}",
            f"{tried['milliseconds']:.0f} ms",
            style="green" if chosen else "",
        )
    return Group("", title, made, *reasons)


def macro_words(figures: Mapping[str, Any]) -> str:
    """Return the figures in which every class counts the same."""
    return f"mean recall {figures['macro_recall']:.3f}, mean F1 {figures['macro_f1']:.3f}, with every class counted the same"


_CLASSES_SHOWN = 30
_CLUSTERS_SHOWN = 10
_MEMBERS_SHOWN = 3
_LABELS_SHOWN = 20
_SET_SHOWN = 10
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
        verb = "was" if evaluation["num_ignored"] == 1 else "were"
        notes.append(f"{counted(evaluation['num_ignored'], 'file')} that could not be used {verb} left out")
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


def show_export(figures: Mapping[str, Any]) -> None:
    """Print the outcome of `transferapp export`."""
    compared = (
        f"the same label as the bundle on {figures['agreement']:.1%} of {counted(figures['num_images'], 'held-out image')}; "
        f"probabilities differ by at most {figures['max_difference']:.1g}"
    )
    further = []
    if figures["file_agreement"] is not None:
        further.append(
            f"where it decodes and scales the files itself: the same label on {figures['file_agreement']:.1%}; "
            f"probabilities differ by at most {figures['file_difference']:.1g}"
        )
    if figures["known_agreement"] is not None:
        further.append(f"both call them known, or both unknown, on {figures['known_agreement']:.1%}")
    accuracy = f"{figures['accuracy']:.3f} on these images; the bundle's is {figures['bundle_accuracy']:.3f}"
    rows: Rows = [
        ("compared", compared),
        *labeled("", further),
        ("accuracy", accuracy),
        ("written", text(f"{figures['file']}, {figures['bytes'] / 1e6:.1f} MB with its metadata.json")),
    ]
    show(page_console(), grid(rows))


def show_update(outcome: Mapping[str, Any]) -> None:
    """Print the outcome of `transferapp update`.

    Args:
        outcome: `UpdateResult.to_json()`.
    """
    console = page_console()
    new, changed = outcome["new_images"], outcome["changed"]
    splits = Counter[str]()
    for counts in new.values():
        splits.update(counts)
    parts = ", ".join(f"{splits[split]:,} {name}" for split, name in _SPLIT_NAMES if splits[split])
    console.print(f"{counted(splits.total(), 'new image')}: {parts}", style="bold")
    classes = [f"{name} {sum(counts.values()):,}" for name, counts in new.items()]
    rest = len(classes) - _LABELS_SHOWN
    rows: Rows = [("by class", text(", ".join(classes[:_LABELS_SHOWN]) + (f" and {rest:,} more" if rest > 0 else "")))]
    rows += [("new classes", text(", ".join(outcome["new_classes"])))] if outcome["new_classes"] else []
    if outcome["accuracy"] is None:
        rows.append(("held out", "There were no test images before, so no answers are compared."))
    else:
        before, after = outcome["accuracy"]
        rows.append(
            (
                "held out",
                f"{counted(len(changed), 'answer')} of {outcome['num_compared']:,} changed; "
                f"accuracy on these test images {before:.3f} before, {after:.3f} now",
            )
        )
    show(console, grid(rows))
    if changed:
        made = table("image", "class", "before", "now", style="bold")
        for each in changed[:_LABELS_SHOWN]:
            made.add_row(*(text(each[key]) for key in ("name", "class_name", "before", "after")))
        console.print()
        show(console, made)
        if len(changed) > _LABELS_SHOWN:
            console.print(f"... and {len(changed) - _LABELS_SHOWN:,} more; --json lists all")
    console.print()
    show(console, grid([("bundle", text(f"{outcome['path']}, after {duration(outcome['seconds'])}"))]))


def show_batch(result: Mapping[str, Any], out: Path | None, sort_into: Path | None) -> None:
    """Print the outcome of a batch prediction.

    Args:
        result: `BatchResult.to_json()`.
        out: File of the answers, if one was written.
        sort_into: Folder of the sorted files, if they were sorted.
    """
    console = page_console()
    read = sum(result["labels"].values())
    console.print(f"{counted(read, 'image')} classified", style="bold")
    made = table("", ">", header=False)
    for label, count in list(result["labels"].items())[:_LABELS_SHOWN]:
        made.add_row(text(f"  {label}"), f"{count:,}")
    show(console, made)
    if len(result["labels"]) > _LABELS_SHOWN:
        console.print(f"... and {len(result['labels']) - _LABELS_SHOWN:,} more classes")
    for doubt, meaning in _DOUBTS:
        if count := result["doubts"].get(doubt):
            console.print(f"{counted(count, 'image')} among them {'is' if count == 1 else 'are'} {doubt}: {meaning}")
    if errors := result["errors"]:
        kinds = ", ".join(f"{code} {count:,}" for code, count in errors.items())
        console.print(f"{counted(sum(errors.values()), 'image')} could not be read: {kinds}", style="yellow")
    console.print()
    lines = [("answers", str(out))] if out else []
    if sort_into:
        lines += [("sorted", f"{sort_into}{os.sep}")]
        lines += [("undo", f"transferapp undo {shlex.quote(str(sort_into))}")]
    show(console, grid([(label, text(content)) for label, content in lines]))


def show_undone(num_restored: int, left: Sequence[tuple[str, str]]) -> None:
    """Print the outcome of `transferapp undo`."""
    console = page_console()
    console.print(f"{counted(num_restored, 'file')} put back", style="bold")
    for name, reason in left[:_LABELS_SHOWN]:
        console.print(printable(f"  {name} was left alone: {reason}"), markup=False, soft_wrap=True)
    if len(left) > _LABELS_SHOWN:
        console.print(f"  ... and {len(left) - _LABELS_SHOWN:,} more")


def show_prediction(file: Path, prediction: Prediction, coverage: float | None) -> None:
    """Print the classes of an image, most probable first, whether it looks like any of them, and its prediction set.

    Args:
        file: The image.
        prediction: Of it.
        coverage: Of prediction sets; None where the bundle has none.
    """
    console = page_console()
    remarks = f"  ({', '.join(prediction.notes)})" if prediction.notes else ""
    console.print(printable(f"{file}{remarks}"), markup=False, soft_wrap=True)
    made = table("", ">", "", header=False)
    for label, score in ((scored.label, scored.score) for scored in prediction.scores):
        made.add_row(text(f"  {label}"), percent(score), "█" * round(30 * score))
    show(console, made)
    if prediction.known is False:
        line = f"  It looks like none of these classes (novelty {prediction.novelty:.3f})"
        console.print(line, style="yellow", markup=False, highlight=False)
    elif coverage is not None and prediction.prediction_set and len(prediction.prediction_set) > 1:
        names = ", ".join(prediction.prediction_set[:_SET_SHOWN])
        rest = len(prediction.prediction_set) - _SET_SHOWN
        more = f" and {counted(rest, 'more class')}" if rest > 0 else ""
        line = printable(f"  One of {names}{more} (the set for {coverage:.1%} coverage)")
        console.print(line, markup=False, highlight=False, soft_wrap=True)
