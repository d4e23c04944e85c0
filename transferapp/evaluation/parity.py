"""Parity of the served network with the Keras model, which decides the precision to serve in."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

MAX_DIFFERENCE = {"f32": 1e-3, "bf16": 0.05}
"""Largest accepted difference of a class probability from the Keras model's, by precision: f32 differs by rounding alone;
bf16 keeps three decimal digits, which a confident classifier turns into a few hundredths in the worst case."""

MIN_AGREEMENT = 0.98
"""Share of images that must keep their most probable class."""


@dataclass(frozen=True)
class Parity:
    """Differences between the probabilities of an engine and of the Keras model.

    Attributes:
        precision: Precision of the engine.
        num_images: Images compared.
        max_difference: Largest absolute difference in any class probability.
        mean_difference: Mean absolute difference.
        agreement: Share of images with the same most probable class.
    """

    precision: str
    num_images: int
    max_difference: float
    mean_difference: float
    agreement: float

    @property
    def acceptable(self) -> bool:
        """Whether the engine may serve in this precision."""
        return self.max_difference <= MAX_DIFFERENCE[self.precision] and self.agreement >= MIN_AGREEMENT

    def to_json(self) -> dict[str, Any]:
        """Return a plain dictionary for JSON."""
        return asdict(self)


def compare(reference: np.ndarray, probabilities: np.ndarray, precision: str) -> Parity:
    """Compare probabilities of shape (n, num_classes) with the Keras model's."""
    difference = np.abs(probabilities - reference)
    return Parity(
        precision=precision,
        num_images=len(reference),
        max_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        agreement=float((probabilities.argmax(axis=1) == reference.argmax(axis=1)).mean()),
    )
