"""How many epochs, over how many cached views, a time budget allows. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

MAX_CACHED_VIEWS = 8
"""Random views of each picture that a tail is trained on: one for each of the usual epochs, so that none is seen twice."""


USUAL_EPOCHS = 8
"""Passes over the pictures, where there are thousands of them: from the solved classifier, cosine schedule."""

LEAST_STEPS = 300
"""Small sets are passed over more often, for it is steps that train: 800 pictures of textile, tuned above block4 of Lite0,
ended at .750 of the test pictures after 8 epochs of 13 steps and at .932 after 24, the solved classifier being at .815
(`benchmarks/regret.py`)."""

MOST_EPOCHS = 40


def usual_epochs(num_train: int, batch_size: int) -> int:
    """Epochs for a training set, where nobody says how many."""
    steps = math.ceil(num_train / batch_size)
    return min(max(USUAL_EPOCHS, math.ceil(LEAST_STEPS / max(steps, 1))), MOST_EPOCHS)


@dataclass(frozen=True)
class Cost:
    """What training takes, in seconds.

    Attributes:
        epoch: One epoch with its validation.
        view: One more view of every training picture, through the trunk; 0 where there is no trunk.
        fixed: What is spent in any case.
    """

    epoch: float
    view: float = 0.0
    fixed: float = 0.0


@dataclass(frozen=True)
class Outlook:
    """What there is time for: epochs, and views of each picture to cache for them (0 where nothing is cached)."""

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
