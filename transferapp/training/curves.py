"""Findings from the curves of a training run: over-fitting, under-fitting, learning rates too high or too low.

CS231n, "Training Neural Networks II", reads them off by eye: a big gap between training and validation accuracy is
over-fitting; no gap at low accuracy is under-fitting; a loss that explodes or bounces means too high a rate, and one that falls
slowly in a straight line too low a rate. `diagnose` does the same as a pure function with named thresholds. These are rules of
thumb: each finding states its numbers, so that a person can disagree.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from transferapp.errors import UsageError

FEWEST_EPOCHS = 3
"""Epochs from which a course can be seen, and over which the end of a curve is averaged."""

NEGLIGIBLE = 0.05
"""Nats. A rise of the loss by less than this is not counted, whatever the ratio: the loss was near zero before."""

DIVERGED = 1.5
"""The loss has diverged where it ends at more than this many times its best, and ..."""
DIVERGED_OF_FIRST = 0.1
"""... by more than this share of the first epoch's loss: from 0.001 to 0.003 is noise of a fitted network."""

BOUNCE_SHARE = 0.5
"""The loss bounces where it rises at least half as much as it falls, over the whole run, and ..."""
BOUNCE_SIZE = 0.1
"""... the mean rise is at least this share of the first epoch's loss: a plateau rises as often as it falls, but little."""
RESTART = 1.5
"""Where the learning rate rose by this factor (warm restarts), a rise of the loss is expected and not counted."""

GAP = 0.1
"""Training accuracy less validation accuracy from which a gap is big. Augmentation and dropout make it look smaller."""
STALLED = 0.01
"""Rise of validation accuracy over the second half of the run below which it no longer gains from training."""
FALLING = 0.02
"""Fall of validation accuracy over the second half of the run that counts as over-fitting, however small the gap."""
OVERCONFIDENT = 1.25
"""Validation loss, as a multiple of its best, from which the network is over-confident of its wrong answers."""

POOR = 0.7
"""Training accuracy below which a network has not fitted its images."""
NO_GAP = 0.05
"""Gap below which over-fitting does not explain a low accuracy."""
FLAT = 0.02
"""Change over the second half of the run, of accuracy or as a share of the first loss, below which a curve is flat."""
UNLEARNED = 0.7
"""Without accuracies: a loss above this share of its first value counts as not learned, unless exp(-loss), the probability of
the right class, is `POOR` or more."""

STRAIGHT = 0.95
"""R squared of a straight line through the training loss, from which it is straight."""
CREEP = 0.03
"""Share of its first value that a straight loss must fall by per epoch: below it, thirty epochs would be needed."""
FITTED = 0.95
"""Training accuracy from which slow progress is not a finding: hardly anything is left to learn."""

IMPROVING = 0.01
"""Share of its first value by which the loss must still fall per epoch for more epochs to be worth their time. Ten of them
must also be worth `NEGLIGIBLE` nats."""

SWING = 0.02
"""Mean swing of validation accuracy from epoch to epoch that is noise: chance alone gives a third of this on 1000 images."""


@dataclass(frozen=True)
class Curves:
    """The curves of a run, one number per epoch; each series is as long as `train_loss`, or empty where it is missing.

    Attributes:
        train_loss: Mean loss over the epoch's batches, in nats.
        train_accuracy: Mean accuracy over the epoch's batches, in [0, 1].
        val_loss: Loss on the validation images after the epoch, in nats.
        val_accuracy: Accuracy on the validation images after the epoch, in [0, 1].
        learning_rate: Learning rate in the middle of the epoch.
    """

    train_loss: tuple[float, ...]
    train_accuracy: tuple[float, ...] = ()
    val_loss: tuple[float, ...] = ()
    val_accuracy: tuple[float, ...] = ()
    learning_rate: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for field in fields(self):
            length = len(getattr(self, field.name))
            if length not in (0, len(self.train_loss)):
                raise UsageError(
                    f"The curves differ in length: {field.name}",
                    expected=f"{len(self.train_loss)} epochs, or none",
                    got=str(length),
                )


