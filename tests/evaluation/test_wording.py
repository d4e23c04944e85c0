"""Sentences that the card and the report share."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers.manifests import make_manifest
from transferapp.evaluation.report.wording import (
    backbone_reason,
    by_topic,
    forecast_sentence,
    leak_sentences,
    novelty_sentence,
    robustness_sentence,
    sets_sentence,
    uniform_sentence,
)


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
        ([], ["No other backbone"]),
        ([("b", 0.90, 15.0)], ["3.3 points more accurate than b", "2.0 times its cost"]),
        ([("b", 0.90, 15.0), ("c", 0.91, 60.0)], ["2.3 points more accurate than c", "50% of its cost"]),
        ([("b", 0.937, 66.0)], ["0.4 points less accurate than b", "45% of its cost"]),
        ([("b", 0.933, 60.0)], ["as accurate as b", "50% of its cost"]),
        ([("b", 0.933, 30.4)], ["as accurate as b", "the same cost"]),
        ([("b", 0.5, 0.0)], ["43.3 points more accurate than b", "the same cost"]),
    ],
)
def test_the_backbone_is_compared_with_the_best_other(
    others: list[tuple[str, float, float]], expected: list[str]
) -> None:
    found = backbone_reason([candidate("a", 0.933, 30.0, chosen=True), *(candidate(*o) for o in others)])
    assert all(text in found for text in expected), found


def test_a_dearer_backbone_that_was_measured_to_be_worse_is_what_usually_gains() -> None:
    dear = {**candidate("a", 0.90, 60.0, chosen=True), "loss": 0.3}
    found = backbone_reason([{**candidate("b", 0.92, 30.0), "loss": 0.31}, dear])
    assert "2.0 points less accurate than b" in found
    assert "1.9 points more accurate, at 2.0 times its cost" in found


def test_a_backbone_without_time_for_fine_tuning_is_the_reason() -> None:
    there = {**candidate("b", 0.95, 60.0), "passed_over": True}
    assert "--budget" in backbone_reason([candidate("a", 0.9, 30.0, chosen=True), there])


def test_a_backbone_that_costs_more_without_being_more_accurate_was_chosen_for_its_loss() -> None:
    dear = {**candidate("a", 0.979, 60.0, chosen=True), "loss": 0.05}
    cheap = {**candidate("b", 0.979, 30.0), "loss": 0.08}
    assert "(0.050 against 0.080)" in backbone_reason([cheap, dear])


def test_a_uniform_set_is_no_overlap_but_is_said() -> None:
    overlap = {"split": "test", "others": ["train", "val"], "num_images": 40, "exact": 0, "near": 0, "group": 0}
    leaks = {"overlap": overlap, "num_similar": None, "uniform": True, "similar": [], "honest": None}
    assert leak_sentences(leaks) == []
    assert uniform_sentence(leaks).startswith("The images are too uniform")
    assert uniform_sentence({**leaks, "uniform": False}) == uniform_sentence(None) == ""


def test_novelty_names_the_images_it_rests_on() -> None:
    manifest = make_manifest()
    said = novelty_sentence(manifest)
    assert "95% of 135 held-out images" in said
    assert "3 of 45 test images (6.7%; 95 % interval 2.3% to 17.9%)" in said
    without = {**manifest["novelty"], "num_test": 0, "num_refused": 0, "refused_interval": None}
    assert "test" not in novelty_sentence({"novelty": without})
    assert "too few held-out images" in novelty_sentence({"novelty": None})
    assert novelty_sentence({}) == ""


def test_prediction_sets_name_coverage_and_size() -> None:
    manifest = make_manifest()
    said = sets_sentence(manifest)
    assert "42 of 45 test images (93.3%; 95 % interval 82.1% to 97.7%), with 1.24 classes on average" in said
    assert "90.0% of images are promised (84.2% to 94.8% with 108 held-out images)" in said
    single = {**manifest["prediction_sets"], "threshold": 0.0}
    assert sets_sentence({"prediction_sets": single}).endswith("so every set is that class.")
    without = {**manifest["prediction_sets"], "num_test": 0, "num_covered": 0, "covered_interval": None}
    assert sets_sentence({"prediction_sets": without}).endswith("with 1.24 classes on average.")
    assert "too few held-out images" in sets_sentence({"prediction_sets": None})
    assert sets_sentence({}) == ""


def test_a_forecast_names_the_class_to_photograph_next() -> None:
    said = forecast_sentence(make_manifest())
    assert "twice the images (270)" in said
    assert "2.2 points (0.4 to 3.5)" in said
    assert "30 more images of wasp alone, 0.9 points (0.2 to 1.4)" in said
    assert "too few" in forecast_sentence({"forecast": None})
    assert forecast_sentence({}) == ""


def test_robustness_names_the_change_that_costs_most() -> None:
    said = robustness_sentence(make_manifest())
    assert "14 changes of 45 test images, low resolution" in said
    assert "falls from 80.0% to 22.2%, by 57.8 ± 7." in said
    assert "too few test images" in robustness_sentence({"robustness": None})
    assert robustness_sentence({}) == ""
