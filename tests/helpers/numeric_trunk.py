"""A trunk that computes with colors, without Keras and OpenVINO, for tests of measuring and solving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from transferapp.backbones.stages import Stage
from transferapp.backbones.trunk import Trunk

SIZE = (32, 32)
STAGES = (Stage("early", 0, (4, 4, 3), False), Stage("top", 1, (2, 2, 6), True))
HUES = {"red": (200, 60, 60), "green": (60, 200, 60), "blue": (60, 60, 200)}
NUM_LOGITS = 3


class Colors:
    """Engine whose rows are the mean color of an image, the means of its upper and lower half, and logits of its hue; then
    the standard deviations that belong to the means.

    Args:
        blind_top: Whether the top stage is noise, the same each time for the same image.
        knows_hues: Whether the logits name the hue; otherwise they are zero.
    """

    name, precision = "numpy", "f32"

    def __init__(self, *, blind_top: bool = False, knows_hues: bool = True) -> None:
        self._blind_top, self._knows_hues = blind_top, knows_hues

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        mean = batch.mean(axis=(1, 2))
        half = batch.shape[1] // 2
        top = np.concatenate([batch[:, :half].mean(axis=(1, 2)), batch[:, half:].mean(axis=(1, 2))], axis=1)
        if self._blind_top:
            top = np.sin(1e5 * top)
        logits = 0.2 * mean if self._knows_hues else np.zeros_like(mean)
        halves = (batch, batch[:, :half], batch[:, half:])
        deviations = np.concatenate([pixels.std(axis=(1, 2)) for pixels in halves], axis=1)
        if self._blind_top:
            deviations[:, 3:] = np.sin(1e5 * deviations[:, 3:])
        return np.concatenate([mean, top, logits, deviations], axis=1).astype(np.float32)


def numeric_trunk(name: str, **options: Any) -> Trunk:
    """Return a trunk with the name of a backbone."""
    return Trunk(name, f"numeric-{sorted(options.items())}", SIZE, Colors(**options), STAGES, NUM_LOGITS)


def paint_hues(root: Path, counts: dict[str, int], *, noise: float = 10, seed: int = 0) -> Path:
    """Write images below `root` in the hue of their folder; `noise` is the standard deviation of an image's color."""
    rng = np.random.default_rng(seed)
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            color = np.array(HUES[folder.split("/")[-1]]) + noise * rng.normal(size=3)
            pixels = color + rng.normal(size=(40, 40, 3)) * 8
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(root / folder / f"{number:03}.png")
    return root
