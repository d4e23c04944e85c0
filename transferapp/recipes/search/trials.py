"""Trials: heads trained with drawn settings and judged on the validation images, and the journal that keeps them.

Draws depend on the seed alone. A search that was interrupted draws the same trials again and takes the outcome of those that
are in the journal from there.
"""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from transferapp.errors import TrainingError
from transferapp.policy.choose import merit
from transferapp.recipes.search.space import Dimension, Edge, SearchSettings, edges, narrow, written
from transferapp.system.cluster import parallel
from transferapp.system.progress import Progress
from transferapp.system.storage import disk_errors
from transferapp.training.batches import CachedBatches
from transferapp.training.head_spec import Head, HeadSpec
from transferapp.training.heads import Regularization, build_head, head_layers
from transferapp.training.optimizers import make_optimizer
from transferapp.training.probe import log_softmax, moments
from transferapp.training.schedules import make_schedule

COARSE_EPOCHS, FINE_EPOCHS = 5, 20
"""The lecture: a few epochs for a rough idea, then a longer run."""


@dataclass(frozen=True)
class HeadSettings:
    """Form and training of a head.

    Attributes:
        head: Form and regularization.
        optimizer: A key of `OPTIMIZERS`.
        learning_rate: The highest of the run.
        schedule: One of `transferapp.recipes.search.space.SCHEDULES`.
        batch_size: Images in a step.
        weight_decay: Decoupled, as of `make_optimizer`.
        label_smoothing: Share of the label that is spread evenly over all classes, in [0, 1).
        epochs: Passes over the training images.
    """

    head: HeadSpec
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    batch_size: int = 64
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    epochs: int = 20

    def with_params(self, params: Mapping[str, Any]) -> HeadSettings:
        """Return the settings with some replaced, by the names of `transferapp.recipes.search.space.SETTINGS`."""
        of_head = {name: value for name, value in params.items() if name in HeadSpec.__dataclass_fields__}
        own = {name: value for name, value in params.items() if name not in of_head}
        return replace(self, head=replace(self.head, **of_head), **own)

    def to_json(self) -> dict[str, Any]:
        """Return a plain dictionary for JSON."""
        return {**asdict(self), "head": self.head.to_json()}


@dataclass(frozen=True)
class Features:
    """Cached features of some images.

    Attributes:
        rows: float32, shape (n, views, num_features); an epoch sees one view of each.
        labels: int64, shape (n,).
    """

    rows: np.ndarray
    labels: np.ndarray

    @property
    def center(self) -> np.ndarray:
        """Features of the center view, the first: shape (n, num_features)."""
        center: np.ndarray = self.rows[:, 0]
        return center


@dataclass(frozen=True)
class Problem:
    """Features to train on and to predict.

    Attributes:
        train: Training images.
        val: Images that a trained head predicts, by their center view.
        num_classes: Width of the output.
        seed: Decides initial weights, the order of images, and what dropout leaves out.
        class_weights: float, shape (num_classes,), weight of each class in training; None for equal weights.
    """

    train: Features
    val: Features
    num_classes: int
    seed: int
    class_weights: np.ndarray | None = None


@dataclass(frozen=True)
class TrainedHead:
    """A head after training.

    Attributes:
        head: With its weights.
        logits: float32, shape (n, num_classes), of `Problem.val`.
        epochs: Passes begun; fewer than asked for where the cost exploded.
        exploded: Whether the cost exceeded a multiple of the first one, or became NaN.
    """

    head: Head
    logits: np.ndarray
    epochs: int
    exploded: bool


@dataclass(frozen=True)
class Outcome:
    """Result of a trial on the validation images: accuracy in [0, 1], loss in nats, infinite for logits that are not finite."""

    accuracy: float
    loss: float
    epochs: int
    exploded: bool
    seconds: float


