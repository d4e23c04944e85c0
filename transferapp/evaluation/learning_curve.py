"""Forecast of the accuracy with more images, from power laws fitted to a learning curve.

Cross-validated errors of classifiers solved on parts of the training images follow ``floor + scale * n ** -exponent``
(Hestness et al., "Deep learning scaling is predictable, empirically", 2017; Viering and Loog, "The shape of learning curves",
2023). A few points cannot tell a law with a floor, under which the gain ends soon, from one without, under which it never does:
both are fitted, and the forecast is made of both alike. The interval comes from drawing the images again, each with its outcome
at every size, and fitting the laws to each draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

EXPONENTS = np.linspace(0.05, 1.0, 20)
"""Exponents that are tried. Measured ones lie between .2 and .6; above 1 an error would vanish as soon as images are added."""

LEAST_ERRORS = 10
"""Fewest errors at the full size from which a law is fitted."""

MORE = 30
"""Images that a class is imagined to gain."""

_DRAWS = 400
_PRIOR = 5
"""Images by which the error of a class is drawn toward that of all."""

_CURVE_POINTS = 24


@dataclass(frozen=True)
class Point:
    """Accuracy at a number of training images, with the limits of its 95 % interval."""

    num_images: float
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class ClassGain:
    """Gain in the accuracy over all classes from more images of one, with the limits of its 95 % interval."""

    name: str
    gain: float
    low: float
    high: float


@dataclass(frozen=True)
class Forecast:
    """Learning curve and what follows from it.

    Attributes:
        measured: Cross-validated accuracies, fewest images first; their intervals are those of the draws.
        curve: The fitted law, from the fewest images to four times as many as there are.
        doubled: The law at twice the images.
        gain: What twice the images gain, as (gain, low, high).
        more: Images that each class is imagined to gain.
        classes: Classes by that gain, largest first.
    """

    measured: tuple[Point, ...]
    curve: tuple[Point, ...]
    doubled: Point
    gain: tuple[float, float, float]
    more: int
    classes: tuple[ClassGain, ...]

    def to_json(self) -> dict[str, Any]:
        """Return a plain dictionary for JSON."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Laws:
    """Power laws of the error, two for each draw.

    Attributes:
        floor: float64, shape (2 * draws,), at least 0: the error that no number of images removes.
        scale: float64, shape (2 * draws,), at least 0.
        exponent: float64, shape (2 * draws,).
    """

    floor: np.ndarray
    scale: np.ndarray
    exponent: np.ndarray

    def error(self, num_images: float) -> np.ndarray:
        """Return the error at a number of training images: float64, shape (2 * draws,)."""
        found: np.ndarray = self.floor + self.scale * num_images**-self.exponent
        return found


def fit_laws(sizes: np.ndarray, errors: np.ndarray) -> Laws:
    """Fit laws with and without a floor to each row of errors by least squares, with no negative part.

    Args:
        sizes: Training images, shape (num_sizes,).
        errors: float, shape (draws, num_sizes), in [0, 1].

    Returns:
        The laws with a floor, and then those without: shape (2 * draws,).
    """
    fitted = [_fit_laws(sizes, errors, with_floor=with_floor) for with_floor in (True, False)]
    floor, scale, exponent = (np.concatenate(values) for values in zip(*fitted, strict=True))
    return Laws(floor, scale, exponent)


