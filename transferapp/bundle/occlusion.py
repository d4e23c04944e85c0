"""Where the network looked: what covering parts of the image does to one class's score.

Occlusion (Zeiler & Fergus, 2014, "Visualizing and Understanding Convolutional Networks", section 4.2): a patch of the
crop's mean color is moved over the center view, and wherever it lowers the class's score, the network had looked. It needs
the network's answers and nothing of its inside, so it works on the exported graph of any bundle, without TensorFlow.

The cost is fixed: `FORWARD_PASSES` crops, which is those of seven and a half predictions with ten views.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from transferapp.bundle.predictor import Predictor
from transferapp.errors import UsageError
from transferapp.images.views import View, center_view, views_for

GRID = 7
"""Cells on each side of the answer: 32 pixels each of a 224-pixel crop, the stride of the networks' last stage."""

PATCH_CELLS = 2
"""Cells on each side of a patch. A single cell is too small to hide what a network can see around it."""

FORWARD_PASSES = 10 + (GRID + PATCH_CELLS - 1) ** 2
"""Crops that go through the network: the ten views, and a patch at every place where it covers at least one cell."""

_CHUNK = 4
"""Covered crops in one forward pass: a worker has one core, whose cache holds the activations of four better than those of ten
(measured: 5 % less time)."""

_LEAST = 1e-30
"""Probabilities are taken as no less than this, so that certainty is no infinity. A softmax in single precision tells them
apart far below it: what it cannot do is come close to 1, which is why log-odds are never computed from 1 - p."""

_NOISE = 1e-3
"""Falls in log-odds that are together no more than this are the arithmetic's own: nothing was found."""


@dataclass(frozen=True)
class Crop:
    """One of the views that a prediction averages.

    Attributes:
        box: (left, top, right, bottom) in pixels of the image as a person sees it.
        mirror: Whether it was flipped left to right.
        score: The class's probability in this view alone, in [0, 1].
    """

    box: tuple[float, float, float, float]
    mirror: bool
    score: float


@dataclass(frozen=True)
class Explanation:
    """Where the network looked for one class.

    Attributes:
        label: The class explained.
        score: Its probability averaged over the ten views, as `Predictor.predict` gives it.
        box: (left, top, right, bottom) of the center view, which `saliency` covers, in pixels of the image as a person
            sees it.
        saliency: float64, shape (GRID, GRID), rows from the top, each in [0, 1]: how much covering a cell lowers the
            class's log-odds in the center view, over the largest such fall. All 0 where covering no cell lowers them.
        center_score: The class's probability in the center view.
        lowest_score: The same with the patch that hurts most in place: how much the network depends on one spot.
        crops: The ten views.
        size: (width, height) of the image as a person sees it.
        notes: What had to be done to the image, as in a prediction.
        seconds: Time spent, by stage of work: `decode`, `crop`, `network`.
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
    """Find the parts of an image on which a class's score rests.

    Args:
        predictor: What judges the image.
        source: A file, or the bytes of one.
        label: The class to explain; None for the most probable one.

    Raises:
        ImageError: The image cannot be used.
        UsageError: There is no such class.
        ModelOutputError: The network's answer is not a number.
    """
    check_label(predictor, label)
    started = time.perf_counter()
    decoded = predictor.decode(source, 10)
    read_at = time.perf_counter()
    views = views_for(10, decoded.image.size, predictor.image_size)
    crops = predictor.crops(decoded, 10)
    cropped = time.perf_counter()
    scores = predictor.probabilities(crops)
    mean = scores.mean(axis=0)
    index = int(np.argmax(mean)) if label is None else predictor.class_names.index(label)
    center = views.index(center_view(decoded.image.size, predictor.image_size))
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
    """Refuse a class that the predictor does not know.

    Raises:
        UsageError: It is none of the predictor's.
    """
    if label is not None and label not in predictor.class_names:
        raise UsageError(
            "There is no such class", got=repr(label[:100]), code="label", hint="GET /info lists the classes"
        )


def log_odds(scores: npt.NDArray[np.floating], index: int) -> npt.NDArray[np.float64]:
    """How much speaks for a class: the logarithm of its probability over that of all others together.

    Of two scores that both round to 1 this still says which is surer, and by how much.

    Args:
        scores: Probabilities, shape (..., num_classes).
        index: The class.

    Returns:
        Shape (...); finite whatever the scores.
    """
    exact = np.asarray(scores, np.float64)
    others = np.delete(exact, index, axis=-1).sum(axis=-1)
    odds: npt.NDArray[np.float64] = np.log(np.maximum(exact[..., index], _LEAST)) - np.log(np.maximum(others, _LEAST))
    return odds


def saliency(whole: npt.NDArray[np.float64], occluded: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The importance of each cell, from log-odds under patches.

    Args:
        whole: The class's log-odds with nothing covered: a scalar.
        occluded: Its log-odds with the patch's last row and column at each cell: shape (n, n), n of GRID + PATCH_CELLS - 1.

    Returns:
        Shape (GRID, GRID): the mean fall over the patches that cover a cell, rises counted as 0, over the largest.
    """
    falls = np.maximum(whole - occluded, 0.0)
    cells: npt.NDArray[np.float64] = np.zeros((GRID, GRID))
    for down in range(PATCH_CELLS):
        for across in range(PATCH_CELLS):
            cells += falls[down : down + GRID, across : across + GRID]
    largest = cells.max()
    return cells / largest if largest > _NOISE else np.zeros_like(cells)


def _occluded_scores(predictor: Predictor, crop: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Every class's probability with the patch in each place, shape (n, n, num_classes); some places overhang the edges."""
    height, width = predictor.image_size
    rows, columns = (np.linspace(0, side, GRID + 1).round().astype(int) for side in (height, width))
    color = crop.reshape(-1, 3).mean(axis=0).round().astype(np.uint8)
    side = GRID + PATCH_CELLS - 1
    places = [(i // side, i % side) for i in range(side * side)]
    found = np.empty((len(places), len(predictor.class_names)), np.float32)
    batch = np.empty((_CHUNK, *crop.shape), np.uint8)  # filled anew for each pass, so that memory stays flat
    for start in range(0, len(places), _CHUNK):
        part = places[start : start + _CHUNK]
        batch[: len(part)] = crop
        for covered, (down, across) in zip(batch, part, strict=False):
            top, left = max(down - PATCH_CELLS + 1, 0), max(across - PATCH_CELLS + 1, 0)
            covered[rows[top] : rows[min(down + 1, GRID)], columns[left] : columns[min(across + 1, GRID)]] = color
        found[start : start + len(part)] = predictor.probabilities(batch[: len(part)])
    return found.reshape(side, side, -1)