@dataclass(frozen=True)
class Trial:
    """A finished trial.

    Attributes:
        index: Its number in the whole search, from 0.
        phase: `coarse` or `fine`.
        params: Drawn values by setting.
        outcome: Its result.
    """

    index: int
    phase: str
    params: Mapping[str, Any]
    outcome: Outcome

    @property
    def rank(self) -> tuple[bool, float, float, int]:
        """Key to rank by: completed, accuracy, loss, number."""
        return (not self.outcome.exploded, *merit(self.outcome.accuracy, self.outcome.loss), -self.index)

    def line(self, settings: HeadSettings, total: int) -> str:
        """Return the lecture's line: `val_acc: 0.527000, lr: 5.349517e-04, reg: 4.09e-01, (0 / 100)`."""
        others = "".join(
            f"{name}: {written(value)}, " for name, value in self.params.items() if name not in ("learning_rate", "l2")
        )
        return (
            f"val_acc: {self.outcome.accuracy:.6f}, lr: {settings.learning_rate:.6e}, reg: {settings.head.l2:.2e}, "
            f"{others}({self.index} / {total})"
        )


@dataclass(frozen=True)
class Phase:
    """A part of a search.

    Attributes:
        name: `coarse` or `fine`.
        space: Ranges that its trials are drawn from.
        trials: Number of trials.
        first: Number of its first trial in the whole search.
        base: Settings that are not searched, with the epochs of each trial.
        seed: Of the draws.
    """

    name: str
    space: tuple[Dimension, ...]
    trials: int
    first: int
    base: HeadSettings
    seed: int

    def draws(self) -> list[dict[str, Any]]:
        """Return the settings of each trial."""
        rng = np.random.default_rng(self.seed)
        return [{dimension.name: dimension.draw(rng) for dimension in self.space} for _ in range(self.trials)]


