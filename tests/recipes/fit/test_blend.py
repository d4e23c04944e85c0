"""The linear classifier and a fine-tuned network averaged: its figures, its network, and where there is none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers.fine_tuning import Outcome, Setting, draw_textures, fine_tuned, prepared, scores_on
from transferapp.config import make_config
from transferapp.evaluation.metrics import measure
from transferapp.evaluation.report.wording import selected_on_validation
from transferapp.images.views import render_batch, ten_crops
from transferapp.recipes.evaluate import evaluate
from transferapp.recipes.fit import fit as fit_module
from transferapp.recipes.fit.blend import AVERAGE, blend
from transferapp.recipes.fit.candidate import Candidate
from transferapp.recipes.fit.export import build_network, export, score_served
from transferapp.recipes.fit.fit import fit
from transferapp.system.progress import Silent

pytestmark = pytest.mark.usefixtures("module_cache")


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    root = draw_textures(tmp_path_factory.mktemp("textures"))
    setting = prepared(root, tune="auto", rule_only=True, epochs=2, learning_rate="1e-2")
    return fine_tuned(setting, tmp_path_factory.mktemp("run") / "bundle")


def network_of(setting: Setting, candidate: Candidate) -> Any:
    backbone = setting.measurement.chosen
    assert candidate.classifier is not None
    return build_network(candidate.classifier, setting.network, backbone.trunk.stages, "textures")


def test_it_averages_the_best_network_and_the_linear_classifier(outcome: Outcome) -> None:
    solved, *tuned = outcome.candidates
    found = blend(solved, tuned, outcome.setting.val)
    assert found is not None
    average = found.average
    networks = [each for each in tuned if each.classifier and each.classifier.tails]
    best = max(networks, key=lambda each: (each.accuracy, -(each.loss or 0)))
    assert (average.name, average.cut, average.backbone, average.epochs) == (
        AVERAGE,
        best.cut,
        best.backbone,
        best.epochs,
    )
    assert solved.probabilities is not None
    assert best.probabilities is not None
    assert average.probabilities is not None
    val = outcome.setting.val
    np.testing.assert_allclose(average.probabilities, (solved.probabilities + best.probabilities) / 2)
    assert average.metrics == measure(average.probabilities, val.labels, val.class_names, groups=val.groups())
    assert average.correct is not None
    assert average.correct.mean() == average.accuracy
    # What ships has a linear classifier that was trained on the validation images too; the figures are of that without.
    assert average.classifier is not None
    assert average.classifier.linear is solved.classifier
    scores = [scores_on(val, network_of(outcome.setting, each)) for each in (average, solved, best)]
    np.testing.assert_allclose(scores[0], (scores[1] + scores[2]) / 2, atol=1e-5)
    unseen = replace(average, classifier=average.held_out)
    np.testing.assert_allclose(scores_on(val, network_of(outcome.setting, unseen)), average.probabilities, atol=1e-4)


def test_crops_are_tried_as_if_no_validation_image_had_been_trained_on(outcome: Outcome) -> None:
    solved, *tuned = outcome.candidates
    setting, backbone = outcome.setting, outcome.setting.measurement.chosen
    blended = blend(solved, tuned, setting.val)
    assert blended is not None
    average = blended.average
    assert average.classifier is not None
    exported = export(average.classifier, backbone, setting.network, "textures", setting.measurement.dataset, "f32")
    records = setting.val.records[:3]
    found = score_served(exported, backbone, average.classifier, average.held_out)(records, 10)
    network = network_of(setting, replace(average, classifier=average.held_out))
    for record, scores in zip(records, found, strict=True):
        image = Image.open(record.path).convert("RGB")
        crops = render_batch(image, ten_crops(image.size, backbone.trunk.image_size), backbone.trunk.image_size)
        np.testing.assert_allclose(scores, np.asarray(network(crops.astype(np.float32))), atol=1e-4)
    seen = score_served(exported, backbone, average.classifier, None)(records, 10)
    assert np.abs(seen - found).max() > 1e-3


def test_there_is_none_without_a_network_on_the_same_backbone(outcome: Outcome) -> None:
    solved, *tuned = outcome.candidates
    val = outcome.setting.val
    assert blend(solved, [], val) is None
    assert blend(solved, [replace(each, classifier=None) for each in tuned], val) is None
    assert blend(solved, [replace(each, backbone="another") for each in tuned], val) is None
    assert blend(replace(solved, probabilities=None), tuned, val) is None
    broken = [
        each if each.probabilities is None else replace(each, probabilities=each.probabilities * np.nan)
        for each in tuned
    ]
    assert blend(solved, broken, val) is None


def test_a_fit_that_ships_the_average_is_served_as_it_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ship_the_average(candidates: Any, groups: Any, *, insist: bool, blend: Any) -> Candidate:
        assert len(candidates) == 2
        average: Candidate = blend.average
        return average

    monkeypatch.setattr(fit_module, "choose", ship_the_average)
    root = draw_textures(tmp_path)
    settings = {"data": str(root / "images"), "out": str(tmp_path / "bundle"), "backbone": str(root / "tiny.keras")}
    tuned = {"size": "large", "tune": "last", "budget": "none", "epochs": 2, "batch_size": 16, "val_fraction": 0.3}
    found = fit(make_config({**settings, **tuned, "precision": "f32"}), Silent())
    manifest = found.manifest
    assert manifest["head"]["kind"] == "averaged"
    chosen = next(each for each in manifest["candidates"] if each["chosen"])
    assert (chosen["name"], chosen["averaged"]) == (AVERAGE, True)
    assert manifest["metrics"]["validation"]["accuracy"] == chosen["accuracy"]
    assert selected_on_validation(manifest)
    assert manifest["prediction_sets"] is not None
    # Were crops tried with what has seen the validation images, the figure would not be theirs.
    assert manifest["test_views"]["num_images"] == sum(manifest["data"]["counts"]["val"].values())
    assert manifest["test_views"]["tried"][0]["accuracy"] == pytest.approx(chosen["accuracy"], abs=0.05)
    report = (found.path / "report.html").read_text()
    assert "The average of the linear classifier and a fine-tuned network ships" in report
    measured = evaluate(found.path, str(root / "images"), views=1).metrics
    assert measured.accuracy == pytest.approx(manifest["metrics"]["test"]["accuracy"], abs=1e-9)
