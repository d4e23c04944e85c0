"""Train heads that are more than linear by mini-batches in Keras, with one compiled step for all trials of an architecture.

Compiling a step takes longer than a trial. So what trials vary most, penalties and the shares that dropout and DropConnect
leave out, are variables of the model here and not numbers in its graph: another trial sets them and goes on. What changes the
graph itself (hidden layers, activation, optimizer, batch normalization) is compiled once a combination.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from transferapp.recipes.search.problem import (
    CostWatch,
    HeadSettings,
    Problem,
    TrainedHead,
    batches,
    relative_rates,
    standardized,
    targets,
)
from transferapp.training.heads import build_head
from transferapp.training.optimizers import make_optimizer

DIALS = ("l1", "l2", "dropout", "dropconnect")
_PREDICTED_AT_ONCE = 4096


class Dials(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    """What trials vary, as variables that do not train. It computes nothing; layers that read it hold it as their part."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.dials = {
            name: self.add_weight(shape=(), initializer="zeros", trainable=False, name=name) for name in DIALS
        }
        self.built = True

    def call(self, inputs: Any) -> Any:
        return inputs

    def __getitem__(self, name: str) -> Any:
        return self.dials[name]


class DialedDropout(keras.layers.Layer):  # type: ignore[misc]
    """Inverted dropout whose rate is a dial; the same in expectation as Keras' own."""

    def __init__(self, dials: Dials, seed: int, **options: Any) -> None:
        super().__init__(**options)
        self.dials = dials
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        if not training:
            return inputs
        rate = self.dials["dropout"]
        kept = keras.random.uniform(ops.shape(inputs), seed=self.seed_generator) >= rate
        return inputs * ops.cast(kept, inputs.dtype) / (1 - rate)


class DialedDense(keras.layers.Dense):  # type: ignore[misc]
    """A dense layer whose penalties, and the share of weights that a step leaves out, are dials."""

    def __init__(self, units: int, dials: Dials, seed: int, drops: bool, **options: Any) -> None:
        super().__init__(units, **options)
        self.dials, self.drops = dials, drops
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        kernel = self.kernel
        self.add_loss(self.dials["l1"] * ops.sum(ops.abs(kernel)) + self.dials["l2"] / 2 * ops.sum(ops.square(kernel)))
        if training and self.drops:
            rate = self.dials["dropconnect"]
            kept = keras.random.uniform(kernel.shape, seed=self.seed_generator) >= rate
            kernel = kernel * ops.cast(kept, kernel.dtype) / (1 - rate)
        return ops.matmul(inputs, kernel) + self.bias


