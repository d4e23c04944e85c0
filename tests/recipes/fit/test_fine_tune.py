"""Fine-tuning: candidates, the choice among them, and that the exported network is the one that was measured."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax

from tests.helpers.fine_tuning import (
    Outcome,
    Setting,
    begun,
    draw_textures,
    fine_tuned,
    prepared,
    scores_on,
    trainer_of,
    with_budget,
)
from tests.helpers.networks import tiny_network
from transferapp.backbones.engine import convert
from transferapp.backbones.feature_store import center_pixels
from transferapp.backbones.stages import Tap
from transferapp.backbones.stages import cut as split_at
from transferapp.errors import ResourceError, TrainingError
from transferapp.policy.cuts import Proposal
from transferapp.recipes.fit import fine_tune as tuning
from transferapp.recipes.fit import report
from transferapp.recipes.fit.candidate import Candidate, head_function
from transferapp.recipes.fit.export import Exported, predict_test
from transferapp.recipes.fit.report import candidates_json
from transferapp.recipes.fit.resume import RunFolder
from transferapp.system.backend import POINTWISE
from transferapp.system.hardware import Hardware
from transferapp.system.progress import Silent
from transferapp.training import tail as tails
from transferapp.training.settings import OUT_OF_MEMORY

pytestmark = pytest.mark.usefixtures("module_cache")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_textures(tmp_path_factory.mktemp("textures"))


# ------------------------------------------------------------------------------------------------------------- what ships


@pytest.fixture(scope="module")
def insisted(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Two tails of a set that counts as large and different, the better of which ships whatever it is worth."""
    setting = prepared(root, tune="auto", rule_only=True, epochs=2, learning_rate="1e-2")
    return fine_tuned(setting, tmp_path_factory.mktemp("insisted") / "bundle")


def test_every_candidate_carries_its_figures(insisted: Outcome) -> None:
    names = ["linear classifier", "all but the first stages", "whole network"]
    assert [candidate.name for candidate in insisted.candidates] == names
    solved, *tuned = insisted.candidates
    assert solved.cut == insisted.setting.measurement.plan.cut
    assert solved.accuracy is not None
    for candidate, cut, reason in zip(tuned, ("join1", "input"), insisted.reasons[1:], strict=True):
        assert candidate.cut == cut
        assert candidate.backbone == "tiny.keras"
        assert (candidate.epochs, candidate.planned_epochs, len(candidate.history)) == (2, 2, 2)
        assert (candidate.learning_rate, candidate.backbone_learning_rate) == (1e-2, 1e-3)
        assert candidate.seconds > sum(epoch.seconds for epoch in candidate.history)
        assert candidate.findings
        assert candidate.notes[0].startswith("epoch ")
        assert candidate.accuracy is not None
        gain = f"{100 * (candidate.accuracy - solved.accuracy):+.1f} points against the linear classifier (epoch "
        assert reason.startswith(gain)
    assert insisted.winner in tuned
    assert insisted.winner.accuracy == max(candidate.accuracy or 0 for candidate in tuned)
    written = candidates_json(insisted.candidates, insisted.winner)
    assert [each["chosen"] for each in written] == [candidate is insisted.winner for candidate in insisted.candidates]
    assert [each["reason"] for each in written] == insisted.reasons


def test_the_network_of_every_candidate_does_what_was_measured(insisted: Outcome) -> None:
    for candidate in insisted.candidates[1:]:
        assert candidate.metrics is not None
        assert insisted.accuracy(candidate) == candidate.accuracy == candidate.metrics.accuracy
        # Tails are trained on activations in half precision.
        assert insisted.loss(candidate) == pytest.approx(candidate.loss, abs=0.01)


def test_training_leaves_the_backbone_unchanged(insisted: Outcome) -> None:
    for ours, pretrained in zip(insisted.setting.network.get_weights(), tiny_network().get_weights(), strict=True):
        np.testing.assert_array_equal(ours, pretrained)
    first, second = (candidate.classifier for candidate in insisted.candidates[1:])
    assert first is not None
    assert second is not None
    assert (first.taps, first.cut) == ((Tap("top"),), "join1")
    assert (second.taps, second.cut) == ((Tap("top"),), "input")
    assert len(second.tails[0]) > len(first.tails[0]), "the deeper cut trains fewer layers"


