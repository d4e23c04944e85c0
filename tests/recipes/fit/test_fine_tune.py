"""The bake-off: what is compared, what ships, and that what ships is what was measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax

from tests.helpers.contest import Ring, draw_textures, ring
from transferapp.backbones.engine import convert
from transferapp.backbones.feature_store import center_pixels
from transferapp.backbones.stages import cut as split_at
from transferapp.errors import ResourceError, TrainingError
from transferapp.policy.cuts import Proposal
from transferapp.recipes.fit import fine_tune as tuning
from transferapp.recipes.fit.bench import Bench, Contender, Entry
from transferapp.recipes.fit.export import build_network, measured_again
from transferapp.recipes.fit.fine_tune import BakeOff, bake_off
from transferapp.recipes.fit.resume import RunFolder
from transferapp.system.backend import POINTWISE
from transferapp.system.hardware import Hardware
from transferapp.system.progress import Silent
from transferapp.training.settings import OUT_OF_MEMORY


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_textures(tmp_path_factory.mktemp("contest"))


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRANSFERAPP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def begun(target: Path) -> RunFolder:
    run = RunFolder(target)
    run.begin({})
    return run


def bake(around: Ring, target: Path) -> BakeOff:
    return bake_off(around.measurement, around.solved, around.config, around.shop, begun(target), Silent())


def bench_of(around: Ring, target: Path) -> Bench:
    return Bench(around.measurement, around.solved, around.config, around.shop, begun(target), Silent())


def network_of(around: Ring, outcome: BakeOff) -> Any:
    return build_network(around.backbone, around.measurement.chosen, around.solved, outcome, "textures")


def val_scores(around: Ring, network: Any) -> np.ndarray:
    size = around.measurement.chosen.trunk.image_size
    pixels = np.stack([center_pixels(record, size) for record in around.val.records])
    return np.asarray(network(pixels.astype(np.float32), training=False))


def accuracy(around: Ring, network: Any) -> float:
    return float((val_scores(around, network).argmax(axis=1) == around.val.labels).mean())


def timeless(outcome: BakeOff) -> list[Any]:
    """The contenders, but for the time they took."""
    return [
        dataclasses.replace(c, seconds=0.0, history=tuple(dataclasses.replace(e, seconds=0.0) for e in c.history))
        for c in outcome.contenders
    ]


# ------------------------------------------------------------------------------------------------------------- what ships


@pytest.fixture(scope="module")
def insisted(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Ring, BakeOff]:
    """Two tails of a set that counts as large and different, the better of which ships whatever it is worth."""
    around = ring(root, tune="auto", rule_only=True, epochs=2, learning_rate="1e-2")
    return around, bake(around, tmp_path_factory.mktemp("insisted") / "bundle")


def test_every_contender_is_listed_with_what_came_of_it(insisted: tuple[Ring, BakeOff]) -> None:
    around, outcome = insisted
    names = ["solved classifier", "all but the first stages", "whole network"]
    assert [contender.name for contender in outcome.contenders] == names
    probe, *tuned = outcome.contenders
    assert around.solved.validation is not None
    assert probe.accuracy == around.solved.validation.accuracy
    assert probe.cut == around.measurement.plan.cut
    assert not probe.chosen
    for contender, cut in zip(tuned, ("join1", "input"), strict=True):
        assert contender.cut == cut
        assert (contender.epochs, contender.planned_epochs, len(contender.history)) == (2, 2, 2)
        assert (contender.learning_rate, contender.backbone_learning_rate) == (1e-2, 1e-3)
        assert contender.seconds > sum(epoch.seconds for epoch in contender.history)
        assert contender.reason.startswith(("+", "-"))
        assert "points against the solved classifier" in contender.reason
        assert contender.findings
    assert sum(contender.chosen for contender in outcome.contenders) == 1
    assert outcome.winner in tuned
    assert outcome.winner.accuracy == max(contender.accuracy or 0 for contender in tuned)
    assert "(epoch " in outcome.winner.reason


def test_what_is_exported_is_the_winner_that_was_measured(insisted: tuple[Ring, BakeOff]) -> None:
    around, outcome = insisted
    assert outcome.validation is not None
    network = network_of(around, outcome)
    assert accuracy(around, network) == outcome.winner.accuracy == outcome.validation.accuracy
    scores = val_scores(around, network)
    loss = float(-np.log(scores[np.arange(len(scores)), around.val.labels]).mean())
    # Tails are trained on activations in half precision.
    assert loss == pytest.approx(outcome.winner.loss, abs=0.01) == outcome.validation.loss


def test_the_figures_on_the_test_images_are_those_of_the_winner(insisted: tuple[Ring, BakeOff]) -> None:
    around, outcome = insisted
    network = network_of(around, outcome)
    again = measured_again(around.solved, outcome, convert(network), "f32", around.measurement, Silent())
    test = around.measurement.dataset.part("test")
    size = around.measurement.chosen.trunk.image_size
    pixels = np.stack([center_pixels(record, size) for record in test.records]).astype(np.float32)
    np.testing.assert_allclose(again.test_probabilities, np.asarray(network(pixels)), atol=1e-5)
    assert again.test is not None
    assert again.test.num_images == len(test)
    assert again.validation == outcome.validation
    assert again.temperature == outcome.temperature


def test_where_nothing_does_better_the_solved_classifier_ships_on_an_untouched_network(
    root: Path, tmp_path: Path
) -> None:
    around = ring(root, tune="last-two", learning_rate="1", epochs=2)  # far too high: it must lose
    pristine = around.backbone.get_weights()
    outcome = bake(around, tmp_path / "bundle")
    probe, tuned = outcome.contenders
    assert outcome.winner is probe
    assert probe.chosen
    assert probe.reason == "nothing that was tuned does better on the validation images"
    assert tuned.reason.startswith("-")
    assert (outcome.head, outcome.members, outcome.temperature) == (None, (), None)
    for ours, theirs in zip(around.backbone.get_weights(), pristine, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    network = network_of(around, outcome)
    chosen = around.measurement.chosen
    pixels = np.stack([center_pixels(record, chosen.trunk.image_size) for record in around.val.records])
    features = np.asarray(split_at(around.backbone, chosen.cut)[0](pixels.astype(np.float32))).mean(axis=(1, 2))
    expected = softmax(around.solved.probe.logits(features) / around.solved.temperature, axis=1)
    np.testing.assert_allclose(val_scores(around, network), expected, atol=1e-5)


@pytest.mark.slow
def test_snapshots_ship_together_where_the_validation_images_gain(tmp_path: Path) -> None:
    # Enough validation images for an ensemble to be able to tell; which seed it is that gains is left to the arithmetic.
    root = draw_textures(tmp_path / "many", per_class=50)
    for seed in (1, 2, 0, 3):
        around = ring(
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
        outcome = bake(around, tmp_path / f"bundle{seed}")
        if outcome.members:
            break
    assert len(outcome.members) == 3
    assert "3 snapshots averaged, each adding its tail to the cost of a request" in outcome.winner.reason
    best_alone = max(epoch.val_accuracy for epoch in outcome.winner.history)
    assert outcome.winner.accuracy is not None
    assert outcome.winner.accuracy > best_alone
    together = network_of(around, outcome)
    alone = []
    for weights in outcome.members:
        lone = dataclasses.replace(outcome, members=(weights, weights))
        alone.append(val_scores(around, network_of(around, lone)))
    assert np.abs(alone[0] - alone[1]).max() > 1e-3
    np.testing.assert_allclose(val_scores(around, together), np.mean(alone, axis=0), atol=1e-5)
    assert accuracy(around, together) == outcome.winner.accuracy


# --------------------------------------------------------------------------------------------------------- budget and rates


def test_what_there_is_no_time_for_is_left_out_with_the_reason(root: Path, tmp_path: Path) -> None:
    around = ring(root, budget="0.2s", epochs=8)
    outcome = bake(around, tmp_path / "bundle")
    probe, left_out = outcome.contenders
    assert outcome.winner is probe
    assert probe.reason == "nothing else could be trained in the time there was"
    assert left_out.reason == "left out: there was no time"
    assert (left_out.accuracy, left_out.epochs, left_out.history) == (None, 0, ())
    with pytest.raises(
        TrainingError, match=r"could not be trained: last stage \(left out: there was no time\).*--budget"
    ) as caught:
        bake(ring(root, budget="0s", rule_only=True), tmp_path / "insisted")
    assert caught.value.exit_code == 6


NO_TIME = {"epochs": 1, "views": 1, "batch_size": 16}
"""The plan of a contender that is not worth starting."""


def test_what_takes_longer_than_what_there_is_no_time_for_is_not_even_timed(root: Path, tmp_path: Path) -> None:
    around = ring(root, tune="auto", budget="1h", epochs=2)
    begun(tmp_path / "bundle").decide("join1/plan", NO_TIME)
    outcome = bake(around, tmp_path / "bundle")
    _, tail, whole = outcome.contenders
    assert tail.reason.startswith("left out: there was time for 1 epoch of ")
    assert (
        whole.reason == "left out: it takes longer than 'all but the first stages', for which there was too little time"
    )
    assert not begun(tmp_path / "bundle").decided("input/plan")
    assert outcome.winner.name == "solved classifier"


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

    def attempt(proposal: Proposal, left: float) -> Any:
        seconds.append(left)
        trained: Any = SimpleNamespace(history=[SimpleNamespace(seconds=one) for one in epoch_seconds])
        return Entry(Contender.of(proposal), trained)

    bench: Any = SimpleNamespace(attempt=attempt, fewest_epochs=3)
    proposals = [Proposal("first", "block1", head_only=head_only), Proposal("second", "input")]
    tuning._tried(bench, proposals, 200.0)
    assert seconds == [140.0, given]


def with_a_cheaper_one(root: Path, **changes: Any) -> Ring:
    """As `ring`, with a second backbone that costs less."""
    (root / "small.keras").write_bytes((root / "tiny.keras").read_bytes())
    around, other = ring(root, **changes), ring(root, **{**changes, "backbone": str(root / "small.keras")})
    cheaper = other.measurement.chosen
    measurement = dataclasses.replace(around.measurement, candidates=(cheaper, around.measurement.chosen))
    return dataclasses.replace(around, measurement=measurement)


def test_without_time_for_a_backbone_a_cheaper_one_is_tuned(root: Path, tmp_path: Path) -> None:
    around = with_a_cheaper_one(root, budget="1h", rule_only=True, epochs=2, learning_rate="1e-2")
    begun(tmp_path / "bundle").decide("join2/plan", NO_TIME)
    outcome = bake(around, tmp_path / "bundle")
    assert [(c.name, c.accuracy is None, c.chosen) for c in outcome.contenders] == [
        ("tiny.keras: solved classifier", False, False),
        ("tiny.keras: last stage", True, False),
        ("small.keras: last stage", False, True),
    ]
    tuned, chosen = outcome.winner, outcome.measurement.chosen
    assert chosen is around.measurement.candidates[0]
    assert outcome.measurement.passed_over == ("tiny.keras",)
    assert around.measurement.passed_over == ()
    network = build_network(around.shop.model(chosen.spec), chosen, around.solved, outcome, "textures")
    assert accuracy(around, network) == tuned.accuracy
    # A run that goes on finds what was trained, seconds and all.
    again = bake(around, tmp_path / "bundle")
    assert again.winner.history == tuned.history
    assert timeless(again) == timeless(outcome)


@pytest.mark.parametrize("why", ["loses", "no time", "fails", "budget is over"])
def test_where_the_cheaper_one_is_no_help_the_solved_classifier_ships(root: Path, tmp_path: Path, why: str) -> None:
    around = with_a_cheaper_one(root, budget="0s" if why == "budget is over" else "1h", learning_rate="1e-7")
    pristine = around.backbone.get_weights()
    run = begun(tmp_path / "bundle")
    if why != "budget is over":
        run.decide("join2/plan", NO_TIME)
    if why == "no time":
        run.within("small.keras").decide("join2/plan", NO_TIME)
    with pytest.MonkeyPatch.context() as patch:
        if why == "fails":
            patch.setattr("transferapp.training.loop.train", out_of_memory)
        outcome = bake(around, tmp_path / "bundle")
    assert outcome.winner is outcome.contenders[0]
    assert outcome.measurement is around.measurement
    for before, after in zip(pristine, around.backbone.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    left_out, tried = outcome.contenders[1], outcome.contenders[2:]
    assert left_out.reason.startswith("left out: there was ")
    if why == "budget is over":
        assert not tried
        assert left_out.name == "last stage"
        # Nor is there more time for a run that goes on.
        resumed = bake(dataclasses.replace(around, config=ring(root, budget="1h").config), tmp_path / "bundle")
        assert timeless(resumed) == timeless(outcome)
    else:
        assert (tried[0].accuracy is not None) == (why == "loses")
        assert tried[0].reason.startswith({"loses": ("-", "+0.0"), "no time": "left out: ", "fails": "failed: "}[why])


def out_of_memory(*_: Any, **__: Any) -> Any:
    raise ResourceError("There is not enough memory", hint="Close other programs", code=OUT_OF_MEMORY)


def test_a_failure_is_an_error_where_the_rule_is_to_be_obeyed(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(tmp_path / "bundle").decide("join2/plan", NO_TIME)
    monkeypatch.setattr("transferapp.training.loop.train", out_of_memory)
    with pytest.raises(ResourceError, match="not enough memory"):
        bake(with_a_cheaper_one(root, rule_only=True), tmp_path / "bundle")


def test_from_scratch_no_other_backbone_is_tried(root: Path, tmp_path: Path) -> None:
    begun(tmp_path / "bundle").decide("input/plan", NO_TIME)
    with pytest.raises(TrainingError, match=r"whole network \(left out: there was time for 1 epoch"):
        bake(with_a_cheaper_one(root, tune="all", scratch=True, epochs=2), tmp_path / "bundle")


@pytest.mark.parametrize("pointwise", POINTWISE)
def test_convolutions_are_computed_as_suits_the_hardware(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pointwise: str
) -> None:
    monkeypatch.setattr("transferapp.recipes.fit.bench.detect", lambda precision: Hardware(pointwise=pointwise))
    around = ring(root, rule_only=True)
    bench = bench_of(around, tmp_path / "bundle")
    assert bench.tail("join2", bench.head).model.get_layer("body").pointwise == pointwise
    outcome = bake(around, tmp_path / "bundle")
    assert accuracy(around, network_of(around, outcome)) == pytest.approx(outcome.winner.accuracy, abs=0.12)


def test_a_contender_that_fails_is_no_want_of_time(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transferapp.recipes.fit.feeds.free_bytes", lambda path: 1000)
    outcome = bake(with_a_cheaper_one(root), tmp_path / "bundle")
    assert [contender.name for contender in outcome.contenders] == ["solved classifier", "last stage"]


@pytest.mark.slow
def test_a_budget_that_suffices_is_planned_and_the_plan_is_kept(root: Path, tmp_path: Path) -> None:
    around = ring(root, budget="1h", epochs=3)
    assert bake(around, tmp_path / "bundle").contenders[1].planned_epochs == 3
    run = RunFolder(tmp_path / "bundle")
    run.begin({})
    assert run.decide("join2/plan", None) == {"epochs": 3, "views": 3, "batch_size": 16}
    assert 3600 < run.decide("join2/limit", None) < 1.25 * 3600, "a quarter more than is left"


def test_what_takes_longer_than_was_planned_is_stopped_and_says_so(root: Path, tmp_path: Path) -> None:
    begun(tmp_path / "bundle").decide("join2/limit", 1e-3)
    tuned = bake(ring(root, budget="1h", epochs=3), tmp_path / "bundle").contenders[1]
    assert (tuned.planned_epochs, tuned.epochs) == (3, 1)
    assert "stopped after epoch 1: the time was up" in tuned.reason


def test_what_there_was_no_time_for_is_not_looked_at_again(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(tmp_path / "bundle").decide("join2/plan", {"epochs": 0, "views": 0, "batch_size": 16})
    monkeypatch.setattr("transferapp.recipes.fit.feeds.free_bytes", lambda path: 1000)  # no room is no want of time
    left_out = bake(ring(root, tune="last", budget="1h"), tmp_path / "bundle").contenders[1]
    assert left_out.reason == "left out: there was no time"


def test_what_caching_leaves_no_time_for_is_left_out(root: Path, tmp_path: Path) -> None:
    begun(tmp_path / "bundle").decide("join2/limit", -1.0)
    probe, left_out = bake(ring(root, budget="1h", epochs=3), tmp_path / "bundle").contenders
    assert probe.reason == "nothing else could be trained in the time there was"
    assert left_out.reason == "left out: what comes before its first epoch took all the time there was"
    assert left_out.seconds > 0


def test_the_trunk_is_timed_when_its_rows_are_not_there_yet(root: Path, tmp_path: Path) -> None:
    around = ring(root)
    first, again = (bench_of(around, tmp_path / "bundle").feeds.sample("join2") for _ in range(2))
    assert again.seconds_per_view == first.seconds_per_view > 0


@pytest.mark.slow
def test_a_rate_is_found_used_and_remembered(root: Path, tmp_path: Path) -> None:
    around = ring(root, learning_rate="find")
    outcome = bake(around, tmp_path / "bundle")
    contender = outcome.contenders[1]
    run = RunFolder(tmp_path / "bundle")
    run.begin({})
    rate, reason = run.decide("join2/learning-rate", None)
    assert contender.learning_rate == rate <= 1e-2
    assert contender.backbone_learning_rate == pytest.approx(rate / 10)
    assert contender.history[0].learning_rate <= rate
    assert reason in contender.reason
    assert "by a range test: the loss" in reason
    assert timeless(bake(around, tmp_path / "bundle")) == timeless(outcome)
    # What was decided is not looked for again.
    other = RunFolder(tmp_path / "other")
    other.begin({})
    other.decide("join2/learning-rate", [1e-5, "chosen by hand"])
    assert bake(around, tmp_path / "other").contenders[1].learning_rate == 1e-5


# --------------------------------------------------------------------------------------------------------------- mishaps


@pytest.mark.slow
def test_a_contender_that_diverges_leaves_the_others_alone(root: Path, tmp_path: Path) -> None:
    around = ring(root, tune="auto", rule_only=True, epochs=1)
    run = RunFolder(tmp_path / "bundle")
    run.begin({})
    # The first contender's activations are no numbers.
    bench_store = run.path / "activations-join1"
    bake(around, tmp_path / "bundle")
    rows = bench_store / "rows.float16"
    rows.write_bytes(np.full(rows.stat().st_size // 2, np.nan, np.float16).tobytes())
    for path in (run.path / "join1").iterdir():
        path.unlink()
    outcome = bake(around, tmp_path / "bundle")
    broken, whole = outcome.contenders[1:]
    assert broken.reason.startswith("failed: Training diverged in its first epoch")
    assert broken.accuracy is None
    assert outcome.winner.name == whole.name == "whole network"


@pytest.mark.slow
def test_where_all_diverge_that_is_an_error(root: Path, tmp_path: Path) -> None:
    around = ring(root, epochs=1)
    bake(around, tmp_path / "bundle")
    run = RunFolder(tmp_path / "bundle")
    rows = run.path / "activations-join2" / "rows.float16"
    rows.write_bytes(np.full(rows.stat().st_size // 2, np.nan, np.float16).tobytes())
    for path in (run.path / "join2").iterdir():
        path.unlink()
    with pytest.raises(TrainingError, match="diverged in its first epoch") as caught:
        bake(around, tmp_path / "bundle")
    assert caught.value.exit_code == 6


def test_a_contender_too_large_for_the_memory_is_left_out(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import keras

    real = keras.Model.fit

    def fit(model: Any, *arguments: Any, **options: Any) -> Any:
        if model.input_shape[1:] == (32, 32, 3):  # whole networks only
            raise MemoryError
        return real(model, *arguments, **options)

    monkeypatch.setattr(keras.Model, "fit", fit)
    outcome = bake(ring(root, tune="auto", rule_only=True, epochs=1), tmp_path / "bundle")
    assert outcome.winner.name == "all but the first stages"
    assert outcome.contenders[2].reason.startswith("failed: There is not enough memory to train with batches of 4")
    with pytest.raises(ResourceError) as caught:
        bake(ring(root, tune="all", epochs=1), tmp_path / "alone")
    assert caught.value.exit_code == 5


# ------------------------------------------------------------------------------------------------------------------ resume


class Killed(BaseException):
    """As a signal would end it."""


@pytest.mark.slow
@pytest.mark.parametrize("epochs_until", [1, 3])
def test_an_interrupted_bake_off_ends_as_if_nothing_had_happened(
    root: Path, tmp_path: Path, insisted: tuple[Ring, BakeOff], monkeypatch: pytest.MonkeyPatch, epochs_until: int
) -> None:
    from transferapp.training.checkpoint import CheckpointStore

    _, uninterrupted = insisted
    around = ring(root, tune="auto", rule_only=True, epochs=2, learning_rate="1e-2")
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
            bake(around, tmp_path / "bundle")
    resumed = bake(ring(root, tune="auto", rule_only=True, epochs=2, learning_rate="1e-2"), tmp_path / "bundle")
    assert timeless(resumed) == timeless(uninterrupted)
    assert resumed.validation == uninterrupted.validation
    assert resumed.temperature == uninterrupted.temperature


# ----------------------------------------------------------------------------------------------------------- from scratch


@pytest.mark.slow
def test_from_scratch_nothing_of_what_was_pretrained_is_left(root: Path, tmp_path: Path) -> None:
    around = ring(root, tune="auto", scratch=True, epochs=1, learning_rate="1e-3")
    assert around.config.tune == "all"
    pretrained = around.backbone.get_weights()
    outcome = bake(around, tmp_path / "bundle")
    winner = outcome.winner
    assert winner.name == "whole network", "whatever it is worth"
    assert winner.backbone_learning_rate == winner.learning_rate, "random weights need no sparing"
    conv = [i for i, v in enumerate(around.backbone.weights) if v.path.endswith("kernel")]
    for index in conv:
        correlation = np.corrcoef(around.backbone.get_weights()[index].ravel(), pretrained[index].ravel())[0, 1]
        assert abs(correlation) < 0.5
    moving = [i for i, v in enumerate(around.backbone.weights) if "moving" in v.path]
    assert moving
    assert all(np.abs(around.backbone.get_weights()[i]).max() > 0 for i in moving), "statistics were learned"
    network = network_of(around, outcome)
    assert accuracy(around, network) == winner.accuracy
    again = bake(ring(root, tune="auto", scratch=True, epochs=1, learning_rate="1e-3"), tmp_path / "again")
    assert timeless(again) == timeless(outcome), "the seed decides the random weights"


# -------------------------------------------------------------------------------------------------------- room on the disk


def test_with_little_room_on_the_disk_fewer_views_are_cached(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    around = ring(root, tune="last", rule_only=True, epochs=3)
    stage = around.measurement.chosen.trunk.stages[-2]
    images = len(around.val) + 2.5 * len(around.measurement.dataset.part("train"))  # room for two views each, not three
    room = int(np.prod(stage.shape) * 2 * images / 0.8)
    monkeypatch.setattr("transferapp.recipes.fit.feeds.free_bytes", lambda path: room)
    outcome = bake(around, tmp_path / "bundle")
    assert outcome.winner.epochs == 3
    run = RunFolder(tmp_path / "bundle")
    run.begin({})
    assert run.decide(f"{stage.name}/plan", None)["views"] == 2


def test_without_room_on_the_disk_a_contender_is_left_out_and_says_so(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    around = ring(root, tune="last", epochs=2)
    monkeypatch.setattr("transferapp.recipes.fit.feeds.free_bytes", lambda path: 1000)
    outcome = bake(around, tmp_path / "bundle")
    assert outcome.winner.name == "solved classifier"
    assert outcome.winner.reason == "nothing else could be trained", "time is not what was wanting"
    assert "not enough room on the disk" in outcome.contenders[1].reason
    assert "MB free" in outcome.contenders[1].reason


@pytest.mark.parametrize(
    ("settings", "said", "unsaid"),
    [
        ({"rule_only": True}, r"What the rule proposes.*Leave out --rule-only", "--budget"),
        ({"scratch": True, "tune": "auto"}, r"What --scratch asks for.*Give it more time with --budget", "--rule-only"),
    ],
    ids=["no room", "from scratch"],
)
def test_an_error_advises_what_would_help(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], said: str, unsaid: str
) -> None:
    monkeypatch.setattr(
        "transferapp.recipes.fit.feeds.free_bytes", lambda path: 1000
    )  # of no account to a whole network
    with pytest.raises(TrainingError, match=said) as caught:
        bake(
            ring(root, **{"tune": "last", "budget": "0s" if "scratch" in settings else "1h", **settings}),
            tmp_path / "b",
        )
    assert unsaid not in str(caught.value)


def test_a_run_that_goes_on_has_the_room_that_it_had_at_first(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    around = ring(root, tune="last", rule_only=True)
    outcome = bake(around, tmp_path / "bundle")
    # Its own activations have taken the rest.
    monkeypatch.setattr("transferapp.recipes.fit.feeds.free_bytes", lambda path: 1000)
    assert timeless(bake(around, tmp_path / "bundle")) == timeless(outcome)


def test_a_head_goes_on_with_the_views_that_there_was_room_for_at_first(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    around = ring(root)
    train, top = around.measurement.dataset.part("train"), around.measurement.chosen.trunk.top
    two_views = int(np.prod(top.shape) * 2 * (len(around.val) + 2.5 * len(train)) / 0.8)
    seen = []
    for room in (two_views, 100 * two_views):
        monkeypatch.setattr("transferapp.recipes.fit.feeds.free_bytes", lambda path, room=room: room)
        batches = bench_of(around, tmp_path / "bundle").feeds.head(top.name, "max", 3).feed.make_batches(len(train))
        batches.epoch = 2
        seen.append(batches[0][0])
    np.testing.assert_array_equal(*seen)


@pytest.mark.slow
def test_random_weights_are_given_all_their_epochs(root: Path, tmp_path: Path) -> None:
    around = ring(root, tune="auto", scratch=True, epochs=6, learning_rate="1e-9")  # nothing improves
    outcome = bake(around, tmp_path / "bundle")
    assert outcome.winner.epochs == 6
