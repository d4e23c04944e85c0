"""A trial: a head to train on cached features with some settings, and how good it then is on the validation images."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from transferapp.training.head_spec import HeadSpec
from transferapp.training.optimizers import decay_in_effect
from transferapp.training.probe import log_softmax, moments
from transferapp.training.schedules import STEP_FACTOR, STEP_FRACTIONS

HOPELESS = 3.0
"""A trial stops where its cost is more than so many times what it began with (CS231n: "if the cost is ever > 3 * original cost,
break out early")."""

Weights = list[np.ndarray]
"""Arrays in the order of the head's weights: of a linear one kernel and bias."""


@dataclass(frozen=True)
class HeadSettings:
    """All that a trial is told.

    Attributes:
        head: Its form and regularization.
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

    def with_params(self, params: Mapping[str, Any], epochs: int) -> HeadSettings:
        """The same with what a trial varies, by the names of `transferapp.recipes.search.space.SETTINGS`."""
        of_head = {name: value for name, value in params.items() if name in HeadSpec.__dataclass_fields__}
        own = {name: value for name, value in params.items() if name not in of_head}
        return replace(self, head=replace(self.head, **of_head), epochs=epochs, **own)

    @property
    def decay(self) -> float:
        """Weight decay in effect: of `adamw` it is Keras' own where none is asked for, as in `make_optimizer`."""
        return decay_in_effect(self.optimizer, self.weight_decay)

    def value(self, name: str) -> Any:
        """The value of a setting by the names of `transferapp.recipes.search.space.SETTINGS`."""
        return getattr(self, name) if hasattr(self, name) else getattr(self.head, name)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary for JSON."""
        return {**asdict(self), "head": self.head.to_json()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> HeadSettings:
        """What `to_json` gave."""
        return cls(**{**values, "head": HeadSpec.from_json(values["head"])})


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
        """The first view of each: shape (n, num_features)."""
        center: np.ndarray = self.rows[:, 0]
        return center


@dataclass(frozen=True)
class Problem:
    """What all trials train and are judged on.

    Attributes:
        train: Training images.
        val: Validation images, judged by their first view.
        num_classes: Width of the output.
        seed: Decides initial weights, the order of images, and what dropout leaves out.
    """

    train: Features
    val: Features
    num_classes: int
    seed: int

    def save(self, folder: Path) -> None:
        """Write it for other processes."""
        for name, part in (("train", self.train), ("val", self.val)):
            np.save(folder / f"{name}-rows.npy", part.rows)
            np.save(folder / f"{name}-labels.npy", part.labels)
        np.save(folder / "facts.npy", np.array([self.num_classes, self.seed]))

    @classmethod
    def load(cls, folder: Path) -> Problem:
        """What `save` wrote; processes share its memory."""
        train, val = (
            Features(
                np.asarray(np.load(folder / f"{name}-rows.npy", mmap_mode="r")), np.load(folder / f"{name}-labels.npy")
            )
            for name in ("train", "val")
        )
        num_classes, seed = (int(n) for n in np.load(folder / "facts.npy"))
        return cls(train, val, num_classes, seed)


@dataclass(frozen=True)
class TrainedHead:
    """A head after training.

    Attributes:
        weights: Its weights.
        mean, std: float32, shape (num_features,): what features are standardized by before they enter it.
        cost: Mean of the last epoch, penalty included.
        epochs: Passes made; fewer than asked for where the cost exploded.
        exploded: Whether it did.
        steps: Updates made.
    """

    weights: Weights
    mean: np.ndarray
    std: np.ndarray
    cost: float
    epochs: int
    exploded: bool
    steps: int


class HeadTrainer(Protocol):
    """Trains heads on the same images, one after the other."""

    def train(self, settings: HeadSettings) -> TrainedHead:
        """Train a head from new weights; the same settings give the same head."""
        ...

    def logits(self, settings: HeadSettings, trained: TrainedHead, features: np.ndarray) -> np.ndarray:
        """What a trained head makes of features: float32, shape (n, num_classes)."""
        ...


@dataclass(frozen=True)
class Outcome:
    """How good a trial was. Losses in nats, accuracy in [0, 1], both on the validation images."""

    accuracy: float
    loss: float
    epochs: int
    exploded: bool
    seconds: float


def run_trial(problem: Problem, trainer: HeadTrainer, settings: HeadSettings) -> Outcome:
    """Train a head and judge it. A loss that is no number counts as infinite."""
    started = time.perf_counter()
    trained = trainer.train(settings)
    logits = trainer.logits(settings, trained, problem.val.center)
    accuracy, loss = judged(logits, problem.val.labels)
    return Outcome(accuracy, loss, trained.epochs, trained.exploded, time.perf_counter() - started)


def judged(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """(accuracy, mean loss in nats) of logits; a head that gives no numbers is right on nothing."""
    if not np.isfinite(logits).all():
        return 0.0, math.inf
    loss = -log_softmax(logits.astype(np.float64))[np.arange(len(labels)), labels].mean()
    return float((logits.argmax(axis=1) == labels).mean()), float(loss)


def standardized(features: Features) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows with zero mean and unit deviation, float32, shape (n, views, num_features), and that mean and deviation."""
    mean, std = moments(features.rows.reshape(-1, features.rows.shape[-1]))
    rows: np.ndarray = (features.rows - mean) / std
    return rows, mean, std


def targets(labels: np.ndarray, num_classes: int, smoothing: float) -> np.ndarray:
    """One-hot labels, smoothed (Szegedy et al., 2016): float32, shape (n, num_classes)."""
    spread = np.full((len(labels), num_classes), smoothing / num_classes, np.float32)
    spread[np.arange(len(labels)), labels] += np.float32(1 - smoothing)
    return spread


def batches(num_images: int, num_views: int, batch_size: int, epoch: int, seed: int) -> Iterator[tuple[Any, Any]]:
    """(images, views) of each step of an epoch counted from 0: every image once, each time in the next of its views."""
    order = np.random.default_rng([seed, 1, epoch]).permutation(num_images)
    offset = np.random.default_rng([seed, 0]).permutation(num_images) % num_views
    for start in range(0, num_images, batch_size):
        chosen = order[start : start + batch_size]
        yield chosen, (epoch + offset[chosen]) % num_views


def relative_rates(schedule: str, total_steps: int) -> np.ndarray:
    """The rate of every step over the highest, as `make_schedule` has it without warm-up: float64, shape (total_steps,)."""
    step = np.arange(total_steps)
    match schedule:
        case "constant":
            return np.ones(total_steps)
        case "cosine":
            return 0.5 * (1 + np.cos(np.pi * step / total_steps))
        case "linear":
            return 1 - step / total_steps
        case "step":
            drops = sum((step >= round(fraction * total_steps)).astype(int) for fraction in STEP_FRACTIONS)
            return np.asarray(STEP_FACTOR, dtype=float) ** drops
    raise ValueError(f"A trial has no schedule {schedule!r}.")


class CostWatch:
    """Says when a trial's cost has left what it began with too far behind."""

    def __init__(self) -> None:
        self._original: float | None = None
        self.exploded = False

    def __call__(self, cost: float) -> bool:
        """Whether to stop after a step of this cost."""
        if self._original is None:
            self._original = cost
        self.exploded = not math.isfinite(cost) or cost > HOPELESS * max(self._original, 1e-3)
        return self.exploded