@dataclass(frozen=True)
class Finding:
    """One thing that the curves show.

    Attributes:
        code: `rate_too_high`, `over_fitting`, `under_fitting`, `rate_too_low`, `noisy_validation`, `still_improving`,
            `too_short` or `healthy`.
        sentence: The observation, for people.
        evidence: The numbers behind it, by name; all finite. Epochs are counted from 1.
        advice: The first thing to try.
    """

    code: str
    sentence: str
    evidence: Mapping[str, float]
    advice: str


def diagnose(history: Curves) -> tuple[Finding, ...]:
    """Read the curves of a run.

    Args:
        history: Any number of epochs, with or without validation; a loss may be NaN or infinite. An accuracy that is not
            finite makes its series count as missing.

    Returns:
        Findings, the gravest first; at least one. `healthy` comes alone, and so does the finding of a loss that is not finite.
    """
    broken = _not_finite(history)
    if broken:
        return (broken,)
    if not history.train_loss:
        return (Finding("too_short", "No epoch was trained.", {"epochs": 0}, "Train for some epochs."),)
    history = replace(
        history,
        train_accuracy=_finite_or_none(history.train_accuracy),
        val_accuracy=_finite_or_none(history.val_accuracy),
        learning_rate=_finite_or_none(history.learning_rate),
    )
    epochs = len(history.train_loss)
    diverging = _diverging(history)
    if epochs < FEWEST_EPOCHS:
        return (diverging,) if diverging else (_too_short(epochs),)
    rate_too_high = diverging or _bouncing(history)
    over_fitting = _over_fitting(history)
    rate_too_low = None if rate_too_high else _rate_too_low(history)
    under_fitting = None if rate_too_high or rate_too_low else _under_fitting(history)
    still_improving = None if rate_too_high or rate_too_low or over_fitting else _still_improving(history)
    found = (rate_too_high, over_fitting, under_fitting, rate_too_low, _noisy(history), still_improving)
    return tuple(finding for finding in found if finding) or (_healthy(history),)


# --- findings, gravest first ---


def _not_finite(history: Curves) -> Finding | None:
    for name, losses in (("training", history.train_loss), ("validation", history.val_loss)):
        for epoch, loss in enumerate(losses, start=1):
            if not math.isfinite(loss):
                evidence = {"epoch": float(epoch)}
                if epoch > 1:
                    evidence["last_finite_loss"] = losses[epoch - 2]
                return Finding(
                    "rate_too_high",
                    f"The {name} loss is no longer finite in epoch {epoch}: training has diverged.",
                    evidence,
                    "Divide the learning rate by ten; if that does not help, clip the gradients and look for damaged images.",
                )
    return None


def _diverging(history: Curves) -> Finding | None:
    loss = history.train_loss
    best = min(loss)
    if loss[-1] <= DIVERGED * best or loss[-1] - best <= max(NEGLIGIBLE, DIVERGED_OF_FIRST * loss[0]):
        return None
    if _restarted(history, len(loss) - 1):
        return None
    return Finding(
        "rate_too_high",
        f"The training loss diverges: it ends at {loss[-1]:.3g}, after {best:.3g} in epoch {loss.index(best) + 1}.",
        {"first_loss": loss[0], "best_loss": best, "last_loss": loss[-1], "best_epoch": loss.index(best) + 1.0},
        "Divide the learning rate by three to ten, and let it rise over a warm-up.",
    )


def _bouncing(history: Curves) -> Finding | None:
    loss = history.train_loss
    steps = [loss[i] - loss[i - 1] for i in range(1, len(loss)) if not _restarted(history, i)]
    rises = [step for step in steps if step > 0]
    fallen = -sum(step for step in steps if step < 0)
    if len(rises) < 2 or sum(rises) < BOUNCE_SHARE * fallen or np.mean(rises) < max(NEGLIGIBLE, BOUNCE_SIZE * loss[0]):
        return None
    return Finding(
        "rate_too_high",
        f"The training loss bounces: it rises in {len(rises)} of {len(steps)} epochs, by {np.mean(rises):.3g} on average.",
        {"rising_epochs": float(len(rises)), "mean_rise": float(np.mean(rises)), "risen": sum(rises), "fallen": fallen},
        "Divide the learning rate by three, or let a schedule lower it.",
    )


