"""The training loop: epochs of `model.fit` with validation, early stopping, the best weights, and checkpoints.

After each epoch the raw weights and their Polyak average are evaluated on the validation images, and the better of the two
counts. Then everything that the rest of the run depends on is saved as one generation, so that a kill costs one epoch at most.
Order and views of the images follow from the seed and the number of the epoch, so there is no generator state to save.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from transferapp.errors import TrainingError
from transferapp.policy.choose import cannot_win, merit
from transferapp.training.checkpoint import CheckpointStore, Generation
from transferapp.training.session import Session, smaller_batch
from transferapp.training.settings import Epoch, TrainingJob, TrainingSettings, Weights


@dataclass(frozen=True)
class Trained:
    """Outcome of `train`.

    Attributes:
        weights: Weights of the best epoch, in the order of `model.weights`.
        epoch: The best epoch, counted from 1.
        averaged: Whether the weights are the Polyak average.
        accuracy, loss: On the validation images.
        logits: Logits of those images: float32, shape (n, num_classes).
        snapshots: Weights at the end of each cycle of `sgdr`.
        history: Every epoch.
        batch_size: Batch size at the end.
        notes: Events for people: an early stop, a halved batch.
        diverged: Whether training ended because the loss was no longer finite.
    """

    weights: Weights
    epoch: int
    averaged: bool
    accuracy: float
    loss: float
    logits: np.ndarray
    snapshots: tuple[Weights, ...]
    history: tuple[Epoch, ...]
    batch_size: int
    notes: tuple[str, ...] = ()
    diverged: bool = False

    @property
    def seconds(self) -> float:
        """Seconds of all epochs, validation included."""
        return sum(epoch.seconds for epoch in self.history)


@dataclass
class _State:
    """State of the loop, stored in each generation."""

    batch_size: int
    history: list[Epoch]
    best: Weights
    best_epoch: int
    best_averaged: bool
    best_logits: np.ndarray
    snapshots: list[Weights]
    notes: list[str]


def train(
    job: TrainingJob,
    validation: Any,
    val_labels: np.ndarray,
    *,
    checkpoints: CheckpointStore,
    seconds: float = math.inf,
    on_start: Callable[[int], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Trained:
    """Train to the end, or until nothing improves any more, from the newest generation if there is one.

    Args:
        job: Model, training data and settings.
        validation: A `PyDataset` of the validation images, in order.
        val_labels: int, shape (n,).
        checkpoints: Store of the state; the caller removes it when the run is over.
        seconds: Limit for all epochs, including those before an interruption. An epoch other than the first begins only if it
            would end within the limit at the speed of the quickest epoch so far.
        on_start: Called before the first epoch, with the number of epochs trained before an interruption.
        on_epoch: Called after each epoch.

    Raises:
        TrainingError: The loss was not finite in the first epoch.
        ResourceError: The disk is full, or memory does not suffice for the smallest batch.
        DataError: An image cannot be read any more.
    """
    settings = job.settings

    def begin(batch_size: int) -> Session:
        return Session(replace(job, batch_size=batch_size), validation)

    generation = checkpoints.latest()
    if generation is None:
        session = begin(job.batch_size)
        state = _State(job.batch_size, [], session.weights(), 0, False, np.empty((0, 0), np.float32), [], [])
    else:
        state = _restored(generation)
        session = begin(state.batch_size)
        session.restore(generation)
    if on_start is not None:
        on_start(len(state.history))
    diverged = False
    while len(state.history) < settings.epochs and not _reason_to_stop(state, settings, seconds):
        number = len(state.history) + 1
        started = time.perf_counter()
        try:
            logs = session.fit_epoch(number)
        except Exception as error:
            state.batch_size = smaller_batch(state.batch_size, error)
            state.notes.append(f"out of memory in epoch {number}: the batch was halved to {state.batch_size}")
            session = begin(state.batch_size)
            # The failed epoch is undone. The optimizer's state does not depend on the batch size, but it counts steps, of
            # which an epoch now has more.
            if (last := checkpoints.latest()) is not None:
                session.restore(last)
            else:
                session.assign(state.best)
            session.skip_to(number)
            continue
        record, logits = _evaluated(session, logs, number, val_labels, started)
        state.history.append(record)
        accuracy, loss, averaged = record.best
        if not math.isfinite(record.loss) or not math.isfinite(loss):
            diverged = True
            state.notes.append(f"diverged in epoch {number}: the loss is no longer finite")
            break
        if state.best_epoch == 0 or merit(accuracy, loss) > merit(*_best_figures(state)):
            state.best, state.best_epoch, state.best_averaged = session.weights(averaged), number, averaged
            state.best_logits = logits
        if number in session.snapshot_epochs:
            state.snapshots.append(session.weights())
        checkpoints.save(number, {**session.arrays(), **_arrays(state)}, _facts(state))
        if on_epoch is not None:
            on_epoch(record)
    if state.best_epoch == 0:
        raise TrainingError(
            "Training diverged in its first epoch",
            expected="a finite loss",
            got=", ".join(state.notes),
            hint="Choose a smaller --learning-rate",
        )
    accuracy, loss = _best_figures(state)
    notes = list(state.notes)
    if not diverged and len(state.history) < settings.epochs:
        notes.append(f"stopped after epoch {len(state.history)}: {_reason_to_stop(state, settings, seconds)}")
    return Trained(
        weights=state.best,
        epoch=state.best_epoch,
        averaged=state.best_averaged,
        accuracy=accuracy,
        loss=loss,
        logits=state.best_logits,
        snapshots=tuple(state.snapshots),
        history=tuple(state.history),
        batch_size=state.batch_size,
        notes=tuple(notes),
        diverged=diverged,
    )


def _reason_to_stop(state: _State, settings: TrainingSettings, seconds: float) -> str:
    """Return why no further epoch begins; empty where one does."""
    if _exhausted(state, settings):
        return f"none of the last {settings.patience} was better"
    if state.best_epoch and settings.to_beat and not settings.restarts:
        share, best = len(state.history) / settings.epochs, _best_figures(state)[0]
        if cannot_win(best, settings.to_beat, len(state.best_logits), share):
            return f"{best:.1%} of the validation images are too far below {settings.to_beat:.1%} to win"
    return "the time was up" if _overdue(state, seconds) else ""


def _exhausted(state: _State, settings: TrainingSettings) -> bool:
    """Return whether the last `patience` epochs brought no improvement."""
    return not settings.restarts and len(state.history) - state.best_epoch >= settings.patience


def _overdue(state: _State, seconds: float) -> bool:
    """Return whether one more epoch would exceed the time limit."""
    taken = [epoch.seconds for epoch in state.history]
    return bool(taken) and sum(taken) + min(taken) > seconds


def _best_figures(state: _State) -> tuple[float, float]:
    accuracy, loss, _ = state.history[state.best_epoch - 1].best
    return accuracy, loss


def _evaluated(
    session: Session, logs: dict[str, float], number: int, labels: np.ndarray, started: float
) -> tuple[Epoch, np.ndarray]:
    """Return the epoch's line of history, and the validation logits of the better of raw and averaged weights."""
    logits, loss, accuracy = session.validate(labels)
    record = Epoch(
        epoch=number,
        learning_rate=session.rate_at(number),
        loss=logs["loss"],
        accuracy=logs["accuracy"],
        val_loss=loss,
        val_accuracy=accuracy,
        averaged_val_loss=None,
        averaged_val_accuracy=None,
        seconds=0.0,
    )
    if session.averages:
        raw = session.weights()
        session.assign(session.weights(averaged=True))
        averaged_logits, loss, accuracy = session.validate(labels)
        session.assign(raw)
        record = replace(record, averaged_val_loss=loss, averaged_val_accuracy=accuracy)
        logits = averaged_logits if record.best[2] else logits
    return replace(record, seconds=round(time.perf_counter() - started, 3)), logits


