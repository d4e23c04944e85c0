"""Candidates: classifiers that may ship, as values that carry their weights, their held-out predictions and their cost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from transferapp.backbones.stages import Tap
from transferapp.errors import TransferAppError
from transferapp.evaluation.metrics import Metrics
from transferapp.training.head_spec import Head
from transferapp.training.settings import Epoch, Weights

if TYPE_CHECKING:
    from transferapp.training.curves import Finding

SOLVED = "linear classifier"
"""Name of the candidate that L-BFGS solves on frozen features."""


@dataclass(frozen=True, eq=False)
class Classifier:
    """The weights of a trained classifier: with the pretrained backbone, all that its network is built from.

    Attributes:
        taps: The statistics of the backbone's stages that the head reads, in the order of its features.
        head: The head with its weights. Where `tails` is not empty, its form: each tail has head weights of its own.
        temperature: Divisor of the logits, calibrated on held-out images.
        cut: The last frozen stage below the tails; `transferapp.policy.cuts.INPUT` where the whole network was trained. The
            best stage where the backbone is frozen.
        tails: Weights above the cut, head included, in the order of `Tail.model.weights`; empty where the backbone is frozen.
            Several are a snapshot ensemble, whose probabilities are averaged.
        linear: A linear classifier on the frozen backbone, whose probabilities are averaged with those of the tails.
    """

    taps: tuple[Tap, ...]
    head: Head
    temperature: float
    cut: str
    tails: tuple[Weights, ...] = ()
    linear: Classifier | None = None

    @property
    def frozen(self) -> bool:
        """Whether the backbone keeps its pretrained weights."""
        return not self.tails

    @property
    def pooled(self) -> bool:
        """Whether the head reads means and deviations, which are cached as features, and no other pooling of the maps."""
        return self.head.spec.pooling == "average"


@dataclass(frozen=True, eq=False)
class Candidate:
    """One way to obtain a classifier, and the result.

    Attributes:
        name: For people.
        backbone: The backbone's name.
        cut: The last frozen stage, or `transferapp.policy.cuts.INPUT`.
        head_only: Whether the backbone stays frozen.
        classifier: What ships if this candidate is chosen; None where it was not trained.
        held_out: The same classifier trained without the validation images; None where `classifier` has not seen them.
        metrics: Figures on the validation images; None without them, or where it was not trained.
        probabilities: Of the validation images: float32, shape (n, num_classes); None where they are not compared.
        correct: bool, shape (n,): whether each validation image is classified right; None where `metrics` is.
        seconds: Cost, cached activations included.
        planned_epochs, epochs: Epochs that there was time for, and epochs trained.
        learning_rate, backbone_learning_rate: The highest of the run; 0 where L-BFGS chooses its steps.
        steps: L-BFGS iterations or updates.
        notes: What happened: left out and why, stopped early, halved the batch.
        history: Every epoch.
        findings: What its curves say.
        error: The error that ended its training.
        no_time: Whether it was left out because the budget was too short.
    """

    name: str
    backbone: str
    cut: str
    head_only: bool = False
    classifier: Classifier | None = None
    held_out: Classifier | None = None
    metrics: Metrics | None = None
    probabilities: np.ndarray | None = None
    correct: np.ndarray | None = None
    seconds: float = 0.0
    planned_epochs: int = 0
    epochs: int = 0
    learning_rate: float = 0.0
    backbone_learning_rate: float = 0.0
    steps: int = 0
    notes: tuple[str, ...] = ()
    history: tuple[Epoch, ...] = ()
    findings: tuple[Finding, ...] = ()
    error: TransferAppError | None = None
    no_time: bool = False

    @property
    def accuracy(self) -> float | None:
        """Accuracy on the validation images, in [0, 1]."""
        return None if self.metrics is None else self.metrics.accuracy

    @property
    def loss(self) -> float | None:
        """Mean negative log-likelihood on the validation images, in nats."""
        return None if self.metrics is None else self.metrics.loss


def head_function(head: Head) -> Callable[[np.ndarray], np.ndarray]:
    """Return a trained head as a function of pooled features, safe to call from several threads.

    It takes float32 features of shape (n, channels) and returns float32 logits of shape (n, num_classes).
    """
    if head.spec.linear:
        kernel, bias = head.weights
        return lambda features: np.asarray((features - head.mean) / head.std @ kernel + bias)
    from transferapp.training.tail import lone_head

    model, lock = lone_head(head, head.mean.shape, seed=0).model, threading.Lock()

    def logits(features: np.ndarray) -> np.ndarray:
        with lock:  # Keras' predict is not made for several threads.
            return np.asarray(model.predict(features, batch_size=1024, verbose=0), np.float32)

    return logits
