"""mixup, CutMix, and labels as probabilities.

mixup (Zhang et al., ICLR 2018, arXiv:1710.09412) takes lambda of one image and 1 - lambda of another, and the same of their
labels. CutMix (Yun et al., ICCV 2019, arXiv:1905.04899) pastes a box of one into the other and mixes labels by area. Both
apply to pixels and to cached feature maps alike. Pairs and shares follow from the seed, the epoch and the batch alone.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from transferapp.training.settings import Batches, MakeBatches


class SoftBatches(keras.utils.PyDataset):  # type: ignore[misc]  # Keras has no types
    """Batches whose labels are probabilities, mixed in pairs where asked for.

    Items are (x, float32 (n, num_classes)); x is float32 where it is mixed, and otherwise as it was.

    Args:
        batches: Batches of (x, int labels (n,)).
        num_classes: Number of classes.
        mixup: Alpha of the Beta distribution of lambda; 0 for no mixup.
        cutmix: The same for the share of the area that stays. With both, each batch draws one of the two. Pooled features, of
            shape (n, channels), have no area: there CutMix is mixup.
        seed: Determines the pairs and shares.
    """

    def __init__(self, batches: Batches, num_classes: int, *, mixup: float, cutmix: float, seed: int) -> None:
        super().__init__(workers=1)
        self.batches: Any = batches
        self._num_classes, self._mixup, self._cutmix, self._seed = num_classes, mixup, cutmix, seed

    @property
    def epoch(self) -> int:
        """Epoch of the batches, counted from 0."""
        return int(self.batches.epoch)

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self.batches.epoch = epoch

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        x, labels = self.batches[index]
        y = np.eye(self._num_classes, dtype=np.float32)[labels]
        if not (self._mixup or self._cutmix):
            return x, y
        rng = np.random.default_rng([self._seed, 2, self.epoch, index])
        cuts = rng.random() < 0.5 if self._mixup and self._cutmix else bool(self._cutmix)
        return mixed(x, y, rng, self._cutmix if cuts else self._mixup, cut=cuts)


def soft(make_batches: MakeBatches, num_classes: int, *, mixup: float, cutmix: float, seed: int) -> MakeBatches:
    """Return a function that makes `SoftBatches` of the batches that another makes. Arguments as of `SoftBatches`."""

    def make(batch_size: int) -> Batches:
        return SoftBatches(make_batches(batch_size), num_classes, mixup=mixup, cutmix=cutmix, seed=seed)

    return make


def mixed(
    x: np.ndarray, y: np.ndarray, rng: np.random.Generator, alpha: float, *, cut: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Mix each image of a batch with another: one share for all, partners by a permutation.

    Args:
        x: Shape (n, height, width, channels) or (n, channels), any number type.
        y: float32, shape (n, num_classes): rows sum to 1.
        rng: Source of all random numbers.
        alpha: Positive: the share of the image itself follows Beta(alpha, alpha).
        cut: Whether a box is pasted (CutMix). Otherwise, and where x has no area, images are blended (mixup).

    Returns:
        float32 arrays of the same shapes.
    """
    own = float(rng.beta(alpha, alpha))
    partners = rng.permutation(len(x))
    x = x.astype(np.float32)
    if cut and x.ndim == 4:
        rows, columns = _box(rng, x.shape[1], x.shape[2], 1 - own)
        pasted = x.copy()
        pasted[:, rows, columns] = x[partners][:, rows, columns]
        own = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (x.shape[1] * x.shape[2])
        x = pasted
    else:
        x = own * x + np.float32(1 - own) * x[partners]
    return x, np.float32(own) * y + np.float32(1 - own) * y[partners]


def _box(rng: np.random.Generator, height: int, width: int, area: float) -> tuple[slice, slice]:
    """Return a box of a share of the area around a random point, clipped at the borders, as the CutMix paper has it."""
    sides = []
    for size in (height, width):
        half = size * np.sqrt(area) / 2
        middle = rng.uniform(0, size)
        low, high = (int(np.clip(np.rint(middle + sign * half), 0, size)) for sign in (-1, 1))
        sides.append(slice(low, high))
    return sides[0], sides[1]
