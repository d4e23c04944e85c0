"""The choice between the last stage and a mixture of stages."""

from __future__ import annotations

import pytest

from transferapp.policy.choose import CLEARLY_LOWER, MixtureScore, use_mixture, weigh_both


def score(saved: float, standard_error: float = 0.01) -> MixtureScore:
    return MixtureScore(0.9, 0.3, saved, standard_error, {"block6": 0.2, "top": 0.6})


@pytest.mark.parametrize("saved", [-0.1, 0.0, 0.1])
def test_the_rule_asks_for_it_on_images_that_are_different(saved: float) -> None:
    assert use_mixture("different", score(saved))


@pytest.mark.parametrize(
    ("saved", "used"), [(-0.1, False), (0.99 * CLEARLY_LOWER * 0.01, False), (1.01 * CLEARLY_LOWER * 0.01, True)]
)
def test_on_similar_images_it_must_be_clearly_better(saved: float, used: bool) -> None:
    assert use_mixture("similar", score(saved)) == used


def test_the_reason_gives_shares_and_figures() -> None:
    reason = score(0.05).reason()
    assert reason.topic == "cut"
    assert reason.values["block6"] == pytest.approx(0.25)
    assert reason.values["top"] == pytest.approx(0.75)
    assert (reason.values["accuracy"], reason.values["saved"]) == (0.9, 0.05)


@pytest.mark.parametrize(("saved", "advised"), [(0.05, True), (0.015, False), (-0.05, False)])
def test_both_backbones_are_advised_only_where_they_are_clearly_better(saved: float, advised: bool) -> None:
    reason = weigh_both(saved, 0.01, "efficientnet_lite2")
    assert ("transferapp ensemble" in reason.text) == advised
    assert reason.values == {"saved": saved, "standard_error": 0.01}


@pytest.mark.parametrize("similarity", ["different", "similar"])
def test_a_mixture_without_a_weight_is_not_read(similarity: str) -> None:
    assert not use_mixture(similarity, MixtureScore(0.1, 2.3, 10.0, 0.9))