def _arrays(state: _State) -> dict[str, np.ndarray]:
    return {
        **{f"best/{i}": w for i, w in enumerate(state.best)},
        "best_logits": state.best_logits,
        **{f"snapshot/{s}/{i}": w for s, weights in enumerate(state.snapshots) for i, w in enumerate(weights)},
    }


def _facts(state: _State) -> dict[str, Any]:
    return {
        "batch_size": state.batch_size,
        "history": [asdict(epoch) for epoch in state.history],
        "best_epoch": state.best_epoch,
        "best_averaged": state.best_averaged,
        "num_weights": len(state.best),
        "num_snapshots": len(state.snapshots),
        "notes": state.notes,
    }


def _restored(generation: Generation) -> _State:
    facts, arrays = generation.facts, generation.arrays
    count = range(facts["num_weights"])
    return _State(
        batch_size=facts["batch_size"],
        history=[Epoch(**epoch) for epoch in facts["history"]],
        best=[arrays[f"best/{i}"] for i in count],
        best_epoch=facts["best_epoch"],
        best_averaged=facts["best_averaged"],
        best_logits=arrays["best_logits"],
        snapshots=[[arrays[f"snapshot/{s}/{i}"] for i in count] for s in range(facts["num_snapshots"])],
        notes=list(facts["notes"]),
    )
