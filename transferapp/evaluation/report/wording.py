"""Sentences that both the decision card and the report say, made from the manifest's figures."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from transferapp.evaluation.report import charts


def by_topic(reasons: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Group the texts of neighboring reasons by topic, in order.

    Args:
        reasons: From `Reason.to_json`.
    """
    groups = itertools.groupby(reasons, key=lambda reason: reason["topic"])
    return [(topic, [reason["text"] for reason in group]) for topic, group in groups]


SURER_WITHIN = 0.005
"""A lead in accuracy below half a point is no reason by itself to choose a dearer backbone."""


def backbone_reason(candidates: Sequence[Mapping[str, Any]]) -> str:
    """Why the chosen backbone was chosen, in a sentence."""
    chosen = next((c for c in candidates if c["chosen"]), None)
    others = [c for c in candidates if not c["chosen"]]
    if chosen is None or not others:
        return "No other backbone was tried."
    passed_over = next((c for c in others if c.get("passed_over")), None)
    if passed_over is not None:
        return (
            f"The solved classifier does better on {passed_over['backbone']}, but there was too little time to tune that: "
            "--budget gives more."
        )
    best = max(others, key=lambda c: c["accuracy"])
    gap = chosen["accuracy"] - best["accuracy"]
    cost = chosen["milliseconds"] / best["milliseconds"] if best["milliseconds"] > 0 else 1.0
    price = (
        "the same cost"
        if f"{cost:.1f}" == "1.0"
        else f"{cost:.1f} times its cost"
        if cost > 1
        else f"{cost:.0%} of its cost"
    )
    lead = charts.points(abs(gap), signed=False)
    own, other = float(chosen.get("loss", 0.0)), float(best.get("loss", 0.0))
    if gap < SURER_WITHIN and cost > 1 and own < other:
        # Chosen for its loss: where a hundred images tie or nearly so in accuracy, that still tells the two apart.
        return (
            f"It is right about as often as {best['backbone']} and surer where it is (loss {own:.3f} against {other:.3f}), "
            f"at {price}."
        )
    if lead == "0.0":
        return f"It does as well as {best['backbone']}, at {price}."
    if gap > 0:
        return f"It does {lead} points better than {best['backbone']}, at {price}."
    return f"{best['backbone']} does {lead} points better, too small a lead to pay for: this one answers at {price}."


UNEVEN_FROM = 1.2
"""The largest class over the smallest from which classes are said to differ in size."""


def counted(count: int, noun: str, plural: str = "") -> str:
    """A count and its noun: `1 image`, `2,000 images`."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def data_sentences(findings: Mapping[str, Any]) -> list[str]:
    """What an audit found, in a few sentences: the size of the set, its copies, its contradictions.

    Args:
        findings: `Findings.to_json()`.
    """
    sentences = []
    counts = findings["counts"]
    largest, smallest = (pick(counts, key=counts.__getitem__, default="") for pick in (max, min))
    said = f"{counted(findings['num_images'], 'image')} in {counted(len(counts), 'class', 'classes')}"
    if counts and findings["imbalance"] >= UNEVEN_FROM:
        said += (
            f", {findings['imbalance']:.1f} times as many of {largest} ({counts[largest]:,}) as of {smallest} "
            f"({counts[smallest]:,})"
        )
    sentences.append(said)
    exact, near = findings["exact_duplicates"], findings["near_duplicates"]
    if exact or near:
        kinds = [counted(exact, "exact copy", "exact copies")] if exact else []
        kinds += [counted(near, "near copy", "near copies")] if near else []
        sentences.append(f"{' and '.join(kinds)} of other images, in {counted(findings['num_clusters'], 'group')}")
    else:
        sentences.append("no copies")
    if findings["conflicts"]:
        sentences.append(
            f"{counted(findings['conflicts'], 'group')} of copies with more than one label: one of them must be wrong"
        )
    if findings["num_similar"]:
        sentences.append(f"{counted(findings['num_similar'], 'more pair')} of images that look alike to the network")
    sentences += [overlap_sentence(overlap) for overlap in findings["overlaps"] if overlap_total(overlap)]
    return sentences


def overlap_total(overlap: Mapping[str, Any]) -> int:
    """Images of a split that are in others too, in whatever way."""
    return int(overlap["exact"] + overlap["near"] + overlap["group"])


def overlap_sentence(overlap: Mapping[str, Any]) -> str:
    """How many images of a split are in others too."""
    kinds = [
        f"{overlap[kind]:,} {words}"
        for kind, words in (("exact", "byte for byte"), ("near", "as near copies"), ("group", "by their group"))
        if overlap[kind]
    ]
    total, asked = overlap_total(overlap), f"{_WHOLE[overlap['split']]} image"
    return (
        f"{total:,} of {counted(overlap['num_images'], asked)} "
        f"{'is' if total == 1 else 'are'} among the {' and '.join(_WHOLE[s] for s in overlap['others'])} images too"
        + (f": {', '.join(kinds)}" if kinds else "")
    )


_WHOLE = {"train": "training", "val": "validation", "test": "test"}


def leak_sentences(leaks: Mapping[str, Any] | None) -> list[str]:
    """What the test shares with what was learned from, and the honest figure; nothing where it shares nothing.

    Args:
        leaks: `Leaks.to_json()`.
    """
    if not leaks or not (overlap_total(leaks["overlap"]) or leaks["num_similar"]):
        return []
    sentences = [overlap_sentence(leaks["overlap"])] if overlap_total(leaks["overlap"]) else []
    if leaks["num_similar"]:
        sentences.append(
            f"{counted(leaks['num_similar'], 'test image')} more look{'s' if leaks['num_similar'] == 1 else ''} like one that "
            "was learned from"
        )
    honest = leaks["honest"]
    if honest is None:
        sentences.append("no test image is left that shares nothing, so there is no honest figure")
    else:
        low, high = honest["accuracy_interval"]
        right = round(honest["accuracy"] * honest["num_images"])
        sentences.append(
            f"without these: accuracy {honest['accuracy']:.3f}, {right:,} of {counted(honest['num_images'], 'image')} right, "
            f"95 % interval {low:.2f} to {high:.2f}"
        )
    return sentences


def search_sentences(search: Mapping[str, Any]) -> list[str]:
    """What a search did and found, from the manifest's account of it."""
    return [
        *search_course(search),
        *(f"Narrowed to {note}." for note in search["narrowed"]),
        search_best(search),
        *(f"Warning: {edge}; better ones may lie beyond." for edge in search["edges"]),
        f"Chosen by {search['chosen_by']}.",
        f"Final figure: {search['final_figure']}.",
    ]


def search_course(search: Mapping[str, Any]) -> list[str]:
    """Its phases, a sentence each."""
    return [
        f"{phase['trials']} {phase['name']} trials at random, {phase['epochs']} epochs each, over {' '.join(phase['over'])}."
        for phase in search["phases"]
    ]


def search_best(search: Mapping[str, Any]) -> str:
    """The best trial, beside what full-batch L-BFGS reaches with a linear head on the same images."""
    best, optimum = search["best"], search["optimum"]
    params = ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in best["params"].items()
    )
    gap = charts.points(best["accuracy"] - optimum["accuracy"])
    return (
        f"Best: trial {best['trial']} with {params}: right on {charts.percent(best['accuracy'])} of the validation images, "
        f"{gap} points against the optimum of a linear head by L-BFGS ({charts.percent(optimum['accuracy'])})."
    )
