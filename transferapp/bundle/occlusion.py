"""Occlusion maps: the drop in a class's score when parts of the image are covered.

Occlusion (Zeiler & Fergus, 2014, "Visualizing and Understanding Convolutional Networks", section 4.2) moves a patch of the
crop's mean color over the center crop; a cell matters where covering it lowers the score. It needs only the outputs of the
network, so it works on the exported graph of any bundle, without TensorFlow.

The cost is fixed: `FORWARD_PASSES` crops, as many as seven and a half predictions with ten crops.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from transferapp.bundle.predictor import Predictor
from transferapp.errors import UsageError
from transferapp.images.views import View, center_index

GRID = 7
"""Cells on each side of the map: 32 pixels each of a 224-pixel crop, the stride of the networks' last stage."""

PATCH_CELLS = 2
"""Cells on each side of a patch. One cell would be too small: the network recognizes the object from its surroundings."""

FORWARD_PASSES = 10 + (GRID + PATCH_CELLS - 1) ** 2
"""Crops that go through the network: the ten crops, and one for every position of the patch that covers a cell."""

_CHUNK = 4
"""Covered crops in one forward pass: the cache of one core holds the activations of four better than those of ten (measured:
5 % less time)."""

_LEAST = 1e-30
"""Lower bound of probabilities, so that log-odds stay finite. A softmax in single precision resolves values far below it, but
not values close to 1, so log-odds are never computed from 1 - p."""

_NOISE = 1e-3
"""Largest total drop in log-odds that counts as rounding."""


@dataclass(frozen=True)
class Crop:
    """One of the crops that a prediction averages.

    Attributes:
        box: (left, top, right, bottom) in pixels of the upright image.
        mirror: Whether it was flipped left to right.
        score: Probability of the class in this crop alone, in [0, 1].
    """

    box: tuple[float, float, float, float]
    mirror: bool
    score: float


@dataclass(frozen=True)
class Explanation:
    """Occlusion map of one class.

    Attributes:
        label: The class.
        score: Its probability averaged over the ten crops, as in `Predictor.predict`.
        box: (left, top, right, bottom) of the center crop, which `saliency` covers, in pixels of the upright image.
        saliency: float64, shape (GRID, GRID), rows from the top, in [0, 1]: drop in the log-odds of the class when a cell
            of the center crop is covered, relative to the largest drop. All 0 where no drop exceeds rounding.
        center_score: Probability of the class in the center crop.
        lowest_score: The same with the patch where it lowers the probability most.
        crops: The ten crops.
        size: (width, height) of the upright image.
        notes: Corrections made to the image, as in a prediction.
        seconds: Time by step: `decode`, `crop`, `network`.
    """

    label: str
    score: float
    box: tuple[float, float, float, float]
    saliency: npt.NDArray[np.float64]
    center_score: float
    lowest_score: float
    crops: tuple[Crop, ...]
    size: tuple[int, int]
    notes: tuple[str, ...]
    seconds: dict[str, float]


def explain(predictor: Predictor, source: Path | bytes, *, label: str | None = None) -> Explanation:
    """Compute the occlusion map of an image.

    Args:
        predictor: Classifier.
        source: A file, or the bytes of one.
        label: Class to explain; None for the most probable one.

    Raises:
        ImageError: The image cannot be used.
        UsageError: There is no such class.
        ModelOutputError: The network's answer is not a number.
    """
    check_label(predictor, label)
    started = time.perf_counter()
    decoded = predictor.decode(source, 10)
    read_at = time.perf_counter()
    views = predictor.boxes(decoded, 10)
    crops = predictor.crops(decoded, 10)
    cropped = time.perf_counter()
    scores = predictor.probabilities(crops)
    mean = scores.mean(axis=0)
    index = int(np.argmax(mean)) if label is None else predictor.class_names.index(label)
    center = center_index(10)
    occluded = _occluded_scores(predictor, crops[center])
    finished = time.perf_counter()
    across, down = (o / d for o, d in zip(decoded.original_size, decoded.image.size, strict=True))

    def box(view: View) -> tuple[float, float, float, float]:
        left, top, right, bottom = view.box
        return left * across, top * down, right * across, bottom * down

    return Explanation(
        label=predictor.class_names[index],
        score=float(mean[index]),
        box=box(views[center]),
        saliency=saliency(log_odds(scores[center], index), log_odds(occluded, index)),
        center_score=float(scores[center, index]),
        lowest_score=float(min(occluded[..., index].min(), scores[center, index])),
        crops=tuple(Crop(box(v), v.mirror, float(s)) for v, s in zip(views, scores[:, index], strict=True)),
        size=decoded.original_size,
        notes=decoded.notes,
        seconds={"decode": read_at - started, "crop": cropped - read_at, "network": finished - cropped},
    )


