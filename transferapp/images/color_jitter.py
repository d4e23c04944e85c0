"""Vary the colors of a view at random: contrast, brightness, and the color of the light.

The third step of an image's path in training, after the crop and before the network. Contrast and brightness are the
lecture's "simple" jitter; the offsets along the principal components of the training set's colors are from Krizhevsky,
Sutskever and Hinton, "ImageNet Classification with Deep Convolutional Neural Networks" (2012), section 4.1.

For one view all three together are an affine map of each channel, so a view costs one table of 256 entries a channel,
whatever is switched on. There is one rounding, at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from transferapp.errors import UsageError


@dataclass(frozen=True)
class ColorJitter:
    """How far colors may be moved. All at 0 leaves pixels as they are.

    The paper gives .1 for the light. For contrast and brightness neither it nor the lecture gives a figure; recipes that
    train from scratch for a hundred epochs take .4 to .5. A pretrained network knows these variations already, and classes
    such as stains or terrain may differ in brightness itself, so the default is half of that.

    Attributes:
        contrast: The largest relative change of every pixel's distance from the view's mean, in [0, 1).
        brightness: The largest relative change of every value, in [0, 1).
        pca_std: The standard deviation of the offsets along each principal component, in units of its eigenvalue, at
            least 0.

    Raises:
        UsageError: A value is out of range.
    """

    contrast: float = 0.2
    brightness: float = 0.2
    pca_std: float = 0.1

    def __post_init__(self) -> None:
        for name, most in (("contrast", 1.0), ("brightness", 1.0), ("pca_std", float("inf"))):
            value = getattr(self, name)
            if not 0 <= value < most:
                expected = "a number from 0" if most > 1 else "at least 0 and less than 1"
                raise UsageError(f"The color jitter's {name} is out of range", expected=expected, got=str(value))


@dataclass(frozen=True, eq=False)
class PCAColor:
    """The principal components of a training set's RGB values, on the scale where white is 1.

    On that scale the paper's offsets come out as it means them: ImageNet's first eigenvalue is about .2, so an alpha of
    standard deviation .1 moves each channel by some 3 of 255 levels. On the scale to 255 the same formula would give 800.

    Attributes:
        eigenvectors: float64 (3, 3), orthonormal; column i is p_i. Each has its largest component positive.
        eigenvalues: float64 (3,), variances, largest first.
        mean: float64 (3,), the mean color; for the record, jitter does not need it.
    """

    eigenvectors: npt.NDArray[np.float64]
    eigenvalues: npt.NDArray[np.float64]
    mean: npt.NDArray[np.float64]

    def offset(self, alpha: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """[p1, p2, p3] · (alpha_i λ_i)ᵀ: what to add to the red, green and blue of every pixel, on the scale to 1.

        Args:
            alpha: float64 (3,), the drawn strengths.

        Returns:
            float64 (3,).
        """
        return self.eigenvectors @ (alpha * self.eigenvalues)

    def to_json(self) -> dict[str, Any]:
        """Lists of numbers that JSON carries without loss."""
        return {name: getattr(self, name).tolist() for name in ("eigenvectors", "eigenvalues", "mean")}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> PCAColor:
        """What `to_json` gave.

        Raises:
            ValueError: Something is missing, or not of the right shape, or not a finite number.
        """
        arrays = {}
        for name, shape in (("eigenvectors", (3, 3)), ("eigenvalues", (3,)), ("mean", (3,))):
            array = np.asarray(values.get(name), dtype=np.float64)
            if array.shape != shape or not np.isfinite(array).all():
                raise ValueError(f"The color components' {name} must be finite numbers of shape {shape}.")
            arrays[name] = array
        return cls(**arrays)


def fit_pca_color(samples: npt.NDArray[np.uint8]) -> PCAColor:
    """The principal components of pixel values.

    Args:
        samples: uint8 (n, 3), RGB, n at least 2; pixels drawn from the training set.

    Returns:
        The eigenvectors and eigenvalues of their 3 × 3 covariance, the same for the same samples in any order.

    Raises:
        ValueError: The samples are of another shape or type, or fewer than two.
    """
    if samples.dtype != np.uint8 or samples.ndim != 2 or samples.shape[1] != 3 or len(samples) < 2:
        raise ValueError(f"Expected uint8 samples of shape (at least 2, 3), got {samples.dtype} {samples.shape}.")
    # Sums of products of bytes are exact in float64, so the order of the samples leaves no trace.
    values = samples.astype(np.float64)
    total = values.sum(axis=0)
    covariance = (values.T @ values - np.outer(total, total) / len(values)) / (len(values) - 1) / 255**2
    eigenvalues, eigenvectors = np.linalg.eigh(covariance)
    eigenvalues, eigenvectors = np.maximum(eigenvalues[::-1], 0.0), eigenvectors[:, ::-1]
    largest = eigenvectors[np.abs(eigenvectors).argmax(axis=0), np.arange(3)]
    return PCAColor(eigenvectors * np.sign(largest), eigenvalues, total / len(values) / 255)


def jitter(
    pixels: npt.NDArray[np.uint8], rng: np.random.Generator, settings: ColorJitter, pca: PCAColor | None
) -> npt.NDArray[np.uint8]:
    """Change contrast, brightness and light at random: b · (m + c · (v - m)) + 255 · offset, rounded and clipped.

    Contrast turns about the mean m of the view's own values, all channels together, not about a fixed gray: then more
    contrast neither darkens dark images nor drives them into clipping, and the three settings vary three different
    things. One mean for the three channels, so that gray stays gray.

    Args:
        pixels: uint8 (height, width, 3), RGB; not changed.
        rng: Advanced by two uniform and three normal numbers whatever the settings, so that switching one of them off
            changes nothing else.
        settings: How far. c and b are even in 1 ± contrast and 1 ± brightness, the alphas normal with `pca_std`.
        pca: The training set's components; may be None where `pca_std` is 0.

    Returns:
        uint8 (height, width, 3), values 0 to 255; `pixels` itself where all settings are 0.

    Raises:
        ValueError: `pca` is missing.
    """
    swing = 2 * rng.random(2) - 1
    alpha = settings.pca_std * rng.standard_normal(3)
    if settings.pca_std and pca is None:
        raise ValueError("Offsets along principal components need the components: see fit_pca_color.")
    if not (settings.contrast or settings.brightness or settings.pca_std):
        return pixels
    contrast, brightness = 1 + swing * (settings.contrast, settings.brightness)
    offset = np.zeros(3) if pca is None else 255 * pca.offset(alpha)
    mean = int(pixels.sum(dtype=np.uint64)) / pixels.size
    table = color_table(mean, contrast, brightness, offset)
    # Pillow's lookup is three times as fast as numpy's, which widens every index to 64 bits, and lets other threads run.
    return np.asarray(Image.fromarray(pixels).point(table.ravel().tolist()))


def color_table(
    mean: float, contrast: float, brightness: float, offset: npt.NDArray[np.float64]
) -> npt.NDArray[np.uint8]:
    """The new value for each old one, by channel.

    Args:
        mean: What contrast turns about, 0 to 255.
        contrast: The factor on distances from the mean.
        brightness: The factor on values.
        offset: float64 (3,), what is added to red, green and blue, in levels of 255.

    Returns:
        uint8 (3, 256).
    """
    values = brightness * (mean + contrast * (np.arange(256) - mean))
    return np.clip(np.rint(values + offset[:, None]), 0, 255).astype(np.uint8)
