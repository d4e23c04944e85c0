"""Geometry: whether the network sees the center crop of an image, or the whole image resized or padded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from transferapp.images.views import GEOMETRIES, Geometry
from transferapp.policy.choose import CLEARLY_LOWER, paired_gain
from transferapp.policy.reasons import Reason

GEOMETRY_CHOICES = ("auto", *GEOMETRIES)

ELONGATED_FROM = 1.6
"""Longer side over shorter side from which an image counts as elongated: beyond the 3:2 of most photographs."""

WORTH_TRYING = 0.1
"""Share of elongated images from which whole images are tried: each of the two geometries costs another pass of the images
through the network."""

_SEEN: Mapping[Geometry, str] = {
    "crop": "the center crop",
    "resize": "whole images, resized to the input",
    "pad": "whole images, padded to the input",
}


@dataclass(frozen=True)
class GeometryTried:
    """Cross-validated figures of the linear classifier in one geometry.

    Attributes:
        geometry: One of `GEOMETRIES`.
        accuracy: In [0, 1].
        loss: In nats.
        saved: Loss of the center crop less `loss`.
        standard_error: Of `saved`, paired by image.
    """

    geometry: Geometry
    accuracy: float
    loss: float
    saved: float
    standard_error: float

    @property
    def clearly_better(self) -> bool:
        """Whether the loss is lower than that of the center crop beyond `CLEARLY_LOWER` standard errors."""
        return self.saved > CLEARLY_LOWER * self.standard_error


@dataclass(frozen=True)
class GeometryFinding:
    """Outcome of `judge_geometry`.

    Attributes:
        geometry: The geometry of the set, in training and serving.
        elongated: Share of elongated images, in [0, 1].
        tried: Figures of each geometry, the center crop first; empty where only one was considered.
        reason: Explanation.
    """

    geometry: Geometry
    elongated: float
    tried: tuple[GeometryTried, ...]
    reason: Reason

    def to_json(self) -> dict[str, Any]:
        """Return a plain dictionary for JSON."""
        return {**asdict(self), "tried": [asdict(each) for each in self.tried], "reason": self.reason.to_json()}


def elongated_share(sizes: Sequence[tuple[int, int]]) -> float:
    """Return the share of images whose longer side is at least `ELONGATED_FROM` times the shorter, in [0, 1].

    Args:
        sizes: (width, height) of each image.
    """
    return sum(max(size) >= ELONGATED_FROM * min(size) for size in sizes) / max(1, len(sizes))


def geometries_to_try(wanted: str, elongated: float) -> tuple[Geometry, ...]:
    """Return the geometries to consider, the first of which is used unless another is clearly better.

    Args:
        wanted: One of `GEOMETRY_CHOICES`.
        elongated: From `elongated_share`.
    """
    if wanted == "auto":
        return GEOMETRIES if elongated >= WORTH_TRYING else ("crop",)
    return tuple(geometry for geometry in GEOMETRIES if geometry == wanted)


def judge_geometry(
    wanted: str,
    elongated: float,
    losses: Mapping[Geometry, np.ndarray],
    correct: Mapping[Geometry, np.ndarray],
    groups: np.ndarray,
) -> GeometryFinding:
    """Keep the center crop unless whole images lower the cross-validated loss clearly.

    Args:
        wanted: One of `GEOMETRY_CHOICES`.
        elongated: From `elongated_share`.
        losses: Held-out loss of each image, in nats, shape (n,), by geometry: of each of `geometries_to_try`.
        correct: bool, shape (n,): whether each held-out prediction is right.
        groups: int, shape (n,): as of `transferapp.policy.choose.standard_error`.
    """
    values: dict[str, float | int | str] = {"elongated": elongated}
    share = f"{elongated:.0%} of the images are elongated ({ELONGATED_FROM:g} : 1 or longer)"
    geometry = next(iter(losses))
    if wanted != "auto":
        text = f"The network sees {_SEEN[geometry]}, as set by --geometry. {share}."
        return GeometryFinding(geometry, elongated, (), Reason("geometry", text, values))
    if len(losses) == 1:
        text = f"The network sees {_SEEN[geometry]}: {share}, too few to try whole images (from {WORTH_TRYING:.0%})."
        return GeometryFinding(geometry, elongated, (), Reason("geometry", text, values))
    tried = tuple(
        GeometryTried(name, float(correct[name].mean()), float(loss.mean()), *paired_gain(losses["crop"], loss, groups))
        for name, loss in losses.items()
    )
    better = [each for each in tried if each.clearly_better]
    best = min(better, key=lambda each: each.loss) if better else tried[0]
    changes = " and ".join(
        f"{-each.saved:+.3f} ± {each.standard_error:.3f} {'resized' if each.geometry == 'resize' else 'padded'}"
        for each in tried[1:]
    )
    gain = best.accuracy - tried[0].accuracy
    outcome = f"Accuracy changes by {100 * gain:+.1f} points" if better else "Neither is clearly better"
    text = (
        f"The network sees {_SEEN[best.geometry]}. {share}. Whole images change the cross-validated loss of the center "
        f"crop by {changes}. {outcome}."
    )
    for each in tried[1:]:
        values |= {f"saved_{each.geometry}": each.saved, f"error_{each.geometry}": each.standard_error}
    return GeometryFinding(best.geometry, elongated, tried, Reason("geometry", text, {**values, "accuracy_gain": gain}))
