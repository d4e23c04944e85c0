"""Settings of a training run, its data, and its history. Imports no Keras."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from transferapp.policy.choose import merit
from transferapp.training.optimizers import POLYAK_DECAY
from transferapp.training.schedules import SCHEDULES

if TYPE_CHECKING:
    import keras

Weights = list[np.ndarray]
"""Arrays in the order of a model's `weights`."""

OUT_OF_MEMORY = "out_of_memory"
"""Code of the error of that kind."""

PATIENCE = 4
"""Epochs without improvement after which training stops."""


class Batches(Protocol):
    """Training data: a `keras.utils.PyDataset` whose batches follow from the number of the epoch, counted from 0."""

    epoch: int

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]: ...


MakeBatches = Callable[[int], Batches]
"""A function from a batch size to the training data."""


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of a training run.

    Attributes:
        optimizer: A key of `OPTIMIZERS`.
        learning_rate: Rate of the head; the backbone's is smaller by the multipliers.
        schedule: A key of `SCHEDULES`.
        epochs: Passes over the images.
        cycles: Restarts of `sgdr`; the weights at the end of each cycle are a snapshot.
        average: Polyak decay; 0 for no average.
        weight_decay: Decoupled; 0 for none, or for the default of `adamw`.
        clip_norm: Limit on the norm of the gradient; 0 for none.
        patience: Epochs without improvement after which training stops. A schedule that restarts is never stopped, because
            after each restart it is worse before it is better.
        to_beat: Accuracy on the validation images that the run must exceed to be of use; a run that cannot any more is
            stopped. 0 for none.
        class_weights: Weight of each class in the loss, mean 1 over the training images; empty for equal weights. Reported
            losses and accuracies are unweighted, except the training loss.
        label_smoothing: Share of the label's probability that is spread over all classes (Szegedy et al., 2016).
        mixup, cutmix: See `transferapp.training.batches`; 0 for none.
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
    to_beat: float = 0.0
    class_weights: tuple[float, ...] = ()
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    @property
    def soft_labels(self) -> bool:
        """Whether labels are probabilities, shape (n, num_classes), instead of class indices."""
        return bool(self.label_smoothing or self.mixup or self.cutmix)

    @property
    def restarts(self) -> bool:
        """Whether the rate rises again within the run."""
        return self.cycles > 1 and SCHEDULES[self.schedule].cyclic


@dataclass(frozen=True, eq=False)
class TrainingJob:
    """A model with its data and settings, ready to be timed, range-tested or trained.

    Attributes:
        model: Returns logits of shape (batch, num_classes).
        make_batches: Makes the training data; of `transferapp.training.batches`, where the settings have `soft_labels`.
        settings: Settings of the run.
        multipliers: Learning-rate multipliers by variable path; see `make_optimizer`.
        batch_size: Images in a batch; halved when memory does not suffice.
    """

    model: keras.Model
    make_batches: MakeBatches
    settings: TrainingSettings
    multipliers: Mapping[str, float]
    batch_size: int


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
