"""The linear classifier: all images to solve it, out-of-fold predictions to calibrate it, held-out images to measure it."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax

from tests.helpers.numeric_trunk import numeric_trunk, paint_hues
from transferapp.backbones.feature_store import CENTER, random_view_name
from transferapp.backbones.registry import DEFAULT_BACKBONE
from transferapp.backbones.stages import Tap
from transferapp.config import make_config
from transferapp.data.sources import open_source
from transferapp.evaluation.metrics import fit_temperature
from transferapp.evaluation.metrics import measure as measure_scores
from transferapp.policy.size import InputSize, choose_input_size
from transferapp.recipes.fit import report
from transferapp.recipes.fit.candidate import Candidate, Classifier, head_function
from transferapp.recipes.fit.export import predict_test
from transferapp.recipes.fit.measure import Measurement, measure
from transferapp.recipes.fit.report import Fitted, backbone_json, history_table, split_table
from transferapp.recipes.fit.solve import ViewChoice, choose_views, solve
from transferapp.system.progress import Silent
from transferapp.training.mixture import mix
from transferapp.training.probe import cross_validation_folds, fit_probe


class Loader:
    """A loader whose trunks are already built."""

    def input_size(self, spec: Any) -> InputSize:
        return choose_input_size((), spec.image_size)

    def start(self, spec: Any) -> None:
        pass

    def trunk(self, spec: Any) -> Any:
        return numeric_trunk(spec.name)


@pytest.fixture(scope="module")
def hues(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images whose hues overlap, so that no classifier of them is perfect."""
    return paint_hues(tmp_path_factory.mktemp("hues"), {"red": 40, "green": 40, "blue": 40}, noise=70)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same hues in classes of different size."""
    return paint_hues(tmp_path_factory.mktemp("uneven"), {"red": 60, "green": 25, "blue": 25}, noise=70)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFERAPP_CACHE", str(tmp_path / "cache"))


def solved_on(hues: Path, **settings: Any) -> tuple[Measurement, ViewChoice, Candidate, Classifier]:
    """Return everything up to the linear classifier, and its weights."""
    config = make_config({"data": str(hues), "backbone": DEFAULT_BACKBONE, **settings})
    measurement = measure(config, open_source(str(hues)), Loader(), Silent())  # type: ignore[arg-type]
    choice = choose_views(measurement, config, Silent())
    candidate = solve(measurement, choice, config, Silent())
    assert candidate.classifier is not None
    return measurement, choice, candidate, candidate.classifier


def predicted(measurement: Measurement, classifier: Classifier) -> np.ndarray:
    """Return the probabilities on the test images; a frozen classifier needs no exported network for them."""
    unused: Any = None
    return predict_test(classifier, measurement.chosen, unused, measurement.dataset.part("test"), Silent())


@pytest.mark.parametrize("views", [0, 3])
def test_what_ships_is_solved_on_training_and_validation_images_with_all_their_views(hues: Path, views: int) -> None:
    measurement, choice, candidate, classifier = solved_on(hues, train_views=str(views))
    chosen = measurement.chosen
    part = measurement.dataset.part("train", "val")
    names = [CENTER, *(random_view_name(i, 0) for i in range(views))]
    features = chosen.features(chosen.store.collect(part.records, names))
    labels = np.repeat(part.labels, len(names))
    expected = fit_probe(features.reshape(len(labels), -1), labels, 3, choice.validation.l2)
    kernel, bias = classifier.head.weights
    np.testing.assert_array_equal(kernel, expected.kernel)
    np.testing.assert_array_equal(bias, expected.bias)
    np.testing.assert_array_equal(classifier.head.mean, expected.mean)
    assert classifier.head.spec.l2 == choice.validation.l2
    assert candidate.steps == expected.iterations
    assert (classifier.taps, classifier.cut, classifier.tails) == ((Tap(chosen.cut.name),), chosen.cut.name, ())


@pytest.mark.parametrize("l2", ["auto", "0.03"])
def test_a_strength_that_was_chosen_on_a_sample_falls_as_images_are_added(
    hues: Path, l2: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transferapp.recipes.fit.measure.MEASURED_AT_MOST", 18)
    measurement, choice, _, classifier = solved_on(hues, l2=l2, similarity="similar")
    train = measurement.dataset.part("train")
    assert len(choice.validation.correct) == 18 < len(train)
    expected = choice.validation.l2 * np.sqrt(18 / len(train)) if l2 == "auto" else 0.03
    assert classifier.head.spec.l2 == pytest.approx(expected)


@pytest.mark.parametrize("class_weights", ["none", "balanced"])
def test_a_mixture_is_the_weighted_sum_of_classifiers_on_its_taps(uneven: Path, class_weights: str) -> None:
    measurement, _, candidate, classifier = solved_on(uneven, similarity="different", class_weights=class_weights)
    chosen, part = measurement.chosen, measurement.dataset.part("train", "val")
    assert (measurement.weighting.weights is None) == (class_weights == "none")
    used = [
        (tap, validation.l2, weight)
        for (tap, validation), weight in zip(chosen.members, chosen.mixture.weights, strict=True)
        if weight
    ]
    assert list(measurement.plan.mixture.values()) == [weight for _, _, weight in used]
    assert classifier.taps == tuple(tap for tap, _, _ in used)
    assert candidate.cut == "mixture"
    rows = chosen.store.collect(part.records, [CENTER])[:, 0]
    test = measurement.dataset.part("test")
    test_rows = chosen.store.collect(test.records, [CENTER])[:, 0]
    logits = np.zeros((len(test), 3))
    for tap, l2, weight in used:
        probe = fit_probe(
            chosen.trunk.features(rows, [tap]),
            part.labels,
            3,
            l2,
            sample_weight=measurement.weighting.of(part.labels),
        )
        logits += weight * probe.logits(chosen.trunk.features(test_rows, [tap]))
    expected = softmax(logits / classifier.temperature, axis=1)
    np.testing.assert_allclose(predicted(measurement, classifier), expected, rtol=1e-4, atol=1e-6)


def test_class_weights_reach_every_classifier_of_a_mixture(uneven: Path) -> None:
    (measurement, _, _, plain), (_, _, _, balanced) = (
        solved_on(uneven, similarity="different", class_weights=each) for each in ("none", "balanced")
    )
    trunk = measurement.chosen.trunk

    def kernels(classifier: Classifier) -> dict[Tap, np.ndarray]:
        widths = [trunk.features(np.empty((1, trunk.row_size)), [tap]).shape[1] for tap in classifier.taps]
        parts = np.split(classifier.head.weights[0], np.cumsum(widths)[:-1])
        return dict(zip(classifier.taps, parts, strict=True))

    ours, theirs = kernels(plain), kernels(balanced)
    shared = ours.keys() & theirs.keys()
    assert shared
    assert not any(np.allclose(ours[tap], theirs[tap]) for tap in shared)


def test_the_figures_of_a_mixture_are_out_of_fold_or_of_validation_images(hues: Path) -> None:
    measurement, _, candidate, classifier = solved_on(hues, similarity="different")
    chosen, dataset = measurement.chosen, measurement.dataset
    train, val = dataset.part("train"), dataset.part("val")
    assert classifier.temperature == fit_temperature(chosen.mixture.logits, train.labels)
    folds = cross_validation_folds(train.labels, 0, train.groups())
    again = mix([validation.logits for _, validation in chosen.members], train.labels, folds)
    assert (chosen.accuracy, chosen.loss) == (again.accuracy, again.loss)
    assert candidate.held_out is not None
    assert candidate.correct is not None
    rows = chosen.store.collect(val.records, [CENTER])[:, 0]
    logits = head_function(candidate.held_out.head)(chosen.trunk.features(rows, classifier.taps))
    np.testing.assert_array_equal(candidate.correct, logits.argmax(axis=1) == val.labels)
    assert candidate.accuracy == candidate.correct.mean()
    assert not np.array_equal(candidate.held_out.head.weights[0], classifier.head.weights[0])


def test_no_random_views_are_tried_for_a_mixture_or_a_small_set(hues: Path) -> None:
    _, mixed, _, _ = solved_on(hues, similarity="different")
    assert (mixed.views, mixed.tried) == (0, ())
    assert "mixture" in mixed.reason
    _, small, _, _ = solved_on(hues)
    assert (small.views, small.tried) == (0, ())
    assert f"{len(small.validation.correct)} images" in small.reason
    _, asked, _, _ = solved_on(hues, similarity="different", train_views="2")
    assert asked.views == 2


def test_the_temperature_comes_from_images_out_of_fold(hues: Path) -> None:
    measurement, choice, _, classifier = solved_on(hues, train_views="0")
    assert classifier.temperature == fit_temperature(choice.validation.logits, measurement.dataset.part("train").labels)


def test_the_test_figures_are_of_what_ships_and_the_validation_figures_are_not(hues: Path) -> None:
    measurement, choice, candidate, classifier = solved_on(hues, train_views="0")
    chosen, dataset = measurement.chosen, measurement.dataset

    def center(*splits: Any) -> np.ndarray:
        return chosen.features(chosen.store.collect(dataset.part(*splits).records, [CENTER])[:, 0])

    probabilities = predicted(measurement, classifier)
    expected = softmax(head_function(classifier.head)(center("test")) / classifier.temperature, axis=1)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-6)
    metrics = report.test_metrics(probabilities, dataset)
    assert metrics == measure_scores(probabilities, dataset.part("test").labels, dataset.class_names)
    assert 0.5 < metrics.accuracy < 1
    alone = fit_probe(center("train"), dataset.part("train").labels, 3, choice.validation.l2)
    on_validation = softmax(alone.logits(center("val")) / classifier.temperature, axis=1)
    assert candidate.metrics is not None
    assert candidate.metrics.loss == pytest.approx(
        measure_scores(on_validation, dataset.part("val").labels, dataset.class_names).loss, rel=1e-6
    )
    assert candidate.held_out is not None
    np.testing.assert_array_equal(candidate.held_out.head.weights[0], alone.kernel)


@pytest.mark.parametrize(("val", "test"), [(0.0, 0.0), (0.3, 0.0), (0.0, 0.3)])
def test_without_images_to_measure_on_there_are_no_figures(hues: Path, val: float, test: float) -> None:
    measurement, _, candidate, classifier = solved_on(hues, train_views="0", val_fraction=val, test_fraction=test)
    assert (candidate.metrics is None) == (candidate.held_out is None) == (val == 0)
    probabilities = predicted(measurement, classifier)
    assert (report.test_metrics(probabilities, measurement.dataset) is None) == (test == 0)
    assert probabilities.shape == (0 if test == 0 else 36, 3)


def test_a_fit_of_the_same_data_is_the_same_to_the_bit(hues: Path) -> None:
    (measurement, _, first, ours), (_, _, second, theirs) = (solved_on(hues, train_views="2") for _ in range(2))
    for one, other in zip(ours.head.weights, theirs.head.weights, strict=True):
        np.testing.assert_array_equal(one, other)
    assert ours.temperature == theirs.temperature
    assert first.metrics == second.metrics
    np.testing.assert_array_equal(predicted(measurement, ours), predicted(measurement, theirs))


def test_the_tables_of_a_bundle_say_what_was_searched_and_what_each_image_was_for(hues: Path) -> None:
    measurement, choice, candidate, _ = solved_on(hues, train_views="0")
    fitted = Fitted(measurement, choice, (candidate,), candidate, measurement.plan)
    history = list(csv.DictReader(io.StringIO(history_table(fitted))))
    for stage, validation in zip(measurement.chosen.trunk.stages, measurement.chosen.validations, strict=True):
        lines = [line for line in history if line["stage"] == stage.name]
        assert [float(line["cross_validated_loss"]) for line in lines] == pytest.approx(validation.losses, abs=1e-6)
        (best,) = (line for line in lines if line["best"] == "1")
        assert float(best["l2"]) == pytest.approx(validation.l2, rel=1e-5)
    dataset = measurement.dataset
    names, test = dataset.class_names, dataset.part("test")
    probabilities = np.eye(len(names))[(test.labels + 1) % len(names)]  # every prediction is wrong
    splits = list(csv.DictReader(io.StringIO(split_table(dataset, probabilities))))
    predictions = [names[(r.label + 1) % len(names)] if r.split == "test" else "" for r in dataset.records]
    assert len(test)
    assert [tuple(line[key] for key in ("sha256", "split", "class_name", "name", "prediction")) for line in splits] == [
        (r.sha256, r.split, names[r.label], r.name, prediction)
        for r, prediction in zip(dataset.records, predictions, strict=True)
    ]


def test_a_backbone_in_the_bundle_lists_every_stage_that_was_probed(hues: Path) -> None:
    measurement, _, _, _ = solved_on(hues, train_views="0")
    document = backbone_json(measurement.chosen, True)
    assert [(stage["stage"], stage["shape"]) for stage in document["stages"]] == [
        ("early", [4, 4, 3]),
        ("top", [2, 2, 6]),
    ]
    assert document["accuracy"] == measurement.chosen.accuracy
    assert document["backbone"] == DEFAULT_BACKBONE
    assert document["chosen"] is True
