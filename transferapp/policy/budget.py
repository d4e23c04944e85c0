"""How many epochs, over how many cached views, a time budget allows. Pure."""

from __future__ import annotations

from dataclasses import dataclass

MAX_CACHED_VIEWS = 8
"""Random views of each picture that a tail is trained on: one for each of the usual epochs, so that none is seen twice."""


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
