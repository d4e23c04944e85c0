"""A compiled model with its precision, data and schedule: one epoch at a time, a timed step, a range test.

`transferapp.training.loop` drives it epoch by epoch.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from transferapp.backbones.keras_internals import give_weights
from transferapp.errors import ResourceError, TransferAppError
from transferapp.training.batches import FollowEpochs, original_errors
from transferapp.training.checkpoint import Generation
from transferapp.training.learning_rate_finder import LOW, RateFinding, find_learning_rate
from transferapp.training.optimizers import averaged_weights, make_optimizer
from transferapp.training.probe import log_softmax
from transferapp.training.schedules import make_schedule, restart_steps
from transferapp.training.settings import OUT_OF_MEMORY, TrainingJob, TrainingSettings, Weights
from transferapp.training.tail import InferenceMode, TrainingMode

SMALLEST_BATCH = 4
"""The smallest batch: halving it further would free little memory."""

WARMUP_FRACTION = 0.05
"""Share of the run in which the rate rises from 0: Adam's first steps rest on very few gradients."""

_TIMED_STEPS = 4


class Session:
    """A compiled model, its data, and its variables in a fixed order.

    Args:
        job: Model, training data and settings.
        validation: A `PyDataset` of the validation images, in order.

    Attributes:
        snapshot_epochs: Epochs, counted from 1, at whose end a cycle of `sgdr` ends.
        averages: Whether there is a Polyak average of the weights.
    """

    def __init__(self, job: TrainingJob, validation: Any) -> None:
        settings = job.settings
        self.model = job.model
        self._batches = job.make_batches(job.batch_size)
        self._validation = validation
        self._steps = len(self._batches)
        total = self._steps * settings.epochs
        warmup = min(round(WARMUP_FRACTION * total), total - 1)
        if settings.restarts:  # a warm-up of more than half an epoch could move a cycle's end into the next epoch
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
        self._optimizer = _compile(job, self._schedule)
        self.averages = bool(settings.average)

    def fit_epoch(self, number: int) -> dict[str, float]:
        """Train one epoch, counted from 1, and return its mean `loss` and `accuracy`."""
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
        """Return (logits, mean loss in nats, accuracy) on the validation images.

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
                "There is not enough memory to evaluate the validation images",
                hint="Close other programs, choose a smaller backbone, or --tune last",
                code=OUT_OF_MEMORY,
            ) from error
        loss = float(-log_softmax(logits)[np.arange(len(labels)), labels].mean())
        return logits, loss, float((logits.argmax(axis=1) == labels).mean())

    def rate_at(self, number: int) -> float:
        """Return the learning rate in the middle of an epoch, counted from 1."""
        middle = (number - 1) * self._steps + self._steps // 2
        return float(keras.ops.convert_to_numpy(self._schedule(middle)))

    def weights(self, averaged: bool = False) -> Weights:
        """Return copies of the model's weights, with the Polyak average of those that train if `averaged`."""
        arrays = {id(v): _array(v) for v in self.model.weights}
        if averaged:
            average = averaged_weights(self._optimizer)
            arrays |= {id(v): np.array(a) for v, a in zip(self.model.trainable_variables, average, strict=True)}
        return [arrays[id(v)] for v in self.model.weights]

    def assign(self, weights: Sequence[np.ndarray]) -> None:
        """Set the model's weights."""
        _assign(self.model.weights, weights)

    def skip_to(self, number: int) -> None:
        """Set the schedule's step to the beginning of an epoch."""
        self._optimizer.iterations.assign((number - 1) * self._steps)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all that training changes: weights, seeds of dropout, and the optimizer's state with its average."""
        return {
            **{f"model/{i}": _array(v) for i, v in enumerate(self.model.variables)},
            **{f"optimizer/{i}": _array(v) for i, v in enumerate(self._optimizer.variables)},
        }

    def restore(self, generation: Generation) -> None:
        """Restore everything that `arrays` returned."""
        for kind, variables in (("model", self.model.variables), ("optimizer", self._optimizer.variables)):
            _assign(variables, [generation.arrays[f"{kind}/{i}"] for i in range(len(variables))])


def time_step(job: TrainingJob) -> tuple[float, int]:
    """Return the seconds per image of a training step, and the batch size that fits into memory.

    The median of a few steps, after one that compiles. The model's variables are restored afterwards.

    Raises:
        ResourceError: There is not enough memory for the smallest batch.
    """
    before = [_array(v) for v in job.model.variables]
    try:
        while True:
            try:
                batches = job.make_batches(job.batch_size)
                _compile(job, LOW)
                seconds = []
                for index in range(_TIMED_STEPS + 1):
                    started = time.perf_counter()
                    batch = batches[index % len(batches)]
                    job.model.train_on_batch(*batch)
                    seconds.append((time.perf_counter() - started) / len(batch[1]))
                return float(np.median(seconds[1:])), job.batch_size
            except Exception as error:
                job = replace(job, batch_size=smaller_batch(job.batch_size, error))
    finally:
        _assign(job.model.variables, before)


