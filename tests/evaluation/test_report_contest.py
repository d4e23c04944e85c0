"""The bake-off in the report: every contender, its curves, what they say; and the words that depend on what ships."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.evaluation.test_report import HOSTILE, make_manifest, page
from transferapp.evaluation.report import charts

EPOCHS = (
    {"loss": 1.0, "accuracy": 0.5, "val_loss": 0.9, "val_accuracy": 0.6, "averaged": (1.0, 0.5)},
    {"loss": 0.6, "accuracy": 0.7, "val_loss": 0.5, "val_accuracy": 0.8, "averaged": (0.6, 0.7)},
    {"loss": 0.4, "accuracy": 0.9, "val_loss": 0.7, "val_accuracy": 0.7, "averaged": (0.4, 0.8)},
)


def history(*, averaged: bool = True) -> list[dict[str, Any]]:
    return [
        {
            **{name: value for name, value in epoch.items() if name != "averaged"},
            "epoch": number,
            "learning_rate": 1e-3,
            "averaged_val_loss": epoch["averaged"][0] if averaged else None,
            "averaged_val_accuracy": epoch["averaged"][1] if averaged else None,
            "seconds": 2.0,
        }
        for number, epoch in enumerate(EPOCHS, start=1)
    ]


def contender(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "cut": "block10",
        "accuracy": 0.8,
        "loss": 0.4,
        "seconds": 61.4,
        "planned_epochs": 8,
        "epochs": 3,
        "learning_rate": 1e-3,
        "backbone_learning_rate": 1e-4,
        "reason": "+3.0 points against the solved classifier (epoch 3)",
        "chosen": False,
        "head_only": False,
        "history": history(),
        "findings": [
            {
                "code": "over_fitting",
                "sentence": "Training accuracy ends at 90.0%.",
                "evidence": {"gap": 0.123, "best_epoch": 2.0},
                "advice": "Train fewer layers.",
            }
        ],
        **changes,
    }


PROBE = contender(
    "solved classifier", cut="top", planned_epochs=0, epochs=0, seconds=0.0, history=[], findings=[], reason=""
)
LEFT_OUT = contender(
    "whole network",
    cut="input",
    accuracy=None,
    loss=None,
    planned_epochs=2,
    epochs=0,
    history=[],
    findings=[],
    reason="left out: there was time for 2 epochs, and fewer than 3 are not worth it",
)


def tuned_manifest(**changes: Any) -> dict[str, Any]:
    contenders = [PROBE, contender("last two stages", chosen=True), LEFT_OUT]
    return make_manifest(candidates=contenders, **changes)


def test_every_contender_is_in_the_table_with_what_came_of_it() -> None:
    text = page(tuned_manifest())
    assert text.row("solved classifier")[1:] == ["top", "80.0%", "0.400", "–", "–"]
    assert text.row("last two stages ships")[1:] == ["block10", "80.0%", "0.400", "3 of 8", "61 s"]
    assert text.row("whole network")[1:3] == ["nothing", "–"]
    for reason in (
        "+3.0 points against the solved classifier (epoch 3).",
        "Left out: there was time for 2 epochs, and fewer than 3 are not worth it.",
    ):
        assert text.row(reason) == [reason]
    assert ("a", {"href": "#contest"}) in text.tags


def test_each_trained_contender_has_two_charts_and_its_findings() -> None:
    text = page(tuned_manifest())
    said = [attrs["aria-label"] or "" for attrs in text.named("svg", "chart")]
    assert (
        "Accuracy of last two stages over 3 epochs: training from 50% to 90%; validation from 60% to 70%; "
        "averaged weights from 50% to 80%" in said
    )
    assert (
        "Loss of last two stages over 3 epochs: training from 1 to 0.4; validation from 0.9 to 0.7; "
        "averaged weights from 1 to 0.4" in said
    )
    assert not any("whole network" in label for label in said)
    for words in ("Training accuracy ends at 90.0%.", "Train fewer layers. (gap 0.123, best epoch 2)"):
        assert words in text.words()


def test_what_ships_decides_the_words() -> None:
    tuned = page(tuned_manifest()).words()
    assert "Tuning was worth it here." in tuned
    assert "tuned above block10" in tuned
    assert "The validation images chose what ships" in tuned
    assert "fitted on the validation images" in tuned
    assert "classifier 0.001, backbone 0.0001; 3 epochs" in tuned
    probe = {**PROBE, "chosen": True, "reason": "nothing that was tuned does better on the validation images"}
    kept = page(make_manifest(candidates=[probe, contender("last two stages"), LEFT_OUT])).words()
    assert "Here that is the solved classifier: nothing that was tuned does better" in kept
    assert "Validation figures are of the same recipe trained without the validation images" in kept
    assert "fitted on cross-validated predictions" in kept
    assert "none: solved to its optimum" in kept
    assert "but for the trained head" not in tuned


def test_a_trained_head_is_said_to_have_begun_at_random_whatever_it_is_called() -> None:
    head = contender("efficientnet_lite0: trained head", head_only=True)
    text = page(make_manifest(candidates=[PROBE, head, contender("last two stages", chosen=True)])).words()
    assert "but for the trained head, whose weights were random" in text


@pytest.mark.parametrize(
    ("setting", "words"),
    [("rule_only", "for --rule-only asks for it."), ("scratch", "the network began with random weights")],
)
def test_what_was_insisted_on_is_said(setting: str, words: str) -> None:
    manifest = tuned_manifest()
    manifest["config"] = {**manifest["config"], setting: True}
    text = page(manifest).words()
    assert words in text
    assert "Tuning was worth it" not in text


def test_a_run_without_averages_and_one_that_blew_up_are_drawn() -> None:
    blown_up = history(averaged=False)
    blown_up[2] = {**blown_up[2], "loss": None, "val_loss": None}
    contenders = [PROBE, contender("last two stages", history=blown_up, chosen=True)]
    text = page(make_manifest(candidates=contenders))
    assert "averaged weights" not in text.words()
    labels = [attrs["aria-label"] or "" for attrs in text.named("svg", "chart")]
    assert "Loss of last two stages over 3 epochs: training from 1 to 0.6; validation from 0.9 to 0.5" in labels
    assert not any("nan" in label.lower() for label in labels)


def test_names_and_reasons_from_outside_are_text() -> None:
    contenders = [PROBE, *(contender(f"{i} {text}", cut=text, reason=text) for i, text in enumerate(HOSTILE))]
    contenders[1]["chosen"] = True
    text = page(make_manifest(candidates=contenders))
    assert not text.named("script")
    assert all("onerror" not in attrs and "onmouseover" not in attrs for _, attrs in text.tags)


# The charts


def lines(chart: str, kind: str) -> int:
    return chart.count(f'class="curve {kind}"')


def test_a_curve_breaks_where_there_is_no_number() -> None:
    curve = charts.Curve("training", "train", (0.1, None, 0.3, 0.4, None))
    chart = charts.curves_chart("Loss", [curve], charts.CurveAxis(0.0, 0.5))
    assert lines(chart, "train") == 1
    assert chart.count("<circle") == 3


def test_values_stand_where_they_should() -> None:
    curve = charts.Curve("validation", "val", (0.0, 1.0, 7.0))
    chart = charts.curves_chart("Loss", [curve], charts.CurveAxis(0.0, 1.0), best=2)
    ys = [float(part.split('"')[0]) for part in chart.split('cy="')[1:]]
    assert ys == [118.0, 10.0, 10.0], "what lies beyond the axis is drawn at its edge"
    xs = [part.split('"')[0] for part in chart.split('cx="')[1:]]
    assert xs == ["13.00%", "52.17%", "91.33%"]
    assert f'class="reference" x1="{xs[1]}" x2="{xs[1]}"' in chart


def test_a_single_epoch_can_be_drawn() -> None:
    chart = charts.curves_chart(
        "Loss", [charts.Curve("training", "train", (0.2,))], charts.CurveAxis.of_losses([0.2]), best=1
    )
    assert "from 0.2 to 0.2" in chart
    assert lines(chart, "train") == 0


@pytest.mark.parametrize(
    ("losses", "high"),
    [
        ([], 1.0),
        ([0.0], 1.0),
        ([0.2, 0.1], 0.2),
        ([0.21], 0.3),
        ([1.2, 0.6, 0.4], 1.5),
        ([0.4, 0.5, 0.6, 1e9], 3.0),  # four times the middle, lest the others be a flat line
        ([2.3], 3.0),
    ],
)
def test_the_axis_of_losses_begins_at_nothing_and_ends_at_a_round_number(losses: list[float], high: float) -> None:
    axis = charts.CurveAxis.of_losses(losses)
    assert axis.low == 0
    assert math.isclose(axis.high, high)
