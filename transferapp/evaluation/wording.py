"""Sentences that both the decision card and the report say, made from the manifest's figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transferapp.evaluation import charts

_LONGEST_LABEL = 20


def labelled(reasons: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Reasons such as `cut: top, the last stage` by their labels, in order; what has no label has an empty one."""
    groups: list[tuple[str, list[str]]] = []
    for reason in reasons:
        label, colon, sentence = reason.partition(": ")
        if not colon or len(label) > _LONGEST_LABEL:
            label, sentence = "", reason
        if groups and groups[-1][0] == label:
            groups[-1][1].append(sentence)
        else:
            groups.append((label, [sentence]))
    return groups


def backbone_reason(candidates: Sequence[Mapping[str, Any]]) -> str:
    """Why the chosen backbone was chosen, in a sentence."""
    chosen = next((c for c in candidates if c["chosen"]), None)
    others = [c for c in candidates if not c["chosen"]]
    if chosen is None or not others:
        return "No other backbone was tried."
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
    if lead == "0.0":
        return f"It does as well as {best['backbone']}, at {price}."
    if gap > 0:
        return f"It does {lead} points better than {best['backbone']}, at {price}."
    return f"{best['backbone']} does {lead} points better, too small a lead to pay for: this one answers at {price}."