def _fit_laws(sizes: np.ndarray, errors: np.ndarray, *, with_floor: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    best = np.full(len(errors), np.inf)
    floor, scale, exponent = np.zeros(len(errors)), np.zeros(len(errors)), np.zeros(len(errors))
    for tried in EXPONENTS:
        powers = sizes**-tried
        # Without a floor, or where the optimum has a negative one, the law is a multiple of the powers.
        slope, level = (errors @ powers) / (powers @ powers), np.zeros(len(errors))
        if with_floor:
            centered = powers - powers.mean()
            free = (errors @ centered) / (centered @ centered)
            rest = errors.mean(axis=1) - free * powers.mean()
            slope, level = np.where(rest < 0, slope, free), np.maximum(rest, 0)
            level, slope = np.where(slope < 0, errors.mean(axis=1), level), np.maximum(slope, 0)
        residual = np.square(level[:, None] + slope[:, None] * powers - errors).sum(axis=1)
        better = residual < best
        best = np.where(better, residual, best)
        floor, scale = np.where(better, level, floor), np.where(better, slope, scale)
        exponent = np.where(better, tried, exponent)
    return floor, scale, exponent


def forecast(
    sizes: Sequence[float],
    correct: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    counts: Sequence[int],
    class_names: Sequence[str],
) -> Forecast | None:
    """Fit the law and apply it.

    Args:
        sizes: Training images of each classifier, fewest first.
        correct: float, shape (num_sizes, n), in [0, 1]: share of the classifiers of a size that are right on an image that they
            were not trained on.
        labels: Of these images: int, shape (n,).
        groups: int, shape (n,): images of one number, such as near-duplicates, are drawn together.
        counts: Images of each class that the shipped classifier is trained on.
        class_names: In label order.

    Returns:
        None with fewer than `LEAST_ERRORS` errors at the full size.
    """
    if (1 - correct[-1]).sum() < LEAST_ERRORS:
        return None
    draws = _draws(groups)
    wrong = 1 - correct
    errors = draws @ wrong.T / draws.sum(axis=1, keepdims=True)
    laws = fit_laws(np.asarray(sizes, float), errors)
    now = float(sum(counts))
    fewest, most = float(sizes[0]), 4 * now
    positions = fewest * (most / fewest) ** (np.arange(_CURVE_POINTS) / (_CURVE_POINTS - 1))
    gains = laws.error(now) - laws.error(2 * now)
    classes = [
        ClassGain(name, *_limits(np.tile(share, 2) * (laws.error(now) - laws.error(now * (1 + MORE / max(count, 1))))))
        for name, count, share in zip(class_names, counts, _class_shares(draws, wrong[-1], labels, counts), strict=True)
    ]
    return Forecast(
        measured=tuple(Point(float(n), *_limits(column)) for n, column in zip(sizes, (1 - errors).T, strict=True)),
        curve=tuple(Point(float(n), *_limits(1 - laws.error(n))) for n in positions),
        doubled=Point(2 * now, *_limits(1 - laws.error(2 * now))),
        gain=_limits(gains),
        more=MORE,
        classes=tuple(sorted(classes, key=lambda each: -each.gain)),
    )


def _draws(groups: np.ndarray) -> np.ndarray:
    """Return how often each image counts in each draw: float64, shape (draws, n)."""
    _, index = np.unique(groups, return_inverse=True)
    total = int(index.max()) + 1
    drawn = np.random.default_rng(0).multinomial(total, np.full(total, 1 / total), size=_DRAWS)
    counted: np.ndarray = drawn[:, index].astype(np.float64)
    return counted


def _class_shares(draws: np.ndarray, wrong: np.ndarray, labels: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """Return the part of all errors that each class has: float64, shape (num_classes, draws).

    The error of a class is drawn toward that of all by `_PRIOR` images. A class counts in the accuracy as often as it occurs.
    """
    total = draws.sum(axis=1)
    error = draws @ wrong / total
    shares = []
    for label in range(len(counts)):
        members = labels == label
        images = draws[:, members].sum(axis=1)
        own = (draws[:, members] @ wrong[members] + _PRIOR * error) / (images + _PRIOR)
        shares.append(members.mean() * own / np.maximum(error, 1e-9))
    return np.array(shares)


def _limits(values: np.ndarray) -> tuple[float, float, float]:
    """Return the mean of the draws, which varies less than the fit to the images themselves, and their 95 % interval."""
    low, high = np.quantile(values, [0.025, 0.975])
    return float(values.mean()), float(low), float(high)