def test_the_figures_on_the_test_images_are_those_of_the_winner(insisted: Outcome) -> None:
    measurement, classifier, network = insisted.setting.measurement, insisted.winner.classifier, insisted.network()
    assert classifier is not None
    test = measurement.dataset.part("test")
    exported = Exported(network, convert(network), {}, "f32")
    probabilities = predict_test(classifier, measurement.chosen, exported, test, Silent())
    np.testing.assert_allclose(probabilities, scores_on(test, network), atol=1e-5)
    metrics = report.test_metrics(probabilities, measurement.dataset)
    assert metrics is not None
    assert metrics.num_images == len(test)


def test_where_nothing_does_better_the_solved_classifier_ships(root: Path, tmp_path: Path) -> None:
    setting = prepared(root, tune="last-two", learning_rate="1", epochs=2)  # far too high: it must lose
    pretrained = setting.network.get_weights()
    outcome = fine_tuned(setting, tmp_path / "bundle")
    solved, tuned = outcome.candidates
    assert outcome.winner is solved is setting.solved
    assert outcome.reasons[0] == "nothing that was trained is clearly better on the validation images"
    assert outcome.reasons[1].startswith("-")
    assert tuned.classifier is not None
    for ours, before in zip(setting.network.get_weights(), pretrained, strict=True):
        np.testing.assert_array_equal(ours, before)
    chosen, classifier = setting.measurement.chosen, solved.classifier
    assert classifier is not None
    assert classifier.frozen
    pixels = np.stack([center_pixels(record, chosen.trunk.image_size, "crop") for record in setting.val.records])
    features = np.asarray(split_at(setting.network, chosen.cut)[0](pixels.astype(np.float32))).mean(axis=(1, 2))
    expected = softmax(head_function(classifier.head)(features) / classifier.temperature, axis=1)
    np.testing.assert_allclose(outcome.scores(), expected, atol=1e-5)


@pytest.mark.slow
def test_snapshots_ship_together_where_the_validation_images_gain(tmp_path: Path) -> None:
    # Enough validation images for an ensemble to be able to tell; which seed it is that gains is left to the arithmetic.
    root = draw_textures(tmp_path / "many", per_class=50)
    for seed in (1, 2, 0, 3):
        setting = prepared(
            root,
            tune="last",
            rule_only=True,
            schedule="sgdr",
            cycles=3,
            epochs=3,
            learning_rate="1e-1",
            val_fraction=0.6,
            average=0.0,
            seed=seed,
        )
        outcome = fine_tuned(setting, tmp_path / f"bundle{seed}")
        winner, classifier = outcome.winner, outcome.winner.classifier
        assert classifier is not None
        if len(classifier.tails) > 1:
            break
    assert len(classifier.tails) == 3
    assert winner.notes[0] == "3 snapshots averaged, each adding its tail to the cost of a request"
    best_alone = max(epoch.val_accuracy for epoch in winner.history)
    assert winner.accuracy is not None
    assert winner.accuracy > best_alone
    alone = []
    for weights in classifier.tails:
        member = dataclasses.replace(winner, classifier=dataclasses.replace(classifier, tails=(weights,)))
        alone.append(outcome.scores(member))
    assert np.abs(alone[0] - alone[1]).max() > 1e-3
    np.testing.assert_allclose(outcome.scores(), np.mean(alone, axis=0), atol=1e-5)
    assert outcome.accuracy() == winner.accuracy


# --------------------------------------------------------------------------------------------------------- budget and rates


def test_what_there_is_no_time_for_is_left_out_with_the_reason(root: Path, tmp_path: Path) -> None:
    setting = prepared(root, budget="0.2s", epochs=8)
    outcome = fine_tuned(setting, tmp_path / "bundle")
    solved, left_out = outcome.candidates
    assert outcome.winner is solved
    assert outcome.reasons == ["nothing else could be trained in the time there was", "left out: there was no time"]
    assert left_out.no_time
    assert left_out.classifier is None
    assert (left_out.accuracy, left_out.epochs, left_out.history) == (None, 0, ())
    with pytest.raises(
        TrainingError, match=r"could not be trained: last stage \(left out: there was no time\).*--budget"
    ) as caught:
        fine_tuned(prepared(root, budget="0.01s", rule_only=True), tmp_path / "insisted")
    assert caught.value.exit_code == 6