class Journal:
    """Outcomes of finished trials by their number, in a file of JSON lines.

    Args:
        path: The file, which may be missing. It is cut before the first line that a kill left incomplete.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.outcomes: dict[int, Outcome] = {}
        if not path.is_file():
            return
        with path.open("r+b") as stream:
            whole = 0
            for line in iter(stream.readline, b""):
                try:
                    values = json.loads(line if line.endswith(b"\n") else b"")
                    index = values.pop("trial")
                    self.outcomes[index] = Outcome(**values)
                except (ValueError, KeyError, TypeError):
                    break
                whole += len(line)
            stream.truncate(whole)

    def add(self, index: int, outcome: Outcome) -> None:
        """Append a trial.

        Raises:
            ResourceError: The disk is full.
        """
        self.outcomes[index] = outcome
        with disk_errors(self._path), self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"trial": index, **asdict(outcome)}) + "\n")


@dataclass(frozen=True)
class Searched:
    """All trials of a search.

    Attributes:
        trials: In their order.
        phases: One or two.
        notes: Sentences on the ranges of the second phase.
        best: The trial that ships.
        settings: Its settings.
        edges: Ranges at whose end it lies.
    """

    trials: tuple[Trial, ...]
    phases: tuple[Phase, ...]
    notes: tuple[str, ...]
    best: Trial
    settings: HeadSettings
    edges: tuple[Edge, ...]


def run_trials(
    settings: SearchSettings,
    base: HeadSettings,
    problem: Problem,
    trainer: HeadTrainer,
    journal: Journal,
    progress: Progress,
    on_trial: Callable[[str], None] = lambda _line: None,
) -> Searched:
    """Run all trials, coarse and then fine.

    Raises:
        TrainingError: The cost of every trial exploded.
    """
    trials: list[Trial] = []
    phases: list[Phase] = []
    space, notes = settings.space, tuple[str, ...]()
    for name, count, epochs in (
        ("coarse", settings.coarse, COARSE_EPOCHS),
        ("fine", settings.trials - settings.coarse, FINE_EPOCHS),
    ):
        if not count:
            continue
        if trials:
            space, notes = narrow(space, [trial.params for trial in promising(trials, len(problem.val.labels))])
            for note in notes:
                progress.note(f"Fine: {note}")
        phase = Phase(name, space, count, len(trials), replace(base, epochs=epochs), problem.seed + len(phases))
        phases.append(phase)
        for trial in run_phase(phase, problem, trainer, journal):
            on_trial(trial.line(base.with_params(trial.params), settings.trials))
            trials.append(trial)
    # Coarse trials train for too few epochs to ship: they only narrow the ranges.
    best = ranked(trials[phase.first :])[0]
    if best.outcome.exploded or not math.isfinite(best.outcome.loss):
        raise TrainingError(
            "No trial gave a working head: the cost of every one exploded", hint="Name lower learning rates with --over"
        )
    at_edge = edges(phase.space, best.params)
    for edge in at_edge:
        progress.note(
            f"Warning: {edge.sentence()}: better values may lie beyond; --over {edge.beyond.written()} includes them"
        )
    return Searched(tuple(trials), tuple(phases), notes, best, phase.base.with_params(best.params), at_edge)


def run_phase(phase: Phase, problem: Problem, trainer: HeadTrainer, journal: Journal) -> Iterator[Trial]:
    """Run the trials of a phase in order, apart from those in the journal."""
    draws = dict(enumerate(phase.draws(), start=phase.first))
    missing = [phase.base.with_params(params) for index, params in draws.items() if index not in journal.outcomes]
    outcomes = parallel(functools.partial(run_trial, trainer, problem.val.labels), missing, threads=0)
    for index, params in draws.items():
        if index not in journal.outcomes:
            journal.add(index, next(outcomes))
        yield Trial(index, phase.name, params, journal.outcomes[index])


def run_trial(trainer: HeadTrainer, labels: np.ndarray, settings: HeadSettings) -> Outcome:
    """Train a head and judge it on the validation images, whose labels are given."""
    started = time.perf_counter()
    trained = trainer.train(settings)
    accuracy, loss = judged(trained.logits, labels)
    return Outcome(accuracy, loss, trained.epochs, trained.exploded, time.perf_counter() - started)


def judged(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return (accuracy, mean loss in nats) of logits; (0, infinity) where some are not finite."""
    if not np.isfinite(logits).all():
        return 0.0, math.inf
    loss = -log_softmax(logits.astype(np.float64))[np.arange(len(labels)), labels].mean()
    return float((logits.argmax(axis=1) == labels).mean()), float(loss)


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials, best first."""
    return sorted(trials, key=lambda trial: trial.rank, reverse=True)


def promising(trials: Sequence[Trial], num_validation: int) -> list[Trial]:
    """Return the trials, best first, where the loss decides among accuracies within one standard error of the best.

    A range that narrows by accuracy alone follows the chance of an image or two.
    """
    best = ranked(trials)[0].outcome.accuracy
    error = math.sqrt(best * (1 - best) / num_validation)

    def order(trial: Trial) -> tuple[bool, float, float, int]:
        completed, accuracy, loss, index = trial.rank
        return (completed, min(accuracy, best - error), loss, index) if accuracy >= best - error else trial.rank

    return sorted(trials, key=order, reverse=True)


HOPELESS = 3.0
"""Training stops where the cost exceeds this multiple of the first (CS231n: "if the cost is ever > 3 * original cost, break
out early")."""

_COMPILED_AT_MOST = 32
_PREDICTED_AT_ONCE = 4096


class HeadTrainer:
    """Trains heads one after the other on the features of a problem; equal settings give equal heads.

    Args:
        problem: Training features, and the features to predict after training.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._num_images, self._num_views, self._width = problem.train.rows.shape
        self._rows = problem.train.rows.reshape(-1, self._width)
        self._mean, self._std = moments(self._rows)
        self._compiled = functools.lru_cache(_COMPILED_AT_MOST)(self._compile)

    def __reduce__(self) -> tuple[Any, ...]:
        return HeadTrainer, (self._problem,)  # compiled heads stay where they are

    def train(self, settings: HeadSettings) -> TrainedHead:
        """Train a head from its initial weights."""
        compiled = self._compiled(_form(settings.head), settings.optimizer, settings.weight_decay)
        compiled.reset(settings.head)
        model, num_classes = compiled.model, self._problem.num_classes
        batches = CachedBatches(
            self._rows,
            np.arange(len(self._rows)).reshape(self._num_images, self._num_views),
            self._problem.train.labels,
            (self._width,),
            batch_size=settings.batch_size,
            seed=self._problem.seed,
        )
        smoothing = settings.label_smoothing
        targets = ((1 - smoothing) * np.eye(num_classes) + smoothing / num_classes).astype(np.float32)
        if self._problem.class_weights is not None:  # the cross-entropy is linear in its targets
            targets *= self._problem.class_weights[:, None].astype(np.float32)
        rates = iter(_rates(settings, len(batches) * settings.epochs))
        limit = math.inf
        for epoch in range(settings.epochs):
            batches.epoch = epoch
            for index in range(len(batches)):
                x, labels = batches[index]
                model.optimizer.learning_rate.assign(next(rates))
                cost = float(np.ravel(model.train_on_batch(x, targets[labels]))[0])
                if not cost <= limit:  # NaN included
                    return self._trained(compiled, settings, epoch + 1, exploded=True)
                limit = limit if math.isfinite(limit) else HOPELESS * max(cost, 1e-3)
        return self._trained(compiled, settings, settings.epochs, exploded=False)

    def _trained(self, compiled: CompiledHead, settings: HeadSettings, epochs: int, *, exploded: bool) -> TrainedHead:
        rows = self._problem.val.center
        parts = [
            np.asarray(compiled.model.predict_on_batch(rows[start : start + _PREDICTED_AT_ONCE]), np.float32)
            for start in range(0, len(rows), _PREDICTED_AT_ONCE)
        ]
        logits = np.concatenate(parts) if parts else np.empty((0, self._problem.num_classes), np.float32)
        weights = tuple(np.array(array) for layer in head_layers(compiled.model) for array in layer.get_weights())
        head = Head(settings.head, self._mean, self._std, self._problem.num_classes, weights)
        return TrainedHead(head, logits, epochs, exploded)

    def _compile(self, form: HeadSpec, optimizer: str, weight_decay: float) -> CompiledHead:
        inputs, regularization = keras.Input((self._width,)), Regularization(name="regularization")
        logits = build_head(
            form,
            inputs,
            self._problem.num_classes,
            self._mean,
            self._std,
            seed=self._problem.seed,
            regularization=regularization,
        )
        model = keras.Model(inputs, logits)
        model.compile(
            optimizer=make_optimizer(optimizer, 1.0, weight_decay=weight_decay or None),
            loss=keras.losses.CategoricalCrossentropy(from_logits=True),
            jit_compile="auto" if keras.backend.backend() == "jax" else False,
        )
        model.optimizer.build(model.trainable_variables)
        if form.linear:  # the loss is convex: zero weights are the neutral start, and the first cost is ln(num_classes)
            for variable in model.trainable_variables:
                variable.assign(np.zeros(variable.shape))
        variables = [*model.variables, *model.optimizer.variables]
        initial = [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]
        return CompiledHead(model, regularization, variables, initial)


@dataclass(frozen=True, eq=False)
class CompiledHead:
    """A compiled head with everything that training changes.

    Attributes:
        model: From features to logits.
        regularization: A layer of the model.
        variables: Of the model and its optimizer.
        initial: Their values before the first step.
    """

    model: keras.Model
    regularization: Regularization
    variables: list[keras.Variable]
    initial: list[np.ndarray]

    def reset(self, spec: HeadSpec) -> None:
        """Undo all training, and take over the penalties and drop rates of `spec`."""
        for variable, array in zip(self.variables, self.initial, strict=True):
            variable.assign(array)
        self.regularization.assign(spec)


def _form(head: HeadSpec) -> HeadSpec:
    """Return the head without the numbers that are variables: equal forms share a compiled step."""
    dropout, dropconnect = (0.5 if rate else 0.0 for rate in (head.dropout, head.dropconnect))
    return replace(head, l1=0.0, l2=0.0, dropout=dropout, dropconnect=dropconnect)


def _rates(settings: HeadSettings, total_steps: int) -> np.ndarray:
    """Return the learning rate of every step: float32, shape (total_steps,)."""
    schedule = make_schedule(settings.schedule, settings.learning_rate, total_steps)
    rates = keras.ops.convert_to_numpy(schedule(np.arange(total_steps, dtype=np.float32)))
    return np.broadcast_to(np.asarray(rates, np.float32), total_steps)
