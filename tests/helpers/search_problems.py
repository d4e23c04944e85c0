"""Synthetic features in clusters that a linear head can tell apart, more or less."""

from __future__ import annotations

import numpy as np

from transferapp.recipes.search.trials import Features, Problem


def clusters(*, classes: int = 4, per_class: int = 20, width: int = 24, views: int = 1, seed: int = 0) -> Problem:
    """A problem whose classes overlap a little."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(classes, width)) * 0.7

    def part(count: int) -> Features:
        labels = np.arange(classes * count) % classes
        rows = centers[labels][:, None] + rng.normal(size=(len(labels), views, width))
        return Features((3 * rows + 1).astype(np.float32), labels)

    return Problem(part(per_class), part(10), classes, seed)