def suggest_rate(job: TrainingJob) -> RateFinding:
    """Run a range test on a model, with the optimizer that will train it.

    Raises:
        TrainingError: The loss diverged from the start.
        ResourceError: There is not enough memory for the smallest batch.
    """
    before = [_array(v) for v in job.model.variables]
    while True:
        try:
            batches = job.make_batches(job.batch_size)
            _compile(job, LOW)
            return find_learning_rate(job.model, batches)
        except Exception as error:
            job = replace(job, batch_size=smaller_batch(job.batch_size, error))
            _assign(job.model.variables, before)


def smaller_batch(batch_size: int, error: Exception) -> int:
    """Return half the batch size if the error means that memory ran out; otherwise raise the error again.

    Raises:
        ResourceError: The batch cannot be smaller.
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
    """Return whether an error means that memory ran out; each backend has exceptions of its own for that."""
    if isinstance(error, TransferAppError):
        return False
    text = f"{type(error).__name__} {error}".lower()
    return isinstance(error, MemoryError) or any(mark in text for mark in _MEMORY_ERRORS)


def _compile(job: TrainingJob, learning_rate: Any) -> keras.Optimizer:
    model, settings = job.model, job.settings
    optimizer = make_optimizer(
        settings.optimizer,
        learning_rate,
        weight_decay=settings.weight_decay or None,
        clip_norm=settings.clip_norm or None,
        multipliers=job.multipliers,
        average=settings.average or None,
    )
    model.compile(
        optimizer=optimizer,
        loss=cross_entropy(settings),
        metrics=["accuracy"],
        # XLA on the CPU is ten times slower than TensorFlow's plain graph on depthwise convolutions (measured).
        jit_compile="auto" if keras.backend.backend() == "jax" else False,
    )
    # In half precision Keras has wrapped the optimizer in one that scales the loss.
    model.optimizer.build(model.trainable_variables)
    _build_metrics(model, settings)
    return model.optimizer


def _build_metrics(model: keras.Model, settings: TrainingSettings) -> None:
    """Create the metrics' variables now.

    TensorFlow traces a step a second time where the first trace has created variables, and a trace of a network takes longer
    than ten of its steps.
    """
    num_classes = model.output_shape[-1]
    labels = np.zeros((1, num_classes), np.float32) if settings.soft_labels else np.zeros(1, np.int32)
    model.compute_metrics(None, labels, np.zeros((1, num_classes), np.float32))
    model.reset_metrics()


def cross_entropy(settings: TrainingSettings) -> Any:
    """Return the cross-entropy of logits with class indices or, where the settings have `soft_labels`, with probabilities.

    Each image has the weight of its class; a mixed image has the weights of both in proportion to their shares. The weights
    are part of the loss and not of the data, so that metrics are unweighted.
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
        # Keras' function for probabilities does not fit: TensorFlow's gradient of it is wrong where a row does not sum to 1.
        return -keras.ops.sum(targets * keras.ops.log_softmax(logits), axis=-1)

    return of_probabilities if settings.soft_labels else of_indices


def _array(variable: Any) -> np.ndarray:
    return np.array(keras.ops.convert_to_numpy(variable))


def _assign(variables: Sequence[Any], arrays: Sequence[np.ndarray]) -> None:
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)


def in_precision(
    model: keras.Model, multipliers: Mapping[str, float], dtype_policy: str
) -> tuple[keras.Model, dict[str, float]]:
    """Return a model to train that computes in a given precision, and its learning-rate multipliers.

    The networks nested in the model (the tail's body) compute in that precision. The layers around them stay in float32:
    pooling sums many numbers, and a softmax over half-precision logits would be coarse.

    Args:
        model: Functional, not wrapped in anything but `InferenceMode` or `TrainingMode`; what is nested in it likewise.
        multipliers: Learning-rate multipliers by paths of `model`'s variables.
        dtype_policy: Keras' name for the precision, such as `mixed_float16`.

    Returns:
        The model itself for `float32`. Otherwise a copy that is not compiled, with the same weights in the same order, and
        the multipliers by paths of the copy's variables.
    """
    if dtype_policy == "float32":
        return model, dict(multipliers)

    def inner(layer: Any) -> Any:
        config = layer.get_config()
        if layer.dtype_policy.name == "float32":
            config["dtype"] = dtype_policy
        return type(layer).from_config(config)

    def outer(layer: Any) -> Any:
        if isinstance(layer, InferenceMode | TrainingMode):
            return layer.like(outer(layer.network))
        if isinstance(layer, keras.Model):
            return _cloned(layer, inner)
        return type(layer).from_config(layer.get_config())

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype_policy)  # Keras scales the loss by the policy that the model itself has
    try:
        copy = _cloned(model, outer)
    finally:
        keras.config.set_dtype_policy(before)
    give_weights(copy, model.get_weights())
    pairs = zip(model.trainable_variables, copy.trainable_variables, strict=True)
    return copy, {theirs.path: multipliers[own.path] for own, theirs in pairs if own.path in multipliers}


def _cloned(model: keras.Model, clone_layer: Any) -> keras.Model:
    bare = keras.Model(
        model.inputs[0], model.outputs[0], name=model.name
    )  # cloning `model` would copy how it was compiled
    return keras.models.clone_model(bare, clone_function=clone_layer)
