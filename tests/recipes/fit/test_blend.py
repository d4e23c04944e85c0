"""The linear classifier and a fine-tuned network averaged: its figures, its network, and where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers.fine_tuning import Outcome, Setting, draw_textures, fine_tuned, prepared, scores_on
from transferapp.evaluation.metrics import measure
from transferapp.images.views import render_batch, ten_crops
from transferapp.recipes.fit.blend import BLEND, blended
from transferapp.recipes.fit.candidate import Candidate
from transferapp.recipes.fit.export import build_network, export, score_served


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRANSFERAPP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


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
    blend = blended(solved, tuned, outcome.setting.val)
    assert blend is not None
    networks = [each for each in tuned if each.classifier and each.classifier.tails]
    best = max(networks, key=lambda each: (each.accuracy, -(each.loss or 0)))
    assert (blend.name, blend.cut, blend.backbone, blend.epochs) == (BLEND, best.cut, best.backbone, best.epochs)
    assert solved.probabilities is not None
    assert best.probabilities is not None
    assert blend.probabilities is not None
    val = outcome.setting.val
    np.testing.assert_allclose(blend.probabilities, (solved.probabilities + best.probabilities) / 2)
    assert blend.metrics == measure(blend.probabilities, val.labels, val.class_names, groups=val.groups())
    assert blend.correct is not None
    assert blend.correct.mean() == blend.accuracy
    # What ships has a linear classifier that was trained on the validation images too; the figures are of that without.
    assert blend.classifier is not None
    assert blend.classifier.beside is solved.classifier
    scores = [scores_on(val, network_of(outcome.setting, each)) for each in (blend, solved, best)]
    np.testing.assert_allclose(scores[0], (scores[1] + scores[2]) / 2, atol=1e-5)
    unseen = replace(blend, classifier=blend.held_out)
    np.testing.assert_allclose(scores_on(val, network_of(outcome.setting, unseen)), blend.probabilities, atol=1e-4)


def test_crops_are_tried_as_if_no_validation_image_had_been_trained_on(outcome: Outcome) -> None:
    solved, *tuned = outcome.candidates
    setting, backbone = outcome.setting, outcome.setting.measurement.chosen
    blend = blended(solved, tuned, setting.val)
    assert blend is not None
    assert blend.classifier is not None
    exported = export(blend.classifier, backbone, setting.network, "textures", setting.measurement.dataset, "f32")
    records = setting.val.records[:3]
    found = score_served(exported, backbone, blend.classifier, blend.held_out)(records, 10)
    network = network_of(setting, replace(blend, classifier=blend.held_out))
    for record, scores in zip(records, found, strict=True):
        image = Image.open(record.path).convert("RGB")
        crops = render_batch(image, ten_crops(image.size, backbone.trunk.image_size), backbone.trunk.image_size)
        np.testing.assert_allclose(scores, np.asarray(network(crops.astype(np.float32))), atol=1e-4)
    seen = score_served(exported, backbone, blend.classifier, None)(records, 10)
    assert np.abs(seen - found).max() > 1e-3


def test_there_is_none_without_a_network_on_the_same_backbone(outcome: Outcome) -> None:
    solved, *tuned = outcome.candidates
    val = outcome.setting.val
    assert blended(solved, [], val) is None
    assert blended(solved, [replace(each, classifier=None) for each in tuned], val) is None
    assert blended(solved, [replace(each, backbone="another") for each in tuned], val) is None
    assert blended(replace(solved, probabilities=None), tuned, val) is None
    broken = [
        each if each.probabilities is None else replace(each, probabilities=each.probabilities * np.nan)
        for each in tuned
    ]
    assert blended(solved, broken, val) is None
