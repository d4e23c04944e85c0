"""Test-time crops: the number that a bundle averages, measured on validation images.

Ten-crop averaging (Krizhevsky et al., 2012) costs ten times the center crop, and fifty crops fifty times. Their gain differs
from set to set, so a fit measures it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from transferapp.data.dataset import Dataset, Record
from transferapp.images.views import (
    MULTI_SCALE_SHORT_SIDES,
    SHORT_SIDE,
    Geometry,
    center_index,
    render_batch,
    short_side_to_decode,
    views_for,
)
from transferapp.policy.choose import paired_gain
from transferapp.policy.reasons import Reason
from transferapp.system.threads import cpu_cores, in_order

USUAL = 10
"""Default number of crops, unless another is better by more than one standard error."""

MEASURED_AT_MOST = 500
MEASURED_AT_LEAST = 24
"""Bounds on the number of validation images that crops are tried on."""

SHARE = 0.1
"""Crops that may be measured, as a share of the images that the fit itself puts through the network."""

_CHUNK = 10

Scorer = Callable[[np.ndarray], np.ndarray]
"""Function from crops, uint8 (n, height, width, 3), to probabilities, float32 (n, num_classes). Must be thread-safe."""

CropScorer = Callable[[Sequence[Record], int], np.ndarray]
"""Function from audited images and a number of crops, 10 or 50, to probabilities: float32, shape (n, crops, num_classes)."""


@dataclass(frozen=True)
class CropsTried:
    """Accuracy and cost of a number of crops.

    Attributes:
        views: Crops averaged per image: 1, 10 or 50.
        accuracy: Accuracy in [0, 1].
        loss: Mean negative log-likelihood in nats.
        gain: Gain in accuracy over the center crop; None for the center crop itself.
        standard_error: Standard error of `gain`, paired by image.
        milliseconds: Approximate time of a request in the network.
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
        views: Crops that the bundle averages by default.
        tried: Numbers of crops that were tried, fewest first; empty where nothing could be measured.
        num_images: Validation images that they were tried on.
        reasons: Explanation.
    """

    views: int
    tried: tuple[CropsTried, ...]
    num_images: int
    reasons: tuple[Reason, ...]

    def to_json(self) -> dict[str, Any]:
        """Return a plain dictionary for JSON."""
        tried = [{**asdict(each), "milliseconds": round(each.milliseconds, 1)} for each in self.tried]
        reasons = [reason.to_json() for reason in self.reasons]
        return {"views": self.views, "tried": tried, "num_images": self.num_images, "reasons": reasons}


def measured_images(work: int, available: int) -> tuple[int, tuple[int, ...]]:
    """Return the number of images that crops are tried on, and the numbers of crops to try.

    Both follow from counts, not from a clock, so that a fit decides the same every time.

    Args:
        work: Images that the fit itself puts through the network.
        available: Validation images.
    """
    spare = SHARE * work
    fifty = int(spare / (50 - 1))
    if fifty >= MEASURED_AT_LEAST:
        return min(fifty, MEASURED_AT_MOST, available), (1, 10, 50)
    ten = max(MEASURED_AT_LEAST, int(spare / (USUAL - 1)))
    return min(ten, MEASURED_AT_MOST, available), (1, 10)


def choose_crops(
    validation: Dataset, scorer: CropScorer, *, work: int, milliseconds: float, geometry: Geometry
) -> CropChoice:
    """Try numbers of crops on validation images and choose the default of the bundle.

    Args:
        validation: Images that the scorer was not trained on; may be empty.
        scorer: Classifier.
        work: Images that the fit itself puts through the network.
        milliseconds: Time of ten crops in the network.
        geometry: Of the crops.

    Raises:
        ImageError: An image can no longer be decoded.
    """
    if not len(validation):
        reason = Reason("crops", "There are no validation images to measure crops on, so ten are averaged.")
        return CropChoice(USUAL, (), 0, (reason,))
    count, asked = measured_images(work, len(validation))
    part = validation.drawn(count)
    by_view = scorer(part.records, max(asked))
    means = {views: averaged(by_view, views) for views in asked}
    groups = part.groups()
    tried = compare(means, part.labels, groups, milliseconds)
    correct = {v: mean.argmax(axis=1) == part.labels for v, mean in means.items()}
    center = "the center crop" if geometry == "crop" else "the whole image"
    views, reason = decide(tried, correct, groups, center)
    reasons = [reason]
    if 50 not in asked:
        text = (
            f"50 crops were not tried: even on {MEASURED_AT_LEAST} images they would cost more than {SHARE:.0%} of the fit; "
            "transferapp evaluate --views 50 measures them."
        )
        reasons.append(Reason("crops", text, {"least_images": MEASURED_AT_LEAST, "share": SHARE}))
    return CropChoice(views, tried, len(part), tuple(reasons))


def on_pixels(scorer: Scorer, image_size: tuple[int, int], geometry: Geometry) -> CropScorer:
    """Return a `CropScorer` that decodes and crops the images, on all cores, and hands the pixels to a classifier.

    Args:
        scorer: Classifier of crops.
        image_size: (height, width) of its input.
        geometry: Of the crops.
    """

    def scores(records: Sequence[Record], views: int) -> np.ndarray:
        def of_image(record: Record) -> np.ndarray:
            crops = _crops(record, views, image_size, geometry)
            return np.concatenate([scorer(crops[i : i + _CHUNK]) for i in range(0, views, _CHUNK)])

        workers = cpu_cores()
        with ThreadPoolExecutor(workers) as pool:
            return np.stack(list(in_order(pool, of_image, records, 2 * workers)))

    return scores


def _crops(record: Record, views: int, image_size: tuple[int, int], geometry: Geometry) -> np.ndarray:
    largest = MULTI_SCALE_SHORT_SIDES[-1] if views == 50 else SHORT_SIDE
    needed = short_side_to_decode(largest, image_size)
    image = record.decode(needed).image
    return render_batch(image, views_for(views, image.size, image_size, geometry), image_size)


def averaged(by_view: np.ndarray, views: int) -> np.ndarray:
    """Average probabilities over some of the crops that were scored.

    Args:
        by_view: Shape (n, most, num_classes), with `most` of 10 or 50 crops in the order of `views_for`.
        views: 1, 10 or 50, at most `most`.
    """
    most = by_view.shape[1]
    if views == most:
        return np.asarray(by_view.mean(axis=1))
    center = center_index(most)
    if views == 1:
        return np.asarray(by_view[:, center])
    first = center - center_index(10)
    return np.asarray(by_view[:, first : first + 10].mean(axis=1))


def compare(
    means: Mapping[int, np.ndarray], labels: np.ndarray, groups: np.ndarray, milliseconds: float
) -> tuple[CropsTried, ...]:
    """Compare each number of crops with the first, the center crop.

    Args:
        means: Averaged probabilities by number of crops, fewest first.
        labels: int, shape (n,).
        groups: int, shape (n,): images of one number are near-duplicates or of one group.
        milliseconds: Time of ten crops.
    """
    own = np.arange(len(labels))
    tried: list[CropsTried] = []
    first: np.ndarray | None = None
    for views, mean in means.items():
        correct = mean.argmax(axis=1) == labels
        loss = float(-np.log(np.maximum(mean[own, labels], np.finfo(np.float32).tiny)).mean())
        gain, error = (None, None) if first is None else paired_gain(correct, first, groups)
        tried.append(CropsTried(views, float(correct.mean()), loss, gain, error, milliseconds * views / 10))
        first = correct if first is None else first
    return tuple(tried)


def decide(
    tried: tuple[CropsTried, ...],
    correct: Mapping[int, np.ndarray],
    groups: np.ndarray,
    center: str = "the center crop",
) -> tuple[int, Reason]:
    """Choose the number of crops that a bundle averages.

    Numbers within one standard error of the best, paired by image, count as equal. Among them ten crops are the default, and
    otherwise the cheapest.

    Args:
        tried: From `compare`.
        correct: bool, shape (n,), by number of crops: images that are classified correctly.
        groups: As of `compare`.
        center: The first of the crops, for people.
    """
    best = max(tried, key=lambda each: (each.accuracy, -each.views))
    equal = []
    for each in tried:
        behind, error = paired_gain(correct[best.views], correct[each.views], groups)
        if behind <= error + 1e-12:  # a single image is exactly its own standard error
            equal.append(each)
    chosen = next((each for each in equal if each.views == USUAL), equal[0])
    gains = {each.views: (each.gain, each.standard_error or 0.0) for each in tried if each.gain is not None}
    changes = " and ".join(
        f"by {100 * gain:+.1f} ± {100 * error:.1f} points with {views} crops" for views, (gain, error) in gains.items()
    )
    name = center if chosen.views == 1 else f"{chosen.views} crops"
    if chosen.views != USUAL:
        outcome = f"{name} {'does' if chosen.views == 1 else 'do'} better than ten by more than one standard error"
    elif best.views == USUAL:
        outcome = "ten are the default"
    else:
        outcome = "ten are the default, within one standard error of the best"
    count = len(correct[best.views])
    text = f"On {count} validation images, accuracy changes {changes} against {center}; {outcome}."
    values = {f"gain_{views}": gain for views, (gain, _) in gains.items()}
    return chosen.views, Reason("crops", text, {"views": chosen.views, "num_images": count, **values})
