"""Mini-batch training of heads on cached features, with one compiled step for all heads of a form.

Compiling a step takes as long as two hundred steps. Penalties and drop rates, which vary from trial to trial, are therefore
variables of the model (`transferapp.training.heads.Regularization`), and so is the learning rate.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import keras
import numpy as np

from transferapp.recipes.search.trials import HeadSettings, Problem, TrainedHead
from transferapp.training.batches import CachedBatches
from transferapp.training.head_spec import Head, HeadSpec
from transferapp.training.heads import Regularization, build_head, head_layers
from transferapp.training.optimizers import make_optimizer
from transferapp.training.probe import moments
from transferapp.training.schedules import make_schedule

HOPELESS = 3.0
"""Training stops where the cost exceeds this multiple of the first (CS231n: "if the cost is ever > 3 * original cost, break
out early")."""

_COMPILED_AT_MOST = 32
_PREDICTED_AT_ONCE = 4096


class HeadTrainer:
    """Trains heads one after the other on the features of a problem; equal settings give equal heads.

    Args:
        problem: Training features, and the features to predict after training.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._num_images, self._num_views, self._width = problem.train.rows.shape
        self._rows = problem.train.rows.reshape(-1, self._width)
        self._mean, self._std = moments(self._rows)
        self._compiled = functools.lru_cache(_COMPILED_AT_MOST)(self._compile)

    def train(self, settings: HeadSettings) -> TrainedHead:
        """Train a head from its initial weights."""
        compiled = self._compiled(_form(settings.head), settings.optimizer, settings.weight_decay)
        compiled.reset(settings.head)
        model, num_classes = compiled.model, self._problem.num_classes
        batches = CachedBatches(
            self._rows,
            np.arange(len(self._rows)).reshape(self._num_images, self._num_views),
            self._problem.train.labels,
            (self._width,),
            batch_size=settings.batch_size,
            seed=self._problem.seed,
        )
        smoothing = settings.label_smoothing
        targets = ((1 - smoothing) * np.eye(num_classes) + smoothing / num_classes).astype(np.float32)
        rates = iter(_rates(settings, len(batches) * settings.epochs))
        limit = math.inf
        for epoch in range(settings.epochs):
            batches.epoch = epoch
            for index in range(len(batches)):
                x, labels = batches[index]
                model.optimizer.learning_rate.assign(next(rates))
                cost = float(np.ravel(model.train_on_batch(x, targets[labels]))[0])
                if not cost <= limit:  # NaN included
                    return self._trained(compiled, settings, epoch + 1, exploded=True)
                limit = limit if math.isfinite(limit) else HOPELESS * max(cost, 1e-3)
        return self._trained(compiled, settings, settings.epochs, exploded=False)

    def _trained(self, compiled: CompiledHead, settings: HeadSettings, epochs: int, *, exploded: bool) -> TrainedHead:
        rows = self._problem.val.center
        parts = [
            np.asarray(compiled.model.predict_on_batch(rows[start : start + _PREDICTED_AT_ONCE]), np.float32)
            for start in range(0, len(rows), _PREDICTED_AT_ONCE)
        ]
        logits = np.concatenate(parts) if parts else np.empty((0, self._problem.num_classes), np.float32)
        weights = tuple(np.array(array) for layer in head_layers(compiled.model) for array in layer.get_weights())
        head = Head(settings.head, self._mean, self._std, self._problem.num_classes, weights)
        return TrainedHead(head, logits, epochs, exploded)

    def _compile(self, form: HeadSpec, optimizer: str, weight_decay: float) -> CompiledHead:
        inputs, regularization = keras.Input((self._width,)), Regularization(name="regularization")
        logits = build_head(
            form,
            inputs,
            self._problem.num_classes,
            self._mean,
            self._std,
            seed=self._problem.seed,
            regularization=regularization,
        )
        model = keras.Model(inputs, logits)
        model.compile(
            optimizer=make_optimizer(optimizer, 1.0, weight_decay=weight_decay or None),
            loss=keras.losses.CategoricalCrossentropy(from_logits=True),
            jit_compile="auto" if keras.backend.backend() == "jax" else False,
        )
        model.optimizer.build(model.trainable_variables)
        if form.linear:  # the loss is convex: zero weights are the neutral start, and the first cost is ln(num_classes)
            for variable in model.trainable_variables:
                variable.assign(np.zeros(variable.shape))
        variables = [*model.variables, *model.optimizer.variables]
        initial = [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]
        return CompiledHead(model, regularization, variables, initial)


@dataclass(frozen=True, eq=False)
class CompiledHead:
    """A compiled head with everything that training changes.

    Attributes:
        model: From features to logits.
        regularization: A layer of the model.
        variables: Of the model and its optimizer.
        initial: Their values before the first step.
    """

    model: keras.Model
    regularization: Regularization
    variables: list[keras.Variable]
    initial: list[np.ndarray]

    def reset(self, spec: HeadSpec) -> None:
        """Undo all training, and take over the penalties and drop rates of `spec`."""
        for variable, array in zip(self.variables, self.initial, strict=True):
            variable.assign(array)
        self.regularization.assign(spec)


def _form(head: HeadSpec) -> HeadSpec:
    """Return the head without the numbers that are variables: equal forms share a compiled step."""
    dropout, dropconnect = (0.5 if rate else 0.0 for rate in (head.dropout, head.dropconnect))
    return replace(head, l1=0.0, l2=0.0, dropout=dropout, dropconnect=dropconnect)


def _rates(settings: HeadSettings, total_steps: int) -> np.ndarray:
    """Return the learning rate of every step: float32, shape (total_steps,)."""
    schedule = make_schedule(settings.schedule, settings.learning_rate, total_steps)
    rates = keras.ops.convert_to_numpy(schedule(np.arange(total_steps, dtype=np.float32)))
    return np.broadcast_to(np.asarray(rates, np.float32), total_steps)