NO_TIME = {"epochs": 1, "views": 1, "batch_size": 16}
"""The plan of a candidate that is not worth starting."""


def test_what_takes_longer_than_what_there_is_no_time_for_is_not_even_timed(root: Path, tmp_path: Path) -> None:
    setting = prepared(root, tune="auto", budget="1h", epochs=2)
    begun(tmp_path / "bundle").decide("join1/plan", NO_TIME)
    outcome = fine_tuned(setting, tmp_path / "bundle")
    _, tail, whole = outcome.reasons
    assert tail.startswith("left out: there was time for 1 epoch of ")
    assert whole == "left out: it takes longer than 'all but the first stages', for which there was too little time"
    assert not begun(tmp_path / "bundle").decided("input/plan")
    assert outcome.winner.name == "linear classifier"


@pytest.mark.parametrize(
    ("epoch_seconds", "head_only", "given"),
    [([90.0, 50.0, 60.0], False, 0.0), ([90.0, 40.0, 40.0], False, 140.0), ([90.0, 90.0, 90.0], True, 140.0)],
    ids=["too slow", "quick enough", "a head says nothing of tails"],
)
def test_what_takes_longer_than_what_was_trained_is_timed_only_if_there_may_be_time(
    monkeypatch: pytest.MonkeyPatch, epoch_seconds: list[float], head_only: bool, given: float
) -> None:
    monkeypatch.setattr(tuning, "time", SimpleNamespace(monotonic=lambda: 60.0))
    seconds = []

    def train(proposal: Proposal, left: float) -> Candidate:
        seconds.append(left)
        history: Any = tuple(SimpleNamespace(seconds=one) for one in epoch_seconds)
        return Candidate(proposal.name, "tiny.keras", proposal.cut, head_only=proposal.head_only, history=history)

    trainer: Any = SimpleNamespace(train=train, fewest_epochs=3)
    proposals = [Proposal("first", "block1", head_only=head_only), Proposal("second", "input")]
    tuning._train_all(trainer, proposals, 200.0)
    assert seconds == [140.0, given]


def with_a_cheaper_one(root: Path, **changes: Any) -> Setting:
    """Return `prepared` with a second backbone that costs less."""
    (root / "small.keras").write_bytes((root / "tiny.keras").read_bytes())
    setting, other = prepared(root, **changes), prepared(root, **{**changes, "backbone": str(root / "small.keras")})
    cheaper = other.measurement.chosen
    measurement = dataclasses.replace(setting.measurement, backbones=(cheaper, setting.measurement.chosen))
    return dataclasses.replace(setting, measurement=measurement)


def test_without_time_for_a_backbone_a_cheaper_one_is_tuned(root: Path, tmp_path: Path) -> None:
    setting = with_a_cheaper_one(root, budget="1h", rule_only=True, epochs=2, learning_rate="1e-2")
    begun(tmp_path / "bundle").decide("join2/plan", NO_TIME)
    outcome = fine_tuned(setting, tmp_path / "bundle")
    assert [(c.backbone, c.name, c.accuracy is None) for c in outcome.candidates] == [
        ("tiny.keras", "linear classifier", False),
        ("tiny.keras", "last stage", True),
        ("small.keras", "last stage", False),
    ]
    assert outcome.winner is outcome.candidates[2]
    written = candidates_json(outcome.candidates, outcome.winner)
    names = ["tiny.keras: linear classifier", "tiny.keras: last stage", "small.keras: last stage"]
    assert [each["name"] for each in written] == names, "where there are several backbones"
    assert outcome.accuracy() == outcome.winner.accuracy
    # A run that goes on finds what was trained, seconds and all.
    again = fine_tuned(setting, tmp_path / "bundle")
    assert again.winner.history == outcome.winner.history
    assert again.timeless == outcome.timeless


