"""A model and its data as the hardware wants them: in mixed precision, on several devices, in batches that divide evenly.

Training happens on a copy. The model that it was made from stays in float32 and on one device, as it is exported; weights go
back and forth as arrays. On one CPU the copy is the model itself, and the data are what they were.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from transferapp.backbones.copies import give_weights
from transferapp.system.hardware import Hardware
from transferapp.training.settings import MakeBatches
from transferapp.training.tail import InferenceMode, TrainingMode
from transferapp.training.wrapping import WrappedBatches


@dataclass(frozen=True)
class Prepared:
    """What `train` is given in place of a model and its data.

    Attributes:
        model: To be trained; its weights are in the order of the original's.
        make_batches: Makes the training data for a batch size.
        validation: What `predicted` takes.
        multipliers: Of the learning rate, by paths of this model's variables.
    """

    model: keras.Model
    make_batches: MakeBatches
    validation: Any
    multipliers: dict[str, float]


def prepare(
    model: keras.Model,
    make_batches: MakeBatches,
    multipliers: Mapping[str, float],
    hardware: Hardware,
    validation: Any = None,
) -> Prepared:
    """Make everything ready for the hardware. Call this, and use what it returns, within `distributed(hardware)`.

    Args:
        model: As `training_copy` takes it.
        make_batches: Makes the training data for a batch size.
        multipliers: Of the learning rate, by paths of `model`'s variables.
        hardware: From `detect`.
        validation: A `PyDataset` of the validation images, if there is to be validation.
    """
    copy = training_copy(model, hardware)
    pairs = zip(model.trainable_variables, copy.trainable_variables, strict=True)
    renamed = {theirs.path: multipliers[own.path] for own, theirs in pairs if own.path in multipliers}
    if hardware.count == 1:
        return Prepared(copy, make_batches, validation, renamed)

    def make_even(batch_size: int) -> EvenBatches:
        return EvenBatches(make_batches(batch_size), hardware.count)

    return Prepared(copy, make_even, None if validation is None else EvenBatches(validation, hardware.count), renamed)


def predicted(model: keras.Model, batches: Any) -> np.ndarray:
    """What a model gives for the items of a `PyDataset`, in order: float32, shape (n, ...), without what was filled in."""
    rows = np.asarray(model.predict(batches, verbose=0), dtype=np.float32)
    return batches.own_rows(rows) if isinstance(batches, EvenBatches) else rows


def replicas(model: keras.Model) -> int:
    """How many devices are each given the whole of what `train_on_batch` is called with: 1 but for TensorFlow's strategies.

    `fit` shares a batch out among them.
    """
    strategy = getattr(model, "distribute_strategy", None)  # of TensorFlow's trainer alone
    return int(getattr(strategy, "num_replicas_in_sync", 1))


def training_copy(model: keras.Model, hardware: Hardware) -> keras.Model:
    """The model to train: with variables on all devices, computing in the hardware's precision. Same weights, same order.

    The networks nested in it compute in the hardware's precision: the tail's body. The layers around them stay as they are,
    for pooling sums many numbers, and a softmax over logits of half precision would be coarse.

    Args:
        model: Functional, not wrapped in anything but `InferenceMode` or `TrainingMode`; what is nested in it likewise.
        hardware: From `detect`. Call this within `distributed(hardware)`.

    Returns:
        The model itself where the hardware asks for nothing; otherwise a copy that is not compiled.
    """
    if hardware.count == 1 and hardware.dtype_policy == "float32":
        return model

    def inner(layer: Any) -> Any:
        config = layer.get_config()
        if layer.dtype_policy.name == "float32":
            config["dtype"] = hardware.dtype_policy
        return type(layer).from_config(config)

    def outer(layer: Any) -> Any:
        if isinstance(layer, InferenceMode | TrainingMode):
            return layer.like(outer(layer.network))
        if isinstance(layer, keras.Model):
            return _cloned(layer, inner)
        return type(layer).from_config(layer.get_config())

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(hardware.dtype_policy)  # the copy's own; by it Keras knows to scale the loss
    try:
        copy = _cloned(model, outer)
    finally:
        keras.config.set_dtype_policy(before)
    give_weights(copy, model.get_weights())
    return copy


def _cloned(model: keras.Model, clone_layer: Any) -> keras.Model:
    bare = keras.Model(model.inputs[0], model.outputs[0], name=model.name)  # Keras would copy how it was compiled, too
    return keras.models.clone_model(bare, clone_function=clone_layer)


class EvenBatches(WrappedBatches):
    """Batches filled up so that every device has the same number of images, without changing what a step learns.

    What is filled in has weight 0, and the others weigh more in proportion, so that the mean of the loss is over the batch's
    own images. Items with labels get a third part: float32 weights, shape (n,). What is filled in comes last in its batch, so
    predictions for several batches have it in between: `own_rows` leaves it out.

    Args:
        batches: A `PyDataset` of (x,) or (x, y).
        count: Devices.
    """

    def __init__(self, batches: Any, count: int) -> None:
        super().__init__(batches)
        self._count = count
        self._own: dict[int, int] = {}

    def __getitem__(self, index: int) -> Any:
        item = self.batches[index]
        own = self._own[index] = len(item[0])
        missing = -own % self._count
        filled = tuple(np.concatenate([array, np.repeat(array[:1], missing, axis=0)]) for array in item)
        if len(item) == 1:
            return filled
        weights = np.zeros(own + missing, np.float32)
        weights[:own] = (own + missing) / own
        return (*filled, weights)

    def own_rows(self, rows: np.ndarray) -> np.ndarray:
        """The predictions for the batches' own images, of those for all batches, which have been asked for by then."""
        sizes = (self._own[index] for index in range(len(self)))
        kept: np.ndarray = rows[np.concatenate([np.arange(own + -own % self._count) < own for own in sizes])]
        return kept
