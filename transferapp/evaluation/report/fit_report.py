"""Report of a fit: one HTML page, made from the manifest and a few thumbnails.

The template `report.html.j2` holds the text and `charts` draws the figures. This module computes what the template needs.
"""

from __future__ import annotations

import functools
import itertools
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Template
from markupsafe import Markup

from transferapp.evaluation.parity import MAX_DIFFERENCE, MIN_AGREEMENT
from transferapp.evaluation.report import charts
from transferapp.evaluation.report.pages import Thumbnail, harmless, page_environment
from transferapp.evaluation.report.wording import (
    backbone_reason,
    by_topic,
    forecast_sentence,
    leak_sentences,
    novelty_sentence,
    robustness_sentence,
    search_sentences,
    sets_sentence,
    uniform_sentence,
)
from transferapp.policy.similarity import SIMILAR_BELOW
from transferapp.policy.size import LARGE_PER_CLASS, LARGE_TOTAL

MATRIX_CLASSES = 30
"""Largest number of classes for a confusion matrix; above it, the page lists the most common confusions."""

ROWS_SHOWN = 15
"""Rows of a table of classes before the rest is folded."""

CONFUSIONS_LISTED = 20
IGNORED_LISTED = 1000

DIVERGENCE_SCALE = charts.Scale(
    0.0, 1.0, SIMILAR_BELOW, f"{SIMILAR_BELOW:g}", ("similar", "different"), ((0.0, "0"), (1.0, "1"))
)
SIZE_SCALE = charts.Scale(
    10,
    1_000_000,
    LARGE_TOTAL,
    f"{LARGE_TOTAL:,}",
    ("small", "large"),
    ((10, "10"), (100, "100"), (10_000, "10,000"), (100_000, "100,000"), (1_000_000, "")),
    logarithmic=True,
)


@dataclass(frozen=True)
class _ClassRow:
    """One class in the tables; a figure is None where it rests on no image or no prediction."""

    name: str
    num_images: int
    recall: float | None
    precision: float | None
    f1: float | None
    taken_for: str | None
    taken_count: int


@dataclass(frozen=True)
class _Confusion:
    """Images of one class that were classified as another."""

    true: str
    predicted: str
    count: int
    num_images: int


def render_report(
    manifest: Mapping[str, Any],
    *,
    samples: Sequence[Thumbnail],
    mistakes: Sequence[Thumbnail],
    copies: Mapping[str, str] | None = None,
    changed: Sequence[str] = (),
) -> str:
    """Write the report.

    Args:
        manifest: Manifest, with or without checksums.
        samples: Images of some of the classes.
        mistakes: All or some of the misclassified test images, most confident first.
        copies: Thumbnails by name, for the images of `names_shown`.
        changed: Thumbnails of an image under each condition of `manifest["robustness"]`; empty where there are none.

    Returns:
        A self-contained HTML document that UTF-8 can encode.
    """
    comparison = _comparison(manifest.get("candidates") or (), manifest["config"])
    page = _template().render(
        m=manifest,
        plan=manifest["plan"],
        headline=_headline(manifest),
        samples=samples,
        mistakes=mistakes,
        copies=copies or {},
        leaks=leak_sentences(manifest.get("leaks")),
        uniform=uniform_sentence(manifest.get("leaks")),
        unknown=novelty_sentence(manifest),
        sets=sets_sentence(manifest),
        robustness_sentence=robustness_sentence(manifest),
        changed=_changed(manifest.get("robustness"), changed),
        forecast_sentence=forecast_sentence(manifest),
        forecast_chart=charts.forecast_chart(manifest["forecast"]) if manifest.get("forecast") else "",
        figures=[(split, manifest["metrics"].get(split)) for split in ("test", "validation")],
        size=_size(manifest),
        similarity_note=_similarity_note(manifest),
        reasons=by_topic(manifest["plan"]["reasons"]),
        backbone_reason=backbone_reason(manifest["backbones"]),
        comparison=comparison,
        selected=comparison["tuned"] or "search" in manifest,
        search_plot=_search_plot(manifest.get("search")),
        search_sentences=search_sentences(manifest["search"]) if "search" in manifest else [],
        axis=_stage_axis(manifest["backbones"]),
        mixture=_mixture(manifest["plan"].get("mixture") or {}),
        counts=_counts(manifest),
        ignored=Counter(item["code"] for item in manifest["data"]["ignored"]).most_common(),
        charts=charts,
        divergence_scale=DIVERGENCE_SCALE,
        size_scale=SIZE_SCALE,
        matrix_classes=MATRIX_CLASSES,
        rows_shown=ROWS_SHOWN,
        ignored_listed=IGNORED_LISTED,
        confusions_listed=CONFUSIONS_LISTED,
        max_difference=MAX_DIFFERENCE,
        min_agreement=MIN_AGREEMENT,
        large_per_class=LARGE_PER_CLASS,
        guess_loss=math.log(len(manifest["class_names"])),
    )
    return harmless(page)


