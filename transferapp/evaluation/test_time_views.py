"""How many crops of an image should a bundle average? Measured on validation images, not assumed.

Ten-crop averaging (Krizhevsky et al., 2012) costs ten times the center view, and fifty views fifty times. What they gain
differs from set to set, so a fit measures it with a classifier that has not seen the images, and the bundle says it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from transferapp.data.audit import DATASET_LIMITS
from transferapp.data.dataset import Dataset, Record
from transferapp.images import decode_image
from transferapp.images.views import MULTI_SCALE_SHORT_SIDES, SHORT_SIDE, render_batch, short_side_to_decode, views_for
from transferapp.system.threads import cpu_cores, in_order

USUAL = 10
"""What is served where it is no worse than the best: ten crops."""

MEASURED_AT_MOST = 500
MEASURED_AT_LEAST = 24
"""Validation images that crops are tried on: as many as the share below allows, within these bounds."""

SHARE = 0.1
"""Of the images that the fit itself puts through the network, how many more crops may be put through it to measure this."""

_CHUNK = 10
_CENTER_OF_TEN = 4
"""Which of the ten crops is the center view."""

Scorer = Callable[[np.ndarray], np.ndarray]
"""From crops, uint8 (n, height, width, 3), to class probabilities, float32 (n, num_classes). Safe to call from threads."""


@dataclass(frozen=True)
class CropsTried:
    """What so many views give.

    Attributes:
        views: Averaged an image: 1, 10 or 50.
        accuracy: On the images tried, in [0, 1].
        loss: Mean negative log-likelihood in nats.
        gain: Accuracy gained over the center view alone; None for that itself.
        standard_error: Of `gain`, paired by image.
        milliseconds: What a request takes in the network, about.
    """

    views: int
    accuracy: float
    loss: float
    gain: float | None
    standard_error: float | None
    milliseconds: float


@dataclass(frozen=True)
class CropChoice:
    """Outcome of `choose_crops`.

    Attributes:
        views: What the bundle averages unless a request says otherwise.
        tried: Fewest views first; empty where nothing could be measured.
        num_images: Validation images they were tried on.
        reasons: Sentences.
    """

    views: int
    tried: tuple[CropsTried, ...]
    num_images: int
    reasons: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary for JSON."""
        tried = [{**asdict(each), "milliseconds": round(each.milliseconds, 1)} for each in self.tried]
        return {"views": self.views, "tried": tried, "num_images": self.num_images, "reasons": list(self.reasons)}


def measured_images(work: int, available: int) -> tuple[int, tuple[int, ...]]:
    """How many images crops are tried on, and how many views of each.

    It follows from numbers of images, not from a clock: the same fit decides the same tomorrow.

    Args:
        work: Images that the fit itself puts through the network.
        available: Validation images there are.
    """
    spare = SHARE * work
    fifty = int(spare / (50 - 1))
    if fifty >= MEASURED_AT_LEAST:
        return min(fifty, MEASURED_AT_MOST, available), (1, 10, 50)
    ten = max(MEASURED_AT_LEAST, int(spare / (USUAL - 1)))
    return min(ten, MEASURED_AT_MOST, available), (1, 10)


def choose_crops(
    validation: Dataset, scorer: Scorer, image_size: tuple[int, int], *, work: int, milliseconds: float
) -> CropChoice:
    """Try numbers of views on validation images and choose what the bundle averages.

    Args:
        validation: Images that the scorer has not been trained on; may be empty.
        scorer: The classifier.
        image_size: (height, width) of its input.
        work: Images that the fit itself puts through the network.
        milliseconds: What ten crops take in it.

    Raises:
        ImageError: An image can no longer be decoded.
    """
    if not len(validation):
        return CropChoice(USUAL, (), 0, ("there are no validation images to measure it on: ten crops, as usual",))
    count, asked = measured_images(work, len(validation))
    part = validation.spread(count)
    most = max(asked)

    def scores(record: Record) -> np.ndarray:
        crops = _crops(record, most, image_size)
        return np.concatenate([scorer(crops[i : i + _CHUNK]) for i in range(0, most, _CHUNK)])

    workers = cpu_cores()
    with ThreadPoolExecutor(workers) as pool:
        by_view = np.stack(list(in_order(pool, scores, part.records, 2 * workers)))
    means = {views: averaged(by_view, views) for views in asked}
    tried = compare(means, part.labels, milliseconds)
    views, reason = decide(tried, {v: mean.argmax(axis=1) == part.labels for v, mean in means.items()})
    reasons = [f"{reason}, on {len(part)} validation images"]
    if 50 not in asked:
        reasons.append(
            f"50 views were not tried: on as few as {MEASURED_AT_LEAST} images they would cost more than "
            f"{SHARE:.0%} of what the fit itself does; `transferapp evaluate --views 50` measures them"
        )
    return CropChoice(views, tried, len(part), tuple(reasons))


