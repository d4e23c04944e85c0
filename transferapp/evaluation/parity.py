"""Parity of networks that should compute the same.

That of the served network with the Keras model decides the precision to serve in; that of an export with the bundle decides
whether the export is kept.
"""

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


EXPORT_MAX_DIFFERENCE = 0.02
"""Largest accepted difference of a class probability of an export from the bundle's, for the same pixels."""

EXPORT_MIN_AGREEMENT = 0.995
"""Share of images that must keep their most probable class in an export."""

QUANTIZED_MAX_LOSS = 0.01
"""Largest accepted loss of accuracy of a quantized export, whose probabilities always differ a little."""

_ROUNDING = 1e-9
"""Allowance for the rounding of shares: 1 - 0.99 is a little more than 0.01."""


@dataclass(frozen=True)
class ExportParity:
    """Comparison of an export with the bundle that it was made from, on held-out images.

    Attributes:
        num_images: Images compared.
        agreement: Share of images with the same most probable class.
        max_difference: Largest absolute difference in any class probability; NaN where the export gave NaN.
        accuracy: Of the export on these images.
        bundle_accuracy: Of the bundle on the same images, in f32.
        quantized: Whether the export computes with rounded weights and activations.
        file_agreement: Agreement where the export decodes and scales the files itself; None where it does not.
        file_difference: Largest absolute difference in that case.
        known_agreement: Share of images that both call known or both unknown; None where the export has no novelty.
    """

    num_images: int
    agreement: float
    max_difference: float
    accuracy: float
    bundle_accuracy: float
    quantized: bool
    file_agreement: float | None = None
    file_difference: float | None = None
    known_agreement: float | None = None

    @property
    def acceptable(self) -> bool:
        """Whether the export may be kept."""
        if not np.isfinite(self.max_difference):
            return False
        if self.quantized:
            return self.bundle_accuracy - self.accuracy <= QUANTIZED_MAX_LOSS + _ROUNDING
        agreements = (self.agreement, self.file_agreement, self.known_agreement)
        agrees = all(share is None or share >= EXPORT_MIN_AGREEMENT - _ROUNDING for share in agreements)
        return agrees and self.max_difference <= EXPORT_MAX_DIFFERENCE

    def to_json(self) -> dict[str, Any]:
        """Return a plain dictionary for JSON."""
        return asdict(self)


def compare_export(
    reference: np.ndarray,
    probabilities: np.ndarray,
    labels: np.ndarray,
    *,
    quantized: bool,
    from_files: np.ndarray | None = None,
    known_agreement: float | None = None,
) -> ExportParity:
    """Compare the probabilities of an export with its bundle's.

    Args:
        reference: Of the bundle: float, shape (n, num_classes), n of at least 1.
        probabilities: Of the export, of the same shape.
        labels: int, shape (n,).
        quantized: As in `ExportParity`.
        from_files: Probabilities of the export where it decodes and scales the files itself, of the same shape.
        known_agreement: As in `ExportParity`.
    """
    given, wanted = probabilities.argmax(axis=1), reference.argmax(axis=1)
    return ExportParity(
        num_images=len(reference),
        agreement=float((given == wanted).mean()),
        max_difference=float(np.abs(probabilities - reference).max()),
        accuracy=float((given == labels).mean()),
        bundle_accuracy=float((wanted == labels).mean()),
        quantized=quantized,
        file_agreement=None if from_files is None else float((from_files.argmax(axis=1) == wanted).mean()),
        file_difference=None if from_files is None else float(np.abs(from_files - reference).max()),
        known_agreement=known_agreement,
    )
