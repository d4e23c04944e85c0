"""The training loop: best weights, early stops, errors, and interruptions that change nothing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from scipy.special import log_softmax

from tests.helpers.toys import toy_data, toy_model
from transferapp.errors import ResourceError, TrainingError
from transferapp.policy.choose import merit
from transferapp.training import loop
from transferapp.training import session as sessions
from transferapp.training.batches import soft
from transferapp.training.checkpoint import CheckpointStore
from transferapp.training.loop import Trained, train
from transferapp.training.settings import OUT_OF_MEMORY, Epoch, TrainingJob, TrainingSettings

SETTINGS = TrainingSettings(epochs=4, learning_rate=5e-2, average=0.0)


def run(
    folder: Path,
    settings: TrainingSettings = SETTINGS,
    *,
    model: Any = None,
    data: Any = None,
    batch_size: int = 16,
    seconds: float = math.inf,
    on_start: Callable[[int], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    multipliers: dict[str, float] | None = None,
) -> Trained:
    make_batches, validation, labels = data or toy_data()
    return train(
        TrainingJob(model or toy_model(), make_batches, settings, multipliers or {}, batch_size),
        validation,
        labels,
        checkpoints=CheckpointStore(folder),
        seconds=seconds,
        on_start=on_start,
        on_epoch=on_epoch,
    )


def timeless(history: tuple[Epoch, ...]) -> list[Epoch]:
    return [dataclasses.replace(epoch, seconds=0.0) for epoch in history]


def logits_of(model: Any, weights: list[np.ndarray], data: Any) -> np.ndarray:
    model.set_weights(weights)
    return np.asarray(model.predict(data[1], verbose=0))


class Killed(BaseException):
    """As a signal would end it."""


def killed(_: Epoch) -> None:
    raise Killed


HARD = TrainingSettings(epochs=4, learning_rate=2e-2, average=0.9, schedule="sgdr", cycles=2)
"""Everything here has a state: Adam, an average, snapshots; the model adds dropout and the statistics of BatchNorm."""


def hard_model(seed: int = 0) -> Any:
    return toy_model(seed, dropout=0.3, batch_norm=True)


@dataclasses.dataclass(frozen=True)
class FullRun:
    """An uninterrupted run, and the model's weights after each of its epochs."""

    trained: Trained
    weights: dict[int, list[np.ndarray]]


@pytest.fixture(scope="module")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> FullRun:
    model = hard_model()
    weights: dict[int, list[np.ndarray]] = {}
    trained = run(
        tmp_path_factory.mktemp("run"),
        HARD,
        model=model,
        on_epoch=lambda epoch: weights.update({epoch.epoch: model.get_weights()}),
    )
    return FullRun(trained, weights)


class Souring(keras.utils.PyDataset):
    """Validation images that can be made worse: a share of them turns into zeros."""

    def __init__(self, rows: np.ndarray) -> None:
        super().__init__()
        self._rows, self.kept = rows, len(rows)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> tuple[np.ndarray]:
        rows = self._rows.copy()
        rows[self.kept :] = 0
        return (rows,)


# ----------------------------------------------------------------------------------------------------------- what comes out


def test_a_learnable_set_is_learned_and_every_epoch_written_down(tmp_path: Path) -> None:
    told: list[Epoch] = []
    model = toy_model()
    trained = run(tmp_path, model=model, on_epoch=told.append)
    first, *_, last = trained.history
    assert last.loss < 0.7 * first.loss
    assert trained.accuracy > 0.8
    assert tuple(told) == trained.history
    assert [epoch.epoch for epoch in trained.history] == [1, 2, 3, 4]
    rates = [epoch.learning_rate for epoch in trained.history]
    assert rates == sorted(rates, reverse=True), "half a cosine, seen in the middle of each epoch"
    assert 0 < rates[-1] < rates[0] < 1.001 * SETTINGS.learning_rate
    assert all(epoch.seconds > 0 for epoch in trained.history)
    assert trained.seconds == pytest.approx(sum(epoch.seconds for epoch in trained.history))
    assert all(epoch.averaged_val_loss is None for epoch in trained.history), "no average was asked for"
    assert (trained.batch_size, trained.notes, trained.snapshots, trained.diverged) == (16, (), (), False)
    best = trained.history[trained.epoch - 1]
    assert (trained.accuracy, trained.loss, trained.averaged) == best.best
    np.testing.assert_allclose(logits_of(model, trained.weights, toy_data()), trained.logits, atol=1e-6)


