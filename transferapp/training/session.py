"""A model made ready to train: compiled, with its data, its schedule, and all that changes in training within reach.

`transferapp.training.loop` drives it epoch by epoch; what is asked of a model before that, how long a step takes and which
learning rate it bears, is here too.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from transferapp.errors import ResourceError, TransferAppError
from transferapp.training.batches import FollowEpochs, original_errors
from transferapp.training.checkpoint import Generation
from transferapp.training.learning_rate_finder import LOW, STEPS, RateFinding, find_learning_rate
from transferapp.training.optimizers import averaged_weights, make_optimizer
from transferapp.training.probe import log_softmax
from transferapp.training.schedules import make_schedule, restart_steps
from transferapp.training.settings import OUT_OF_MEMORY, MakeBatches, TrainingSettings, Weights

SMALLEST_BATCH = 4
"""Below this, halving the batch further would not make room for much."""

WARMUP_FRACTION = 0.05
"""Share of the run in which the rate rises from 0: Adam's first steps rest on very few gradients."""

_TIMED_STEPS = 4


class Session:
    """A compiled model, its data, and its variables in a fixed order.

    Args:
        model: Gives logits of shape (batch, num_classes).
        make_batches: Makes the training data; with the settings' `soft_labels`, as `transferapp.training.mixing` gives them.
        validation: A `PyDataset` of the validation images, in order.
        settings: How to train.
        multipliers: Of the learning rate, by variable path.
        batch_size: Images in a batch.

    Attributes:
        snapshot_epochs: After which epochs, counted from 1, a cycle of `sgdr` has ended.
    """

    def __init__(
        self,
        model: keras.Model,
        make_batches: MakeBatches,
        validation: Any,
        settings: TrainingSettings,
        *,
        multipliers: Mapping[str, float],
        batch_size: int,
    ) -> None:
        self.model = model
        self._batches = make_batches(batch_size)
        self._validation = validation
        self._steps = len(self._batches)
        total = self._steps * settings.epochs
        warmup = min(round(WARMUP_FRACTION * total), total - 1)
        if settings.restarts:  # a climb of more than half an epoch could push a cycle's end into the next epoch
            warmup = min(warmup, self._steps // 2)
        self._schedule = make_schedule(
            settings.schedule,
            settings.learning_rate,
            total,
            warmup_steps=warmup,
            steps_per_epoch=self._steps,
            cycles=settings.cycles,
        )
        self.snapshot_epochs: frozenset[int] = frozenset()
        if settings.schedule == "sgdr" and settings.restarts:
            ends = restart_steps(total, settings.cycles, warmup_steps=warmup, steps_per_epoch=self._steps)
            self.snapshot_epochs = frozenset(end // self._steps for end in ends)
        self._optimizer = _compile(model, self._schedule, settings, multipliers)
        self._averages = bool(settings.average)

    def fit_epoch(self, number: int) -> dict[str, float]:
        """One pass; `number` counts from 1. Returns the epoch's mean `loss` and `accuracy`."""
        with original_errors(self._batches, self._validation):
            history = self.model.fit(
                self._batches,
                initial_epoch=number - 1,
                epochs=number,
                shuffle=False,
                verbose=0,
                callbacks=[FollowEpochs(self._batches)],
            ).history
        return {name: float(values[-1]) for name, values in history.items()}

    def validate(self, labels: np.ndarray) -> tuple[np.ndarray, float, float]:
        """(logits, mean loss in nats, accuracy) on the validation images.

        Raises:
            ResourceError: There is not enough memory for a batch of them.
        """
        try:
            with original_errors(self._batches, self._validation):
                logits = np.asarray(self.model.predict(self._validation, verbose=0), dtype=np.float32)
        except Exception as error:
            if not _is_out_of_memory(error):
                raise
            raise ResourceError(
                "There is not enough memory to judge the validation images",
                hint="Close other programs, choose a smaller backbone, or --tune last",
                code=OUT_OF_MEMORY,
            ) from error
        loss = float(-log_softmax(logits)[np.arange(len(labels)), labels].mean())
        return logits, loss, float((logits.argmax(axis=1) == labels).mean())

    def rate_at(self, number: int) -> float:
        """The learning rate in the middle of an epoch counted from 1: what the history shows."""
        middle = (number - 1) * self._steps + self._steps // 2
        return float(keras.ops.convert_to_numpy(self._schedule(middle)))

    def weights(self, averaged: bool = False) -> Weights:
        """Copies of the model's weights; those that train may be replaced by their average."""
        arrays = {id(v): _array(v) for v in self.model.weights}
        if averaged:
            average = averaged_weights(self._optimizer)
            arrays |= {id(v): np.array(a) for v, a in zip(self.model.trainable_variables, average, strict=True)}
        return [arrays[id(v)] for v in self.model.weights]

    def averaged(self) -> Weights | None:
        """The weights with their Polyak average, where one is kept."""
        return self.weights(averaged=True) if self._averages else None

    def assign(self, weights: Sequence[np.ndarray]) -> None:
        """Give the model these weights."""
        _assign(self.model.weights, weights)

    def skip_to(self, number: int) -> None:
        """Set the schedule's clock to the beginning of an epoch."""
        self._optimizer.iterations.assign((number - 1) * self._steps)

    def arrays(self) -> dict[str, np.ndarray]:
        """All that changes in training: weights, the seeds of dropout, the optimizer's state with its average."""
        return {
            **{f"model/{i}": _array(v) for i, v in enumerate(self.model.variables)},
            **{f"optimizer/{i}": _array(v) for i, v in enumerate(self._optimizer.variables)},
        }

    def restore(self, generation: Generation) -> None:
        """Put all of `arrays` back."""
        for kind, variables in (("model", self.model.variables), ("optimizer", self._optimizer.variables)):
            _assign(variables, [generation.arrays[f"{kind}/{i}"] for i in range(len(variables))])


def time_step(
    model: keras.Model,
    make_batches: MakeBatches,
    settings: TrainingSettings,
    *,
    multipliers: Mapping[str, float],
    batch_size: int,
) -> tuple[float, int]:
    """How long a training step takes for each image in it, and the batch size that there is memory for.

    The median of a few steps, after one that compiles; the model is as before afterwards. Arguments as of `Session`.

    Raises:
        ResourceError: There is not enough memory for the smallest batch.
    """
    before = [_array(v) for v in model.variables]
    try:
        while True:
            try:
                batches = make_batches(batch_size)
                _compile(model, LOW, settings, multipliers)
                seconds = []
                for index in range(_TIMED_STEPS + 1):
                    started = time.perf_counter()
                    batch = batches[index % len(batches)]
                    model.train_on_batch(*batch)
                    seconds.append((time.perf_counter() - started) / len(batch[1]))
                return float(np.median(seconds[1:])), batch_size
            except Exception as error:
                batch_size = smaller_batch(batch_size, error)
    finally:
        _assign(model.variables, before)


def suggest_rate(
    model: keras.Model,
    make_batches: MakeBatches,
    settings: TrainingSettings,
    *,
    multipliers: Mapping[str, float],
    batch_size: int,
) -> RateFinding:
    """Run a range test on a model, with the optimizer that it will be trained by. Arguments as of `Session`.

    Raises:
        TrainingError: The loss broke out from the start.
        ResourceError: There is not enough memory for the smallest batch.
    """
    before = [_array(v) for v in model.variables]
    while True:
        try:
            batches = make_batches(batch_size)
            _compile(model, LOW, settings, multipliers)
            return find_learning_rate(model, (batches[step % len(batches)] for step in range(STEPS)))
        except Exception as error:
            batch_size = smaller_batch(batch_size, error)
            _assign(model.variables, before)


def smaller_batch(batch_size: int, error: Exception) -> int:
    """Half the batch, where memory ran out; raises any other error again.

    Raises:
        ResourceError: The batch is as small as it can be already.
    """
    if not _is_out_of_memory(error):
        raise error
    if batch_size // 2 < SMALLEST_BATCH:
        raise ResourceError(
            f"There is not enough memory to train with batches of {batch_size}",
            hint="Close other programs, choose a smaller backbone, or --tune last",
            code=OUT_OF_MEMORY,
        ) from error
    return batch_size // 2


_MEMORY_ERRORS = ("resource_exhausted", "resourceexhausted", "out of memory", "oom when allocating")


def _is_out_of_memory(error: Exception) -> bool:
    """Whether a backend means that memory ran out: each says so in an exception of its own."""
    if isinstance(error, TransferAppError):
        return False
    text = f"{type(error).__name__} {error}".lower()
    return isinstance(error, MemoryError) or any(mark in text for mark in _MEMORY_ERRORS)


def _compile(
    model: keras.Model, learning_rate: Any, settings: TrainingSettings, multipliers: Mapping[str, float]
) -> keras.Optimizer:
    optimizer = make_optimizer(
        settings.optimizer,
        learning_rate,
        weight_decay=settings.weight_decay or None,
        clip_norm=settings.clip_norm or None,
        multipliers=multipliers,
        average=settings.average or None,
    )
    model.compile(
        optimizer=optimizer,
        loss=cross_entropy(settings),
        metrics=["accuracy"],
        # XLA on the CPU is ten times slower than TensorFlow's plain graph on depthwise convolutions (measured).
        jit_compile="auto" if keras.backend.backend() == "jax" else False,
    )
    # In half precision Keras has put an optimizer around it that scales the loss.
    model.optimizer.build(model.trainable_variables)
    _build_metrics(model, settings)
    return model.optimizer


def _build_metrics(model: keras.Model, settings: TrainingSettings) -> None:
    """Have the metrics' variables made now. TensorFlow traces a step a second time where the first trace has made variables,
    and a trace of a network takes longer than ten of its steps.
    """
    num_classes = model.output_shape[-1]
    labels = np.zeros((1, num_classes), np.float32) if settings.soft_labels else np.zeros(1, np.int32)
    model.compute_metrics(None, labels, np.zeros((1, num_classes), np.float32))
    model.reset_metrics()


def cross_entropy(settings: TrainingSettings) -> Any:
    """Cross-entropy of logits with class indices or, where the settings have `soft_labels`, with probabilities.

    Each image is weighed by its class; what is mixed from two counts with the weight of each for its share. The weights are
    in the loss and not in the data, so that metrics stay without them.
    """
    smoothing = settings.label_smoothing
    if not settings.class_weights:
        if settings.soft_labels:
            return keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=smoothing)
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    weights = np.asarray(settings.class_weights, dtype=np.float32)

    def of_indices(labels: Any, logits: Any) -> Any:
        labels = keras.ops.cast(keras.ops.reshape(labels, (-1,)), "int32")
        losses = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
        return keras.ops.take(keras.ops.convert_to_tensor(weights), labels) * losses

    def of_probabilities(labels: Any, logits: Any) -> Any:
        weighed = keras.ops.cast(labels, "float32") * weights
        spread = keras.ops.sum(weighed, axis=-1, keepdims=True) / len(weights)
        targets = (1 - smoothing) * weighed + smoothing * spread
        # Not Keras' function of probabilities: TensorFlow's gradient of it is wrong where a row does not sum to 1.
        return -keras.ops.sum(targets * keras.ops.log_softmax(logits), axis=-1)

    return of_probabilities if settings.soft_labels else of_indices


def _array(variable: Any) -> np.ndarray:
    return np.array(keras.ops.convert_to_numpy(variable))


def _assign(variables: Sequence[Any], arrays: Sequence[np.ndarray]) -> None:
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)
