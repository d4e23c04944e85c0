"""Every use of Keras' private names, so that a new version of Keras needs one file checked; and copies of models.

`pyproject.toml` has an upper bound on the version for this reason. Keras is imported by the functions, not here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from transferapp.errors import UsageError

if TYPE_CHECKING:
    import keras
    import numpy as np


def is_functional(model: keras.Model) -> bool:
    """Return whether a model has a graph that `graph_nodes` can walk."""
    return hasattr(model, "_nodes_by_depth")


def graph_nodes(model: keras.Model) -> list[Any]:
    """Return every call of a layer in a functional model, inputs first."""
    depths = model._nodes_by_depth  # what `Functional.call` itself follows
    return [node for depth in sorted(depths, reverse=True) for node in depths[depth]]


def run_graph(model: keras.Model, inputs: Any, operation: Callable[[Any], Callable[..., Any]]) -> Any:
    """Run a functional model with other operations in the place of its own.

    Args:
        model: Functional.
        inputs: The inputs of the model.
        operation: Called with each operation of the graph; returns what is called instead of it.
    """
    return model._run_through_graph(inputs, operation_fn=operation)


def all_layers(model: keras.Model) -> Iterator[Any]:
    """Return the model and every layer in it, those nested in other layers too."""
    layers: Iterator[Any] = model._flatten_layers()
    return layers


def independent_copy(model: keras.Model) -> keras.Model:
    """Return a copy with the same weights; later changes to the model's weights do not reach it."""
    import keras

    copy = keras.models.clone_model(model)
    give_weights(copy, model.get_weights())
    return copy


def give_weights(copy: keras.Model, weights: Sequence[np.ndarray]) -> None:
    """Set the weights of a model that was built from clones of another's layers.

    An adapted `Normalization`, as in EfficientNet, computes with constants made of its weights, which `set_weights` does not
    update.
    """
    import keras

    copy.set_weights(list(weights))
    for layer in all_layers(copy):
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()


def is_sum(operation: Any) -> bool:
    """Return whether an operation of a graph adds two tensors: an `Add` layer, or ``x + y`` of symbolic tensors."""
    import keras

    return isinstance(operation, keras.layers.Add) or type(operation) is _plus()


@functools.cache
def _plus() -> type:
    """Return the class of the operation that ``x + y`` makes, which has no public name."""
    import keras

    return type(keras.ops.add(keras.KerasTensor((1,)), keras.KerasTensor((1,)))._keras_history.operation)


def weight_averages(optimizer: keras.Optimizer) -> Sequence[Any] | None:
    """Return the moving averages of the trained variables; None where the optimizer has none."""
    averages: Sequence[Any] | None = getattr(optimizer, "_model_variables_moving_average", None)
    return averages


@functools.cache
def per_variable(base: Any) -> Any:
    """Return a subclass of a Keras optimizer class that takes learning-rate multipliers; see `PerVariable`."""
    return type(f"PerVariable{base.__name__}", (PerVariable, base), {})


class PerVariable:
    """Mixin for Keras optimizers: multiplies learning rate and weight decay per variable, and keeps the raw weights.

    Every backend calls `update_step` with one variable at a time. TensorFlow passes bare `tf.Variable`s, which have no path,
    so multipliers are looked up by position among the variables that the optimizer was built with.

    Attributes:
        multipliers: From a variable's path to its multiplier; 1 for those not named.
    """

    multipliers: Mapping[str, float]

    def build(self, variables: Sequence[keras.Variable]) -> None:
        unknown = sorted(set(self.multipliers) - {variable.path for variable in variables})
        if unknown:
            raise UsageError(
                f"A learning-rate multiplier names {unknown[0]}, which is not trained",
                expected="paths of trainable variables",
                hint=f"{len(variables)} variables are trained, among them {variables[0].path}" if variables else None,
            )
        self._rate_multipliers = tuple(float(self.multipliers.get(variable.path, 1.0)) for variable in variables)
        super().build(variables)  # type: ignore[misc]

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        from keras import ops

        this: Any = self
        multiplier = self._rate_multipliers[this._get_variable_index(variable)]
        rate = ops.cast(learning_rate, variable.dtype) * multiplier
        if this.weight_decay and this._use_weight_decay(variable):
            this.assign_sub(variable, variable * (this.weight_decay * rate))
        super().update_step(gradient, variable, rate)  # type: ignore[misc]

    def _apply_weight_decay(self, variables: Sequence[Any]) -> None:
        """Do nothing: Keras would decay all variables at one rate; `update_step` decays each at its own."""

    def finalize_variable_values(self, var_list: Sequence[Any]) -> None:
        """Do nothing: Keras would put the average in the place of the raw weights at the end of `fit`."""