def test_the_best_epoch_is_kept_and_not_the_last(tmp_path: Path) -> None:
    make_batches, validation, labels = toy_data()
    souring = Souring(np.concatenate([validation[0][0], validation[1][0]]))
    weights: dict[int, list[np.ndarray]] = {}
    model = toy_model()

    def after(epoch: Epoch) -> None:
        weights[epoch.epoch] = model.get_weights()
        souring.kept = 30 if epoch.epoch == 1 else 6  # the second epoch is judged fairly, those after it are not

    souring.kept = 3
    trained = run(tmp_path, model=model, data=(make_batches, souring, labels), on_epoch=after)
    assert trained.epoch == 2
    assert trained.accuracy == max(epoch.val_accuracy for epoch in trained.history) > trained.history[-1].val_accuracy
    for ours, theirs in zip(trained.weights, weights[2], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_average_ships_where_it_is_better(tmp_path: Path) -> None:
    # Plain steps far too large on noisy labels: the weights are thrown about, and their average lies in the middle.
    settings = TrainingSettings("sgd", learning_rate=1.0, schedule="constant", epochs=3, average=0.9, clip_norm=0.0)
    data, model = toy_data(noise=1.2), toy_model()
    raw: dict[int, list[np.ndarray]] = {}
    trained = run(
        tmp_path,
        settings,
        model=model,
        data=data,
        batch_size=4,
        on_epoch=lambda epoch: raw.update({epoch.epoch: model.get_weights()}),
    )
    assert trained.averaged
    best = trained.history[trained.epoch - 1]
    assert best.averaged_val_accuracy is not None
    assert best.averaged_val_loss is not None
    assert merit(best.averaged_val_accuracy, best.averaged_val_loss) > merit(best.val_accuracy, best.val_loss)
    assert (trained.accuracy, trained.loss) == (best.averaged_val_accuracy, best.averaged_val_loss)
    np.testing.assert_allclose(logits_of(model, trained.weights, data), trained.logits, atol=1e-6)
    assert np.abs(trained.weights[0] - raw[trained.epoch][0]).max() > 1e-3, "training went on from the raw weights"


def test_training_stops_when_nothing_improves_any_more(tmp_path: Path) -> None:
    still = dataclasses.replace(SETTINGS, learning_rate=1e-12, epochs=9, patience=2)
    trained = run(tmp_path, still)
    assert len(trained.history) == 3
    assert trained.epoch == 1
    assert trained.notes == ("stopped after epoch 3: none of the last 2 was better",)


class Clock:
    """Epochs of so many seconds, for `time` in `transferapp.training.loop`."""

    def __init__(self, *epochs: float) -> None:
        self._moments = [moment for number in range(len(epochs)) for moment in (0.0, epochs[number])]

    def perf_counter(self) -> float:
        return self._moments.pop(0)


@pytest.mark.parametrize(
    ("seconds", "epochs"),
    [
        (1.0, [9.0]),  # one there is, or nothing could ship
        (17.9, [9.0]),
        (20.9, [9.0, 6.0]),
        (18.0, [9.0, 3.0, 3.0, 3.0]),  # the first is the longest: the graph is traced in it
    ],
)
def test_no_epoch_is_begun_that_would_end_too_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, epochs: list[float]
) -> None:
    monkeypatch.setattr(loop, "time", Clock(*epochs))
    trained = run(tmp_path, seconds=seconds)
    assert [epoch.seconds for epoch in trained.history] == epochs
    late = (f"stopped after epoch {len(epochs)}: the time was up",)
    assert trained.notes == (() if len(epochs) == SETTINGS.epochs else late)


