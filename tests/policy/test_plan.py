"""The four quadrants, the cut in each, and the sentences that explain them."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from transferapp.policy.budget import USUAL_EPOCHS
from transferapp.policy.plan import (
    BACKBONE_LEARNING_RATE,
    HEAD_LEARNING_RATE,
    TIE,
    Plan,
    choose_stage,
    make_plan,
)
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


def plan(counts: list[int], divergence: float, scores: list[StageScore], **overrides: Any) -> Plan:
    return make_plan(
        measure_size(counts),
        judge_similarity(divergence, scores),
        scores,
        num_classes=len(counts),
        backbone="efficientnet_lite0",
        **overrides,
    )


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
    assert any(quadrant in reason for reason in decided.reasons)
    if "small" in quadrant:
        assert decided.head_learning_rate is None
        assert (decided.backbone_learning_rate, decided.epochs) == (0.0, 0)
    else:
        assert (decided.head_learning_rate, decided.epochs) == (HEAD_LEARNING_RATE, USUAL_EPOCHS)
        assert 0 < decided.backbone_learning_rate <= HEAD_LEARNING_RATE / 10


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


@pytest.mark.parametrize(
    ("size", "similarity"), list(itertools.product([None, "small", "large"], [None, "similar", "different"]))
)
def test_the_person_overrules_the_measurement_and_the_card_says_so(size: str | None, similarity: str | None) -> None:
    decided = plan(SMALL, 0.2, TOP_WINS, size_override=size, similarity_override=similarity)  # type: ignore[arg-type]
    assert decided.size == (size or "small")
    assert decided.similarity == (similarity or "similar")
    told = [reason for reason in decided.reasons if "against the measurement" in reason]
    assert len(told) == (size == "large") + (similarity == "different")
    undone = [note for note in decided.would_change if "leaving out" in note]
    assert len(undone) == len(told)
    if size == "large":
        assert "leaving out --size large would make it small, as measured" in undone
    if similarity == "different":
        assert "leaving out --similarity different would make it similar, as measured" in undone


def test_reasons_follow_the_argument_and_carry_numbers_and_thresholds() -> None:
    decided = plan(SMALL, 0.24, stages(0.5, 0.7, 0.94))
    assert [reason.split(":")[0] for reason in decided.reasons] == [
        "size",
        "similarity",
        "similarity",
        "rule",
        "cut",
        "rate",
    ]
    for reason, needed in zip(
        decided.reasons,
        [("120", "40", "1,000"), ("0.24", "0.55"), ("0.940",), ("small + similar",), ("top", "0.940"), ("L-BFGS",)],
        strict=True,
    ):
        assert all(text in reason for text in needed), reason
    large = plan(LARGE, 0.8, TOP_WINS)
    assert "new classifier 0.001, backbone 0.0001" in large.reasons[-1]


def test_from_scratch_nothing_is_said_of_what_was_pretrained() -> None:
    decided = plan(SMALL, 0.24, TOP_WINS, tune="all", from_scratch=True, rates=(1e-3, 1e-3))
    tune, tuning, rate = decided.reasons[-3:]
    assert tune == "tune: all of the network, for --scratch begins with random weights, whatever the rule says"
    assert tuning == "tuning: whole network, from random weights; it ships, whatever it is worth"
    assert rate == "rate: 0.001 for the classifier and the backbone alike; up to 8 epochs in batches of 64"
    assert decided.backbone_learning_rate == decided.head_learning_rate == 1e-3
    assert decided.method == "all of the network, from random weights"


def test_a_reason_that_is_not_the_persons_stands_in_for_theirs() -> None:
    decided = plan(LARGE, 0.24, TOP_WINS, tune="none", tune_reason="nothing, for want of something")
    assert decided.reasons[-2] == "tune: nothing, for want of something"
    assert decided.reasons[-1].startswith("rate: none to choose")
    assert (decided.tuned, decided.proposals) == ("none", ())


@pytest.mark.parametrize(
    ("scores", "text"),
    [
        (stages(0.5, 0.7, 0.9), "block2, the best earlier one, is 20.0 ± 1.0 points behind"),
        (stages(0.5, 0.89, 0.9, standard_error=0.02), "1.0 ± 2.0 points behind, a tie by one standard error"),
        (stages(0.5, 0.93, 0.9, standard_error=0.02), "block2: 0.930 cross-validated, +3.0 ± 2.0 points against"),
        (stages(0.9), "top, the only stage"),
    ],
)
def test_the_cut_of_a_different_set_is_explained_by_what_the_probes_found(scores: list[StageScore], text: str) -> None:
    (reason,) = (reason for reason in plan(SMALL, 0.8, scores).reasons if reason.startswith("cut:"))
    assert text in reason


@pytest.mark.parametrize(
    ("divergence", "scores", "told", "untold"),
    [
        (0.2, TOP_WINS, ["D from 0.55 would make it different (D is 0.20)", "an earlier stage beating the last"], []),
        (0.8, TOP_WINS, ["D below 0.55 would make it similar (D is 0.80)"], ["an earlier stage"]),
        (
            0.2,
            MIDDLE_WINS,
            ["without an earlier stage that beats the last, it would be similar"],
            ["D from", "D below"],
        ),
        (
            0.8,
            MIDDLE_WINS,
            ["D below 0.55, and no earlier stage that beats the last, would make it similar"],
            ["D from"],
        ),
    ],
)
def test_what_would_change_the_similarity_is_what_decided_it(
    divergence: float, scores: list[StageScore], told: list[str], untold: list[str]
) -> None:
    notes = "\n".join(plan(SMALL, divergence, scores).would_change)
    assert all(text in notes for text in told)
    assert not any(text in notes for text in untold)
    assert "not photographic style" in notes


def test_what_would_change_the_size_is_how_far_the_border_is() -> None:
    def first(counts: list[int]) -> str:
        return plan(counts, 0.2, TOP_WINS).would_change[0]

    assert first(SMALL).startswith("880 more training images would make the set large")
    assert first([10] * 3).startswith("970 more training images and 30 in the median class would make")
    assert first([10] * 200).startswith("30 in the median class would make the set large")
    assert "fewer than 1,000 training images, or 30 in the median class, would freeze" in first(LARGE)


def test_the_plan_is_an_object_of_plain_json() -> None:
    document = plan(SMALL, 0.24, TOP_WINS).to_json()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
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
    assert all(isinstance(reason, str) and reason for reason in document["reasons"] + document["would_change"])