@functools.cache
def _template() -> Template:
    environment = page_environment()
    environment.globals.update(class_rows=_class_rows, confusions=_confusions, heat=_heat)
    return environment.get_template("report.html.j2")


def _headline(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the main accuracy: of the test images, else of the validation images, else cross-validated."""
    for split in ("test", "validation"):
        figures = manifest["metrics"].get(split)
        if figures:
            support = [sum(row) for row in figures["confusion"]]
            common = max(range(len(support)), key=support.__getitem__)
            return {
                "source": split,
                "accuracy": figures["accuracy"],
                "interval": figures["accuracy_interval"],
                "right": sum(row[i] for i, row in enumerate(figures["confusion"])),
                "total": figures["num_images"],
                "guess": support[common],
                "guess_name": manifest["class_names"][common],
            }
    chosen = next((c for c in manifest["backbones"] if c["chosen"]), None)
    return {"source": "cross-validation", "accuracy": chosen["accuracy"] if chosen else None}


def _class_rows(manifest: Mapping[str, Any], figures: Mapping[str, Any]) -> list[_ClassRow]:
    """Return the classes by recall, lowest first; those without an image come last."""
    names, confusion = manifest["class_names"], figures["confusion"]
    claimed = [sum(column) for column in zip(*confusion, strict=True)]
    rows = []
    for index, (name, row) in enumerate(zip(names, confusion, strict=True)):
        entry = figures["per_class"][name]
        others = [0 if column == index else count for column, count in enumerate(row)]
        worst = max(others)
        seen = entry["num_images"] > 0
        rows.append(
            _ClassRow(
                name=name,
                num_images=entry["num_images"],
                recall=entry["recall"] if seen else None,
                precision=entry["precision"] if claimed[index] else None,
                f1=entry["f1"] if seen else None,
                taken_for=names[others.index(worst)] if worst else None,
                taken_count=worst,
            )
        )
    return sorted(rows, key=lambda row: (row.recall is None, row.recall or 0.0, row.name))


def _confusions(manifest: Mapping[str, Any], figures: Mapping[str, Any], limit: int) -> list[_Confusion]:
    """Return the pairs of classes that were confused, most common first."""
    names = manifest["class_names"]
    pairs = [
        _Confusion(names[i], names[j], count, sum(row))
        for i, row in enumerate(figures["confusion"])
        for j, count in enumerate(row)
        if i != j and count
    ]
    return sorted(pairs, key=lambda pair: (-pair.count, -pair.count / pair.num_images))[:limit]


def _heat(count: int, total: int) -> int:
    """Return the shade of a cell of the confusion matrix: 0 for none, 1 to 5 by its share of the row."""
    return 0 if count == 0 else 1 + min(4, 5 * count // max(total, 1))


def _size(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the size of the median class, and a note where the total does not decide the size of the set."""
    plan, settings = manifest["plan"], manifest["config"]
    counts = list(manifest["data"]["counts"]["train"].values())
    median = statistics.median(counts) if counts else 0
    enough = plan["num_images"] >= LARGE_TOTAL
    note = ""
    if settings.get("size") == plan["size"] and (plan["size"] == "large") != (enough and median >= LARGE_PER_CLASS):
        note = f"--size {plan['size']} overrules the measurement."
    elif plan["size"] == "small" and enough:
        note = "The set counts as small because of its median class."
    return {"median": median, "note": note}


def _similarity_note(manifest: Mapping[str, Any]) -> str:
    """Return a note where D does not decide the similarity."""
    plan = manifest["plan"]
    if (plan["similarity"] == "similar") == (plan["divergence"] < SIMILAR_BELOW):
        return ""
    if manifest["config"].get("similarity") == plan["similarity"]:
        return f"--similarity {plan['similarity']} overrules the measurement."
    return "An earlier stage beats the last, so the set counts as different although D is low."


def _comparison(candidates: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the candidates, the one that ships, and charts of their epochs on common axes."""
    winner = next((c for c in candidates if c["chosen"]), None)
    histories = {c["name"]: c["history"] for c in candidates if c["history"]}
    epochs = [epoch for history in histories.values() for epoch in history]

    def values(quantity: str) -> list[float]:
        return [e[name] for e in epochs for name in _names(quantity) if e[name] is not None]

    axes = {
        "accuracy": charts.CurveAxis.of_shares(values("accuracy")),
        "loss": charts.CurveAxis.of_losses(values("loss")),
    }
    drawn = {
        name: [
            (
                quantity,
                charts.curves_chart(f"{quantity.capitalize()} of {name}", _curves(history, quantity), axis, selected),
            )
            for quantity, axis in axes.items()
        ]
        for name, history in histories.items()
        for selected in [_selected_epoch(history)]
    }
    return {
        "all": candidates,
        "winner": winner,
        "scratch": bool(config.get("scratch")),
        "rule_only": bool(config.get("rule_only")),
        "head": any(c["head_only"] for c in candidates),
        "tuned": winner is not None and bool(winner["epochs"]),
        "averaged": winner is not None and bool(winner.get("averaged")),
        "charts": drawn,
        "averages": any(epoch["averaged_val_loss"] is not None for epoch in epochs),
    }


def _search_plot(search: Mapping[str, Any] | None) -> Markup:
    if search is None:
        return Markup("")
    points = [(rate, strength, accuracy) for rate, strength, accuracy, _ in search["points"]]
    return charts.search_chart(points, points[search["best"]["trial"]])


def _names(quantity: str) -> tuple[str, str, str]:
    return quantity, f"val_{quantity}", f"averaged_val_{quantity}"


def _curves(history: Sequence[Mapping[str, Any]], quantity: str) -> list[charts.Curve]:
    """Return the curves of training, validation, and validation with averaged weights where there are any."""
    labels = (("training", "train"), ("validation", "val"), ("averaged weights", "averaged"))
    curves = [
        charts.Curve(label, kind, tuple(epoch[name] for epoch in history))
        for (label, kind), name in zip(labels, _names(quantity), strict=True)
    ]
    return [curve for curve in curves if any(value is not None for value in curve.values)]


def _selected_epoch(history: Sequence[Mapping[str, Any]]) -> int:
    """Return the epoch that was selected: the best on the validation images, the first among equals."""

    def best_of(epoch: Mapping[str, Any]) -> tuple[float, float]:
        figures = [(epoch["val_accuracy"], epoch["val_loss"])]
        figures.append((epoch["averaged_val_accuracy"], epoch["averaged_val_loss"]))
        return max(((a, -loss) for a, loss in figures if a is not None and loss is not None), default=(-1.0, 0.0))

    return 1 + max(range(len(history)), key=lambda index: (best_of(history[index]), -index))


def _changed(
    robustness: Mapping[str, Any] | None, examples: Sequence[str]
) -> list[tuple[str, list[tuple[Mapping[str, Any], str]]]]:
    """Return each change of the test images with its figures and its example at each strength."""
    conditions: Sequence[Mapping[str, Any]] = robustness["conditions"] if robustness else ()
    shown = zip(conditions, examples or [""] * len(conditions), strict=True)
    return [(name, list(group)) for name, group in itertools.groupby(shown, key=lambda pair: str(pair[0]["name"]))]


def _mixture(weights: Mapping[str, float]) -> list[tuple[str, float, float]]:
    """Return (name, weight, share) of each tap of the mixture."""
    return [(name, weight, weight / sum(weights.values())) for name, weight in weights.items()]


def _stage_axis(candidates: Sequence[Mapping[str, Any]]) -> charts.DotAxis:
    stages = [stage for candidate in candidates for stage in candidate["stages"]]
    return charts.DotAxis.around([s["accuracy"] + sign * s["standard_error"] for s in stages for sign in (-1, 1)])


def _counts(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the images by class and split, with totals."""
    splits = manifest["data"]["counts"]
    rows = []
    for name in manifest["class_names"]:
        row = [splits.get(split, {}).get(name, 0) for split in ("train", "val", "test")]
        rows.append((name, row, sum(row)))
    totals = [sum(row[column] for _, row, _ in rows) for column in range(3)]
    return {
        "rows": rows,
        "totals": totals,
        "total": sum(totals),
        "largest": max((total for *_, total in rows), default=1),
    }