def test_a_run_that_cannot_win_any_more_stops_half_way(tmp_path: Path) -> None:
    still = dataclasses.replace(SETTINGS, learning_rate=1e-12, epochs=6, patience=6)
    behind = run(tmp_path / "behind", dataclasses.replace(still, to_beat=0.99))
    assert len(behind.history) == 3
    (note,) = behind.notes
    assert note.startswith("stopped after epoch 3: ")
    assert "too far below 99.0%" in note
    near = run(tmp_path / "near", dataclasses.replace(still, to_beat=behind.accuracy + 0.01))
    assert len(near.history) == 6
    cycles = dataclasses.replace(still, to_beat=0.99, schedule="sgdr", cycles=2)
    assert len(run(tmp_path / "cycles", cycles).history) == 6


def test_who_has_run_out_of_patience_has_not_run_out_of_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "time", Clock(1.0, 1.0, 1.0))
    still = dataclasses.replace(SETTINGS, learning_rate=1e-12, epochs=9, patience=2)
    assert run(tmp_path, still, seconds=3.0).notes == ("stopped after epoch 3: none of the last 2 was better",)


def test_time_spent_before_an_interruption_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "time", Clock(3.0, 3.0))
    with pytest.raises(Killed):
        run(tmp_path, seconds=6.0, on_epoch=killed)
    assert [epoch.seconds for epoch in run(tmp_path, seconds=6.0).history] == [3.0, 3.0]


def test_a_head_learns_faster_than_what_has_a_multiplier(tmp_path: Path) -> None:
    model = toy_model()
    before = model.get_weights()
    names = [variable.path for variable in model.weights]
    trained = run(tmp_path, dataclasses.replace(SETTINGS, epochs=1), model=model, multipliers={names[0]: 0.0})
    moved = [float(np.abs(a - b).max()) for a, b in zip(trained.weights, before, strict=True)]
    assert moved[0] == 0
    assert all(distance > 0 for distance in moved[1:])


# ---------------------------------------------------------------------------------------------------------------- snapshots


