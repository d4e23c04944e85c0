"""Random training views: a random crop of a decoded image, then random changes of its colors.

Contrast and brightness are the lecture's "simple" jitter. The offsets along the principal components of the training set's
colors are from Krizhevsky, Sutskever and Hinton, "ImageNet Classification with Deep Convolutional Neural Networks" (2012),
section 4.1. For one view all three together are an affine map of each channel, so a view costs one table of 256 entries a
channel, with one rounding at the end.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from transferapp.errors import UsageError
from transferapp.images.views import REFERENCE_CROP, TRAINING_SHORT_SIDES, Geometry, render, training_view


@dataclass(frozen=True)
class ColorJitter:
    """Strength of random color changes; 0 leaves pixels as they are.

    The paper gives .1 for the principal components. For contrast and brightness neither it nor the lecture gives a figure;
    recipes that train from scratch for a hundred epochs use .4 to .5. A pretrained network has seen such variations, and
    classes such as stains or terrain may differ in brightness itself, so the default is half of that.

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

    The paper's offsets assume that scale: ImageNet's first eigenvalue is about .2, so an alpha of standard deviation .1 moves
    each channel by some 3 of 255 levels. With white at 255 the same formula would give 800.

    Attributes:
        eigenvectors: float64 (3, 3), orthonormal; column i is p_i. Each has its largest component positive.
        eigenvalues: float64 (3,), variances, largest first.
        mean: float64 (3,), the mean color; `jitter` does not use it.
    """

    eigenvectors: npt.NDArray[np.float64]
    eigenvalues: npt.NDArray[np.float64]
    mean: npt.NDArray[np.float64]

    def offset(self, alpha: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return [p1, p2, p3] · (alpha_i λ_i)ᵀ: the offset of red, green and blue for every pixel, where white is 1.

        Args:
            alpha: float64 (3,), the drawn strengths.

        Returns:
            float64 (3,).
        """
        return self.eigenvectors @ (alpha * self.eigenvalues)

    def to_json(self) -> dict[str, Any]:
        """Return lists of numbers, without loss."""
        return {name: getattr(self, name).tolist() for name in ("eigenvectors", "eigenvalues", "mean")}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> PCAColor:
        """Build from the result of `to_json`.

        Raises:
            ValueError: A value is missing, has another shape, or is NaN or infinite.
        """
        arrays = {}
        for name, shape in (("eigenvectors", (3, 3)), ("eigenvalues", (3,)), ("mean", (3,))):
            array = np.asarray(values.get(name), dtype=np.float64)
            if array.shape != shape or not np.isfinite(array).all():
                raise ValueError(f"The color components' {name} must be finite numbers of shape {shape}.")
            arrays[name] = array
        return cls(**arrays)


def fit_pca_color(samples: npt.NDArray[np.uint8]) -> PCAColor:
    """Return the principal components of pixel values.

    Args:
        samples: uint8 (n, 3), RGB, n at least 2; pixels drawn from the training set.

    Returns:
        The eigenvectors and eigenvalues of their 3 × 3 covariance. The order of the samples does not matter.

    Raises:
        ValueError: The samples are of another shape or type, or fewer than two.
    """
    if samples.dtype != np.uint8 or samples.ndim != 2 or samples.shape[1] != 3 or len(samples) < 2:
        raise ValueError(f"Expected uint8 samples of shape (at least 2, 3), got {samples.dtype} {samples.shape}.")
    # Sums of products of bytes are exact in float64, so the order of the samples does not matter.
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

    m is the mean of the view over all channels, not a fixed gray, so that more contrast neither darkens dark images nor
    clips them. It is one mean for the three channels, so that gray stays gray.

    Args:
        pixels: uint8 (height, width, 3), RGB; not changed.
        rng: Advanced by two uniform and three normal numbers whatever the settings, so that switching one off does not
            change the others.
        settings: Strengths. c and b are uniform in 1 ± contrast and 1 ± brightness, the alphas normal with `pca_std`.
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
    # Pillow's lookup is three times as fast as NumPy's, and lets other threads run.
    return np.asarray(Image.fromarray(pixels).point(table.ravel().tolist()))


def color_table(
    mean: float, contrast: float, brightness: float, offset: npt.NDArray[np.float64]
) -> npt.NDArray[np.uint8]:
    """Return the new value for each old one, by channel.

    Args:
        mean: Mean of the view, 0 to 255.
        contrast: Factor on distances from the mean.
        brightness: Factor on values.
        offset: float64 (3,), added to red, green and blue, in levels of 255.

    Returns:
        uint8 (3, 256).
    """
    values = brightness * (mean + contrast * (np.arange(256) - mean))
    return np.clip(np.rint(values + offset[:, None]), 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Augmentation:
    """Random variation of training views. The defaults are the lecture's.

    Switching one setting off does not change the others: the same random numbers are drawn.

    Attributes:
        flip: Whether half of the views are mirrored.
        short_sides: Range of the image's shorter side, in pixels for a 224-pixel crop. Two equal numbers fix the scale.
        random_crop: Whether the crop may lie anywhere; otherwise it is in the middle.
        color: Strength of the changes of contrast, brightness and light.

    Raises:
        UsageError: The range of scales is empty, or its crops would not fit.
    """

    flip: bool = True
    short_sides: tuple[float, float] = TRAINING_SHORT_SIDES
    random_crop: bool = True
    color: ColorJitter = field(default_factory=ColorJitter)

    def __post_init__(self) -> None:
        least, most = self.short_sides
        if not REFERENCE_CROP <= least <= most < float("inf"):
            raise UsageError(
                "The range of training scales is invalid",
                expected=f"two shorter sides of at least {REFERENCE_CROP}, the smaller first",
                got=f"{least} and {most}",
            )


LECTURE_AUGMENTATION = Augmentation()
"""Crops, flips and colors vary as the lecture, and the papers that it names, say."""


def seeded_generator(*key: object) -> np.random.Generator:
    """Return a random generator that depends on its key alone, so that each view can have its own.

    Args:
        key: Parts of the key, compared by their `str`.
    """
    digest = hashlib.sha256(":".join(map(str, key)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def augmented_pixels(
    image: Image.Image,
    rng: np.random.Generator,
    image_size: tuple[int, int],
    augmentation: Augmentation,
    pca: PCAColor | None,
    geometry: Geometry = "crop",
) -> npt.NDArray[np.uint8]:
    """Return a random view of an image.

    Args:
        image: The decoded image, in mode "RGB".
        rng: Source of all randomness; seed one for each view, so that views do not depend on each other.
        image_size: (height, width) of the network's input.
        augmentation: Variation of the view.
        pca: The training set's color components; may be None where `augmentation.color.pca_std` is 0.
        geometry: One of `transferapp.images.views.GEOMETRIES`.

    Returns:
        uint8 (height, width, 3), values 0 to 255.
    """
    view = training_view(
        rng,
        image.size,
        image_size,
        short_sides=augmentation.short_sides,
        flip=augmentation.flip,
        random_crop=augmentation.random_crop,
        geometry=geometry,
    )
    return jitter(render(image, view, image_size), rng, augmentation.color, pca)
