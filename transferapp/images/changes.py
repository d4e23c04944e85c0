"""Changes of an image that photographs of a deployed camera show: blur, darkness, compression, rotation, noise and the like.

They and their two strengths follow Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions and
perturbations", 2019, reduced to those.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

Change = Callable[[Image.Image, float, np.random.Generator], Image.Image]
"""Function from an RGB image, a strength and a random generator to the changed image, of the same size."""


def _blur(image: Image.Image, share: float, _: np.random.Generator) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(share * min(image.size)))


def _darken(image: Image.Image, brightness: float, _: np.random.Generator) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(brightness)


def _compress(image: Image.Image, quality: float, _: np.random.Generator) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=int(quality))
    return Image.open(stream).convert("RGB")


def _rotate(image: Image.Image, degrees: float, _: np.random.Generator) -> Image.Image:
    if degrees % 90 == 0:
        return image.rotate(degrees, expand=True).resize(image.size)
    return image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=(127, 127, 127))


def _add_noise(image: Image.Image, deviation: float, rng: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image, np.float32)
    noisy = pixels + np.float32(deviation) * rng.standard_normal(pixels.shape, np.float32)
    return Image.fromarray(np.clip(noisy.round(), 0, 255).astype(np.uint8))


def _cover(image: Image.Image, share: float, rng: np.random.Generator) -> Image.Image:
    width, height = (round(side * share**0.5) for side in image.size)
    left, top = int(rng.integers(image.width - width + 1)), int(rng.integers(image.height - height + 1))
    covered = image.copy()
    covered.paste((127, 127, 127), (left, top, left + width, top + height))
    return covered


def _coarsen(image: Image.Image, factor: float, _: np.random.Generator) -> Image.Image:
    small = (max(1, round(image.width / factor)), max(1, round(image.height / factor)))
    return image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.BICUBIC)


@dataclass(frozen=True)
class Condition:
    """A change of an image at one strength.

    Attributes:
        name: Name of the change.
        strength: `mild` or `strong`.
        detail: What is done, for people.
        change: Does it.
        amount: Strength as `change` takes it.
    """

    name: str
    strength: str
    detail: str
    change: Change
    amount: float

    @property
    def key(self) -> str:
        """Name and strength in one, such as `blur, mild`."""
        return f"{self.name}, {self.strength}"

    def apply(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return a changed image: uint8, shape (height, width, 3), as `pixels` is."""
        return np.asarray(self.change(Image.fromarray(pixels), self.amount, rng), np.uint8)


CONDITIONS = tuple(
    Condition(name, strength, detail, change, amount)
    for name, change, mild, strong in (
        ("blur", _blur, ("Gaussian of 1% of the side", 0.01), ("Gaussian of 2.5% of the side", 0.025)),
        ("darkness", _darken, ("40% of the brightness", 0.4), ("15% of the brightness", 0.15)),
        ("JPEG compression", _compress, ("quality 20", 20.0), ("quality 7", 7.0)),
        ("rotation", _rotate, ("by 15°", 15.0), ("by 90°", 90.0)),
        ("noise", _add_noise, ("deviation of 20 levels", 20.0), ("deviation of 50 levels", 50.0)),
        ("occlusion", _cover, ("a ninth of the area", 1 / 9), ("a quarter of the area", 0.25)),
        ("low resolution", _coarsen, ("a quarter of the pixels a side", 4.0), ("an eighth of the pixels a side", 8.0)),
    )
    for strength, (detail, amount) in (("mild", mild), ("strong", strong))
)
