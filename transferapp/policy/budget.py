"""Time budget of fine-tuning: batch size, epochs and cached views that a set needs and that the time allows."""

from __future__ import annotations

import math
from dataclasses import dataclass

from transferapp.policy.cuts import MIN_EPOCHS

FINE_TUNED_FROM = 200
"""Training images from which a small set that is different from ImageNet is fine-tuned beside the mixture of stages. On eight
such sets of 240 to 720 images fine-tuning gained 1.5 to 19 points on five and lost on three; the comparison on held-out images
tells which (docs/decisions/0018-mixture.md)."""

LARGE_BUDGET, SMALL_BUDGET = 600.0, 120.0
"""Seconds of fine-tuning, unless the user names a budget."""


def default_budget(size: str, similarity: str, num_images: int, tune: str = "auto") -> float:
    """Return the seconds of fine-tuning where the user names no budget; 0 where nothing is fine-tuned.

    Args:
        size: `small` or `large`.
        similarity: `similar` or `different`.
        num_images: Training images.
        tune: One of `transferapp.policy.cuts.TUNE_CHOICES`; what the user asks for gets the time of a large set.
    """
    if size == "large" or tune not in ("auto", "none"):
        return LARGE_BUDGET
    return SMALL_BUDGET if similarity == "different" and num_images >= FINE_TUNED_FROM else 0.0


MAX_CACHED_VIEWS = 8
"""Random views of each image that a tail is trained on: one for each of the usual epochs."""

USUAL_EPOCHS = 8
"""Epochs for sets of thousands of images, from the linear classifier, with a cosine schedule."""

LEAST_STEPS = 300
"""Training steps that small sets get by more epochs: 800 images of textile, fine-tuned above block4 of Lite0, reached .750 on
the test images after 8 epochs of 13 steps and .932 after 24; the linear classifier reached .815
(`benchmarks/fine_tuning_gain.py`)."""

MOST_EPOCHS = 40

BATCH_SIZES = (16, 32, 64)
"""Images in a step, for small sets to large ones. On a CPU an image costs as much in a small batch as in a large one, and more
steps train further: 1,280 images of textile, fine-tuned above block6 of Lite2, reached .958 on the test images after three
epochs in batches of 16, and .731 on the validation images after three in batches of 64 (docs/decisions/0014-batch-size.md)."""

STEPS_IN_AN_EPOCH = 100
"""Steps in an epoch above which the batch grows."""


def usual_batch_size(num_train: int) -> int:
    """Return the default batch size for a training set."""
    return max((size for size in BATCH_SIZES if num_train >= STEPS_IN_AN_EPOCH * size), default=BATCH_SIZES[0])


def usual_epochs(num_train: int, batch_size: int) -> int:
    """Return the default number of epochs for a training set."""
    return min(max(USUAL_EPOCHS, math.ceil(LEAST_STEPS / steps_in_epoch(num_train, batch_size))), MOST_EPOCHS)


def steps_in_epoch(num_train: int, batch_size: int) -> int:
    """Return the training steps of one epoch: 1 or more."""
    return max(math.ceil(num_train / batch_size), 1)


def least_epochs(wanted: int, num_train: int, batch_size: int) -> int:
    """Return the fewest epochs worth starting: with fewer, training would end below the classifier that it starts from.

    Args:
        wanted: Epochs that were asked for, and so are enough.
        num_train: Training images.
        batch_size: Images in a step.
    """
    half = math.ceil(LEAST_STEPS / 2 / steps_in_epoch(num_train, batch_size))
    return min(max(MIN_EPOCHS, half), wanted)


OVERRUN = 0.25
"""Share of a budget by which fine-tuning may overrun it, where the machine is slower than when a step was timed. Then it
stops: a schedule that is cut short costs some accuracy, and the user who set a budget does not wait twice as long."""


@dataclass(frozen=True)
class Cost:
    """Cost of training, in seconds.

    Attributes:
        epoch: One epoch with its validation.
        view: One more view of every training image, through the trunk; 0 where there is no trunk.
        fixed: Part that depends on neither.
    """

    epoch: float
    view: float = 0.0
    fixed: float = 0.0


@dataclass(frozen=True)
class Affordable:
    """Outcome of `affordable`: epochs, and views of each image to cache for them (0 where nothing is cached)."""

    epochs: int
    views: int


def affordable(cost: Cost, seconds: float, wanted: int, max_views: int) -> Affordable:
    """Fit as many epochs as possible into a time, each on a view of its own as long as views last.

    Args:
        cost: Measured cost.
        seconds: Time left; may be infinite.
        wanted: Most epochs.
        max_views: Most views; 0 where nothing is cached.
    """
    for epochs in range(wanted, 0, -1):
        views = min(epochs, max_views)
        if cost.fixed + views * cost.view + epochs * cost.epoch <= seconds:
            return Affordable(epochs, views)
    return Affordable(0, 0)