def test_every_cycle_of_warm_restarts_leaves_a_snapshot(full_run: FullRun) -> None:
    assert len(full_run.trained.snapshots) == HARD.cycles
    for snapshot, epoch in zip(full_run.trained.snapshots, (2, 4), strict=True):
        for ours, theirs in zip(snapshot, full_run.weights[epoch], strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(("epochs", "cycles"), [(1, 1), (4, 2), (7, 3), (12, 12), (100, 99)])
def test_cycles_end_with_epochs_however_many_there_are(epochs: int, cycles: int) -> None:
    settings = dataclasses.replace(SETTINGS, schedule="sgdr", epochs=epochs, cycles=cycles)
    make_batches, validation, _ = toy_data()
    ends = sessions.Session(TrainingJob(toy_model(), make_batches, settings, {}, 16), validation).snapshot_epochs
    assert len(ends) == (cycles if cycles > 1 else 0), "a single cycle is no ensemble"
    assert not ends or max(ends) == epochs


def test_a_schedule_that_restarts_is_not_stopped_early(tmp_path: Path) -> None:
    still = dataclasses.replace(SETTINGS, learning_rate=1e-12, schedule="sgdr", cycles=2, patience=1)
    assert len(run(tmp_path, still).history) == 4


# ------------------------------------------------------------------------------------------------------------------ mishaps


def starve(model: Any, *calls: int) -> list[list[np.ndarray]]:
    """Let `fit` run out of memory in these of its calls, after it has trained; the weights that each call began with."""
    import tensorflow as tf

    begun: list[list[np.ndarray]] = []
    real = model.fit

    def fit(*arguments: Any, **options: Any) -> Any:
        begun.append(model.get_weights())
        history = real(*arguments, **options)
        if len(begun) in calls:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[64,112,14,14]")
        return history

    model.fit = fit
    return begun


def test_out_of_memory_halves_the_batch_with_a_note_and_goes_on_from_the_last_epoch(tmp_path: Path) -> None:
    model = toy_model()
    begun = starve(model, 2)
    weights: dict[int, list[np.ndarray]] = {}
    settings = dataclasses.replace(SETTINGS, average=0.5)
    trained = run(
        tmp_path,
        settings,
        model=model,
        on_epoch=lambda epoch: weights.update({epoch.epoch: model.get_weights()}),
    )
    assert [epoch.epoch for epoch in trained.history] == [1, 2, 3, 4]
    assert trained.batch_size == 8
    assert trained.notes == ("out of memory in epoch 2: the batch was halved to 8",)
    assert len(begun) == 5
    for ours, theirs in zip(begun[2], weights[1], strict=True):  # the third call is the second epoch, begun anew
        np.testing.assert_array_equal(ours, theirs)
    # 3 steps of 16 images became 6 of 8: the schedule's clock stands where four epochs of six steps end.
    assert int(model.optimizer.iterations) == 24
    assert trained.history[-1].learning_rate < 0.2 * SETTINGS.learning_rate, "the cosine ends where the run does"


@pytest.mark.slow
def test_the_state_of_the_optimizer_survives_a_lack_of_memory(tmp_path: Path) -> None:
    """As if the run had been interrupted after the first epoch, and gone on with the smaller batch."""
    model = toy_model()
    starve(model, 2)
    settings = dataclasses.replace(SETTINGS, average=0.5, epochs=2, schedule="constant")
    starved = run(tmp_path / "starved", settings, model=model)

    with pytest.raises(Killed):
        run(tmp_path / "by hand", settings, on_epoch=killed)
    store = CheckpointStore(tmp_path / "by hand")
    generation = store.latest()
    assert generation is not None
    arrays = dict(generation.arrays)
    assert int(arrays["optimizer/0"]) == 3  # the clock
    arrays["optimizer/0"] = np.array(6, arrays["optimizer/0"].dtype)
    store.save(2, arrays, {**generation.facts, "batch_size": 8})
    by_hand = run(tmp_path / "by hand", settings)
    for ours, theirs in zip(starved.weights, by_hand.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_smallest_batch_that_is_too_large_is_an_error(tmp_path: Path) -> None:
    model = toy_model()

    def fit(*_: Any, **__: Any) -> None:
        raise MemoryError

    model.fit = fit
    with pytest.raises(ResourceError, match="not enough memory to train with batches of 4") as caught:
        run(tmp_path, model=model)
    assert caught.value.exit_code == 5


def test_other_errors_pass_through(tmp_path: Path) -> None:
    model = toy_model()

    def fit(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("no memory of this one")

    model.fit = fit
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, model=model)


class Poisoned:
    """Toy batches that hold NaN from an epoch on, counted from 1."""

    def __init__(self, epoch: int) -> None:
        self._from = epoch

    def __call__(self, batch_size: int) -> Any:
        batches, first = toy_data()[0](batch_size), self._from

        class Batches(type(batches)):  # type: ignore[misc]
            def __getitem__(self, index: int) -> Any:
                x, y = super().__getitem__(index)
                return (x * np.nan if self.epoch + 1 >= first else x), y

        batches.__class__ = Batches
        return batches


def test_a_run_that_diverges_ships_its_best_epoch(tmp_path: Path) -> None:
    _, validation, labels = toy_data()
    model = toy_model()
    trained = run(tmp_path, model=model, data=(Poisoned(3), validation, labels))
    assert trained.diverged
    assert trained.notes == ("diverged in epoch 3: the loss is no longer finite",)
    assert len(trained.history) == 3
    assert math.isnan(trained.history[-1].loss)
    assert trained.epoch <= 2
    assert all(np.isfinite(weights).all() for weights in trained.weights)
    np.testing.assert_allclose(logits_of(model, trained.weights, (None, validation)), trained.logits, atol=1e-6)
    again = run(tmp_path, data=(Poisoned(3), validation, labels))
    assert (again.epoch, again.accuracy, again.notes) == (trained.epoch, trained.accuracy, trained.notes)


def test_a_run_that_diverges_at_once_is_an_error(tmp_path: Path) -> None:
    _, validation, labels = toy_data()
    with pytest.raises(TrainingError, match=r"diverged in its first epoch.*--learning-rate") as caught:
        run(tmp_path, data=(Poisoned(1), validation, labels))
    assert caught.value.exit_code == 6


# ------------------------------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize(
    "after", [(1, 2), pytest.param((3,), marks=pytest.mark.slow), pytest.param((4,), marks=pytest.mark.slow)]
)
def test_a_resumed_run_ends_as_if_nothing_had_happened(
    tmp_path: Path, full_run: FullRun, after: tuple[int, ...]
) -> None:
    uninterrupted = full_run.trained
    for number in after:

        def stop(epoch: Epoch, number: int = number) -> None:
            if epoch.epoch == number:
                raise Killed

        with pytest.raises(Killed):
            run(tmp_path, HARD, model=hard_model(seed=0 if number == after[0] else number), on_epoch=stop)
    told: list[int] = []
    model = hard_model(seed=77)  # what it was initialized with must not matter any more
    resumed = run(tmp_path, HARD, model=model, on_start=told.append, on_epoch=lambda epoch: told.append(epoch.epoch))
    assert told == list(range(after[-1], 5))
    assert timeless(resumed.history) == timeless(uninterrupted.history)
    assert (resumed.epoch, resumed.averaged, resumed.notes) == (
        uninterrupted.epoch,
        uninterrupted.averaged,
        uninterrupted.notes,
    )
    assert (resumed.accuracy, resumed.loss) == (uninterrupted.accuracy, uninterrupted.loss)
    np.testing.assert_array_equal(resumed.logits, uninterrupted.logits)
    for ours, theirs in zip(
        [resumed.weights, *resumed.snapshots], [uninterrupted.weights, *uninterrupted.snapshots], strict=True
    ):
        for own, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(own, other)


@pytest.mark.slow
def test_where_both_generations_are_lost_the_run_begins_anew(tmp_path: Path, full_run: FullRun) -> None:
    with pytest.raises(Killed):
        run(tmp_path, HARD, model=hard_model(), on_epoch=killed)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:100])
    again = run(tmp_path, HARD, model=hard_model())
    assert timeless(again.history) == timeless(full_run.trained.history)
    np.testing.assert_array_equal(again.weights[0], full_run.trained.weights[0])