def check_label(predictor: Predictor, label: str | None) -> None:
    """Raise an error for a class that the predictor does not have.

    Raises:
        UsageError: The class is unknown.
    """
    if label is not None and label not in predictor.class_names:
        raise UsageError(
            "There is no such class", got=repr(label[:100]), code="label", hint="GET /info lists the classes"
        )


def log_odds(scores: npt.NDArray[np.floating], index: int) -> npt.NDArray[np.float64]:
    """Return the log-odds of a class: the logarithm of its probability over that of all others together.

    Log-odds still differ where two probabilities both round to 1.

    Args:
        scores: Probabilities, shape (..., num_classes).
        index: The class.

    Returns:
        Shape (...); always finite.
    """
    exact = np.asarray(scores, np.float64)
    others = np.delete(exact, index, axis=-1).sum(axis=-1)
    odds: npt.NDArray[np.float64] = np.log(np.maximum(exact[..., index], _LEAST)) - np.log(np.maximum(others, _LEAST))
    return odds


def saliency(whole: npt.NDArray[np.float64], occluded: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Compute the importance of each cell from log-odds under patches.

    Args:
        whole: Log-odds of the class with nothing covered: a scalar.
        occluded: Log-odds with the last row and column of the patch at each cell: shape (n, n), n of GRID + PATCH_CELLS - 1.

    Returns:
        Shape (GRID, GRID): mean drop over the patches that cover a cell, with rises as 0, relative to the largest.
    """
    falls = np.maximum(whole - occluded, 0.0)
    cells: npt.NDArray[np.float64] = np.zeros((GRID, GRID))
    for down in range(PATCH_CELLS):
        for across in range(PATCH_CELLS):
            cells += falls[down : down + GRID, across : across + GRID]
    largest = cells.max()
    return cells / largest if largest > _NOISE else np.zeros_like(cells)


def _occluded_scores(predictor: Predictor, crop: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return all probabilities for each position of the patch, shape (n, n, num_classes); some overhang the edges."""
    height, width = predictor.image_size
    rows, columns = (np.linspace(0, side, GRID + 1).round().astype(int) for side in (height, width))
    color = crop.reshape(-1, 3).mean(axis=0).round().astype(np.uint8)
    side = GRID + PATCH_CELLS - 1
    places = [(i // side, i % side) for i in range(side * side)]
    found = np.empty((len(places), len(predictor.class_names)), np.float32)
    batch = np.empty((_CHUNK, *crop.shape), np.uint8)  # reused for each pass, so that memory stays constant
    for start in range(0, len(places), _CHUNK):
        part = places[start : start + _CHUNK]
        batch[: len(part)] = crop
        for covered, (down, across) in zip(batch, part, strict=False):
            top, left = max(down - PATCH_CELLS + 1, 0), max(across - PATCH_CELLS + 1, 0)
            covered[rows[top] : rows[min(down + 1, GRID)], columns[left] : columns[min(across + 1, GRID)]] = color
        found[start : start + len(part)] = predictor.probabilities(batch[: len(part)])
    return found.reshape(side, side, -1)
