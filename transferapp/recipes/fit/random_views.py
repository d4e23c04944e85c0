"""How many random views of each image does training gain from? Measured by cross-validation, not assumed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from transferapp.backbones.feature_store import random_view_name
from transferapp.data.dataset import Dataset
from transferapp.recipes.fit.measure import Candidate
from transferapp.system.progress import Progress
from transferapp.training.probe import CrossValidation, cross_validate, log_softmax

VIEW_STEPS = (1, 2, 4, 8)
"""Tried in turn, until a step gains no more than one standard error of the paired difference in loss."""


@dataclass(frozen=True)
class ViewsTried:
    """Cross-validation with `views` random views an image beside the center view.

    Attributes:
        views: Random views an image.
        accuracy: Cross-validated, in [0, 1].
        loss: Cross-validated, in nats.
        gain: Loss saved against the best of before; None for the first.
        standard_error: Of `gain`, paired by image.
    """

    views: int
    accuracy: float
    loss: float
    gain: float | None = None
    standard_error: float | None = None


@dataclass(frozen=True)
class ViewChoice:
    """Outcome of `choose_views`."""

    views: int
    validation: CrossValidation
    tried: tuple[ViewsTried, ...]
    reason: str


def random_rows(candidate: Candidate, part: Dataset, views: int, seed: int, progress: Progress) -> np.ndarray:
    """Features at the cut of the first `views` random views: float32, shape (n, views, channels)."""
    names = [random_view_name(index, seed) for index in range(views)]
    with progress.task(f"{candidate.spec.name}: {views} random views each", len(part) * views) as advance:
        return candidate.features(candidate.store.collect(part.records, names, advance))


def choose_views(
    candidate: Candidate,
    train: Dataset,
    center: np.ndarray,
    wanted: str,
    seed: int,
    progress: Progress,
    class_weights: np.ndarray | None = None,
) -> ViewChoice:
    """Find how many random views to train on.

    Args:
        candidate: The backbone and cut.
        train: Training images.
        center: Features of their center views at the cut, shape (n, channels).
        wanted: `auto`, or a number that is then used as it is.
        seed: Seeds folds and views.
        progress: Who is told.
        class_weights: float, shape (num_classes,), those that the candidate was cross-validated with; None for equal ones.
    """
    labels, num_classes, kin = train.labels, len(train.class_names), train.kin()

    def validate(views: int) -> CrossValidation:
        extra = random_rows(candidate, train, views, seed, progress) if views else None
        return cross_validate(
            center,
            labels,
            num_classes,
            extra=extra,
            seed=seed,
            path=best.path,
            groups=kin,
            class_weights=class_weights,
        )

    best = candidate.validations[candidate.cut.index]
    if wanted != "auto":
        views = int(wanted)
        chosen = validate(views) if views else best
        return ViewChoice(views, chosen, (ViewsTried(views, chosen.accuracy, chosen.loss),), "set by --train-views")
    tried = [ViewsTried(0, best.accuracy, best.loss)]
    views = 0
    for step in VIEW_STEPS:
        validation = validate(step)
        saved = _losses(best, labels) - _losses(validation, labels)
        gain, error = float(saved.mean()), float(saved.std(ddof=1) / np.sqrt(len(saved)))
        tried.append(ViewsTried(step, validation.accuracy, validation.loss, gain, error))
        if gain <= error:
            break
        best, views = validation, step
    last = tried[-1]
    assert last.gain is not None
    assert last.standard_error is not None
    outcome = (
        f"{last.views} random view{'' if last.views == 1 else 's'} an image {'lower' if last.gain >= 0 else 'raise'}"
        f"{'s' if last.views == 1 else ''} the cross-validated loss by {abs(last.gain):.3f} ± {last.standard_error:.3f}"
    )
    if views == last.views:
        reason = f"{outcome}: still a gain at the most that is tried"
    else:
        reason = (
            f"{outcome}: no gain beyond one standard error over {'the center view alone' if views == 0 else f'{views}'}"
        )
    return ViewChoice(views, best, tuple(tried), reason)


def _losses(validation: CrossValidation, labels: np.ndarray) -> np.ndarray:
    result: np.ndarray = -log_softmax(validation.logits)[np.arange(len(labels)), labels]
    return result
