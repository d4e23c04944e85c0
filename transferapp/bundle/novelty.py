"""Novelty: similarity of an image to the training images, against that of held-out images.

The features are those that the head of the network reads, for the center view. Their mean cosine similarity to the nearest
training images (Sun et al., "Out-of-distribution detection with deep nearest neighbors", 2022) is compared with the same
figure of held-out images, which makes it a conformal p-value: a new image of the training distribution is called unknown with
a probability of at most `REFUSED`.
"""

from __future__ import annotations

import functools
import io
import zipfile
from dataclasses import dataclass

import numpy as np

NEIGHBORS = 5
"""Nearest training images whose similarity is averaged. 1, 3 and 10 separate foreign images as well (benchmarks/novelty.py)."""

REFUSED = 0.05
"""Share of the held-out images that may be called unknown."""

LEAST_HELD_OUT = 19
"""Fewest held-out images of which one in twenty can be told: with fewer, no image could be called unknown."""

_ROWS = 512


@dataclass(frozen=True, eq=False)
class Novelty:
    """Features of training images, and the similarities of held-out images to them.

    Attributes:
        features: float16, shape (n, num_features); rows of length 1.
        held_out: float32, shape (m,), ascending: similarity of each held-out image.
    """

    features: np.ndarray
    held_out: np.ndarray

    @functools.cached_property
    def _directions(self) -> np.ndarray:
        return self.features.astype(np.float32)

    def similarity(self, features: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
        """Return the mean cosine similarity of images to their nearest training images.

        Args:
            features: float, shape (q, num_features).
            groups: Where the images are the training images themselves, int, shape (n,): images of one group, such as
                near-duplicates, are not compared.

        Returns:
            float32, shape (q,), in [-1, 1].
        """
        asked, count = directions(features), min(NEIGHBORS, len(self.features))
        found = np.empty(len(asked), np.float32)
        for start in range(0, len(asked), _ROWS):
            block = slice(start, start + _ROWS)
            # One image is a request: BLAS would start all its threads in each worker of a service, for longer than it computes.
            lone = len(asked) == 1
            cosines = (
                np.einsum("nd,d->n", self._directions, asked[0])[None] if lone else asked[block] @ self._directions.T
            )
            if groups is not None:
                cosines[groups[block, None] == groups] = -1.0
            nearest = np.partition(cosines, -count, axis=1)[:, -count:]
            found[block] = nearest.mean(axis=1)
        return found

    def score(self, features: np.ndarray) -> np.ndarray:
        """Return the share of held-out images at least as similar as each image: float64, shape (q,), in [0, 1).

        One is added to the number of held-out images, for the image itself, so that m of them give at most m / (m + 1).

        Args:
            features: float, shape (q, num_features).
        """
        below = np.searchsorted(self.held_out, self.similarity(features), side="left")
        share: np.ndarray = (len(self.held_out) - below) / (len(self.held_out) + 1)
        return share

    def to_bytes(self) -> bytes:
        """Return the arrays as an uncompressed `.npz` file."""
        stream = io.BytesIO()
        np.savez(stream, features=self.features, held_out=self.held_out)
        return stream.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Novelty:
        """Read what `to_bytes` wrote.

        Raises:
            ValueError: The data are not such a file.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                features, held_out = arrays["features"], arrays["held_out"]
        except (OSError, EOFError, KeyError, MemoryError, NotImplementedError, zipfile.BadZipFile) as error:
            raise ValueError("not an .npz file of two arrays") from error
        if features.ndim != 2 or features.dtype != np.float16 or not features.size or not np.isfinite(features).all():
            raise ValueError("features are not float16 of shape (n, num_features)")
        if held_out.ndim != 1 or held_out.dtype != np.float32 or len(held_out) < LEAST_HELD_OUT:
            raise ValueError(f"similarities are not {LEAST_HELD_OUT} or more float32 numbers")
        if not np.isfinite(held_out).all() or (np.diff(held_out) < 0).any():
            raise ValueError("similarities are not ascending")
        return cls(features, held_out)


def is_known(score: float) -> bool:
    """Return whether an image of this novelty looks like one of the classes."""
    return score < 1 - REFUSED - 1e-12


def directions(features: np.ndarray) -> np.ndarray:
    """Return features scaled to length 1: float32, of the same shape."""
    features = np.asarray(features, dtype=np.float32)
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    scaled: np.ndarray = features / np.maximum(lengths, np.finfo(np.float32).tiny)
    return scaled
