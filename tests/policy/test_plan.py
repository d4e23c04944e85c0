"""The four quadrants, the cut in each, and the reasons for them."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from typing import Any

import pytest

from transferapp.policy.budget import LARGE_BUDGET, SMALL_BUDGET, USUAL_EPOCHS
from transferapp.policy.choose import MixtureScore
from transferapp.policy.plan import (
    BACKBONE_LEARNING_RATE,
    HEAD_LEARNING_RATE,
    TIE,
    FineTuning,
    NewHead,
    Overrides,
    Plan,
    choose_stage,
    make_plan,
)
from transferapp.policy.reasons import Reason
from transferapp.policy.similarity import StageScore, judge_similarity
from transferapp.policy.size import measure_size

SMALL, LARGE = [40] * 3, [2_000] * 3


def stages(*accuracies: float, standard_error: float = 0.01) -> list[StageScore]:
    """Stages named block1, block2, ... and top."""
    names = [*(f"block{i + 1}" for i in range(len(accuracies) - 1)), "top"]
    top = accuracies[-1]
    return [
        StageScore(name, accuracy, 1.0, accuracy - top, standard_error if name != "top" else 0.0)
        for name, accuracy in zip(names, accuracies, strict=True)
    ]


TOP_WINS = stages(0.5, 0.7, 0.9)
MIDDLE_WINS = stages(0.5, 0.9, 0.8)


def plan(counts: list[int], divergence: float, scores: list[StageScore], **options: Any) -> Plan:
    return make_plan(
        measure_size(counts), judge_similarity(divergence, scores), scores, backbone="efficientnet_lite0", **options
    )


MIXTURE = MixtureScore(0.92, 0.3, 0.01, 0.01, {"block2": 0.3, "top": 0.9})


def reason_about(decided: Plan, topic: str) -> Reason:
    """The only reason on a topic."""
    (reason,) = (reason for reason in decided.reasons if reason.topic == topic)
    return reason


@pytest.mark.parametrize(
    ("counts", "divergence", "scores", "quadrant", "cut", "tuned"),
    [
        (SMALL, 0.2, TOP_WINS, "small + similar", "top", "none"),
        (SMALL, 0.8, MIDDLE_WINS, "small + different", "block2", "none"),
        (SMALL, 0.8, TOP_WINS, "small + different", "top", "none"),
        (SMALL, 0.2, MIDDLE_WINS, "small + different", "block2", "none"),  # the probes overrule D
        (LARGE, 0.2, TOP_WINS, "large + similar", "top", "last stages"),
        (LARGE, 0.8, TOP_WINS, "large + different", "top", "all"),
        (LARGE, 0.8, MIDDLE_WINS, "large + different", "block2", "all"),
    ],
)
def test_each_quadrant_cuts_and_tunes_as_the_lecture_says(
    counts: list[int], divergence: float, scores: list[StageScore], quadrant: str, cut: str, tuned: str
) -> None:
    decided = plan(counts, divergence, scores)
    assert (decided.quadrant, decided.cut, decided.tuned) == (quadrant, cut, tuned)
    assert " + ".join(map(str, reason_about(decided, "rule").values.values())) == quadrant
    if "small" in quadrant:
        assert decided.head_learning_rate is None
        assert (decided.backbone_learning_rate, decided.epochs) == (0.0, 0)
    else:
        assert (decided.head_learning_rate, decided.epochs) == (HEAD_LEARNING_RATE, USUAL_EPOCHS)
        assert 0 < decided.backbone_learning_rate <= HEAD_LEARNING_RATE / 10


UNLIKE = [100] * 3
"""A small set that is fine-tuned where it is different from ImageNet."""


def test_a_different_set_reads_the_mixture_and_the_plan_lists_its_weights() -> None:
    decided = plan(SMALL, 0.8, MIDDLE_WINS, mixture=MIXTURE)
    assert decided.mixture == MIXTURE.weights
    assert decided.cut == "block2", "the best single stage"
    assert reason_about(decided, "cut") == MIXTURE.reason()
    assert decided.to_json()["mixture"] == {"block2": 0.3, "top": 0.9}


@pytest.mark.parametrize(("saved", "mixed"), [(0.01, False), (0.03, True)])
def test_a_similar_set_reads_the_mixture_only_where_it_is_clearly_better(saved: float, mixed: bool) -> None:
    decided = plan(SMALL, 0.2, TOP_WINS, mixture=replace(MIXTURE, saved=saved))
    assert decided.mixture == (MIXTURE.weights if mixed else {})
    assert ("block2" in reason_about(decided, "cut").values) == mixed


def test_without_a_mixture_one_stage_is_read() -> None:
    assert plan(SMALL, 0.8, MIDDLE_WINS).mixture == {}


@pytest.mark.parametrize(
    ("counts", "divergence", "budget", "cuts"),
    [
        (SMALL, 0.2, 0.0, []),
        (SMALL, 0.8, 0.0, []),  # fewer than 200 images
        (UNLIKE, 0.2, 0.0, []),
        (UNLIKE, 0.8, SMALL_BUDGET, ["block1"]),
        (LARGE, 0.2, LARGE_BUDGET, ["block1"]),
        (LARGE, 0.8, LARGE_BUDGET, ["block1", "input"]),
    ],
)
def test_the_default_budget_of_each_quadrant_and_what_it_is_for(
    counts: list[int], divergence: float, budget: float, cuts: list[str]
) -> None:
    decided = plan(counts, divergence, TOP_WINS)
    assert (decided.budget, [proposal.cut for proposal in decided.proposals]) == (budget, cuts)
    reasons = [reason.values["seconds"] for reason in decided.reasons if reason.topic == "budget"]
    assert reasons == ([budget] if budget else [])


def test_a_small_different_set_that_is_fine_tuned_says_that_the_rule_would_not() -> None:
    decided = plan(UNLIKE, 0.8, TOP_WINS)
    assert "The rule fine-tunes nothing of a small set" in reason_about(decided, "budget").text
    assert (decided.tuned, decided.quadrant) == ("most", "small + different")
    assert "The rule" not in reason_about(plan(LARGE, 0.8, TOP_WINS), "budget").text


@pytest.mark.parametrize("counts", [SMALL, UNLIKE, LARGE])
@pytest.mark.parametrize("tune", ["auto", "last", "all"])
def test_a_budget_of_0_fine_tunes_nothing(counts: list[int], tune: str) -> None:
    decided = plan(counts, 0.8, TOP_WINS, overrides=Overrides(tune=tune, budget=0.0))
    assert (decided.tuned, decided.proposals, decided.budget, decided.epochs) == ("none", (), 0.0, 0)


def test_a_budget_of_the_user_replaces_the_default() -> None:
    assert plan(LARGE, 0.8, TOP_WINS, overrides=Overrides(budget=60.0)).budget == 60
    small = plan(SMALL, 0.8, TOP_WINS, overrides=Overrides(budget=60.0))
    assert (small.budget, [proposal.cut for proposal in small.proposals]) == (60, ["block1"])
    without_limit = plan(LARGE, 0.8, TOP_WINS, overrides=Overrides(budget=math.inf))
    assert without_limit.to_json()["budget"] is None
    assert without_limit.proposals


@pytest.mark.parametrize("budget", [None, 60.0, math.inf])
@pytest.mark.parametrize("divergence", [0.2, 0.8])
@pytest.mark.parametrize("counts", [SMALL, UNLIKE])
def test_the_rule_alone_fine_tunes_nothing_of_a_small_set(
    counts: list[int], divergence: float, budget: float | None
) -> None:
    decided = plan(counts, divergence, TOP_WINS, overrides=Overrides(rule_only=True, budget=budget))
    assert (decided.proposals, decided.tuned, decided.budget) == ((), "none", 0.0)


def test_the_rule_alone_fine_tunes_a_large_set_and_what_the_user_asks_for() -> None:
    assert plan(LARGE, 0.8, TOP_WINS, overrides=Overrides(rule_only=True)).proposals
    assert plan(SMALL, 0.2, TOP_WINS, overrides=Overrides(rule_only=True, tune="last")).proposals


def test_a_trained_head_of_a_small_set_has_time() -> None:
    decided = plan(SMALL, 0.2, TOP_WINS, tuning=FineTuning(head=NewHead("hidden layers of 64")))
    assert [proposal.head_only for proposal in decided.proposals] == [True]
    assert decided.budget == LARGE_BUDGET


def test_a_small_similar_set_stays_on_the_top_though_an_earlier_stage_leads_by_a_little() -> None:
    assert plan(SMALL, 0.2, stages(0.5, 0.908, 0.9)).cut == "top"


def test_the_backbone_moves_at_a_tenth_of_the_head() -> None:
    assert BACKBONE_LEARNING_RATE == HEAD_LEARNING_RATE / 10


@pytest.mark.parametrize(
    ("accuracies", "chosen"),
    [
        ((0.5, 0.7, 0.9), "top"),
        ((0.9 - TIE, 0.7, 0.9), "block1"),  # equal within half a point: the earliest
        ((0.9 - TIE - 1e-6, 0.7, 0.9), "top"),
        ((0.5, 0.93, 0.9), "block2"),
        ((0.928, 0.93, 0.9), "block1"),
        ((0.9,), "top"),
    ],
)
def test_the_best_stage_wins_and_among_equals_the_earliest(accuracies: tuple[float, ...], chosen: str) -> None:
    assert choose_stage(stages(*accuracies)).stage == chosen


def test_the_last_stage_is_read_where_cross_validation_tells_nothing() -> None:
    decided = plan([1, 1, 1], 1.2, stages(0.0, 0.0, 0.0))
    assert decided.cut == "top"
    assert reason_about(decided, "cut").values == {"stage": "top", "accuracy": 0.0}


@pytest.mark.parametrize(
    ("size", "similarity"), list(itertools.product(["auto", "small", "large"], ["auto", "similar", "different"]))
)
def test_the_user_overrules_the_measurement_and_the_reasons_carry_it(size: str, similarity: str) -> None:
    decided = plan(SMALL, 0.2, TOP_WINS, overrides=Overrides(size, similarity))
    assert decided.size == (size if size != "auto" else "small")
    assert decided.similarity == (similarity if similarity != "auto" else "similar")
    expected = [
        (topic, {"measured": measured, "override": override})
        for topic, measured, override in (("size", "small", size), ("similarity", "similar", similarity))
        if override not in ("auto", measured)
    ]
    for reasons in (decided.reasons, decided.would_change):
        assert [(r.topic, dict(r.values)) for r in reasons if "override" in r.values] == expected


def test_reasons_follow_the_argument_and_carry_numbers_and_thresholds() -> None:
    decided = plan(SMALL, 0.24, stages(0.5, 0.7, 0.94))
    assert [reason.topic for reason in decided.reasons] == ["size", "similarity", "similarity", "rule", "cut", "rate"]
    size, divergence, compared, _, cut, _ = (reason.values for reason in decided.reasons)
    assert (size["num_images"], size["median_per_class"], size["large_total"]) == (120, 40, 1_000)
    assert (divergence["divergence"], divergence["similar_below"]) == (0.24, 0.55)
    assert compared["accuracy"] == 0.94
    assert cut == {"stage": "top", "accuracy": 0.94}
    rate = reason_about(plan(LARGE, 0.8, TOP_WINS), "rate").values
    assert (rate["head_rate"], rate["backbone_rate"]) == (1e-3, 1e-4)


@pytest.mark.parametrize("find_rate", [False, True])
def test_every_sentence_of_a_reason_begins_with_a_word_and_ends_with_a_period(find_rate: bool) -> None:
    head = NewHead("hidden layers of 64")
    for counts, divergence, scores, options in itertools.product(
        (SMALL, LARGE, [10] * 200),
        (0.2, 0.8),
        (TOP_WINS, MIDDLE_WINS, stages(0.9)),
        (
            {},
            {"tuning": FineTuning(find_rate=find_rate, head=head)},
            {"overrides": Overrides("large", "similar", "all")},
            {"overrides": Overrides(budget=60.0), "mixture": MIXTURE},
        ),
    ):
        decided = plan(counts, divergence, scores, **{"tuning": FineTuning(find_rate=find_rate), **options})
        for reason in (*decided.reasons, *decided.would_change):
            assert reason.topic
            assert reason.text.endswith("."), reason
            assert "  " not in reason.text


def test_from_scratch_both_rates_are_the_same_and_nothing_is_pretrained() -> None:
    tuning = FineTuning(1e-3, 1e-3, from_scratch=True)
    decided = plan(SMALL, 0.24, TOP_WINS, overrides=Overrides(tune="all"), tuning=tuning)
    assert [reason.topic for reason in decided.reasons[-3:]] == ["tune", "fine-tuning", "rate"]
    assert "pretrained" not in " ".join(reason.text for reason in decided.reasons[-3:])
    assert decided.backbone_learning_rate == decided.head_learning_rate == 1e-3


def test_a_reason_that_is_not_the_users_replaces_theirs() -> None:
    overrides = Overrides(tune="none", tune_reason="Nothing is fine-tuned.")
    decided = plan(LARGE, 0.24, TOP_WINS, overrides=overrides)
    assert reason_about(decided, "tune").text == "Nothing is fine-tuned."
    assert decided.reasons[-1].topic == "rate"
    assert (decided.tuned, decided.proposals, decided.epochs) == ("none", (), 0)


@pytest.mark.parametrize(
    ("scores", "values"),
    [
        (stages(0.5, 0.7, 0.9), {"stage": "top", "runner_up": "block2", "behind": pytest.approx(0.2)}),
        (stages(0.5, 0.93, 0.9, standard_error=0.02), {"stage": "block2", "gain_over_top": pytest.approx(0.03)}),
        (stages(0.9), {"stage": "top"}),
    ],
)
def test_the_cut_of_a_different_set_is_explained_by_the_stages(
    scores: list[StageScore], values: dict[str, object]
) -> None:
    found = reason_about(plan(SMALL, 0.8, scores), "cut").values
    assert {name: found[name] for name in values} == values


@pytest.mark.parametrize(
    ("divergence", "scores", "count"), [(0.2, TOP_WINS, 3), (0.8, TOP_WINS, 2), (0.2, MIDDLE_WINS, 2)]
)
def test_conditions_that_would_change_the_similarity(divergence: float, scores: list[StageScore], count: int) -> None:
    notes = [note for note in plan(SMALL, divergence, scores).would_change if note.topic == "similarity"]
    assert len(notes) == count
    assert notes[0].values == {"divergence": divergence, "similar_below": 0.55}


@pytest.mark.parametrize(("counts", "missing"), [(SMALL, 880), ([10] * 3, 970), ([10] * 200, 0)])
def test_conditions_that_would_change_the_size(counts: list[int], missing: int) -> None:
    note = plan(counts, 0.2, TOP_WINS).would_change[0]
    assert (note.topic, note.values["missing_images"]) == ("size", missing)
    assert (f"{missing} more" in note.text) == bool(missing)


def test_the_plan_is_an_object_of_plain_json() -> None:
    tuning = FineTuning(head=NewHead("hidden layers of 64"))
    for made in (plan(SMALL, 0.8, MIDDLE_WINS), plan(LARGE, 0.8, TOP_WINS, tuning=tuning)):
        assert json.loads(json.dumps(made.to_json(), allow_nan=False)) == made.to_json()
    document = plan(SMALL, 0.24, TOP_WINS).to_json()
    assert {
        name: document[name] for name in ("size", "similarity", "divergence", "cut", "num_images", "num_classes")
    } == {
        "size": "small",
        "similarity": "similar",
        "divergence": 0.24,
        "cut": "top",
        "num_images": 120,
        "num_classes": 3,
    }
    assert document["quadrant"] == "small + similar"
    assert document["backbone"] == "efficientnet_lite0"
    for reason in document["reasons"] + document["would_change"]:
        assert reason.keys() == {"topic", "text", "values"}


def test_before_training_the_plan_claims_nothing_that_was_not_done() -> None:
    before = plan(LARGE, 0.8, TOP_WINS).before_training()
    assert (before.tuned, before.proposals, before.epochs, before.budget) == ("none", (), 0, 0.0)
    assert before.method == "linear classifier, full-batch L-BFGS"
    assert "had not finished" in reason_about(before, "fine-tuning").text


def test_with_rule_only_similar_images_keep_the_last_stage() -> None:
    clearly_better = MixtureScore(0.9, 0.3, 0.5, 0.01, {"block1": 1.0})
    assert plan(SMALL, 0.2, TOP_WINS, mixture=clearly_better).mixture
    assert not plan(SMALL, 0.2, TOP_WINS, mixture=clearly_better, overrides=Overrides(rule_only=True)).mixture
    assert plan(SMALL, 0.8, TOP_WINS, mixture=clearly_better, overrides=Overrides(rule_only=True)).mixture


def test_a_budget_of_0_is_named_as_the_reason() -> None:
    decided = plan(LARGE, 0.8, TOP_WINS, overrides=Overrides(tune="last", budget=0.0))
    assert "--budget 0" in reason_about(decided, "budget").text
    assert not [reason for reason in decided.reasons if reason.topic == "tune"]