class NetworkTrainer:
    """Trains heads of any form; architectures are kept compiled.

    Args:
        problem: What to train on.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._rows, self._mean, self._std = standardized(problem.train)
        self._compiled: dict[Any, Compiled] = {}

    def train(self, settings: HeadSettings) -> TrainedHead:
        compiled = self.compiled(settings)
        compiled.begin(settings)
        n, num_views, _ = self._rows.shape
        goals = targets(self._problem.train.labels, self._problem.num_classes, settings.label_smoothing)
        steps_per_epoch = -(-n // settings.batch_size)
        rates = settings.learning_rate * relative_rates(settings.schedule, steps_per_epoch * settings.epochs)
        watch, step, costs = CostWatch(), 0, [0.0]
        for epoch in range(settings.epochs):
            costs = []
            for chosen, view in batches(n, num_views, settings.batch_size, epoch, self._problem.seed):
                costs.append(compiled.step(self._rows[chosen, view], goals[chosen], float(rates[step]), settings.decay))
                step += 1
                if watch(costs[-1]):
                    break
            if watch.exploded:
                break
        cost = float(np.mean(costs))
        return TrainedHead(compiled.weights(), self._mean, self._std, cost, epoch + 1, watch.exploded, step)

    def logits(self, settings: HeadSettings, trained: TrainedHead, features: np.ndarray) -> np.ndarray:
        compiled = self.compiled(settings)
        compiled.assign(trained.weights)
        rows = (features - trained.mean) / trained.std
        return compiled.predict(rows)

    def compiled(self, settings: HeadSettings) -> Compiled:
        """The architecture that settings ask for, compiled the first time."""
        head = settings.head
        key = (
            head.hidden,
            head.activation,
            head.initializer,
            head.batch_norm,
            head.dropout > 0,
            head.dropconnect > 0,
            settings.optimizer,
        )
        if key not in self._compiled:
            self._compiled[key] = Compiled(settings, self._problem, self._rows.shape[2])
        return self._compiled[key]


class Compiled:
    """A head of one architecture, and its step."""

    def __init__(self, settings: HeadSettings, problem: Problem, num_features: int) -> None:
        head, seed = settings.head, problem.seed
        inputs = keras.Input((num_features,))
        # Features come standardized, so that no step does it again.
        mean, std = np.zeros(num_features, np.float32), np.ones(num_features, np.float32)
        plain = keras.Model(inputs, build_head(head, inputs, problem.num_classes, mean, std, seed=seed))
        self._dials = Dials(name="dials")
        self.model = keras.models.clone_model(plain, clone_function=self._dialed)
        self._optimizer = make_optimizer(settings.optimizer, 1e-3, weight_decay=0.0)
        self.model.compile(
            optimizer=self._optimizer,
            loss=keras.losses.CategoricalCrossentropy(from_logits=True),
            jit_compile="auto" if keras.backend.backend() == "jax" else False,
        )
        self._optimizer.build(self.model.trainable_variables)
        own = {id(variable) for variable in self._dials.variables}
        self._weights = [variable for variable in self.model.weights if id(variable) not in own]
        self._state = [*self.model.variables, *self._optimizer.variables]
        self._initial = [np.array(ops.convert_to_numpy(variable)) for variable in self._state]

    def _dialed(self, layer: keras.layers.Layer) -> keras.layers.Layer:
        if isinstance(layer, keras.layers.Dropout):
            return DialedDropout(self._dials, layer.seed, name=layer.name)
        if not isinstance(layer, keras.layers.Dense):
            return layer.__class__.from_config(layer.get_config())
        return DialedDense(
            layer.units,
            self._dials,
            seed=getattr(layer, "seed", 0),
            drops=hasattr(layer, "rate"),
            kernel_initializer=layer.kernel_initializer,
            name=layer.name,
        )

    def start_from_zero(self) -> None:
        """Let every trial start from zero weights instead of random ones, as `LinearTrainer` does."""
        trained = {id(variable) for variable in self.model.trainable_variables}
        self._initial = [
            np.zeros_like(array) if id(variable) in trained else array
            for variable, array in zip(self._state, self._initial, strict=True)
        ]

    def begin(self, settings: HeadSettings) -> None:
        """New weights, always the same ones; a new state of the optimizer; the dials as this trial has them."""
        for variable, array in zip(self._state, self._initial, strict=True):
            variable.assign(array)
        for name in DIALS:
            self._dials[name].assign(getattr(settings.head, name))

    def step(self, x: np.ndarray, goals: np.ndarray, rate: float, decay: float) -> float:
        """One update; gives the cost before it, penalty included."""
        self._optimizer.learning_rate.assign(rate)
        if decay:
            for variable in self.model.trainable_variables:
                variable.assign(variable * (1 - rate * decay))
        self.model.reset_metrics()  # what comes back is a mean since then
        return float(np.ravel(self.model.train_on_batch(x, goals))[0])

    def weights(self) -> list[np.ndarray]:
        """Copies, in the order in which `build_head` has them."""
        return [np.array(ops.convert_to_numpy(variable)) for variable in self._weights]

    def assign(self, weights: list[np.ndarray]) -> None:
        """Give the head these weights."""
        for variable, array in zip(self._weights, weights, strict=True):
            variable.assign(array)

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Logits of standardized features: float32, shape (n, num_classes)."""
        parts = [
            np.asarray(self.model.predict_on_batch(rows[start : start + _PREDICTED_AT_ONCE]), np.float32)
            for start in range(0, len(rows), _PREDICTED_AT_ONCE)
        ]
        return np.concatenate(parts)
