"""What a training run is told and what it tells: its settings, and one line of history for each epoch. Imports no Keras."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from transferapp.training.optimizers import POLYAK_DECAY
from transferapp.training.schedules import SCHEDULES

Weights = list[np.ndarray]
"""Arrays in the order of a model's `weights`."""


OUT_OF_MEMORY = "out_of_memory"
"""Code of the error that says so."""

PATIENCE = 4
"""Epochs without a better one after which training stops."""


class Batches(Protocol):
    """Training data: a `keras.utils.PyDataset` whose batches follow from the number of the epoch, counted from 0."""

    epoch: int

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]: ...


MakeBatches = Callable[[int], Batches]
"""From a batch size to the training data."""


@dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    Attributes:
        optimizer: A key of `OPTIMIZERS`.
        learning_rate: Of the head; the backbone's is smaller by the multipliers.
        schedule: A key of `SCHEDULES`.
        epochs: Passes over the images.
        cycles: Restarts of `sgdr`; the weights at the end of each cycle are a snapshot.
        average: Polyak decay; 0 keeps no average.
        weight_decay: Decoupled; 0 for none, or for what `adamw` decays by unless told otherwise.
        clip_norm: Bound on the norm of the gradient; 0 for none.
        patience: Epochs without a better one after which training stops; a schedule that restarts is never stopped, for
            after each restart it is worse before it is better.
        class_weights: How much an image of each class counts in the loss, mean 1 over the training images; none of them
            where all count the same. Losses and accuracies that are reported are without weights, but for the training loss.
        label_smoothing: Share of the label's probability that is spread over all classes (Szegedy et al., 2016).
        mixup, cutmix: See `transferapp.training.mixing`; 0 for none.
    """

    optimizer: str = "adam"
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    epochs: int = 8
    cycles: int = 1
    average: float = POLYAK_DECAY
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    patience: int = PATIENCE
    class_weights: tuple[float, ...] = ()
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    @property
    def soft_labels(self) -> bool:
        """Whether batches carry probabilities for labels, shape (n, num_classes), instead of class indices."""
        return bool(self.label_smoothing or self.mixup or self.cutmix)

    @property
    def restarts(self) -> bool:
        """Whether the rate rises again within the run."""
        return self.cycles > 1 and SCHEDULES[self.schedule].cyclic


@dataclass(frozen=True)
class Epoch:
    """One line of the history. Losses in nats, accuracies in [0, 1]; the averaged figures are None without averaging."""

    epoch: int
    learning_rate: float
    loss: float
    accuracy: float
    val_loss: float
    val_accuracy: float
    averaged_val_loss: float | None
    averaged_val_accuracy: float | None
    seconds: float

    @property
    def best(self) -> tuple[float, float, bool]:
        """(accuracy, loss, whether averaged) of the better of the raw and the averaged weights."""
        raw = (self.val_accuracy, self.val_loss, False)
        if self.averaged_val_accuracy is None or self.averaged_val_loss is None:
            return raw
        averaged = (self.averaged_val_accuracy, self.averaged_val_loss, True)
        return max(raw, averaged, key=lambda figures: merit(figures[0], figures[1]))


def merit(accuracy: float, loss: float) -> tuple[float, float]:
    """What to sort by: accuracy first, and among equals the smaller loss; no number is worse than any."""
    return (accuracy, -loss) if math.isfinite(loss) else (-1.0, 0.0)
