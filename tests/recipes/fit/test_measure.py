"""The first half of a fit: backbones tried, D from the reference, the paired differences, and the choice."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax

from tests.helpers.numeric_trunk import STAGES, numeric_trunk, paint_hues
from transferapp.backbones.feature_store import CENTER
from transferapp.backbones.registry import DEFAULT_BACKBONE, EMBEDDED, BackboneSpec
from transferapp.backbones.trunk import Trunk
from transferapp.config import make_config
from transferapp.errors import DataError
from transferapp.policy.input_size import InputSize, choose_input_size
from transferapp.policy.similarity import label_divergence
from transferapp.recipes.fit import measure as measurement_module
from transferapp.recipes.fit.measure import (
    CHEAPER_WITHIN,
    Measurement,
    choose_candidate,
    measure,
    workshop,
)
from transferapp.system.progress import Silent
from transferapp.training.probe import CrossValidation, cross_validate


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFERAPP_CACHE", str(tmp_path / "cache"))


class Shop:
    """Stands where the workshop does, with trunks that are already built."""

    def __init__(self, **trunks: Trunk) -> None:
        self.trunks = trunks
        self.ordered: list[str] = []
        self.peeked: tuple[tuple[int, int], ...] = ()

    def input_size(self, spec: BackboneSpec) -> InputSize:
        return choose_input_size(self.peeked, spec.image_size)

    def order(self, spec: BackboneSpec) -> None:
        self.ordered.append(spec.name)

    def trunk(self, spec: BackboneSpec) -> Trunk:
        assert spec.name in self.ordered
        return self.trunks[spec.name]


def measured(data: Path, shop: Shop, **settings: Any) -> Measurement:
    return measure(make_config({"data": str(data), **settings}), shop, Silent())  # type: ignore[arg-type]


@pytest.fixture
def hues(tmp_path: Path) -> Path:
    return paint_hues(tmp_path / "hues", {"red": 20, "green": 20, "blue": 20})


def shop_of(names: tuple[str, ...] = EMBEDDED, **options: Any) -> Shop:
    return Shop(**{name: numeric_trunk(name, **options) for name in names})


def test_auto_tries_every_embedded_backbone_and_one_named_is_tried_alone(hues: Path) -> None:
    auto = measured(hues, shop_of())
    assert tuple(c.spec.name for c in auto.candidates) == EMBEDDED
    assert auto.chosen in auto.candidates
    named = measured(hues, shop_of(), backbone="efficientnet_lite2")
    assert [c.spec.name for c in named.candidates] == ["efficientnet_lite2"]


def test_what_is_measured_is_the_training_images_and_nothing_else(hues: Path) -> None:
    found = measured(hues, shop_of())
    train = found.dataset.part("train")
    assert found.plan.num_images == len(train) == 39  # of 20 a class, 4 to test and 3 to validate
    assert found.plan.num_classes == 3
    chosen = found.chosen
    rows = chosen.store.collect(train.records, [CENTER])[:, 0]
    for stage, validation in zip(STAGES, chosen.validations, strict=True):
        again = cross_validate(rows[:, chosen.trunk.row_slices[stage.index]], train.labels, 3, seed=0)
        np.testing.assert_array_equal(validation.logits, again.logits)
    np.testing.assert_array_equal(chosen.features(rows), rows[:, chosen.trunk.row_slices[chosen.cut.index]])
    assert chosen.accuracy == chosen.scores[chosen.cut.index].accuracy


def test_d_is_that_of_the_reference_whatever_backbone_is_tried(hues: Path) -> None:
    knowing, ignorant = numeric_trunk(DEFAULT_BACKBONE), numeric_trunk("efficientnet_lite2", knows_hues=False)
    shop = Shop(**{DEFAULT_BACKBONE: knowing, "efficientnet_lite2": ignorant})
    found = measured(hues, shop, backbone="efficientnet_lite2")
    train = found.dataset.part("train")
    store = found.chosen.store.__class__(knowing)
    logits = store.collect(train.records, [CENTER])[:, 0][:, knowing.row_slices[-1]]
    expected = label_divergence(softmax(logits.astype(float), axis=1), train.labels)
    assert found.plan.divergence == pytest.approx(expected, rel=1e-9)
    assert found.plan.divergence < 0.55


@pytest.mark.parametrize(
    ("options", "quadrant", "cut"),
    [
        ({}, "small + similar", "top"),
        ({"knows_hues": False}, "small + different", "early"),  # both stages are perfect: the earlier one is cheaper
        ({"blind_top": True}, "small + different", "early"),  # D is low, but the last stage has lost the color
    ],
    ids=["similar", "different by D", "different by the probes"],
)
def test_the_plan_follows_from_what_was_measured(hues: Path, options: dict[str, bool], quadrant: str, cut: str) -> None:
    found = measured(hues, shop_of((DEFAULT_BACKBONE,), **options), backbone=DEFAULT_BACKBONE)
    assert (found.plan.quadrant, found.plan.cut, found.chosen.cut.name) == (quadrant, cut, cut)


def test_settings_overrule_what_was_measured(hues: Path) -> None:
    found = measured(hues, shop_of(), size="large", similarity="different")
    assert found.plan.quadrant == "large + different"
    assert found.plan.num_images == 39


def test_the_backbone_that_cross_validates_better_is_chosen(hues: Path) -> None:
    shop = Shop(
        efficientnet_lite0=numeric_trunk("efficientnet_lite0", blind_top=True),
        efficientnet_lite2=numeric_trunk("efficientnet_lite2"),
    )
    found = measured(hues, shop, similarity="similar")  # so that the cut is at the top, which the first is blind at
    assert [c.plan.cut for c in found.candidates] == ["top", "top"]
    assert found.chosen.spec.name == "efficientnet_lite2"


def test_two_measurements_of_the_same_data_are_the_same(hues: Path) -> None:
    first, second = (measured(hues, shop_of()) for _ in range(2))
    assert first.dataset == second.dataset
    assert [c.scores for c in first.candidates] == [c.scores for c in second.candidates]
    assert first.candidates[0].plan == second.candidates[0].plan


def test_data_that_cannot_be_used_are_refused_before_a_backbone_is_built(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    shop = shop_of()
    with pytest.raises(DataError):
        measured(tmp_path / "empty", shop)
    assert shop.ordered == []


# The choice of the backbone


def candidate(name: str, accuracy: float, loss: float) -> Any:
    return SimpleNamespace(name=name, accuracy=accuracy, loss=loss)


@pytest.mark.parametrize(
    ("candidates", "chosen"),
    [
        ([("cheap", 0.90, 0.3), ("dear", 0.91, 0.3)], "dear"),  # a whole point better
        ([("cheap", 0.906, 0.3), ("dear", 0.91, 0.3)], "cheap"),  # within half a point
        ([("cheap", 0.91 - CHEAPER_WITHIN, 0.3), ("dear", 0.91, 0.3)], "cheap"),
        ([("cheap", 0.95, 0.3), ("dear", 0.91, 0.1)], "cheap"),  # the better one is the cheaper one
        ([("cheap", 0.91, 0.32), ("dear", 0.91, 0.3)], "cheap"),  # a tie in accuracy, and nearly one in loss
        ([("cheap", 0.91, 0.34), ("dear", 0.91, 0.3)], "dear"),  # a tie in accuracy that the loss decides
        ([("cheap", 0.91, 0.0), ("dear", 0.91, 0.0)], "cheap"),
        ([("cheap", 0.8, 0.3), ("middle", 0.908, 0.3), ("dear", 0.91, 0.3)], "middle"),
        ([("only", 0.5, 1.0)], "only"),
    ],
)
def test_the_cheapest_that_is_as_good_as_the_best(candidates: list[Any], chosen: str) -> None:
    assert choose_candidate([candidate(*facts) for facts in candidates]).name == chosen  # type: ignore[attr-defined]


# Paired differences


def validation(correct: list[int]) -> CrossValidation:
    return CrossValidation(0.1, (0.5,), np.zeros((len(correct), 2), np.float32), np.array(correct, bool), 0.5)


def test_the_gain_over_the_top_is_paired_by_image() -> None:
    stage, top = validation([1, 1, 1, 0, 1]), validation([1, 0, 1, 1, 0])
    score = measurement_module._stage_score(STAGES[0], stage, top)
    # Differences 0, 1, 0, -1, 1: mean 1/5; sum of squares about it 14/5, over 4 and then 5.
    assert score.stage == "early"
    assert score.accuracy == pytest.approx(0.8)
    assert score.gain_over_top == pytest.approx(0.2)
    assert score.standard_error == pytest.approx(np.sqrt(14 / 5 / 4 / 5))
    same = measurement_module._stage_score(STAGES[1], top, top)
    assert (same.gain_over_top, same.standard_error) == (0, 0)


# The workshop


def test_the_workshop_builds_in_order_of_the_orders_and_hands_on_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []

    def build(self: Any, spec: Any) -> Any:
        built.append(spec.name)
        if spec.name == "bad":
            raise DataError("no such weights")
        return spec.name.upper()

    monkeypatch.setattr(measurement_module.Workshop, "_build", build)
    specs = [SimpleNamespace(name=name) for name in ("one", "bad", "two")]
    with workshop(make_config({"data": "x"})) as shop:
        for spec in specs:
            shop.order(spec)  # type: ignore[arg-type]
        assert shop.trunk(specs[2]) == "TWO"  # type: ignore[arg-type, comparison-overlap]
        with pytest.raises(DataError, match="no such weights"):
            shop.trunk(specs[1])  # type: ignore[arg-type]
    assert built == ["one", "bad", "two"]


def test_a_workshop_that_is_left_does_not_start_what_it_has_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, built = threading.Event(), []

    def build(self: Any, spec: Any) -> None:
        built.append(spec.name)
        gate.wait(60)

    monkeypatch.setattr(measurement_module.Workshop, "_build", build)
    with workshop(make_config({"data": "x"})) as shop:
        for name in ("first", "second", "third"):
            shop.order(SimpleNamespace(name=name))  # type: ignore[arg-type]
        pool = shop._pool
    gate.set()
    pool.shutdown(wait=True)
    assert set(built) <= {"first"}


# Classes of unlike size


def test_weights_that_are_asked_for_reach_the_classifier_and_its_cross_validation(tmp_path: Path) -> None:
    data = paint_hues(tmp_path / "uneven", {"red": 40, "green": 10, "blue": 10}, noise=60)
    plain = measured(data, shop_of((DEFAULT_BACKBONE,)), backbone=DEFAULT_BACKBONE, class_weights="none")
    weighed = measured(data, shop_of((DEFAULT_BACKBONE,)), backbone=DEFAULT_BACKBONE, class_weights="balanced")
    assert plain.weighting.weights is None
    weights = weighed.weighting.weights
    assert weights is not None
    assert weights @ weighed.dataset.part("train").counts() == pytest.approx(len(weighed.dataset.part("train")))
    at = weighed.chosen.cut.index
    assert weighed.chosen.validations[at] is weighed.weighting.validation
    assert weighed.chosen in weighed.candidates
    assert not np.array_equal(weighed.chosen.validations[at].logits, plain.chosen.validations[at].logits)
    assert weighed.chosen.scores == plain.chosen.scores, "stages are compared without weights"
