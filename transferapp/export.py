"""From a solved head to a network that can be served, checked against the Keras model on real pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from transferapp.config import FitConfig
from transferapp.data.dataset import Dataset, Record
from transferapp.engine import KerasEngine, OpenVINOEngine, resolve_precision
from transferapp.errors import TrainingError
from transferapp.evaluation.parity import Parity, compare
from transferapp.images import decode_image
from transferapp.measurement import Candidate
from transferapp.solving import Solved
from transferapp.views import SHORT_SIDE, center_view, render, short_side_to_decode

if TYPE_CHECKING:
    import keras

PARITY_PICTURES = 16


def build_network(backbone: keras.Model, chosen: Candidate, solved: Solved, name: str) -> keras.Model:
    """The whole classifier as a Keras model, pixels 0-255 to probabilities."""
    from transferapp.training.heads import attach_probe

    return attach_probe(backbone, chosen.cut, solved.probe, solved.temperature, _identifier(name))


def _identifier(name: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in name) or "classifier"


def check_parity(
    network: keras.Model, converted: Any, dataset: Dataset, chosen: Candidate, config: FitConfig
) -> tuple[dict[str, Parity], str]:
    """Compare the exported network with the Keras model on real pictures; returns the figures and the precision to serve.

    Raises:
        TrainingError: The export differs by more than rounding.
    """
    part = next(p for p in (dataset.part("val"), dataset.part("test"), dataset.part("train")) if len(p))
    records = _spread(part.records, PARITY_PICTURES)
    pixels = np.stack([_center_pixels(record, chosen.trunk.image_size) for record in records])
    reference = KerasEngine(network)(pixels)
    wanted = resolve_precision(config.precision)
    parity = {}
    for precision in dict.fromkeys(["f32", wanted]):
        parity[precision] = compare(reference, OpenVINOEngine(converted, precision=precision)(pixels), precision)
    if not parity["f32"].acceptable:
        raise TrainingError(
            f"The exported network differs from the trained one by {parity['f32'].max_difference:.3g} in a probability",
            expected="agreement to rounding",
            hint="Please report this with the name of the backbone; --backbone efficientnet_lite0 is known to export well",
        )
    return parity, wanted if parity[wanted].acceptable else "f32"


def _spread(records: Sequence[Record], count: int) -> list[Record]:
    """At most `count` records, evenly spread over the classes' order."""
    positions = np.unique(np.linspace(0, len(records) - 1, min(count, len(records))).round().astype(int))
    return [records[i] for i in positions]


def _center_pixels(record: Record, image_size: tuple[int, int]) -> np.ndarray:
    image = decode_image(record.path, min_short_side=short_side_to_decode(SHORT_SIDE, image_size)).image
    return render(image, center_view(image.size, image_size), image_size)
