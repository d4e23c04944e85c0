"""Accuracy under changes of images."""

from __future__ import annotations

import numpy as np
import pytest

from transferapp.evaluation.robustness import robustness
from transferapp.images.changes import CONDITIONS


def test_the_figures_are_paired_with_the_unchanged_images() -> None:
    correct = np.arange(40) < 36
    changed = [np.arange(40) < 36 - index for index in range(len(CONDITIONS))]
    found = robustness(correct, changed, np.arange(40))
    assert (found.num_images, found.accuracy) == (40, 0.9)
    first, *_, last = found.conditions
    assert (first.drop, first.standard_error) == (0.0, 0.0)
    assert last.drop == pytest.approx(13 / 40)
    assert last.standard_error == pytest.approx(np.sqrt(13 / 40 * 27 / 40 / 39), rel=0.02)
    assert [(each.name, each.strength) for each in found.conditions] == [(c.name, c.strength) for c in CONDITIONS]
