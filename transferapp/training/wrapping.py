"""Batches made of other batches: what changes is an item, while epochs and hooks are those of the batches within."""

from __future__ import annotations

from typing import Any

import keras


class WrappedBatches(keras.utils.PyDataset):  # type: ignore[misc]  # Keras has no types
    """As many batches as those within, at the same epoch. A subclass says what becomes of each.

    Args:
        batches: A `PyDataset`.

    Attributes:
        batches: What was given.
    """

    def __init__(self, batches: Any) -> None:
        super().__init__(workers=1)
        self.batches = batches

    @property
    def epoch(self) -> int:
        """That of the batches."""
        return int(self.batches.epoch)

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self.batches.epoch = epoch

    def __len__(self) -> int:
        return len(self.batches)

    def on_epoch_begin(self) -> None:
        self.batches.on_epoch_begin()

    def on_epoch_end(self) -> None:
        self.batches.on_epoch_end()


def unwrapped(batches: Any) -> Any:
    """The batches that images or activations come from, within whatever has been put around them."""
    while isinstance(batches, WrappedBatches):
        batches = batches.batches
    return batches
