"""What a search is told beside what a fit is told."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transferapp.errors import UsageError
from transferapp.recipes.search.space import Dimension, parse_space

TRIALS = 100
COARSE_SHARE = 0.4
"""Of the trials, unless --coarse says otherwise."""

COARSE_EPOCHS, FINE_EPOCHS = 5, 20
"""The lecture: only a few epochs to get a rough idea, then a longer run."""

MAX_TRIALS = 100_000
MAX_WORKERS = 256


@dataclass(frozen=True)
class SearchSettings:
    """Construct through `make_search`, which checks them.

    Attributes:
        space: What is searched.
        trials: In all.
        coarse: How many of them are coarse.
        grid: Whether trials are the points of grids, for comparison, instead of random.
        workers: Processes that run trials.
        storage: The file that holds the trials, and keeps them; None for one beside the bundle, until that is written.
    """

    space: tuple[Dimension, ...]
    trials: int = TRIALS
    coarse: int = round(COARSE_SHARE * TRIALS)
    grid: bool = False
    workers: int = 1
    storage: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """What the outcome depends on, as a plain dictionary."""
        return {
            "over": [dimension.written() for dimension in self.space],
            "trials": self.trials,
            "coarse": self.coarse,
            "grid": self.grid,
        }


def make_search(
    over: Sequence[str] = (),
    *,
    trials: int = TRIALS,
    coarse: int | None = None,
    grid: bool = False,
    workers: int = 1,
    storage: Path | None = None,
) -> SearchSettings:
    """Check settings and freeze them.

    Args:
        over: `NAME=LOW..HIGH` or `NAME=a,b,c`, each.
        trials, grid, workers, storage: See `SearchSettings`.
        coarse: See there; None for two fifths of the trials.

    Raises:
        UsageError: One makes no sense.
    """
    for name, value, most in (("trials", trials, MAX_TRIALS), ("workers", workers, MAX_WORKERS)):
        if not 1 <= value <= most:
            raise UsageError(f"{name} is out of range", expected=f"1 to {most:,}", got=str(value))
    if coarse is None:
        coarse = round(COARSE_SHARE * trials)
    if not 0 <= coarse <= trials:
        raise UsageError(
            "coarse is out of range", expected=f"0 to {trials}, the number of trials in all", got=str(coarse)
        )
    if storage is not None and os.path.isdir(storage):  # noqa: PTH112  # a name that is too long makes Path raise
        raise UsageError(f"--storage {storage} is a folder", expected="a file, which need not be there yet")
    return SearchSettings(parse_space(over), trials, coarse, grid, workers, storage)
