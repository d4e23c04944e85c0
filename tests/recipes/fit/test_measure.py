"""The first half of a fit: backbones tried, D from the reference, the paired differences, and the choice."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.special import logsumexp, softmax

from tests.helpers.numeric_trunk import STAGES, numeric_trunk, paint_hues
from transferapp.backbones.feature_store import CENTER
from transferapp.backbones.registry import BACKBONES, DEFAULT_BACKBONE, EMBEDDED, BackboneSpec
from transferapp.backbones.stages import Tap
from transferapp.backbones.trunk import Trunk
from transferapp.config import make_config
from transferapp.data.dataset import Dataset, Record
from transferapp.data.sources import open_source
from transferapp.errors import DataError
from transferapp.policy.similarity import label_divergence
from transferapp.policy.size import InputSize, choose_input_size
from transferapp.recipes.fit import measure as measurement_module
from transferapp.recipes.fit.measure import (
    MEASURED_AT_MOST,
    Measurement,
    audit_and_split,
    backbone_loader,
    choose_backbone,
    measure,
    measured_sample,
)
from transferapp.system.progress import Silent
from transferapp.training.mixture import Mixture
from transferapp.training.probe import CrossValidation, cross_validate


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFERAPP_CACHE", str(tmp_path / "cache"))


class Loader:
    """A loader whose trunks are already built."""

    def __init__(self, **trunks: Trunk) -> None:
        self.trunks = trunks
        self.started: list[str] = []

    def input_size(self, spec: BackboneSpec) -> InputSize:
        return choose_input_size((), spec.image_size)

    def start(self, spec: BackboneSpec) -> None:
        self.started.append(spec.name)

    def trunk(self, spec: BackboneSpec) -> Trunk:
        assert spec.name in self.started
        return self.trunks[spec.name]


def measured(data: Path, loader: Loader, **settings: Any) -> Measurement:
    config = make_config({"data": str(data), **settings})
    return measure(config, open_source(str(data)), loader, Silent())  # type: ignore[arg-type]


@pytest.fixture
def hues(tmp_path: Path) -> Path:
    return paint_hues(tmp_path / "hues", {"red": 20, "green": 20, "blue": 20})


def loader_of(names: tuple[str, ...] = EMBEDDED, **options: Any) -> Loader:
    return Loader(**{name: numeric_trunk(name, **options) for name in names})


def test_auto_tries_every_embedded_backbone_and_one_named_is_tried_alone(hues: Path) -> None:
    auto = measured(hues, loader_of())
    assert tuple(c.spec.name for c in auto.backbones) == EMBEDDED
    assert auto.chosen in auto.backbones
    named = measured(hues, loader_of(), backbone="efficientnet_lite2")
    assert [c.spec.name for c in named.backbones] == ["efficientnet_lite2"]


def test_what_is_measured_is_the_training_images_and_nothing_else(hues: Path) -> None:
    found = measured(hues, loader_of())
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


def twins_of(dataset: Dataset) -> np.ndarray:
    """Features by which each image is alone, but the first of each class has a twin in that class."""
    features = np.random.default_rng(0).normal(size=(len(dataset), 64)).astype(np.float32)
    for label in range(len(dataset.class_names)):
        first, twin = np.flatnonzero(dataset.labels == label)[[0, -1]]
        features[twin] = features[first]
    return features


def test_a_split_keeps_images_with_similar_features_together(hues: Path) -> None:
    source = open_source(str(hues))
    for seed in range(5):
        config = make_config({"data": str(hues), "seed": seed})
        dataset, findings = audit_and_split(source, config, Silent(), twins_of)
        assert (findings.kept_together, findings.near_duplicates) == (6, 0)
        twins = [np.flatnonzero(dataset.labels == label)[[0, -1]] for label in range(3)]
        assert all(dataset.records[first].split == dataset.records[twin].split for first, twin in twins)
        together = [dataset.records[i] for pair in twins for i in pair]
        assert all(bool(record.similar) == (record.split == "train") for record in together)


def test_features_are_asked_for_of_images_that_may_be_moved_or_folded(
    hues: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def alone(dataset: Dataset) -> np.ndarray:
        asked.append(len(dataset))
        return np.eye(len(dataset), dtype=np.float32)

    def split(data: Path) -> Dataset:
        config = make_config({"data": str(data)})
        return audit_and_split(open_source(config.data), config, Silent(), alone)[0]

    for number, name in enumerate(("train", "val", "test")):
        paint_hues(tmp_path / "given" / name, {"red": 4 + number, "blue": 4}, seed=number)
    given = split(tmp_path / "given")
    assert [len(given.part(name)) for name in ("train", "val", "test")] == [8, 9, 10]
    split(hues)
    assert asked == [8, 60]
    monkeypatch.setattr(measurement_module, "SPLIT_BY_FEATURES_AT_MOST", 59)
    split(hues)
    assert asked == [8, 60]


def test_the_split_sees_the_last_stage_of_the_reference_whatever_backbone_is_used(
    hues: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray] = []

    def join(dataset: Dataset, features: np.ndarray) -> Dataset:
        seen.append(features)
        return dataset

    monkeypatch.setattr(measurement_module, "with_similar", join)
    found = measured(hues, loader_of(), backbone="efficientnet_lite2")
    reference = numeric_trunk(DEFAULT_BACKBONE)
    rows = found.chosen.store.for_trunk(reference).collect(found.dataset.records, [CENTER])[:, 0]
    np.testing.assert_array_equal(seen[0], rows[:, reference.row_slices[reference.top.index]])
    measured(hues, loader_of())
    np.testing.assert_array_equal(seen[2], seen[0])
    assert [len(features) for features in seen] == [60, 39, 60, 39], (
        "and once more for the folds of the training images"
    )


def test_d_is_that_of_the_reference_whatever_backbone_is_tried(hues: Path) -> None:
    knowing, ignorant = numeric_trunk(DEFAULT_BACKBONE), numeric_trunk("efficientnet_lite2", knows_hues=False)
    loader = Loader(**{DEFAULT_BACKBONE: knowing, "efficientnet_lite2": ignorant})
    found = measured(hues, loader, backbone="efficientnet_lite2")
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
    found = measured(hues, loader_of((DEFAULT_BACKBONE,), **options), backbone=DEFAULT_BACKBONE)
    assert (found.plan.quadrant, found.plan.cut, found.chosen.cut.name) == (quadrant, cut, cut)


def test_settings_overrule_what_was_measured(hues: Path) -> None:
    found = measured(hues, loader_of(), size="large", similarity="different")
    assert found.plan.quadrant == "large + different"
    assert found.plan.num_images == 39


def test_a_mixture_decides_between_backbones_where_it_is_read(tmp_path: Path) -> None:
    hues = paint_hues(tmp_path / "noisy", {"red": 40, "green": 40, "blue": 40}, noise=70)
    different = measured(hues, loader_of(), similarity="different").chosen
    assert different.plan.mixture
    assert set(different.plan.mixture) <= {"early", "top", "top (mean)"}
    assert (different.accuracy, different.loss) == (different.mixture.accuracy, different.mixture.loss)
    similar = measured(hues, loader_of(), similarity="similar").chosen
    assert similar.plan.mixture == {}
    assert similar.loss == similar.scores[similar.cut.index].loss


def test_a_search_measures_single_stages(hues: Path) -> None:
    config = make_config({"data": str(hues), "similarity": "different"})
    found = measure(config, open_source(str(hues)), loader_of(), Silent(), mixture=False)  # type: ignore[arg-type]
    assert found.plan.mixture == {}
    assert found.chosen.accuracy == found.chosen.scores[found.chosen.cut.index].accuracy


def test_the_saving_of_a_mixture_is_paired_by_image_against_the_means_of_the_last_stage() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(20) % 2
    top, mixed = (rng.normal(size=(20, 2)).astype(np.float32) for _ in range(2))
    answers = validation([1] * 20)
    members = ((Tap("early", deviation=True), answers), (Tap("top"), replace(answers, logits=top)))
    mixture = Mixture(np.array([0.0, 0.7]), mixed, 0.4, np.ones(20, bool))
    score = measurement_module._mixture_score(members, mixture, labels, np.arange(20))
    saved = (logsumexp(top, 1) - top[np.arange(20), labels]) - (logsumexp(mixed, 1) - mixed[np.arange(20), labels])
    assert score.saved == pytest.approx(saved.mean(), rel=1e-5)
    assert score.standard_error == pytest.approx(saved.std(ddof=1) / np.sqrt(20), rel=1e-5)
    assert score.weights == {"top (mean)": 0.7}, "taps of weight 0 are left out"


def test_both_backbones_are_weighed_where_the_chosen_one_has_a_mixture(hues: Path) -> None:
    different = measured(hues, loader_of(), similarity="different")
    reasons = [reason for reason in different.plan.reasons if reason.topic == "both"]
    assert len(reasons) == 1
    assert different.chosen.spec.name in reasons[0].text
    alike = measured(hues, loader_of(), similarity="similar", rule_only=True)
    assert not [reason for reason in alike.plan.reasons if reason.topic == "both"]


def test_the_backbone_that_cross_validates_better_is_chosen(hues: Path) -> None:
    loader = Loader(
        efficientnet_lite0=numeric_trunk("efficientnet_lite0", blind_top=True),
        efficientnet_lite2=numeric_trunk("efficientnet_lite2"),
    )
    found = measured(hues, loader, similarity="similar")  # so that the cut is at the top, which the first is blind at
    assert [c.plan.cut for c in found.backbones] == ["top", "top"]
    assert found.chosen.spec.name == "efficientnet_lite2"


def test_two_measurements_of_the_same_data_are_the_same(hues: Path) -> None:
    first, second = (measured(hues, loader_of()) for _ in range(2))
    assert first.dataset == second.dataset
    assert [c.scores for c in first.backbones] == [c.scores for c in second.backbones]
    assert first.backbones[0].plan == second.backbones[0].plan


def test_data_that_cannot_be_used_are_refused_before_a_backbone_is_built(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    loader = loader_of()
    with pytest.raises(DataError):
        measured(tmp_path / "empty", loader)
    assert loader.started == []


# The choice of the backbone


def backbone(name: str, num_right: int, loss: float) -> Any:
    """A backbone that is right on the first so many images of 1,000 of class 0."""
    logits = np.zeros((1000, 2))
    logits[np.arange(1000) >= num_right, 1] = 1.0
    return SimpleNamespace(name=name, logits=logits, loss=loss)


@pytest.mark.parametrize(
    ("backbones", "chosen"),
    [
        ([("cheap", 850, 0.3), ("dear", 870, 0.3)], "dear"),  # two points better
        ([("cheap", 908, 0.3), ("dear", 910, 0.3)], "cheap"),  # within half a point, and that is certain
        ([("cheap", 950, 0.3), ("dear", 910, 0.1)], "dear"),  # its loss is a third
        ([("cheap", 950, 0.3), ("dear", 910, 0.3)], "cheap"),  # the better one is the cheaper one
        ([("cheap", 910, 0.32), ("dear", 910, 0.3)], "cheap"),  # a tie in accuracy, and nearly one in loss
        ([("cheap", 910, 0.34), ("dear", 910, 0.3)], "dear"),  # a tie in accuracy that the loss decides
        ([("cheap", 910, 0.0), ("dear", 910, 0.0)], "cheap"),
        ([("cheap", 800, 0.3), ("middle", 908, 0.3), ("dear", 910, 0.3)], "middle"),
        ([("only", 500, 1.0)], "only"),
    ],
)
def test_the_cheapest_that_is_as_good_as_the_dearest(backbones: list[Any], chosen: str) -> None:
    found: Any = choose_backbone([backbone(*facts) for facts in backbones], np.zeros(1000, int), np.arange(1000))
    assert found.name == chosen


def test_few_images_leave_the_choice_to_what_is_usual() -> None:
    images = np.arange(100)
    cheap, dear = backbone("cheap", 0, 0.3), backbone("dear", 0, 0.3)
    for each, wrong in ((cheap, images % 4 == 0), (dear, images * 7 % 100 < 27)):  # right on 75 and on 73 images
        each.logits = np.stack([np.zeros(100), np.where(wrong, 1.0, -1.0)], axis=1)
    few: Any = choose_backbone([cheap, dear], np.zeros(100, int), images)
    repeated: list[Any] = [_repeated(each, 500) for each in (cheap, dear)]
    many: Any = choose_backbone(repeated, np.zeros(50_000, int), np.arange(50_000))
    assert (few.name, many.name) == ("dear", "cheap")


def _repeated(each: Any, times: int) -> Any:
    return SimpleNamespace(name=each.name, loss=each.loss, logits=np.tile(each.logits, (times, 1)))


# Paired differences


def validation(correct: list[int]) -> CrossValidation:
    return CrossValidation(0.1, (0.5,), np.zeros((len(correct), 2), np.float32), np.array(correct, bool), 0.5)


def test_the_gain_over_the_top_is_paired_by_image() -> None:
    stage, top = validation([1, 1, 1, 0, 1]), validation([1, 0, 1, 1, 0])
    score, same = measurement_module._stage_scores(numeric_trunk("numeric"), [stage, top], np.arange(5))
    # Differences 0, 1, 0, -1, 1: mean 1/5; sum of squares about it 14/5, over 4 and then 5.
    assert score.stage == "early"
    assert score.accuracy == pytest.approx(0.8)
    assert score.gain_over_top == pytest.approx(0.2)
    assert score.standard_error == pytest.approx(np.sqrt(14 / 5 / 4 / 5))
    assert (same.gain_over_top, same.standard_error) == (0, 0)


def test_near_duplicates_count_as_one_image_in_the_gain_over_the_top() -> None:
    stage, top = validation([1, 1, 1, 1, 0, 1]), validation([1, 0, 0, 1, 1, 0])
    score = measurement_module._stage_scores(numeric_trunk("numeric"), [stage, top], np.array([0, 1, 1, 2, 3, 4]))[0]
    # Differences 0, 1, 1, 0, -1, 1 about their mean 1/3, by group: -1/3, 4/3, -1/3, -4/3, 2/3.
    assert score.standard_error == pytest.approx(np.sqrt(5 / 4 * 38 / 9) / 6)


# The loader of backbones


def test_the_loader_has_the_settings_of_the_fit(hues: Path, tmp_path: Path) -> None:
    settings = {"data": str(hues), "backbone": "efficientnet_lite2", "weights": str(tmp_path / "own.h5")}
    config = make_config({**settings, "engine": "keras", "precision": "f32"})
    lite0, lite2 = BACKBONES[DEFAULT_BACKBONE], BACKBONES["efficientnet_lite2"]
    built: dict[str, dict[str, Any]] = {}

    def load_trunk(spec: BackboneSpec, build: Any, **options: Any) -> str:
        built[spec.name] = options
        return spec.name

    with pytest.MonkeyPatch.context() as patch, backbone_loader(config, open_source(str(hues))) as loader:
        patch.setattr("transferapp.backbones.loader.load_trunk", load_trunk)
        for spec in (lite0, lite2):
            loader.trunk(spec)
    assert {name: options["weights"] for name, options in built.items()} == {
        DEFAULT_BACKBONE: None,
        "efficientnet_lite2": tmp_path / "own.h5",
    }
    options = built["efficientnet_lite2"]
    assert (options["engine"], options["precision"]) == ("keras", "f32")
    assert options["image_size"] == (128, 128), "images of 40 pixels are small"
    whole = make_config({**settings, "image_size": 96})
    assert backbone_loader(whole, open_source(str(hues))).input_size(lite0).image_size == (96, 96)


# The images that are measured


def dataset_of(counts: list[int]) -> Dataset:
    rng = np.random.default_rng(0)
    records = [
        Record("x", f"{label}-{i}", label, "train", sha256=rng.bytes(32).hex())
        for label, count in enumerate(counts)
        for i in range(count)
    ]
    return Dataset("here", tuple("abcdefgh"[: len(counts)]), tuple(records))


def test_a_set_of_usual_size_is_measured_whole() -> None:
    train = dataset_of([2000, 2000])
    assert measured_sample(train) is train


def test_of_a_large_set_every_class_gives_its_share() -> None:
    train = dataset_of([6000, 3000, 997, 3])
    sample = measured_sample(train)
    assert Counter(record.label for record in sample.records) == {0: 2400, 1: 1200, 2: 399, 3: 2}
    assert abs(len(sample) - MEASURED_AT_MOST) <= 2
    order = {record.name: position for position, record in enumerate(train.records)}
    positions = [order[record.name] for record in sample.records]
    assert positions == sorted(positions)
    assert np.std(np.diff(positions[:2400])) > 0.5, "chosen here and there"


def test_which_are_chosen_follows_from_their_content() -> None:
    train = dataset_of([5000, 1000])
    turned = train.with_records(train.records[::-1])
    chosen = {record.name for record in measured_sample(train).records}
    assert {record.name for record in measured_sample(turned).records} == chosen
    fewer = train.with_records(train.records[:100] + train.records[101:])
    assert len(chosen & {record.name for record in measured_sample(fewer).records}) > 3990


# Classes of unlike size


def test_weights_that_are_asked_for_reach_the_classifier_and_its_cross_validation(tmp_path: Path) -> None:
    data = paint_hues(tmp_path / "uneven", {"red": 40, "green": 10, "blue": 10}, noise=60)
    plain = measured(data, loader_of((DEFAULT_BACKBONE,)), backbone=DEFAULT_BACKBONE, class_weights="none")
    weighed = measured(data, loader_of((DEFAULT_BACKBONE,)), backbone=DEFAULT_BACKBONE, class_weights="balanced")
    assert plain.weighting.weights is None
    weights = weighed.weighting.weights
    assert weights is not None
    assert weights @ weighed.dataset.part("train").counts() == pytest.approx(len(weighed.dataset.part("train")))
    at = weighed.chosen.cut.index
    chosen = weighed.chosen
    assert weighed.validation(chosen, chosen.cut) is weighed.weighting.validation
    assert plain.validation(plain.chosen, plain.chosen.cut) is plain.chosen.validations[at]
    others = [stage for stage in chosen.trunk.stages if stage.index != at]
    assert all(weighed.validation(chosen, stage) is chosen.validations[stage.index] for stage in others)
    assert weighed.chosen in weighed.backbones
    assert not np.array_equal(weighed.weighting.validation.logits, plain.chosen.validations[at].logits)
    assert weighed.chosen.scores == plain.chosen.scores, "stages are compared without weights"
