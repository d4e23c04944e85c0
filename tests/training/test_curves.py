"""Findings from synthetic curves of each kind, at the borders of each threshold, and from incomplete curves."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transferapp.errors import UsageError
from transferapp.training.curves import (
    BOUNCE_SIZE,
    CREEP,
    DIVERGED,
    FALLING,
    GAP,
    IMPROVING,
    OVERCONFIDENT,
    POOR,
    STALLED,
    SWING,
    Curves,
    diagnose,
)

SEVERITY = [
    "rate_too_high",
    "over_fitting",
    "under_fitting",
    "rate_too_low",
    "noisy_validation",
    "still_improving",
    "too_short",
    "healthy",
]


def codes(curves: Curves) -> list[str]:
    return [finding.code for finding in diagnose(curves)]


def approach(start: float, end: float, epochs: int, pace: float = 2.0) -> tuple[float, ...]:
    """From `start` towards `end`, by a factor of e every `pace` epochs."""
    return tuple(end + (start - end) * math.exp(-epoch / pace) for epoch in range(epochs))


def line(start: float, end: float, epochs: int) -> tuple[float, ...]:
    return tuple(float(x) for x in np.linspace(start, end, epochs))


HEALTHY = Curves(approach(2.3, 0.2, 16), approach(0.2, 0.93, 16), approach(2.1, 0.3, 16), approach(0.25, 0.9, 16))


def healthy_but(**changes: tuple[float, ...]) -> Curves:
    return dataclasses.replace(HEALTHY, **changes)


# --- healthy ---


def test_a_healthy_run_yields_only_that() -> None:
    (finding,) = diagnose(HEALTHY)
    assert finding.code == "healthy"
    assert finding.evidence["gap"] == pytest.approx(0.03, abs=0.01)
    assert "90" in finding.sentence or "89" in finding.sentence


def test_validation_above_training_reads_as_above() -> None:
    (finding,) = diagnose(healthy_but(train_accuracy=(0.781,) * 16, val_accuracy=(0.92,) * 16))
    assert finding.evidence["gap"] == pytest.approx(-0.139)
    assert "validation accuracy is 92.0%, 13.9 points above training" in finding.sentence
    (finding,) = diagnose(healthy_but(train_accuracy=(0.93,) * 16, val_accuracy=(0.92,) * 16))
    assert "1.0 points below training" in finding.sentence
    (finding,) = diagnose(healthy_but(train_accuracy=(0.92,) * 16, val_accuracy=(0.92,) * 16))
    assert "the same as in training" in finding.sentence


def test_only_a_loss_that_no_longer_falls_has_settled() -> None:
    assert "has settled" in diagnose(HEALTHY)[0].sentence
    short = Curves((0.9, 0.5, 0.45), (0.7, 0.8, 0.82), (0.5, 0.4, 0.41), (0.85, 0.92, 0.91))
    (finding,) = diagnose(short)
    assert finding.code == "healthy"
    assert finding.sentence.startswith("The training loss ends at 0.45")
    assert finding.sentence.endswith("epoch 2 of 3 was the best.")
    falling = healthy_but(train_loss=line(2.3, 0.2, 16))
    assert diagnose(falling)[0].sentence.startswith("The training loss ends at 0.2;")


@pytest.mark.parametrize("seed", range(10))
def test_a_healthy_run_stays_healthy_under_the_noise_of_batches_and_of_a_thousand_validation_images(
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    noisy = {
        "train_loss": tuple(np.array(HEALTHY.train_loss) * (1 + 0.03 * rng.normal(size=16))),
        "train_accuracy": tuple(np.array(HEALTHY.train_accuracy) + 0.004 * rng.normal(size=16)),
        "val_loss": tuple(np.array(HEALTHY.val_loss) * (1 + 0.03 * rng.normal(size=16))),
        "val_accuracy": tuple(np.array(HEALTHY.val_accuracy) + 0.008 * rng.normal(size=16)),
    }
    assert codes(healthy_but(**noisy)) == ["healthy"]


def test_fine_tuning_from_a_solved_probe_that_moves_little_is_healthy() -> None:
    curves = Curves(approach(0.25, 0.15, 8), approach(0.93, 0.96, 8), approach(0.28, 0.24, 8), approach(0.91, 0.93, 8))
    assert codes(curves) == ["healthy"]


def test_a_loss_of_next_to_nothing_may_jump_about() -> None:
    assert codes(healthy_but(train_loss=(0.02, 0.005, 0.03, 0.002, 0.04) + (0.01, 0.03) * 5 + (0.04,))) == ["healthy"]


# --- rate too high ---


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_found_alone_with_its_epoch_and_without_nan_in_the_evidence(bad: float) -> None:
    curves = healthy_but(train_loss=(2.3, 1.9, 1.8, bad) + (math.nan,) * 12)
    (finding,) = diagnose(curves)
    assert finding.code == "rate_too_high"
    assert finding.evidence == {"epoch": 4, "last_finite_loss": 1.8}
    assert "epoch 4" in finding.sentence


def test_nan_in_the_first_epoch_or_in_validation_alone_is_found() -> None:
    assert diagnose(Curves((math.nan,)))[0].evidence == {"epoch": 1}
    (finding,) = diagnose(healthy_but(val_loss=(1.0,) * 15 + (math.inf,)))
    assert finding.code == "rate_too_high"
    assert "validation loss" in finding.sentence


def test_a_diverging_loss_is_found_also_after_two_epochs() -> None:
    curves = Curves((1.0, 0.8, 0.9, 1.6, 3.0), line(0.6, 0.3, 5), line(1, 3, 5), line(0.6, 0.3, 5))
    (finding, *_) = diagnose(curves)
    assert finding.code == "rate_too_high"
    assert finding.evidence["best_loss"] == 0.8
    assert finding.evidence["best_epoch"] == 2
    assert codes(Curves((1.0, 3.0))) == ["rate_too_high"]


def test_the_border_of_diverging() -> None:
    border = 0.5 * DIVERGED
    below = healthy_but(train_loss=(1.0, 0.5, *line(0.5, border - 0.01, 14)))
    above = healthy_but(train_loss=(1.0, 0.5, *line(0.5, border + 0.01, 14)))
    assert "rate_too_high" not in codes(below)
    assert "rate_too_high" in codes(above)


def test_a_bouncing_loss_is_found() -> None:
    (finding, *_) = diagnose(healthy_but(train_loss=(2.3, 1.5, 2.0, 1.4, 1.9, 1.3, 1.8, 1.2) * 2))
    assert finding.code == "rate_too_high"
    assert "bounces" in finding.sentence
    assert finding.evidence["rising_epochs"] == 7


def test_the_border_of_bouncing() -> None:
    def bouncing(size: float) -> Curves:
        return healthy_but(train_loss=(1.0,) + (0.6, 0.6 + size) * 7 + (0.6,))

    assert "rate_too_high" not in codes(bouncing(BOUNCE_SIZE - 0.01))
    assert "rate_too_high" in codes(bouncing(BOUNCE_SIZE + 0.01))


def test_rises_at_warm_restarts_are_not_held_against_the_rate() -> None:
    loss = approach(2.3, 0.8, 4, 1) + approach(1.6, 0.4, 4, 1) + approach(1.2, 0.2, 4, 1) + approach(1.0, 0.2, 4, 1)
    accuracy = tuple(0.95 - 0.3 * x for x in loss)
    val = tuple(x - 0.02 for x in accuracy)
    rates = (1e-3, 7e-4, 3e-4, 1e-4) * 4
    curves = Curves(loss, accuracy, loss, val, rates)
    assert codes(curves) == ["healthy"]
    assert codes(dataclasses.replace(curves, learning_rate=()))[0] == "rate_too_high"


# --- over-fitting ---


def test_training_up_validation_flat_with_a_gap_is_over_fitting() -> None:
    curves = healthy_but(
        train_accuracy=approach(0.2, 0.999, 16), val_accuracy=approach(0.25, 0.7, 16, 1), val_loss=line(0.9, 1.4, 16)
    )
    (finding,) = diagnose(curves)
    assert finding.code == "over_fitting"
    assert finding.evidence["gap"] == pytest.approx(0.3, abs=0.01)
    assert "no longer rises" in finding.sentence
    assert "99.9%" in finding.sentence or "99.8%" in finding.sentence


def test_falling_validation_is_over_fitting_even_at_a_small_gap() -> None:
    curves = healthy_but(val_accuracy=approach(0.3, 0.92, 8, 1) + line(0.92, 0.86, 8))
    (finding,) = diagnose(curves)
    assert finding.code == "over_fitting"
    assert "falls" in finding.sentence
    assert finding.evidence["best_epoch"] in (8, 9)


def test_accuracy_that_rises_while_its_loss_rises_too_is_over_fitting_at_a_gap() -> None:
    val_loss = approach(2.0, 0.6, 8, 1) + line(0.6, 0.9, 8)
    curves = healthy_but(train_accuracy=approach(0.2, 0.99, 16), val_accuracy=line(0.6, 0.75, 16), val_loss=val_loss)
    (finding,) = diagnose(curves)
    assert finding.code == "over_fitting"
    assert finding.evidence["val_loss_rise"] == pytest.approx(0.3, abs=0.01)


def test_the_borders_of_over_fitting() -> None:
    def flat(gap: float) -> Curves:
        return healthy_but(train_accuracy=(0.95,) * 16, val_accuracy=(0.95 - gap,) * 16)

    assert codes(flat(GAP - 0.001)) == ["healthy"]
    assert codes(flat(GAP + 0.001)) == ["over_fitting"]

    def won(change: float) -> Curves:  # over the second half, along a line
        return healthy_but(train_accuracy=(0.95,) * 16, val_accuracy=(0.7,) * 8 + line(0.7, 0.7 + change, 8))

    assert codes(won(STALLED + 0.001)) == ["healthy"]
    assert codes(won(STALLED - 0.001)) == ["over_fitting"]

    def lost(change: float) -> Curves:
        return healthy_but(train_accuracy=(0.95,) * 16, val_accuracy=(0.94,) * 8 + line(0.94, 0.94 - change, 8))

    assert codes(lost(FALLING - 0.001)) == ["healthy"]
    assert codes(lost(FALLING + 0.001)) == ["over_fitting"]


def test_without_accuracies_a_rising_validation_loss_is_over_fitting_while_training_loss_falls() -> None:
    def curves(rise: float) -> Curves:
        return Curves(approach(2.3, 0.1, 16, 3), val_loss=approach(2.0, 0.5, 8, 0.5) + line(0.5, 0.5 * rise, 8))

    assert codes(curves(OVERCONFIDENT + 0.01)) == ["over_fitting"]
    assert codes(curves(OVERCONFIDENT - 0.01)) == ["healthy"]


# --- under-fitting ---


def test_both_low_and_flat_is_under_fitting() -> None:
    curves = Curves(
        approach(2.3, 1.6, 16, 1), approach(0.2, 0.42, 16, 1), approach(2.2, 1.6, 16, 1), approach(0.2, 0.41, 16, 1)
    )
    (finding,) = diagnose(curves)
    assert finding.code == "under_fitting"
    assert finding.evidence["train_accuracy"] == pytest.approx(0.42, abs=0.005)
    assert "42.0%" in finding.sentence


def test_the_border_of_under_fitting() -> None:
    def flat(accuracy: float) -> Curves:
        return healthy_but(train_accuracy=(accuracy,) * 16, val_accuracy=(accuracy,) * 16)

    assert codes(flat(POOR - 0.001)) == ["under_fitting"]
    assert codes(flat(POOR + 0.001)) == ["healthy"]


def test_a_gap_at_low_accuracy_is_not_under_fitting() -> None:
    curves = healthy_but(train_accuracy=(0.6,) * 16, val_accuracy=(0.4,) * 16)
    assert codes(curves) == ["over_fitting"]


def test_without_accuracies_a_loss_that_hardly_fell_and_is_bad_is_under_fitting() -> None:
    assert codes(Curves(approach(2.3, 2.1, 16, 1))) == ["under_fitting"]
    assert codes(Curves(approach(0.3, 0.28, 16, 1))) == ["healthy"]


# --- rate too low ---


def test_a_slow_straight_descent_is_a_rate_too_low() -> None:
    curves = Curves(line(2.3, 2.1, 10), line(0.1, 0.2, 10), line(2.3, 2.1, 10), line(0.1, 0.2, 10))
    (finding, *others) = diagnose(curves)
    assert finding.code == "rate_too_low"
    assert finding.evidence["fall_per_epoch"] == pytest.approx(0.2 / 9)
    assert others == []


def test_the_border_of_a_rate_too_low() -> None:
    def falling(share: float) -> Curves:
        return Curves(tuple(1 - share * n for n in range(10)), line(0.5, 0.8, 10))

    assert codes(falling(CREEP - 0.001)) == ["rate_too_low"]
    assert codes(falling(CREEP + 0.001)) == ["still_improving"]


def test_slow_progress_of_what_is_already_fitted_is_no_reproach() -> None:
    curves = Curves(line(0.1, 0.09, 10), line(0.97, 0.975, 10), line(0.2, 0.19, 10), line(0.94, 0.941, 10))
    assert codes(curves) == ["healthy"]


# --- still improving, noisy ---


def test_a_run_cut_short_is_still_improving() -> None:
    curves = Curves(approach(2.3, 0.2, 5), approach(0.2, 0.93, 5), approach(2.1, 0.3, 5), approach(0.25, 0.9, 5))
    (finding,) = diagnose(curves)
    assert finding.code == "still_improving"
    assert "validation" in finding.sentence
    assert finding.advice == "Train longer."


def test_the_border_of_still_improving() -> None:
    def falling(share: float) -> Curves:
        return healthy_but(val_loss=(1.0,) * 8 + tuple(1 - share * n for n in range(1, 9)))

    assert codes(falling(IMPROVING + 0.001)) == ["still_improving"]
    assert codes(falling(IMPROVING - 0.001)) == ["healthy"]


def test_without_validation_training_loss_stands_in() -> None:
    (finding,) = diagnose(Curves(approach(2.3, 0.2, 5), approach(0.2, 0.93, 5)))
    assert finding.code == "still_improving"
    assert "training" in finding.sentence


def test_swinging_validation_is_noisy() -> None:
    swinging = tuple(0.88 + 0.06 * (-1) ** n for n in range(16))
    (finding,) = diagnose(healthy_but(val_accuracy=swinging))
    assert finding.code == "noisy_validation"
    assert finding.evidence["swing"] == pytest.approx(0.12)
    assert finding.evidence["lowest"] == pytest.approx(0.82)


def test_the_border_of_noisy() -> None:
    def swinging(size: float) -> Curves:
        return healthy_but(val_accuracy=tuple(0.88 + size / 2 * (-1) ** n for n in range(16)))

    assert codes(swinging(SWING + 0.001)) == ["noisy_validation"]
    assert codes(swinging(SWING - 0.001)) == ["healthy"]


def test_one_turn_is_no_noise() -> None:
    assert "noisy_validation" not in codes(healthy_but(val_accuracy=line(0.5, 0.9, 8) + line(0.9, 0.5, 8)))


# --- several, few, none ---


def test_findings_come_gravest_first() -> None:
    curves = Curves(
        (2.3, 1.5, 2.0, 1.4, 1.9, 1.3, 1.8, 1.2, 1.7, 1.2),
        line(0.5, 0.95, 10),
        (1.5,) * 10,
        tuple(0.6 + 0.06 * (-1) ** n for n in range(10)),
    )
    assert codes(curves) == ["rate_too_high", "over_fitting", "noisy_validation"]


@pytest.mark.parametrize("epochs", [0, 1, 2])
def test_too_few_epochs_say_only_that(epochs: int) -> None:
    (finding,) = diagnose(Curves(line(2.0, 1.5, epochs), line(0.3, 0.5, epochs)))
    assert finding.code == "too_short"
    assert finding.evidence == {"epochs": epochs}


def test_an_accuracy_with_holes_counts_as_missing() -> None:
    holes = (math.nan, *HEALTHY.val_accuracy[1:])
    assert codes(healthy_but(val_accuracy=holes)) == ["healthy"]


def test_curves_of_unequal_length_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match="val_loss"):
        Curves((1.0, 0.9), val_loss=(1.0,))


FINITE_OR_NOT = st.floats(0, 1e6) | st.sampled_from([math.nan, math.inf])


@settings(max_examples=200, deadline=None)
@given(data=st.data(), epochs=st.integers(0, 12))
def test_any_curves_whatever_give_ordered_findings_that_json_can_hold(data: st.DataObject, epochs: int) -> None:
    def series(values: st.SearchStrategy[float], optional: bool = True) -> tuple[float, ...]:
        length = data.draw(st.sampled_from([0, epochs])) if optional else epochs
        return tuple(data.draw(st.lists(values, min_size=length, max_size=length)))

    losses = FINITE_OR_NOT if data.draw(st.booleans()) else st.floats(0, 10)
    accuracies = st.floats(0, 1) | st.just(math.nan)
    curves = Curves(
        series(losses, optional=False), series(accuracies), series(losses), series(accuracies), series(st.floats(0, 1))
    )
    findings = diagnose(curves)
    assert findings
    ranks = [SEVERITY.index(finding.code) for finding in findings]
    assert ranks == sorted(set(ranks))
    assert len(findings) == 1 or not {"healthy", "too_short"} & {finding.code for finding in findings}
    for finding in findings:
        json.dumps(dict(finding.evidence), allow_nan=False)
        assert finding.sentence.endswith(".")
        assert finding.advice.endswith(".")
        assert "nan" not in finding.sentence.lower().split()
    assert diagnose(curves) == findings
