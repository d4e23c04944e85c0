"""Sentences that the decision card and the reports share, made from the figures of a manifest."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from transferapp.evaluation.report import charts
from transferapp.policy.choose import DEARER_GAINS

CLOSE = 0.005
"""Accuracies that differ by less count as close; the loss then decides between backbones."""

UNEVEN = 1.2
"""Ratio of the largest class to the smallest from which the sizes of classes are mentioned."""

_SPLITS = {"train": "training", "val": "validation", "test": "test"}


def counted(count: int, noun: str, plural: str = "") -> str:
    """Format a count and its noun: `1 image`, `2,000 images`, `2 classes`."""
    if count == 1:
        return f"1 {noun}"
    return f"{count:,} {plural or noun + ('es' if noun.endswith('s') else 's')}"


def sentence(text: str) -> str:
    """Return a text with a capital first letter and a period."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".") if text else ""


def seen_as(manifest: Mapping[str, Any]) -> str:
    """Return what the figures of a bundle are measured on, after `classified correctly from`."""
    return "their center crop" if manifest["input"].get("geometry", "crop") == "crop" else "one view of the whole image"


def by_topic(reasons: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Group the texts of neighboring reasons by topic, in order.

    Args:
        reasons: From `Reason.to_json`.
    """
    groups = itertools.groupby(reasons, key=lambda reason: reason["topic"])
    return [(topic, [reason["text"] for reason in group]) for topic, group in groups]


def backbone_reason(backbones: Sequence[Mapping[str, Any]]) -> str:
    """Return the sentence that explains the choice of the backbone."""
    chosen = next((b for b in backbones if b["chosen"]), None)
    others = [b for b in backbones if not b["chosen"]]
    if chosen is None or not others:
        return "No other backbone was tried."
    passed_over = next((b for b in others if b.get("passed_over")), None)
    if passed_over is not None:
        return (
            f"A linear classifier does better on {passed_over['backbone']}, but the budget is too short to fine-tune that "
            "backbone; --budget raises it."
        )
    best = max(others, key=lambda b: b["accuracy"])
    name, other = chosen["backbone"], best["backbone"]
    lead = chosen["accuracy"] - best["accuracy"]
    cost = chosen["milliseconds"] / best["milliseconds"] if best["milliseconds"] > 0 else 1.0
    price = f"{cost:.1f} times its cost" if cost > 1 else f"{cost:.0%} of its cost"
    price = "the same cost" if f"{cost:.1f}" == "1.0" else price
    points = charts.points(abs(lead), signed=False)
    loss, other_loss = float(chosen.get("loss", 0.0)), float(best.get("loss", 0.0))
    if cost > 1 and lead < 0 and points != "0.0":
        usual = charts.points(DEARER_GAINS, signed=False)
        return (
            f"{name} was measured {points} points less accurate than {other}, but the images are too few to be sure of that; "
            f"usually it is {usual} points more accurate, at {price}."
        )
    if lead < CLOSE and cost > 1 and loss < other_loss:
        return (
            f"{name} is as accurate as {other} and has a lower loss ({loss:.3f} against {other_loss:.3f}), at {price}."
        )
    if points == "0.0":
        return f"{name} is as accurate as {other}, at {price}."
    if lead > 0:
        return f"{name} is {points} points more accurate than {other}, at {price}."
    return f"{name} is {points} points less accurate than {other}, but answers at {price}."


def listed(names: Sequence[str]) -> str:
    """Return names in quotes as a list in a sentence."""
    quoted = [repr(name) for name in names]
    return " and ".join([", ".join(quoted[:-1]), quoted[-1]]) if len(quoted) > 1 else "".join(quoted)


def data_sentences(findings: Mapping[str, Any]) -> list[str]:
    """Return what an audit found: the size of the set, duplicates, contradicting labels, overlap of splits.

    Args:
        findings: `Findings.to_json()`.
    """
    counts = findings["counts"]
    size = f"The set has {counted(findings['num_images'], 'image')} in {counted(len(counts), 'class')}"
    if counts and findings["imbalance"] >= UNEVEN:
        largest, smallest = (pick(counts, key=counts.__getitem__) for pick in (max, min))
        size += (
            f"; the largest, {largest} ({counts[largest]:,}), has {findings['imbalance']:.1f} times as many as the smallest, "
            f"{smallest} ({counts[smallest]:,})"
        )
    sentences = [f"{size}."]
    exact, near = findings["exact_duplicates"], findings["near_duplicates"]
    kinds = [counted(n, noun) for n, noun in ((exact, "exact duplicate"), (near, "near-duplicate")) if n]
    groups = counted(findings["num_clusters"], "group")
    sentences.append(f"It contains {' and '.join(kinds)}, in {groups}." if kinds else "It contains no duplicates.")
    if findings["conflicts"]:
        verb = "has" if findings["conflicts"] == 1 else "have"
        groups = counted(findings["conflicts"], "group")
        sentences.append(f"{groups} of duplicates {verb} more than one label, of which only one can be right.")
    if findings.get("alike"):
        sentences.append(
            "Different images look too much alike to tell crops and rotations of one from another; only those saved again, "
            "scaled or mirrored are found as near-duplicates."
        )
    if depth := findings.get("sample_depth"):
        sentences.append(depth["text"])
    if findings["num_similar"]:
        sentences.append(f"The network finds {counted(findings['num_similar'], 'more pair')} of similar images.")
    if together := findings.get("kept_together"):
        sentences.append(
            f"The network sees {together:,} images as so similar to others that they stay in one split with them."
        )
    if findings.get("uniform"):
        sentences.append(f"{_UNIFORM} Only near-duplicates with the same signature are found.")
    for names in findings.get("spellings", ()):
        sentences.append(f"The classes {listed(names)} differ by case and blanks alone; they may be one class.")
    if names := findings.get("nested"):
        sentences.append(f"All classes have the same folders in them, {listed(names[:5])}; those may be the classes.")
    if names := findings.get("annotations"):
        sentences.append(f"The classes {listed(names)} look like images and what is known of them, not like classes.")
    return [*sentences, *(overlap_sentence(overlap) for overlap in findings["overlaps"] if overlap_total(overlap))]


_UNIFORM = "The images are too uniform for the network to tell near-duplicates."


def overlap_total(overlap: Mapping[str, Any]) -> int:
    """Count the images of a split that are in other splits too."""
    return int(overlap["exact"] + overlap["near"] + overlap["group"])


def overlap_sentence(overlap: Mapping[str, Any]) -> str:
    """Return the sentence on the images of a split that are in other splits too."""
    kinds = [
        f"{overlap[kind]:,} {words}"
        for kind, words in (
            ("exact", "as exact duplicates"),
            ("near", "as near-duplicates"),
            ("group", "by their group"),
        )
        if overlap[kind]
    ]
    total, others = overlap_total(overlap), " and ".join(_SPLITS[split] for split in overlap["others"])
    images = counted(overlap["num_images"], f"{_SPLITS[overlap['split']]} image")
    verb = "is" if total == 1 else "are"
    return f"{total:,} of {images} {verb} also among the {others} images: {', '.join(kinds)}."


def uniform_sentence(leaks: Mapping[str, Any] | None) -> str:
    """Return the sentence on a set that is too uniform to be compared by features; empty for any other."""
    if not leaks or not leaks.get("uniform"):
        return ""
    return f"{_UNIFORM} Crops and turns of training images among the test images would not be noticed."


def leak_sentences(leaks: Mapping[str, Any] | None) -> list[str]:
    """Return the overlap of test and training images and the accuracy without it; nothing where there is no overlap.

    Args:
        leaks: `Leaks.to_json()`.
    """
    if not leaks or not (overlap_total(leaks["overlap"]) or leaks["num_similar"]):
        return []
    sentences = [overlap_sentence(leaks["overlap"])] if overlap_total(leaks["overlap"]) else []
    if leaks["num_similar"]:
        verb = "looks" if leaks["num_similar"] == 1 else "look"
        sentences.append(
            f"{counted(leaks['num_similar'], 'more test image')} {verb} like a training image to the network."
        )
    without = leaks["honest"]
    if without is None:
        return [*sentences, "No test image is free of overlap, so there is no accuracy without it."]
    low, high = without["accuracy_interval"]
    right = round(without["accuracy"] * without["num_images"])
    images = counted(without["num_images"], "image")
    return [
        *sentences,
        f"Without them the accuracy is {without['accuracy']:.3f} (95 % interval {low:.2f} to {high:.2f}): {right:,} of "
        f"{images} are classified correctly.",
    ]


def selected_on_validation(manifest: Mapping[str, Any]) -> bool:
    """Return whether the validation images also selected the model, so that its figures on them are optimistic."""
    return "search" in manifest or any(c["chosen"] and c["epochs"] for c in manifest.get("candidates") or ())


def novelty_sentence(manifest: Mapping[str, Any]) -> str:
    """Return when an image is called unknown, and how often test images are; empty for a bundle that was never calibrated."""
    if "novelty" not in manifest:
        return ""
    figures = manifest["novelty"]
    if figures is None:
        return "There are too few held-out images to tell unknown ones, so predictions do not say what is unknown."
    text = (
        f"An image is called unknown where it is less like the training images than {1 - figures['share']:.0%} of "
        f"{counted(figures['num_held_out'], 'held-out image')}"
    )
    if not figures["num_test"]:
        return f"{text}."
    share = _share(figures["num_refused"], figures["num_test"], figures["refused_interval"])
    return f"{text}; that happens to {share}."


def sets_sentence(manifest: Mapping[str, Any]) -> str:
    """Return what prediction sets promise, and their figures; empty for a bundle that was never calibrated."""
    if "prediction_sets" not in manifest:
        return ""
    figures = manifest["prediction_sets"]
    if figures is None:
        return "There are too few held-out images to promise a coverage, so there are no prediction sets."
    low, high = figures["coverage_interval"]
    size = f"with {figures['mean_size']:.2f} classes on average"
    promise = f"{figures['coverage']:.1%} of images"
    limits = f"{low:.1%} to {high:.1%} with {counted(figures['num_held_out'], 'held-out image')}"
    if not figures["num_test"]:
        return f"Prediction sets hold the right class for {promise} ({limits}), {size}."
    share = _share(figures["num_covered"], figures["num_test"], figures["covered_interval"])
    text = f"Prediction sets hold the right class for {share}, {size}; {promise} are promised ({limits})."
    if figures["threshold"] == 0:
        text += " The most probable class alone reaches that, so every set is that class."
    return text


def forecast_sentence(manifest: Mapping[str, Any]) -> str:
    """Return what more images are expected to gain, and of which class; empty for a bundle without a forecast."""
    if "forecast" not in manifest:
        return ""
    forecast = manifest["forecast"]
    if forecast is None:
        return "There are too few images, or too few errors among them, to forecast what more images would gain."
    doubled = forecast["doubled"]["num_images"]
    best = forecast["classes"][0]
    return (
        f"With twice the images ({doubled:,.0f}) the linear classifier is expected to gain {_gain(forecast['gain'])}; "
        f"{forecast['more']} more images of {best['name']} alone, {_gain([best['gain'], best['low'], best['high']])}."
    )


def robustness_sentence(manifest: Mapping[str, Any]) -> str:
    """Return the change of the test images that costs most accuracy; empty for a bundle in which none was measured."""
    if "robustness" not in manifest:
        return ""
    robustness = manifest["robustness"]
    if robustness is None:
        return "There are too few test images to measure the accuracy on blurred, dark or otherwise changed ones."
    worst = max(robustness["conditions"], key=lambda condition: condition["drop"])
    images = counted(robustness["num_images"], "test image")
    lost = charts.points(worst["drop"], signed=False)
    error = charts.points(worst["standard_error"], signed=False)
    return (
        f"Of {len(robustness['conditions'])} changes of {images}, {worst['name']} ({worst['detail']}) costs most: accuracy "
        f"falls from {robustness['accuracy']:.1%} to {worst['accuracy']:.1%}, by {lost} ± {error} points."
    )


def _gain(values: Sequence[float]) -> str:
    gain, low, high = (charts.points(value, signed=False) for value in values)
    return f"{gain} points ({low} to {high})"


def _share(count: int, total: int, interval: Sequence[float]) -> str:
    low, high = interval
    images = counted(total, "test image")
    return f"{count:,} of {images} ({count / total:.1%}; 95 % interval {low:.1%} to {high:.1%})"


def search_sentences(search: Mapping[str, Any]) -> list[str]:
    """Return the course and the outcome of a search, from its part of the manifest."""
    return [
        *search_course(search),
        *(f"Narrowed to {note}." for note in search["narrowed"]),
        search_best(search),
        *(f"Warning: {edge}; better values may lie beyond it." for edge in search["edges"]),
        f"Chosen by {search['chosen_by']}.",
        f"Final figure: {search['final_figure']}.",
    ]


def search_course(search: Mapping[str, Any]) -> list[str]:
    """Return one sentence for each phase of a search."""
    return [
        f"{phase['trials']} {phase['name']} trials of {phase['epochs']} epochs, drawn from {' '.join(phase['over'])}."
        for phase in search["phases"]
    ]


def search_best(search: Mapping[str, Any]) -> str:
    """Return the sentence on the best trial, against the optimum of a linear head by full-batch L-BFGS."""
    best, optimum = search["best"], search["optimum"]
    params = ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in best["params"].items()
    )
    gap = charts.points(best["accuracy"] - optimum["accuracy"])
    return (
        f"Trial {best['trial']} is the best, with {params}: {charts.percent(best['accuracy'])} on the validation images, {gap} "
        f"points against the optimum of a linear head by L-BFGS ({charts.percent(optimum['accuracy'])})."
    )
