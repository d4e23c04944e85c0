"""Sentences that card and report share."""

from __future__ import annotations

from typing import Any

import pytest

from transferapp.evaluation.report.wording import backbone_reason, by_topic


def test_neighboring_reasons_are_grouped_by_topic() -> None:
    topics = ["size", "similarity", "similarity", "cut", "size"]
    reasons = [{"topic": topic, "text": str(index)} for index, topic in enumerate(topics)]
    assert by_topic(reasons) == [("size", ["0"]), ("similarity", ["1", "2"]), ("cut", ["3"]), ("size", ["4"])]
    assert by_topic([]) == []


def candidate(name: str, accuracy: float, milliseconds: float, *, chosen: bool = False) -> dict[str, Any]:
    return {"backbone": name, "accuracy": accuracy, "milliseconds": milliseconds, "chosen": chosen}


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ([], "No other backbone was tried."),
        ([("b", 0.90, 15.0)], "It does 3.3 points better than b, at 2.0 times its cost."),
        ([("b", 0.90, 15.0), ("c", 0.91, 60.0)], "It does 2.3 points better than c, at 50% of its cost."),
        (
            [("b", 0.937, 66.0)],
            "b does 0.4 points better, too small a lead to pay for: this one answers at 45% of its cost.",
        ),
        ([("b", 0.933, 60.0)], "It does as well as b, at 50% of its cost."),
        ([("b", 0.933, 30.4)], "It does as well as b, at the same cost."),
        ([("b", 0.5, 0.0)], "It does 43.3 points better than b, at the same cost."),
    ],
)
def test_why_this_backbone(others: list[tuple[str, float, float]], expected: str) -> None:
    assert backbone_reason([candidate("a", 0.933, 30.0, chosen=True), *(candidate(*o) for o in others)]) == expected


def test_a_backbone_that_there_was_no_time_to_tune_is_the_reason() -> None:
    there = {**candidate("b", 0.95, 60.0), "passed_over": True}
    assert backbone_reason([candidate("a", 0.9, 30.0, chosen=True), there]) == (
        "The solved classifier does better on b, but there was too little time to tune that: --budget gives more."
    )


def test_a_dearer_backbone_that_is_no_more_accurate_was_chosen_for_its_loss() -> None:
    dear = {**candidate("a", 0.979, 60.0, chosen=True), "loss": 0.05}
    cheap = {**candidate("b", 0.979, 30.0), "loss": 0.08}
    assert backbone_reason([cheap, dear]) == (
        "It is right about as often as b and surer where it is (loss 0.050 against 0.080), at 2.0 times its cost."
    )