def _crops(record: Record, views: int, image_size: tuple[int, int]) -> np.ndarray:
    largest = MULTI_SCALE_SHORT_SIDES[-1] if views == 50 else SHORT_SIDE
    needed = short_side_to_decode(largest, image_size)
    image = decode_image(record.path, limits=DATASET_LIMITS, min_short_side=needed).image
    return render_batch(image, views_for(views, image.size, image_size), image_size)


def averaged(by_view: np.ndarray, views: int) -> np.ndarray:
    """Probabilities averaged over some of the views that were scored.

    Args:
        by_view: Shape (n, most, num_classes), `most` of 10 or 50 views in the order of `views_for`.
        views: 1, 10 or 50, no more than there are.
    """
    most = by_view.shape[1]
    if views == most:
        return np.asarray(by_view.mean(axis=1))
    first = 10 * MULTI_SCALE_SHORT_SIDES.index(SHORT_SIDE) if most == 50 else 0
    ten = by_view[:, first : first + 10]
    return np.asarray(ten[:, _CENTER_OF_TEN] if views == 1 else ten.mean(axis=1))


def compare(means: Mapping[int, np.ndarray], labels: np.ndarray, milliseconds: float) -> tuple[CropsTried, ...]:
    """What each number of views gives over the first, which is the center view.

    Args:
        means: Averaged probabilities by number of views, fewest first.
        labels: int, shape (n,).
        milliseconds: What ten crops take.
    """
    own = np.arange(len(labels))
    tried: list[CropsTried] = []
    first: np.ndarray | None = None
    for views, mean in means.items():
        correct = mean.argmax(axis=1) == labels
        loss = float(-np.log(np.maximum(mean[own, labels], np.finfo(np.float32).tiny)).mean())
        gain, error = (None, None) if first is None else paired(correct, first)
        tried.append(CropsTried(views, float(correct.mean()), loss, gain, error, milliseconds * views / 10))
        first = correct if first is None else first
    return tuple(tried)


def paired(correct: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Mean difference of two sets of right answers on the same images, and its standard error."""
    difference = correct.astype(float) - other.astype(float)
    error = difference.std(ddof=1) / math.sqrt(len(difference)) if len(difference) > 1 else 0.0
    return float(difference.mean()), float(error)


def decide(tried: tuple[CropsTried, ...], correct: Mapping[int, np.ndarray]) -> tuple[int, str]:
    """The views that a bundle averages, and why.

    Those within one standard error of the best, paired by image, count as equal. Among them ten crops are the usual; where
    they are not among them, the cheapest.
    """
    best = max(tried, key=lambda each: (each.accuracy, -each.views))
    equal = []
    for each in tried:
        behind, error = paired(correct[best.views], correct[each.views])
        if behind <= error + 1e-12:  # a single image is exactly its own standard error
            equal.append(each)
    chosen = next((each for each in equal if each.views == USUAL), equal[0])
    told = ", ".join(
        f"{each.views} views gain {100 * each.gain:+.1f} ± {100 * (each.standard_error or 0):.1f} points"
        for each in tried
        if each.gain is not None
    )
    if chosen.views != USUAL:
        why = f"{told} over the center view: {_words(chosen.views)} ten crops, by more than one standard error"
    elif best.views == USUAL:
        why = f"{told} over the center view: ten crops, as usual"
    else:
        why = f"{told} over the center view: ten crops, as usual, for they are within one standard error of the best"
    return chosen.views, why


def _words(views: int) -> str:
    return "the center view alone does better than" if views == 1 else f"{views} views do better than"