def _over_fitting(history: Curves) -> Finding | None:
    train, val, val_loss = history.train_accuracy, history.val_accuracy, history.val_loss
    lowest = min(val_loss, default=0.0)
    rise = val_loss[-1] - lowest if val_loss else 0.0
    overconfident = rise >= max(NEGLIGIBLE, (OVERCONFIDENT - 1) * lowest)
    advice = (
        "Train fewer layers, or regularize more: stronger augmentation, dropout, weight decay; more images help most."
    )
    if train and val:
        gap, won = _end(train) - _end(val), _won(val)
        falls = _won(val, errors=2.0) <= -FALLING and _won(train) > -STALLED
        if not falls and (gap < GAP or (won >= STALLED and not overconfident)):
            return None
        best = val.index(max(val)) + 1
        course = "falls" if falls else "no longer rises" if won < STALLED else "rises, but so does its loss"
        return Finding(
            "over_fitting",
            f"Training accuracy ends at {_end(train):.1%}; validation accuracy ends at {_end(val):.1%} and {course}.",
            {"gap": gap, "val_change": won, "val_loss_rise": rise, "best_epoch": float(best)},
            advice,
        )
    if not overconfident or history.train_loss[-1] >= history.train_loss[val_loss.index(lowest)]:
        return None
    best = val_loss.index(lowest)
    return Finding(
        "over_fitting",
        f"The validation loss rises from {lowest:.3g} in epoch {best + 1} to {val_loss[-1]:.3g}, "
        "while the training loss falls.",
        {"val_loss_rise": rise, "best_epoch": best + 1.0, "train_loss": history.train_loss[-1]},
        advice,
    )


def _under_fitting(history: Curves) -> Finding | None:
    loss, accuracy, val = history.train_loss, history.train_accuracy, history.val_accuracy
    if -_won(loss) >= FLAT * loss[0] > 0:
        return None
    advice = "Train more layers, or a larger backbone; regularize less; check that labels and images belong together."
    if accuracy:
        gap = _end(accuracy) - _end(val) if val else 0.0
        if _end(accuracy) >= POOR or gap >= NO_GAP or _won(accuracy) >= FLAT:
            return None
        validation = f", validation accuracy at {_end(val):.1%}" if val else ""
        return Finding(
            "under_fitting",
            f"Training accuracy stays at {_end(accuracy):.1%}{validation}: the network does not fit its training images.",
            {"train_accuracy": _end(accuracy), "gap": gap, "train_change": _won(accuracy), "loss_change": _won(loss)},
            advice,
        )
    if loss[-1] < UNLEARNED * loss[0] or math.exp(-loss[-1]) >= POOR:
        return None
    return Finding(
        "under_fitting",
        f"The training loss stays at {loss[-1]:.3g}, from {loss[0]:.3g} in the first epoch.",
        {"first_loss": loss[0], "last_loss": loss[-1], "loss_change": _won(loss)},
        advice,
    )


def _rate_too_low(history: Curves) -> Finding | None:
    loss = np.array(history.train_loss)
    if history.train_accuracy and history.train_accuracy[-1] >= FITTED:
        return None
    epochs = np.arange(len(loss))
    slope, start = np.polyfit(epochs, loss, 1)
    residual = float(np.sum((loss - (start + slope * epochs)) ** 2))
    spread = float(np.sum((loss - loss.mean()) ** 2))
    if slope >= 0 or spread == 0 or 1 - residual / spread < STRAIGHT or -slope > CREEP * loss[0]:
        return None
    if np.mean(np.diff(loss) < 0) < 0.8:
        return None
    return Finding(
        "rate_too_low",
        f"The training loss falls slowly in a straight line, by {-slope / loss[0]:.2%} of its first value per epoch.",
        {"fall_per_epoch": float(-slope), "straightness": 1 - residual / spread, "last_loss": float(loss[-1])},
        "Multiply the learning rate by three to ten.",
    )