# -------------------------------------------------------------------------------------------------------- before the first


def test_timing_a_step_leaves_no_trace(tmp_path: Path) -> None:
    model = hard_model()
    before = [np.array(v) for v in model.variables]
    make_batches = toy_data()[0]
    seconds, batch_size = sessions.time_step(TrainingJob(model, make_batches, SETTINGS, {}, 16))
    assert 0 < seconds < 1
    assert batch_size == 16
    for variable, array in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(np.array(variable), array)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_a_step_is_traced_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, label_smoothing: float) -> None:
    """TensorFlow would trace it twice, which takes longer than ten steps, if the first time made any variables."""
    model, (make_batches, validation, labels) = hard_model(), toy_data()
    settings = dataclasses.replace(HARD, label_smoothing=label_smoothing)
    if settings.soft_labels:
        make_batches = soft(make_batches, model.output_shape[-1], mixup=0.0, cutmix=0.0, seed=0)
    real, traces = keras.Model.train_step, []

    def train_step(self: Any, *arguments: Any, **options: Any) -> Any:
        traces.append(self)
        return real(self, *arguments, **options)

    monkeypatch.setattr(keras.Model, "train_step", train_step)
    sessions.time_step(TrainingJob(model, lambda _: make_batches(16), settings, {}, 16))
    assert len(traces) == 1
    trained = run(tmp_path, settings, model=model, data=(make_batches, validation, labels))
    assert len(trained.history) == 4
    assert len(traces) <= 3, "a second time for the last batch of an epoch, which is smaller"


def test_timing_a_step_finds_the_batch_that_fits() -> None:
    import tensorflow as tf

    model = toy_model()
    real = model.train_on_batch

    def hungry(x: np.ndarray, y: np.ndarray) -> Any:
        if len(x) > 8:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM")
        return real(x, y)

    model.train_on_batch = hungry
    assert sessions.time_step(TrainingJob(model, toy_data()[0], SETTINGS, {}, 32))[1] == 8


