"""The trained head as a contender: when it is proposed, how it is trained, that what ships is it, and what tails make of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transferapp.recipes.fit.manifest import contender_json

from tests.helpers.contest import Ring, draw_textures, ring
from transferapp.backbones.engine import convert
from transferapp.backbones.feature_store import center_pixels
from transferapp.policy.class_weights import WeightsFinding
from transferapp.policy.plan import HEAD_EPOCHS
from transferapp.policy.reasons import Reason
from transferapp.recipes.fit.class_weighting import Weighting
from transferapp.recipes.fit.export import build_network, measured_again
from transferapp.recipes.fit.fine_tune import BakeOff, bake_off
from transferapp.recipes.fit.resume import RunFolder
from transferapp.system.progress import Silent
from transferapp.training.head_spec import HeadSpec


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_textures(tmp_path_factory.mktemp("contest"))


@pytest.fixture(autouse=True, scope="module")
def _few_epochs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRANSFERAPP_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr("transferapp.recipes.fit.bench.HEAD_EPOCHS", 6)
        yield


def small(root: Path, **changes: Any) -> Ring:
    """A small set, of which the rule tunes nothing."""
    return ring(root, **{"size": "small", "tune": "auto", "learning_rate": "1e-2", **changes})


def bake(around: Ring, target: Path) -> BakeOff:
    run = RunFolder(target)
    run.begin({})
    return bake_off(around.measurement, around.solved, around.config, around.shop, run, Silent())


def scores_of(around: Ring, outcome: BakeOff) -> tuple[Any, np.ndarray]:
    """(the network that ships, its probabilities on the validation images)."""
    network = build_network(around.backbone, around.measurement.chosen, around.solved, outcome, "textures")
    size = around.measurement.chosen.trunk.image_size
    pixels = np.stack([center_pixels(record, size) for record in around.val.records])
    return network, np.asarray(network(pixels.astype(np.float32), training=False))


def timeless(outcome: BakeOff) -> list[Any]:
    return [
        dataclasses.replace(c, seconds=0.0, history=tuple(dataclasses.replace(e, seconds=0.0) for e in c.history))
        for c in outcome.contenders
    ]


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
def insisted(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Ring, BakeOff]:
    around = small(root, hidden="16,8", activation="elu", head_batch_norm=True, dropout=0.1, rule_only=True)
    return around, bake(around, tmp_path_factory.mktemp("insisted") / "bundle")


def test_it_is_listed_with_curves_and_figures(insisted: tuple[Ring, BakeOff]) -> None:
    around, outcome = insisted
    probe, head = outcome.contenders
    assert (probe.name, head.name) == ("solved classifier", "trained head")
    assert head.chosen
    assert head.cut == around.measurement.plan.cut == outcome.stage
    assert head.epochs == len(head.history) <= head.planned_epochs == 6
    assert (head.learning_rate, head.backbone_learning_rate) == (1e-2, 0.0)
    assert head.findings
    assert "points against the solved classifier" in head.reason
    assert contender_json(head)["findings"]


def test_what_is_exported_is_what_was_measured(insisted: tuple[Ring, BakeOff], tmp_path: Path) -> None:
    around, outcome = insisted
    assert outcome.head is not None
    assert outcome.head.spec.hidden == (16, 8)
    network, scores = scores_of(around, outcome)
    assert float((scores.argmax(axis=1) == around.val.labels).mean()) == outcome.winner.accuracy
    loss = float(-np.log(scores[np.arange(len(scores)), around.val.labels]).mean())
    assert loss == pytest.approx(outcome.winner.loss, abs=1e-3)
    network.save(tmp_path / "model.keras")
    again = measured_again(around.solved, outcome, convert(network), "f32", around.measurement, Silent())
    assert again.test is not None
    assert again.temperature == outcome.temperature
    assert again.probe is around.solved.probe


def test_the_backbone_is_left_as_it_was(root: Path, tmp_path: Path) -> None:
    around = small(root, hidden="4", rule_only=True)
    pristine = around.backbone.get_weights()
    bake(around, tmp_path / "bundle")
    for ours, theirs in zip(around.backbone.get_weights(), pristine, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_where_it_does_no_better_the_solved_classifier_ships(root: Path, tmp_path: Path) -> None:
    around = small(root, hidden="4", learning_rate="1e-9")
    outcome = bake(around, tmp_path / "bundle")
    assert outcome.winner.name == "solved classifier"
    assert outcome.head is None
    assert outcome.contenders[1].accuracy is not None


@pytest.mark.parametrize("pooling", ["max", "fractional_max"])
def test_other_poolings_read_feature_maps(root: Path, tmp_path: Path, pooling: str) -> None:
    around = small(root, pooling=pooling, mixup=0.2, rule_only=True)
    outcome = bake(around, tmp_path / "bundle")
    _, scores = scores_of(around, outcome)
    assert float((scores.argmax(axis=1) == around.val.labels).mean()) == outcome.winner.accuracy
    loss = float(-np.log(scores[np.arange(len(scores)), around.val.labels]).mean())
    assert loss == pytest.approx(outcome.winner.loss, abs=0.01)  # maps are cached in half precision


def test_a_linear_head_has_the_strength_that_was_cross_validated(root: Path, tmp_path: Path) -> None:
    around = small(root, dropout=0.1, rule_only=True)
    chosen = around.measurement.chosen
    head = bake(around, tmp_path / "bundle").head
    assert head is not None
    assert head.spec == HeadSpec(dropout=0.1, l2=chosen.validations[chosen.cut.index].l2)
    assert len(chosen.validations[chosen.cut.index].losses) > 1
    pinned = small(root, dropout=0.1, l2="0.03", rule_only=True).measurement.chosen
    assert pinned.validations[pinned.cut.index].l2 == 0.03
    assert pinned.validations[pinned.cut.index].path == (0.03,)


@pytest.mark.slow
def test_classes_count_by_their_weights_where_labels_are_mixed_too(root: Path, tmp_path: Path) -> None:
    around = small(root, hidden="8", mixup=0.2, label_smoothing=0.1, rule_only=True)
    finding, validation = (
        WeightsFinding("balanced", Reason("classes", "asked for")),
        around.measurement.weighting.validation,
    )
    weighting = Weighting(np.array([2.6, 0.2, 0.2]), finding, validation, 1.0)
    weighed = dataclasses.replace(around, measurement=dataclasses.replace(around.measurement, weighting=weighting))
    share = {}
    for name, one in (("plain", around), ("weighed", weighed)):
        _, scores = scores_of(one, bake(one, tmp_path / name))
        share[name] = float((scores.argmax(axis=1) == 0).mean())
    assert share["weighed"] > share["plain"] + 0.2


def test_without_time_it_is_left_out(root: Path, tmp_path: Path) -> None:
    outcome = bake(small(root, hidden="4", budget="0s"), tmp_path / "bundle")
    assert outcome.winner.name == "solved classifier"
    assert outcome.contenders[1].reason.startswith("left out: there was no time")


@pytest.mark.slow
def test_a_head_whose_signal_vanishes_says_so_on_the_card(root: Path, tmp_path: Path) -> None:
    outcome = bake(small(root, hidden=",".join(["8"] * 12), activation="sigmoid"), tmp_path / "bundle")
    (finding, *_) = outcome.contenders[1].findings
    assert finding.code == "vanishing_signal"
    assert set(finding.evidence) == {"layer", "std", "last_std"}


class Killed(BaseException):
    """As a signal would end it."""


@pytest.mark.slow
def test_it_goes_on_after_a_kill_as_if_nothing_had_happened(
    root: Path, tmp_path: Path, insisted: tuple[Ring, BakeOff], monkeypatch: pytest.MonkeyPatch
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
            bake(small(root, **settings), tmp_path / "bundle")
    resumed = bake(small(root, **settings), tmp_path / "bundle")
    assert timeless(resumed) == timeless(insisted[1])


# --------------------------------------------------------------------------------------------------------------- with tails


@pytest.mark.slow
def test_tails_go_on_from_a_head_that_was_trained(root: Path, tmp_path: Path) -> None:
    around = ring(
        root, tune="last", hidden="8", stochastic_depth=0.3, cutmix=1.0, label_smoothing=0.1, dropout=0.1, epochs=2
    )
    assert [(p.name, p.cut) for p in around.measurement.plan.proposals] == [
        ("trained head", "top"),
        ("last stage", "join2"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transferapp.recipes.fit.fine_tune.Bench", remembering := _Remembering())
        outcome = bake(around, tmp_path / "bundle")
    assert [contender.name for contender in outcome.contenders[1:]] == ["trained head", "last stage"]
    head, tail = remembering.entries
    assert head.trained is not None
    assert tail.head is not None
    assert tail.head.spec == HeadSpec(hidden=(8,), dropout=0.1)
    for ours, theirs in zip(tail.head.weights, head.trained.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    # What the tail is given for a start does as well as the head did.
    first = tail.contender.history[0]
    assert first.accuracy > 0
    assert "under_fitting" not in [finding.code for finding in tail.contender.findings]
    assert "its head is linear" not in tail.contender.reason


@pytest.mark.slow
def test_a_tail_that_began_with_a_linear_head_for_want_of_another_says_so(root: Path, tmp_path: Path) -> None:
    around = ring(root, tune="last", hidden="8", epochs=1, budget="1h")
    run = RunFolder(tmp_path / "bundle")
    run.begin({})
    run.decide("head-top/plan", {"epochs": 0, "views": 0, "batch_size": 64})
    _, head, tail = bake(around, tmp_path / "bundle").contenders
    assert head.reason.startswith("left out: there was no time")
    assert tail.reason.endswith("; its head is linear, for no other was trained")


class _Remembering:
    """The bench, with what it has made."""

    def __init__(self) -> None:
        self.entries: list[Any] = []

    def __call__(self, *arguments: Any) -> Any:
        from transferapp.recipes.fit.bench import Bench

        bench = Bench(*arguments)
        attempt = bench.attempt

        def remembered(*given: Any) -> Any:
            self.entries.append(attempt(*given))
            return self.entries[-1]

        bench.attempt = remembered  # type: ignore[method-assign]
        return bench


def test_tails_with_a_linear_head_go_on_from_the_solved_one(root: Path, tmp_path: Path) -> None:
    around = ring(root, tune="last", dropout=0.3, rule_only=True, epochs=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transferapp.recipes.fit.fine_tune.Bench", remembering := _Remembering())
        outcome = bake(around, tmp_path / "bundle")
    start = remembering.entries[1].head
    assert start.spec == HeadSpec(dropout=0.3)
    assert [w.shape for w in start.weights] == [(20, 3), (3,)]
    assert outcome.winner in outcome.contenders[1:]
    _, scores = scores_of(around, outcome)
    assert float((scores.argmax(axis=1) == around.val.labels).mean()) == outcome.winner.accuracy


@pytest.mark.parametrize(
    ("losses", "mixup", "code"),
    [
        ([1.0, 0.4, 1.2, 0.3, 1.1, 0.4, 1.0], 0.0, "rate_too_high"),
        ([1.0, 0.4, 1.2, 0.3, 1.1, 0.4, 1.0], 0.2, None),  # as the share that each batch draws
        ([1.0, 0.4, float("nan")], 0.2, "rate_too_high"),
    ],
)
def test_a_loss_that_bounces_by_mixing_is_no_fault_of_the_rate(losses: list[float], mixup: float, code: str) -> None:
    from transferapp.recipes.fit.bench import _findings

    from transferapp.training.settings import Epoch, TrainingSettings

    history = [Epoch(i, 1e-3, loss, 0.9, 0.3, 0.9, None, None, 1.0) for i, loss in enumerate(losses, start=1)]
    codes = [finding.code for finding in _findings(history, TrainingSettings(mixup=mixup))]
    assert ("rate_too_high" in codes) == (code is not None)