def _noisy(history: Curves) -> Finding | None:
    accuracy = history.val_accuracy
    if len(accuracy) < FEWEST_EPOCHS + 1:
        return None
    steps = np.diff(accuracy)
    steps[[_restarted(history, epoch) for epoch in range(1, len(accuracy))]] = 0.0
    turns = [min(abs(a), abs(b)) if a * b < 0 else 0.0 for a, b in itertools.pairwise(steps)]
    swing = float(np.mean(turns))
    if swing < SWING or np.count_nonzero(turns) < 2:
        return None
    return Finding(
        "noisy_validation",
        f"Validation accuracy swings by {100 * swing:.1f} points from epoch to epoch, between {min(accuracy):.1%} and "
        f"{max(accuracy):.1%}.",
        {"swing": swing, "lowest": min(accuracy), "highest": max(accuracy)},
        "Average the weights (Polyak) or lower the rate towards the end; with few validation images, do not trust one epoch.",
    )


def _still_improving(history: Curves) -> Finding | None:
    name, loss = ("validation", history.val_loss) if history.val_loss else ("training", history.train_loss)
    since = FEWEST_EPOCHS - 1
    # Measured from the best of all epochs before: the way back from a restart is not progress.
    fall = (min(loss[:-since]) - loss[-1]) / since
    if loss[-1] > min(loss) or loss[0] <= 0 or fall < max(IMPROVING * loss[0], NEGLIGIBLE / 10):
        return None
    return Finding(
        "still_improving",
        f"The {name} loss still falls at the end, by {fall / loss[0]:.1%} of its first value per epoch.",
        {"fall_per_epoch": fall, "last_loss": loss[-1]},
        "Train longer.",
    )


def _too_short(epochs: int) -> Finding:
    return Finding(
        "too_short",
        f"{epochs} epoch{'s' if epochs > 1 else ''} cannot show a course.",
        {"epochs": float(epochs)},
        f"Train at least {FEWEST_EPOCHS} epochs before judging the curves.",
    )


def _healthy(history: Curves) -> Finding:
    loss, val = history.train_loss, history.val_accuracy
    epochs = len(loss)
    evidence = {"train_loss": loss[-1]}
    settled = epochs >= 2 * FEWEST_EPOCHS and abs(_won(loss)) < FLAT * loss[0]
    sentence = f"The training loss {'has settled' if settled else 'ends'} at {loss[-1]:.3g}"
    if val:
        evidence["val_accuracy"] = _end(val)
        sentence += f"; over the last {FEWEST_EPOCHS} epochs validation accuracy is {_end(val):.1%}"
        if history.train_accuracy:
            evidence["gap"] = gap = _end(history.train_accuracy) - _end(val)
            side = "below" if gap > 0 else "above"
            points = f"{100 * abs(gap):.1f}"
            sentence += ", the same as in training" if points == "0.0" else f", {points} points {side} training"
        best = max(range(epochs), key=lambda epoch: (val[epoch], -history.val_loss[epoch] if history.val_loss else 0))
        if best + 1 < epochs:
            sentence += f"; epoch {best + 1} of {epochs} was the best"
    return Finding("healthy", f"{sentence}.", evidence, "Nothing to change.")


# --- measures ---


def _end(values: Sequence[float]) -> float:
    """Return the mean of the last three epochs: one lucky epoch must not decide."""
    return float(np.mean(values[-FEWEST_EPOCHS:]))


def _won(values: Sequence[float], errors: float = 1.0) -> float:
    """Return the change over the second half of the run (at least three epochs), along the least-squares line.

    It is 0 where the slope is within `errors` of its own standard errors: swings count neither as progress nor as loss.
    """
    tail = np.array(values[-max(FEWEST_EPOCHS, math.ceil(len(values) / 2)) :])
    epochs = np.arange(len(tail)) - (len(tail) - 1) / 2
    slope = float(epochs @ tail / (epochs @ epochs))
    residual = tail - tail.mean() - slope * epochs
    error = math.sqrt(float(residual @ residual) / (len(tail) - 2) / float(epochs @ epochs))
    return slope * (len(tail) - 1) if abs(slope) > errors * error else 0.0


def _restarted(history: Curves, epoch: int) -> bool:
    rate = history.learning_rate
    return bool(rate) and epoch > 0 and rate[epoch] > RESTART * rate[epoch - 1]


def _finite_or_none(values: tuple[float, ...]) -> tuple[float, ...]:
    return values if all(math.isfinite(value) for value in values) else ()
