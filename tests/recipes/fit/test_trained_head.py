"""The trained head as a candidate: its proposal, its training, its export, and the tails that start from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.fine_tuning import Outcome, Setting, begun, draw_textures, fine_tuned, prepared, scores_on
from transferapp.backbones.engine import convert
from transferapp.backbones.stages import Tap
from transferapp.policy.class_weights import WeightsFinding
from transferapp.policy.plan import HEAD_EPOCHS
from transferapp.policy.reasons import Reason
from transferapp.recipes.fit.export import Exported, predict_test
from transferapp.recipes.fit.measure import Weighting
from transferapp.recipes.fit.report import candidates_json
from transferapp.system.progress import Silent
from transferapp.training import tail as tails
from transferapp.training.head_spec import Head, HeadSpec


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_textures(tmp_path_factory.mktemp("textures"))


@pytest.fixture(autouse=True, scope="module")
def _few_epochs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRANSFERAPP_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr("transferapp.recipes.fit.trainer.HEAD_EPOCHS", 6)
        yield


def small(root: Path, **changes: Any) -> Setting:
    """A small set, of which the rule tunes nothing."""
    return prepared(
        root, **{"size": "small", "tune": "auto", "similarity": "similar", "learning_rate": "1e-2", **changes}
    )


# ----------------------------------------------------------------------------------------------------------- when it is


@pytest.mark.parametrize(
    "settings",
    [
        {"hidden": "8"},
        {"pooling": "max"},
        {"dropout": 0.2},
        {"dropconnect": 0.2},
        {"l1": 0.1},
        {"label_smoothing": 0.1},
    ],
)
def test_what_cannot_be_solved_for_is_trained(root: Path, settings: dict[str, Any]) -> None:
    plan = small(root, **settings).measurement.plan
    (proposal,) = plan.proposals
    assert (proposal.name, proposal.cut, proposal.head_only) == ("trained head", plan.cut, True)
    assert plan.tails == ()
    assert (plan.tuned, plan.epochs, plan.backbone_learning_rate) == ("none", HEAD_EPOCHS, 0.0)
    assert plan.head_learning_rate == 1e-2
    assert any(reason.topic == "head" for reason in plan.reasons)
    assert "then a trained head (" in plan.method


@pytest.mark.parametrize("settings", [{}, {"l2": "0.01"}, {"activation": "tanh"}, {"stochastic_depth": 0.5}])
def test_what_can_be_solved_for_is_solved(root: Path, settings: dict[str, Any]) -> None:
    assert small(root, **settings).measurement.plan.proposals == ()


# --------------------------------------------------------------------------------------------------------- what ships


@pytest.fixture(scope="module")
def insisted(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    setting = small(root, hidden="16,8", activation="elu", head_batch_norm=True, dropout=0.1, rule_only=True)
    return fine_tuned(setting, tmp_path_factory.mktemp("insisted") / "bundle")


def test_it_carries_curves_and_figures(insisted: Outcome) -> None:
    solved, head = insisted.candidates
    assert (solved.name, head.name) == ("linear classifier", "trained head")
    assert insisted.winner is head
    assert head.classifier is not None
    assert head.cut == insisted.setting.measurement.plan.cut
    assert head.classifier.taps == (Tap(head.cut),)
    assert head.epochs == len(head.history) <= head.planned_epochs == 6
    assert (head.learning_rate, head.backbone_learning_rate) == (1e-2, 0.0)
    assert head.findings
    assert "points against the linear classifier" in insisted.reasons[1]
    written = candidates_json(insisted.candidates, insisted.winner)
    assert written[1]["findings"]
    assert [each["head_only"] for each in written] == [False, True], "of those that were trained"


def test_the_exported_network_does_what_was_measured(insisted: Outcome, tmp_path: Path) -> None:
    winner, classifier = insisted.winner, insisted.winner.classifier
    assert classifier is not None
    assert classifier.frozen
    assert classifier.head.spec.hidden == (16, 8)
    assert insisted.accuracy() == winner.accuracy
    assert insisted.loss() == pytest.approx(winner.loss, abs=1e-3)
    network = insisted.network()
    network.save(tmp_path / "model.keras")
    measurement = insisted.setting.measurement
    test = measurement.dataset.part("test")
    exported = Exported(network, convert(network), {}, "f32")
    probabilities = predict_test(classifier, measurement.chosen, exported, test, Silent())
    np.testing.assert_allclose(probabilities, scores_on(test, network), atol=1e-5)


def test_the_backbone_is_left_unchanged(root: Path, tmp_path: Path) -> None:
    setting = small(root, hidden="4", rule_only=True)
    pretrained = setting.network.get_weights()
    fine_tuned(setting, tmp_path / "bundle")
    for ours, before in zip(setting.network.get_weights(), pretrained, strict=True):
        np.testing.assert_array_equal(ours, before)


def test_where_it_does_no_better_the_solved_classifier_ships(root: Path, tmp_path: Path) -> None:
    outcome = fine_tuned(small(root, hidden="4", learning_rate="1e-9"), tmp_path / "bundle")
    assert outcome.winner is outcome.setting.solved
    assert outcome.candidates[1].accuracy is not None


@pytest.mark.parametrize("pooling", ["max", "fractional_max"])
def test_other_poolings_read_feature_maps(root: Path, tmp_path: Path, pooling: str) -> None:
    outcome = fine_tuned(small(root, pooling=pooling, mixup=0.2, rule_only=True), tmp_path / "bundle")
    assert outcome.accuracy() == outcome.winner.accuracy
    assert outcome.loss() == pytest.approx(outcome.winner.loss, abs=0.01)  # maps are cached in half precision


def test_a_linear_head_has_the_strength_that_was_cross_validated(root: Path, tmp_path: Path) -> None:
    setting = small(root, dropout=0.1, rule_only=True)
    chosen = setting.measurement.chosen
    classifier = fine_tuned(setting, tmp_path / "bundle").winner.classifier
    assert classifier is not None
    assert classifier.head.spec == HeadSpec(dropout=0.1, l2=chosen.validations[chosen.cut.index].l2)
    assert len(chosen.validations[chosen.cut.index].losses) > 1
    pinned = small(root, dropout=0.1, l2="0.03", rule_only=True).measurement.chosen
    assert pinned.validations[pinned.cut.index].l2 == 0.03
    assert pinned.validations[pinned.cut.index].path == (0.03,)


@pytest.mark.slow
def test_classes_count_by_their_weights_where_labels_are_mixed_too(root: Path, tmp_path: Path) -> None:
    setting = small(root, hidden="16", mixup=0.2, label_smoothing=0.1, rule_only=True)
    finding, validation = (
        WeightsFinding("balanced", Reason("classes", "asked for")),
        setting.measurement.weighting.validation,
    )
    weighting = Weighting(np.array([2.6, 0.2, 0.2]), finding, validation, 1.0)
    weighed = dataclasses.replace(setting, measurement=dataclasses.replace(setting.measurement, weighting=weighting))
    share = {}
    for name, one in (("plain", setting), ("weighed", weighed)):
        share[name] = float((fine_tuned(one, tmp_path / name).scores().argmax(axis=1) == 0).mean())
    assert share["weighed"] > share["plain"] + 0.2


def test_without_time_it_is_left_out(root: Path, tmp_path: Path) -> None:
    outcome = fine_tuned(small(root, hidden="4", budget="0.01s"), tmp_path / "bundle")
    assert outcome.winner is outcome.setting.solved
    assert outcome.reasons[1].startswith("left out: there was no time")


@pytest.mark.slow
def test_a_head_whose_signal_vanishes_says_so_on_the_card(root: Path, tmp_path: Path) -> None:
    outcome = fine_tuned(small(root, hidden=",".join(["8"] * 12), activation="sigmoid"), tmp_path / "bundle")
    (finding, *_) = outcome.candidates[1].findings
    assert finding.code == "vanishing_signal"
    assert set(finding.evidence) == {"layer", "std", "last_std"}


class Killed(BaseException):
    """As a signal would end it."""


@pytest.mark.slow
def test_it_goes_on_after_a_kill_as_if_nothing_had_happened(
    root: Path, tmp_path: Path, insisted: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transferapp.training.checkpoint import CheckpointStore

    settings = {"hidden": "16,8", "activation": "elu", "head_batch_norm": True, "dropout": 0.1, "rule_only": True}
    save, saved = CheckpointStore.save, 0

    def dying(*arguments: Any) -> None:
        nonlocal saved
        save(*arguments)
        saved += 1
        if saved == 3:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointStore, "save", dying)
        with pytest.raises(Killed):
            fine_tuned(small(root, **settings), tmp_path / "bundle")
    resumed = fine_tuned(small(root, **settings), tmp_path / "bundle")
    assert resumed.timeless == insisted.timeless


# --------------------------------------------------------------------------------------------------------------- with tails


@pytest.mark.slow
def test_tails_start_from_a_head_that_was_trained(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = prepared(
        root, tune="last", hidden="8", stochastic_depth=0.3, cutmix=1.0, label_smoothing=0.1, dropout=0.1, epochs=2
    )
    assert [(p.name, p.cut) for p in setting.measurement.plan.proposals] == [
        ("trained head", "top"),
        ("last stage", "join2"),
    ]
    begins = heads_that_tails_start_from(monkeypatch)
    outcome = fine_tuned(setting, tmp_path / "bundle")
    _, head, tail = outcome.candidates
    assert (head.name, tail.name) == ("trained head", "last stage")
    (start,) = begins
    assert start.spec == HeadSpec(hidden=(8,), dropout=0.1)
    assert head.classifier is not None
    for ours, theirs in zip(start.weights, head.classifier.head.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert tail.history[0].accuracy > 0
    assert "under_fitting" not in [finding.code for finding in tail.findings]
    assert "its head is linear" not in outcome.reasons[2]


@pytest.mark.slow
def test_a_tail_that_began_with_a_linear_head_for_want_of_another_says_so(root: Path, tmp_path: Path) -> None:
    setting = prepared(root, tune="last", hidden="8", epochs=1, budget="1h")
    begun(tmp_path / "bundle").decide("head-top/plan", {"epochs": 0, "views": 0, "batch_size": 64})
    outcome = fine_tuned(setting, tmp_path / "bundle")
    assert outcome.reasons[1].startswith("left out: there was no time")
    assert outcome.reasons[2].endswith("; its head is linear, because no other was trained")


def heads_that_tails_start_from(monkeypatch: pytest.MonkeyPatch) -> list[Head]:
    """Return a list that will hold the head that each tail is built with."""
    heads: list[Head] = []
    build_tail = tails.build_tail

    def spy(network: Any, stages: Any, cut: Any, head: Head, **options: Any) -> Any:
        heads.append(head)
        return build_tail(network, stages, cut, head, **options)

    monkeypatch.setattr(tails, "build_tail", spy)
    return heads


def test_tails_with_a_linear_head_start_from_the_solved_one(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = prepared(root, tune="last", dropout=0.3, rule_only=True, epochs=2)
    begins = heads_that_tails_start_from(monkeypatch)
    outcome = fine_tuned(setting, tmp_path / "bundle")
    (start,) = begins
    assert start.spec == HeadSpec(dropout=0.3)
    assert [w.shape for w in start.weights] == [(20, 3), (3,)]
    assert outcome.winner in outcome.candidates[1:]
    assert outcome.accuracy() == outcome.winner.accuracy


@pytest.mark.parametrize(
    ("losses", "mixup", "code"),
    [
        ([1.0, 0.4, 1.2, 0.3, 1.1, 0.4, 1.0], 0.0, "rate_too_high"),
        ([1.0, 0.4, 1.2, 0.3, 1.1, 0.4, 1.0], 0.2, None),  # as the share that each batch draws
        ([1.0, 0.4, float("nan")], 0.2, "rate_too_high"),
    ],
)
def test_a_loss_that_bounces_by_mixing_is_no_fault_of_the_rate(losses: list[float], mixup: float, code: str) -> None:
    from transferapp.recipes.fit.trainer import _findings
    from transferapp.training.settings import Epoch, TrainingSettings

    history = [Epoch(i, 1e-3, loss, 0.9, 0.3, 0.9, None, None, 1.0) for i, loss in enumerate(losses, start=1)]
    codes = [finding.code for finding in _findings(history, TrainingSettings(mixup=mixup))]
    assert ("rate_too_high" in codes) == (code is not None)
