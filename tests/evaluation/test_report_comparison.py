"""Candidates in the report: every candidate, its curves and findings, and the text that depends on the winner."""

from __future__ import annotations

import math

import pytest

from tests.evaluation.test_report import HOSTILE, page
from tests.helpers.manifests import candidate, history, left_out, linear, make_manifest, tuned_manifest
from transferapp.evaluation.report import charts


def test_every_candidate_is_in_the_table_with_its_reason() -> None:
    text = page(tuned_manifest())
    assert text.row("linear classifier")[1:] == ["top", "80.0%", "0.400", "–", "–"]
    assert text.row("last two stages ships")[1:] == ["block10", "80.0%", "0.400", "3 of 8", "61 s"]
    assert text.row("whole network")[1:3] == ["nothing", "–"]
    for reason in (
        "+3.0 points against the linear classifier (epoch 3).",
        "Left out: there was time for 2 epochs, and fewer than 3 are not worth starting.",
    ):
        assert text.row(reason) == [reason]
    assert ("a", {"href": "#comparison"}) in text.tags


def test_each_trained_candidate_has_two_charts_and_its_findings() -> None:
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


def test_the_text_depends_on_the_winner() -> None:
    tuned = page(tuned_manifest()).words()
    assert "fine-tuned above block10" in tuned
    assert "also selected the model" in tuned
    assert "fitted on the validation images" in tuned
    assert "head 0.001, backbone 0.0001; 3 epochs" in tuned
    probe = linear(chosen=True, reason="no other candidate does better")
    solved = page(make_manifest(candidates=[probe, candidate("last two stages"), left_out()])).words()
    assert "The linear classifier ships: no other candidate does better." in solved
    assert "also selected the model" not in solved
    assert "fitted on cross-validated predictions" in solved


def test_a_trained_head_and_the_settings_are_mentioned() -> None:
    head = candidate("efficientnet_lite0: trained head", head_only=True)
    with_head = make_manifest(candidates=[linear(), head, candidate("last two stages", chosen=True)])
    assert "started from random weights" in page(with_head).words()
    assert "started from random weights" not in page(tuned_manifest()).words()
    for setting, text in (("rule_only", "--rule-only"), ("scratch", "was trained from random weights")):
        manifest = tuned_manifest()
        manifest["config"] = {**manifest["config"], setting: True}
        assert text in page(manifest).words()


def test_a_run_without_averages_and_one_that_blew_up_are_drawn() -> None:
    blown_up = history(averaged=False)
    blown_up[2] = {**blown_up[2], "loss": None, "val_loss": None}
    candidates = [linear(), candidate("last two stages", history=blown_up, chosen=True)]
    text = page(make_manifest(candidates=candidates))
    assert "averaged weights" not in text.words()
    labels = [attrs["aria-label"] or "" for attrs in text.named("svg", "chart")]
    assert "Loss of last two stages over 3 epochs: training from 1 to 0.6; validation from 0.9 to 0.5" in labels
    assert not any("nan" in label.lower() for label in labels)


def test_names_and_reasons_from_outside_are_text() -> None:
    candidates = [linear(), *(candidate(f"{i} {text}", cut=text, reason=text) for i, text in enumerate(HOSTILE))]
    candidates[1]["chosen"] = True
    text = page(make_manifest(candidates=candidates))
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
