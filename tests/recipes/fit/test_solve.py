"""What ships is solved on all there is to learn from, calibrated out of fold, and measured on what it has not seen."""

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
from transferapp.config import FitConfig, make_config
from transferapp.evaluation.metrics import fit_temperature
from transferapp.evaluation.metrics import measure as measure_scores
from transferapp.policy.input_size import InputSize, choose_input_size
from transferapp.recipes.fit.manifest import candidate_json, history_table, split_table
from transferapp.recipes.fit.measure import Measurement, measure
from transferapp.recipes.fit.random_views import choose_views
from transferapp.recipes.fit.solve import Solved, solve
from transferapp.system.progress import Silent
from transferapp.training.probe import fit_probe


class Shop:
    """Stands where the workshop does, with one trunk that is already built."""

    peeked: tuple[tuple[int, int], ...] = ()

    def input_size(self, spec: Any) -> InputSize:
        return choose_input_size(self.peeked, spec.image_size)

    def order(self, spec: Any) -> None:
        pass

    def trunk(self, spec: Any) -> Any:
        return numeric_trunk(spec.name)


@pytest.fixture(scope="module")
def hues(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images whose hues overlap, so that no classifier of them is perfect."""
    return paint_hues(tmp_path_factory.mktemp("hues"), {"red": 40, "green": 40, "blue": 40}, noise=70)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFERAPP_CACHE", str(tmp_path / "cache"))


def worked(hues: Path, **settings: Any) -> tuple[Measurement, Any, Solved, FitConfig]:
    config = make_config({"data": str(hues), "backbone": DEFAULT_BACKBONE, **settings})
    measurement = measure(config, Shop(), Silent())  # type: ignore[arg-type]
    chosen, train = measurement.chosen, measurement.dataset.part("train")
    center = chosen.features(chosen.store.collect(train.records, [CENTER])[:, 0])
    choice = choose_views(chosen, train, center, config.train_views, config.seed, Silent())
    return measurement, choice, solve(measurement, choice, config, Silent()), config


@pytest.mark.parametrize("views", [0, 3])
def test_what_ships_is_solved_on_training_and_validation_images_with_all_their_views(hues: Path, views: int) -> None:
    measurement, choice, solved, _ = worked(hues, train_views=str(views))
    chosen = measurement.chosen
    part = measurement.dataset.part("train", "val")
    names = [CENTER, *(random_view_name(i, 0) for i in range(views))]
    features = chosen.features(chosen.store.collect(part.records, names))
    labels = np.repeat(part.labels, len(names))
    expected = fit_probe(features.reshape(len(labels), -1), labels, 3, choice.validation.l2)
    np.testing.assert_array_equal(solved.probe.kernel, expected.kernel)
    np.testing.assert_array_equal(solved.probe.bias, expected.bias)
    assert solved.probe.l2 == choice.validation.l2


def test_the_temperature_comes_from_images_out_of_fold(hues: Path) -> None:
    measurement, choice, solved, _ = worked(hues, train_views="0")
    assert solved.temperature == fit_temperature(choice.validation.logits, measurement.dataset.part("train").labels)


def test_the_test_figures_are_of_what_ships_and_the_validation_figures_are_not(hues: Path) -> None:
    measurement, choice, solved, _ = worked(hues, train_views="0")
    chosen, dataset = measurement.chosen, measurement.dataset

    def center(*splits: Any) -> np.ndarray:
        return chosen.features(chosen.store.collect(dataset.part(*splits).records, [CENTER])[:, 0])

    expected = softmax(solved.probe.logits(center("test")) / solved.temperature, axis=1)
    np.testing.assert_allclose(solved.test_probabilities, expected, rtol=1e-6)
    assert solved.test == measure_scores(solved.test_probabilities, dataset.part("test").labels, dataset.class_names)
    alone = fit_probe(center("train"), dataset.part("train").labels, 3, choice.validation.l2)
    on_validation = softmax(alone.logits(center("val")) / solved.temperature, axis=1)
    assert solved.validation is not None
    assert solved.validation.loss == pytest.approx(
        measure_scores(on_validation, dataset.part("val").labels, dataset.class_names).loss, rel=1e-6
    )
    assert 0.5 < solved.test.accuracy < 1


@pytest.mark.parametrize(("val", "test"), [(0.0, 0.0), (0.3, 0.0), (0.0, 0.3)])
def test_without_images_to_measure_on_there_are_no_figures(hues: Path, val: float, test: float) -> None:
    _, _, solved, _ = worked(hues, train_views="0", val_fraction=val, test_fraction=test)
    assert (solved.validation is None) == (val == 0)
    assert (solved.test is None) == (test == 0)
    assert solved.test_probabilities.shape == (0 if test == 0 else 36, 3)


def test_a_fit_of_the_same_data_is_the_same_to_the_bit(hues: Path) -> None:
    first, second = (worked(hues, train_views="2")[2] for _ in range(2))
    assert np.array_equal(first.probe.kernel, second.probe.kernel)
    assert first.temperature == second.temperature
    assert first.test == second.test


def test_the_tables_of_a_bundle_say_what_was_searched_and_what_each_image_was_for(hues: Path) -> None:
    measurement, _, _, _ = worked(hues, train_views="0")
    history = list(csv.DictReader(io.StringIO(history_table(measurement.chosen, None))))
    for stage, validation in zip(measurement.chosen.trunk.stages, measurement.chosen.validations, strict=True):
        lines = [line for line in history if line["stage"] == stage.name]
        assert [float(line["cross_validated_loss"]) for line in lines] == pytest.approx(validation.losses, abs=1e-6)
        (best,) = (line for line in lines if line["best"] == "1")
        assert float(best["l2"]) == pytest.approx(validation.l2, rel=1e-5)
    splits = list(csv.DictReader(io.StringIO(split_table(measurement.dataset))))
    assert [(line["sha256"], line["split"], line["class_name"], line["name"]) for line in splits] == [
        (r.sha256, r.split, measurement.dataset.class_names[r.label], r.name) for r in measurement.dataset.records
    ]


def test_a_candidate_in_the_bundle_lists_every_stage_that_was_probed(hues: Path) -> None:
    measurement, _, _, _ = worked(hues, train_views="0")
    document = candidate_json(measurement.chosen, True)
    assert [(stage["stage"], stage["shape"]) for stage in document["stages"]] == [
        ("early", [4, 4, 3]),
        ("top", [2, 2, 6]),
    ]
    assert document["accuracy"] == measurement.chosen.accuracy
    assert document["backbone"] == DEFAULT_BACKBONE
    assert document["chosen"] is True