def test_a_rate_is_found_with_the_optimizer_that_will_train(tmp_path: Path) -> None:
    model = toy_model()
    before = model.get_weights()
    finding = sessions.suggest_rate(TrainingJob(model, toy_data()[0], SETTINGS, {model.weights[0].path: 0.1}, 16))
    assert 1e-3 < finding.suggestion <= 0.1
    for ours, theirs in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_rate_is_looked_for_with_the_batch_that_fits() -> None:
    import tensorflow as tf

    model = toy_model()
    before = model.get_weights()
    real, sizes = model.train_on_batch, []

    def hungry(x: np.ndarray, *rest: Any, **options: Any) -> Any:
        sizes.append(len(x))
        if len(x) > 8:
            model.set_weights([weights + 1 for weights in before])
            raise tf.errors.ResourceExhaustedError(None, None, "OOM")
        return real(x, *rest, **options)

    model.train_on_batch = hungry
    finding = sessions.suggest_rate(TrainingJob(model, toy_data()[0], SETTINGS, {}, 32))
    assert finding.suggestion > 0
    assert sizes[:3] == [32, 16, 8]
    for ours, theirs in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_too_little_memory_to_validate_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow as tf

    def hungry(*_: Any, **__: Any) -> Any:
        raise tf.errors.ResourceExhaustedError(None, None, "OOM")

    model = toy_model()
    monkeypatch.setattr(model, "predict", hungry)
    with pytest.raises(ResourceError, match="not enough memory to evaluate the validation images") as caught:
        run(tmp_path, model=model)
    assert caught.value.code == OUT_OF_MEMORY


# Weights by class


def test_the_loss_of_weighed_classes_is_that_of_each_times_its_weight() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(12, 3)).astype(np.float32), np.arange(12) % 3
    weights = (0.5, 1.0, 1.5)
    loss = sessions.cross_entropy(dataclasses.replace(SETTINGS, class_weights=weights))
    plain = keras.ops.convert_to_numpy(keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True))
    weighed = keras.ops.convert_to_numpy(loss(labels[:, None], logits))
    np.testing.assert_allclose(weighed, plain * np.array(weights)[labels], rtol=1e-6)


def test_what_is_mixed_counts_with_the_weight_of_each_class_for_its_share() -> None:
    rng = np.random.default_rng(1)
    logits, weights = rng.normal(size=(6, 3)).astype(np.float32), np.array([0.5, 1.0, 1.5])
    first, second, smoothing = np.arange(6) % 3, (np.arange(6) + 1) % 3, 0.2
    settings = dataclasses.replace(SETTINGS, mixup=1.0, label_smoothing=smoothing, class_weights=tuple(weights))

    def smoothed(labels: np.ndarray) -> np.ndarray:
        targets = (1 - smoothing) * np.eye(3)[labels] + smoothing / 3
        return -(targets * log_softmax(logits, axis=1)).sum(axis=1)

    expected = 0.7 * weights[first] * smoothed(first) + 0.3 * weights[second] * smoothed(second)
    blend = (0.7 * np.eye(3)[first] + 0.3 * np.eye(3)[second]).astype(np.float32)
    losses = keras.ops.convert_to_numpy(sessions.cross_entropy(settings)(blend, logits))
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_training_on_probabilities_that_are_sure_is_training_on_indices_with_the_same_weights(tmp_path: Path) -> None:
    make, validation, labels = toy_data()
    weighed = dataclasses.replace(SETTINGS, class_weights=(2.0, 0.5, 0.5))
    indices = run(tmp_path / "indices", weighed, data=(make, validation, labels))
    softened = soft(make, 3, mixup=0.0, cutmix=0.0, seed=0)
    almost = dataclasses.replace(weighed, label_smoothing=1e-9)  # soft labels, and all but nothing is smoothed
    probabilities = run(tmp_path / "probabilities", almost, data=(softened, validation, labels))
    np.testing.assert_allclose(probabilities.logits, indices.logits, rtol=1e-3, atol=1e-4)
    assert probabilities.history[-1].loss == pytest.approx(indices.history[-1].loss, rel=1e-3)


def test_training_with_weights_favors_what_weighs_more_and_reports_plain_figures(tmp_path: Path) -> None:
    data = toy_data(noise=2.0)
    runs = {
        weights: run(tmp_path / str(len(weights)), dataclasses.replace(SETTINGS, class_weights=weights), data=data)
        for weights in ((), (2.6, 0.2, 0.2))
    }
    said = {weights: (found.logits.argmax(axis=1) == 0).mean() for weights, found in runs.items()}
    assert said[2.6, 0.2, 0.2] > said[()] + 0.1
    found = runs[2.6, 0.2, 0.2]
    assert found.accuracy == pytest.approx((found.logits.argmax(axis=1) == data[2]).mean())