@pytest.mark.parametrize("why", ["loses", "no time", "fails", "budget is over"])
def test_where_the_cheaper_one_is_no_help_the_solved_classifier_ships(root: Path, tmp_path: Path, why: str) -> None:
    setting = with_a_cheaper_one(root, budget="0.001s" if why == "budget is over" else "1h", learning_rate="1e-7")
    pretrained = setting.network.get_weights()
    run = begun(tmp_path / "bundle")
    if why != "budget is over":
        run.decide("join2/plan", NO_TIME)
    if why == "no time":
        run.within("small.keras").decide("join2/plan", NO_TIME)
    with pytest.MonkeyPatch.context() as patch:
        if why == "fails":
            patch.setattr("transferapp.training.loop.train", out_of_memory)
        outcome = fine_tuned(setting, tmp_path / "bundle")
    assert outcome.winner is setting.solved
    for before, after in zip(pretrained, setting.network.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    left_out, tried = outcome.candidates[1], outcome.candidates[2:]
    assert (left_out.backbone, left_out.no_time) == ("tiny.keras", True)
    assert outcome.reasons[1].startswith("left out: there was ")
    if why == "budget is over":
        assert not tried
        # Nor is there more time for a run that goes on.
        assert fine_tuned(with_budget(setting, 3600.0), tmp_path / "bundle").timeless == outcome.timeless
    else:
        assert (tried[0].accuracy is not None) == (why == "loses")
        begins = {"loses": ("-", "+0.0"), "no time": "left out: ", "fails": "failed: "}[why]
        assert outcome.reasons[2].startswith(begins)


def out_of_memory(*_: Any, **__: Any) -> Any:
    raise ResourceError("There is not enough memory", hint="Close other programs", code=OUT_OF_MEMORY)


def test_a_failure_is_an_error_where_the_rule_is_to_be_obeyed(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(tmp_path / "bundle").decide("join2/plan", NO_TIME)
    monkeypatch.setattr("transferapp.training.loop.train", out_of_memory)
    with pytest.raises(ResourceError, match="not enough memory"):
        fine_tuned(with_a_cheaper_one(root, rule_only=True), tmp_path / "bundle")


def test_from_scratch_no_other_backbone_is_tried(root: Path, tmp_path: Path) -> None:
    begun(tmp_path / "bundle").decide("input/plan", NO_TIME)
    with pytest.raises(TrainingError, match=r"whole network \(left out: there was time for 1 epoch"):
        fine_tuned(with_a_cheaper_one(root, tune="all", scratch=True, epochs=2), tmp_path / "bundle")


@pytest.mark.parametrize("pointwise", POINTWISE)
def test_convolutions_are_computed_as_suits_the_hardware(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pointwise: str
) -> None:
    monkeypatch.setattr("transferapp.recipes.fit.trainer.detect", lambda precision: Hardware(pointwise=pointwise))
    built: list[Any] = []
    build_tail = tails.build_tail

    def spy(*arguments: Any, **options: Any) -> Any:
        built.append(build_tail(*arguments, **options))
        return built[-1]

    monkeypatch.setattr(tails, "build_tail", spy)
    outcome = fine_tuned(prepared(root, rule_only=True), tmp_path / "bundle")
    assert [tail.model.get_layer("body").pointwise for tail in built] == [pointwise]
    assert outcome.accuracy() == pytest.approx(outcome.winner.accuracy, abs=0.12)


def test_a_candidate_that_fails_is_no_want_of_time(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transferapp.recipes.fit.training_data.free_bytes", lambda path: 1000)
    outcome = fine_tuned(with_a_cheaper_one(root), tmp_path / "bundle")
    assert [candidate.name for candidate in outcome.candidates] == ["linear classifier", "last stage"]


@pytest.mark.slow
def test_a_budget_that_suffices_is_planned_and_the_plan_is_kept(root: Path, tmp_path: Path) -> None:
    setting = prepared(root, budget="1h", epochs=3)
    assert fine_tuned(setting, tmp_path / "bundle").candidates[1].planned_epochs == 3
    run = RunFolder(tmp_path / "bundle")
    run.begin({})
    assert run.decide("join2/plan", None) == {"epochs": 3, "views": 3, "batch_size": 16}
    assert 3600 < run.decide("join2/limit", None) < 1.25 * 3600, "a quarter more than is left"


def test_what_takes_longer_than_was_planned_is_stopped_and_says_so(root: Path, tmp_path: Path) -> None:
    begun(tmp_path / "bundle").decide("join2/limit", 1e-3)
    tuned = fine_tuned(prepared(root, budget="1h", epochs=3), tmp_path / "bundle").candidates[1]
    assert (tuned.planned_epochs, tuned.epochs) == (3, 1)
    assert any("stopped after epoch 1: the time was up" in note for note in tuned.notes)


def test_what_there_was_no_time_for_is_not_looked_at_again(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(tmp_path / "bundle").decide("join2/plan", {"epochs": 0, "views": 0, "batch_size": 16})
    monkeypatch.setattr(
        "transferapp.recipes.fit.training_data.free_bytes", lambda path: 1000
    )  # no room is no want of time
    left_out = fine_tuned(prepared(root, tune="last", budget="1h"), tmp_path / "bundle").candidates[1]
    assert left_out.notes == ("left out: there was no time",)


def test_what_caching_leaves_no_time_for_is_left_out(root: Path, tmp_path: Path) -> None:
    begun(tmp_path / "bundle").decide("join2/limit", -1.0)
    outcome = fine_tuned(prepared(root, budget="1h", epochs=3), tmp_path / "bundle")
    assert outcome.reasons == [
        "nothing else could be trained in the time there was",
        "left out: the work before its first epoch took all the time there was",
    ]
    assert outcome.candidates[1].seconds > 0


def test_the_trunk_is_timed_when_its_rows_are_not_there_yet(root: Path, tmp_path: Path) -> None:
    setting = prepared(root)
    first, again = (trainer_of(setting, tmp_path / "bundle").data.sample("join2") for _ in range(2))
    assert again.seconds_per_view == first.seconds_per_view > 0


@pytest.mark.slow
def test_a_rate_is_found_used_and_remembered(root: Path, tmp_path: Path) -> None:
    setting = prepared(root, learning_rate="find")
    outcome = fine_tuned(setting, tmp_path / "bundle")
    candidate = outcome.candidates[1]
    run = RunFolder(tmp_path / "bundle")
    run.begin({})
    rate, reason = run.decide("join2/learning-rate", None)
    assert candidate.learning_rate == rate <= 1e-2
    assert candidate.backbone_learning_rate == pytest.approx(rate / 10)
    assert candidate.history[0].learning_rate <= rate
    assert reason in candidate.notes
    assert "by a range test: the loss" in reason
    assert fine_tuned(setting, tmp_path / "bundle").timeless == outcome.timeless
    # What was decided is not looked for again.
    other = RunFolder(tmp_path / "other")
    other.begin({})
    other.decide("join2/learning-rate", [1e-5, "chosen by hand"])
    assert fine_tuned(setting, tmp_path / "other").candidates[1].learning_rate == 1e-5


# --------------------------------------------------------------------------------------------------------------- mishaps


@pytest.mark.slow
def test_a_candidate_that_diverges_leaves_the_others_alone(root: Path, tmp_path: Path) -> None:
    setting = prepared(root, tune="auto", rule_only=True, epochs=1)
    run = RunFolder(tmp_path / "bundle")
    run.begin({})
    # The first candidate's activations become NaN.
    activations = run.path / "activations-join1"
    fine_tuned(setting, tmp_path / "bundle")
    rows = activations / "rows.float16"
    rows.write_bytes(np.full(rows.stat().st_size // 2, np.nan, np.float16).tobytes())
    for path in (run.path / "join1").iterdir():
        path.unlink()
    outcome = fine_tuned(setting, tmp_path / "bundle")
    broken, whole = outcome.candidates[1:]
    assert broken.notes[0].startswith("failed: Training diverged in its first epoch")
    assert isinstance(broken.error, TrainingError)
    assert (broken.accuracy, broken.classifier, broken.no_time) == (None, None, False)
    assert outcome.winner.name == whole.name == "whole network"


@pytest.mark.slow
def test_where_all_diverge_that_is_an_error(root: Path, tmp_path: Path) -> None:
    setting = prepared(root, epochs=1)
    fine_tuned(setting, tmp_path / "bundle")
    run = RunFolder(tmp_path / "bundle")
    rows = run.path / "activations-join2" / "rows.float16"
    rows.write_bytes(np.full(rows.stat().st_size // 2, np.nan, np.float16).tobytes())
    for path in (run.path / "join2").iterdir():
        path.unlink()
    with pytest.raises(TrainingError, match="diverged in its first epoch") as caught:
        fine_tuned(setting, tmp_path / "bundle")
    assert caught.value.exit_code == 6


def test_a_candidate_too_large_for_the_memory_is_left_out(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import keras

    real = keras.Model.fit

    def fit(model: Any, *arguments: Any, **options: Any) -> Any:
        if model.input_shape[1:] == (32, 32, 3):  # whole networks only
            raise MemoryError
        return real(model, *arguments, **options)

    monkeypatch.setattr(keras.Model, "fit", fit)
    outcome = fine_tuned(prepared(root, tune="auto", rule_only=True, epochs=1), tmp_path / "bundle")
    assert outcome.winner.name == "all but the first stages"
    assert outcome.candidates[2].notes[0].startswith("failed: There is not enough memory to train with batches of 4")
    with pytest.raises(ResourceError) as caught:
        fine_tuned(prepared(root, tune="all", epochs=1), tmp_path / "alone")
    assert caught.value.exit_code == 5


# ------------------------------------------------------------------------------------------------------------------ resume


class Killed(BaseException):
    """As a signal would end it."""


@pytest.mark.slow
@pytest.mark.parametrize("epochs_until", [1, 3])
def test_an_interrupted_fine_tuning_ends_as_if_nothing_had_happened(
    root: Path, tmp_path: Path, insisted: Outcome, monkeypatch: pytest.MonkeyPatch, epochs_until: int
) -> None:
    from transferapp.training.checkpoint import CheckpointStore

    setting = prepared(root, tune="auto", rule_only=True, epochs=2, learning_rate="1e-2")
    save, saved = CheckpointStore.save, 0

    def dying(*arguments: Any) -> None:
        nonlocal saved
        save(*arguments)
        saved += 1
        if saved == epochs_until:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointStore, "save", dying)
        with pytest.raises(Killed):
            fine_tuned(setting, tmp_path / "bundle")
    resumed = fine_tuned(
        prepared(root, tune="auto", rule_only=True, epochs=2, learning_rate="1e-2"), tmp_path / "bundle"
    )
    assert resumed.timeless == insisted.timeless


# ----------------------------------------------------------------------------------------------------------- from scratch


@pytest.mark.slow
def test_from_scratch_nothing_of_what_was_pretrained_is_left(root: Path, tmp_path: Path) -> None:
    setting = prepared(root, tune="auto", scratch=True, epochs=1, learning_rate="1e-3")
    assert setting.config.tune == "all"
    pretrained = {variable.path: np.array(variable) for variable in setting.network.weights}
    outcome = fine_tuned(setting, tmp_path / "bundle")
    winner, classifier = outcome.winner, outcome.winner.classifier
    assert winner.name == "whole network", "whatever it is worth"
    assert winner.backbone_learning_rate == winner.learning_rate, "random weights need no sparing"
    assert classifier is not None
    stages = setting.measurement.chosen.trunk.stages
    twin = tails.plain_tail(setting.network, stages, None, classifier.head, "twin")
    trained = {
        variable.path: array
        for variable, array in zip(twin.weights, classifier.tails[0], strict=True)
        if "head" not in variable.path
    }
    kernels = [path for path in trained if path.endswith("kernel")]
    assert len(kernels) == 5
    for path in kernels:
        assert abs(np.corrcoef(trained[path].ravel(), pretrained[path].ravel())[0, 1]) < 0.5
    moving = [path for path in trained if "moving" in path]
    assert moving
    assert all(np.abs(trained[path]).max() > 0 for path in moving), "statistics were learned"
    for path, array in pretrained.items():
        np.testing.assert_array_equal(np.array(next(v for v in setting.network.weights if v.path == path)), array)
    assert outcome.accuracy() == winner.accuracy
    again = fine_tuned(prepared(root, tune="auto", scratch=True, epochs=1, learning_rate="1e-3"), tmp_path / "again")
    assert again.timeless == outcome.timeless, "the seed decides the random weights"


# -------------------------------------------------------------------------------------------------------- room on the disk


def test_with_little_room_on_the_disk_fewer_views_are_cached(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = prepared(root, tune="last", rule_only=True, epochs=3)
    stage = setting.measurement.chosen.trunk.stages[-2]
    images = len(setting.val) + 2.5 * len(
        setting.measurement.dataset.part("train")
    )  # room for two views each, not three
    room = int(np.prod(stage.shape) * 2 * images / 0.8)
    monkeypatch.setattr("transferapp.recipes.fit.training_data.free_bytes", lambda path: room)
    outcome = fine_tuned(setting, tmp_path / "bundle")
    assert outcome.winner.epochs == 3
    run = RunFolder(tmp_path / "bundle")
    run.begin({})
    assert run.decide(f"{stage.name}/plan", None)["views"] == 2


def test_without_room_on_the_disk_a_candidate_is_left_out_and_says_so(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = prepared(root, tune="last", epochs=2)
    monkeypatch.setattr("transferapp.recipes.fit.training_data.free_bytes", lambda path: 1000)
    outcome = fine_tuned(setting, tmp_path / "bundle")
    assert outcome.winner.name == "linear classifier"
    assert outcome.reasons[0] == "nothing else could be trained", "there was time enough"
    assert "not enough room on the disk" in outcome.reasons[1]
    assert "MB free" in outcome.reasons[1]
    assert not outcome.candidates[1].no_time


@pytest.mark.parametrize(
    ("settings", "said", "unsaid"),
    [
        ({"rule_only": True}, r"The proposal of the rule.*Leave out --rule-only", "--budget"),
        (
            {"scratch": True, "tune": "auto"},
            r"The network of --scratch.*Give it more time with --budget",
            "--rule-only",
        ),
    ],
    ids=["no room", "from scratch"],
)
def test_an_error_advises_what_would_help(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], said: str, unsaid: str
) -> None:
    monkeypatch.setattr(
        "transferapp.recipes.fit.training_data.free_bytes", lambda path: 1000
    )  # of no account to a whole network
    with pytest.raises(TrainingError, match=said) as caught:
        fine_tuned(
            prepared(root, **{"tune": "last", "budget": "0.01s" if "scratch" in settings else "1h", **settings}),
            tmp_path / "b",
        )
    assert unsaid not in str(caught.value)


def test_a_run_that_goes_on_has_the_room_that_it_had_at_first(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = prepared(root, tune="last", rule_only=True)
    outcome = fine_tuned(setting, tmp_path / "bundle")
    # Its own activations have taken the rest.
    monkeypatch.setattr("transferapp.recipes.fit.training_data.free_bytes", lambda path: 1000)
    assert fine_tuned(setting, tmp_path / "bundle").timeless == outcome.timeless


def test_a_head_goes_on_with_the_views_that_there_was_room_for_at_first(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = prepared(root)
    train, top = setting.measurement.dataset.part("train"), setting.measurement.chosen.trunk.top
    two_views = int(np.prod(top.shape) * 2 * (len(setting.val) + 2.5 * len(train)) / 0.8)
    seen = []
    for room in (two_views, 100 * two_views):
        monkeypatch.setattr("transferapp.recipes.fit.training_data.free_bytes", lambda path, room=room: room)
        batches = trainer_of(setting, tmp_path / "bundle").data.head(top.name, "max", 3).data.make_batches(len(train))
        batches.epoch = 2
        seen.append(batches[0][0])
    np.testing.assert_array_equal(*seen)


@pytest.mark.slow
def test_random_weights_are_given_all_their_epochs(root: Path, tmp_path: Path) -> None:
    setting = prepared(root, tune="auto", scratch=True, epochs=6, learning_rate="1e-9")  # nothing improves
    outcome = fine_tuned(setting, tmp_path / "bundle")
    assert outcome.winner.epochs == 6
