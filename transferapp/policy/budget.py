"""How many images a step, how many epochs, over how many cached views: what a set needs, and what time allows. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from transferapp.policy.cuts import MIN_EPOCHS

MAX_CACHED_VIEWS = 8
"""Random views of each image that a tail is trained on: one for each of the usual epochs, so that none is seen twice."""


USUAL_EPOCHS = 8
"""Passes over the images, where there are thousands of them: from the solved classifier, cosine schedule."""

LEAST_STEPS = 300
"""Small sets are passed over more often, for it is steps that train: 800 images of textile, tuned above block4 of Lite0,
ended at .750 of the test images after 8 epochs of 13 steps and at .932 after 24, the solved classifier being at .815
(`benchmarks/regret.py`)."""

MOST_EPOCHS = 40

BATCH_SIZES = (16, 32, 64)
"""Images in a step, for few images to many. On a CPU an image costs as much in a small batch as in a large one, and it is
steps that train: 1,280 images of textile, tuned above block6 of Lite2, ended at .958 of the test images after three epochs
in batches of 16, and at .731 of the validation images after three in batches of 64 (docs/decisions/0014-steps.md)."""

STEPS_IN_AN_EPOCH = 100
"""The batch grows where an epoch has more steps than about this."""


def usual_batch_size(num_train: int) -> int:
    """Images in a step for a training set, where nobody says how many."""
    return max((size for size in BATCH_SIZES if num_train >= STEPS_IN_AN_EPOCH * size), default=BATCH_SIZES[0])


def usual_epochs(num_train: int, batch_size: int) -> int:
    """Epochs for a training set, where nobody says how many."""
    return min(max(USUAL_EPOCHS, math.ceil(LEAST_STEPS / steps_in_epoch(num_train, batch_size))), MOST_EPOCHS)


def steps_in_epoch(num_train: int, batch_size: int) -> int:
    """Training steps of a pass over a set: 1 or more."""
    return max(math.ceil(num_train / batch_size), 1)


def least_epochs(wanted: int, num_train: int, batch_size: int) -> int:
    """Epochs fewer than which are not worth starting: they would stop half-way, below the classifier that they began with.

    Args:
        wanted: Epochs that were asked for, and so are enough.
        num_train, batch_size: Of the training.
    """
    half = math.ceil(LEAST_STEPS / 2 / steps_in_epoch(num_train, batch_size))
    return min(max(MIN_EPOCHS, half), wanted)


OVERRUN = 0.25
"""Share of a budget by which tuning may overrun it, where the machine is slower than when a step was timed. Then it stops:
a schedule that is cut short costs some accuracy, but whoever named a time is not to wait for twice as long."""


@dataclass(frozen=True)
class Cost:
    """What training takes, in seconds.

    Attributes:
        epoch: One epoch with its validation.
        view: One more view of every training image, through the trunk; 0 where there is no trunk.
        fixed: What is spent in any case.
    """

    epoch: float
    view: float = 0.0
    fixed: float = 0.0


@dataclass(frozen=True)
class Outlook:
    """What there is time for: epochs, and views of each image to cache for them (0 where nothing is cached)."""

    epochs: int
    views: int


def affordable(cost: Cost, seconds: float, wanted: int, max_views: int) -> Outlook:
    """As many epochs as fit, each on a view of its own while there are any to be had.

    Args:
        cost: Measured.
        seconds: The time there is; may be infinite.
        wanted: Epochs at most.
        max_views: Views at most; 0 where nothing is cached.
    """
    for epochs in range(wanted, 0, -1):
        views = min(epochs, max_views)
        if cost.fixed + views * cost.view + epochs * cost.epoch <= seconds:
            return Outlook(epochs, views)
    return Outlook(0, 0)
