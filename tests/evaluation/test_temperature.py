"""One temperature for several classifiers whose probabilities are averaged."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from transferapp.evaluation.metrics import fit_temperature


def logits_and_labels(seed: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    labels = np.random.default_rng(9).integers(0, 4, 400)
    rng = np.random.default_rng(seed)
    return scale * (rng.normal(0, 1, (400, 4)) + 1.5 * np.eye(4)[labels]), labels


def test_a_single_member_is_the_classifier_itself() -> None:
    logits, labels = logits_and_labels(0, 3.0)
    assert fit_temperature(logits[None], labels) == pytest.approx(fit_temperature(logits, labels))
    assert fit_temperature(np.stack([logits] * 3), labels) == pytest.approx(fit_temperature(logits, labels), rel=1e-4)


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_no_other_temperature_gives_the_average_a_lower_loss(scale: float) -> None:
    parts = [logits_and_labels(seed, scale) for seed in (1, 2, 3)]
    labels = parts[0][1]
    members = np.stack([logits for logits, _ in parts])

    def loss(temperature: float) -> float:
        logarithms = np.log(softmax(members / temperature, axis=-1).mean(axis=0))
        return float(-(401 * logarithms[np.arange(400), labels] + logarithms.mean(axis=1)).mean() / 402)

    found = fit_temperature(members, labels)
    tried = np.geomspace(0.2, 5.0, 60)
    assert loss(found) <= min(map(loss, tried)) + 1e-4
    assert 0.2 <= found <= 5.0
