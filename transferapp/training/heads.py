"""Heads as Keras layers on a feature map, and a check of the signal through their hidden layers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from transferapp.backbones.stages import Stage, Tap, spatial_deviation, stage_named, stage_tensor
from transferapp.training.curves import Finding
from transferapp.training.head_spec import LOGITS, STANDARDIZE, TEMPERATURE, Head, HeadSpec
from transferapp.training.layers import (
    PIECES,
    DropConnect,
    Dropout,
    FractionalMaxPooling2D,
    Maxout,
    evenly_pooled,
    largest_of_pieces,
)

BATCH_NORM_MOMENTUM = 0.9
"""Momentum of a head's statistics: after the few hundred steps that it trains, Keras' .99 would leave half the initial ones."""


class Regularization(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    """Penalties and drop rates of a head as variables, so that one compiled step serves heads that differ in nothing else.

    In the graph it is the identity: the variables belong to the model then, as JAX needs it.
    """

    _NAMES = ("l1", "l2", "dropout", "dropconnect")

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.l1, self.l2, self.dropout, self.dropconnect = (
            self.add_weight(shape=(), initializer="zeros", trainable=False, name=name) for name in self._NAMES
        )
        self.built = True

    def call(self, inputs: Any) -> Any:
        return inputs

    def assign(self, spec: HeadSpec) -> None:
        """Take over the penalties and rates of a head."""
        for name in self._NAMES:
            getattr(self, name).assign(getattr(spec, name))

    def penalty(self, kernel: Any) -> Any:
        return self.l1 * ops.sum(ops.abs(kernel)) + self.l2 / 2 * ops.sum(ops.square(kernel))


def build_head(
    spec: HeadSpec,
    inputs: Any,
    num_classes: int,
    mean: np.ndarray,
    std: np.ndarray,
    *,
    seed: int = 0,
    for_prediction: bool = False,
    regularization: Regularization | None = None,
) -> Any:
    """Put a head on a tensor: pooling, standardization, hidden layers, logits.

    Each hidden layer is dense, batch normalization (if any), activation; dropout acts on the inputs of dense layers. The order
    of the weights does not depend on `for_prediction`.

    Args:
        spec: Its form.
        inputs: A symbolic tensor: feature maps of shape (batch, height, width, channels), which are pooled, or pooled
            features of shape (batch, channels).
        num_classes: Size of the output.
        mean, std: float32, shape (channels,): moments of the pooled training features. Standardization is part of the graph.
        seed: Seed of the initial weights and of dropout.
        for_prediction: Omit what only training needs, and use Keras' own operations alone, so that the model is loaded and
            exported without this package.
        regularization: Holds penalties and drop rates in place of the numbers in `spec`, which then only says whether
            there is dropout and DropConnect at all.

    Returns:
        The logits, a float32 symbolic tensor of shape (batch, num_classes).
    """
    layers = keras.layers
    x = pooled(spec.pooling, inputs, seed=seed, for_prediction=for_prediction) if len(inputs.shape) == 4 else inputs
    x = layers.Normalization(mean=mean, variance=np.square(std), name=STANDARDIZE)(x)
    if regularization is not None:
        x = regularization(x)
    pieces = PIECES if spec.activation == "maxout" else 1
    for index, units in enumerate(spec.hidden, start=1):
        x = _dropped(spec, x, index, seed, for_prediction, regularization)
        x = _dense(spec, units * pieces, f"head_hidden_{index}", seed + index, for_prediction, regularization)(x)
        if spec.batch_norm:
            x = layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM, name=f"head_norm_{index}")(x)
        x = _activated(spec.activation, x, f"head_activation_{index}", for_prediction)
    x = _dropped(spec, x, len(spec.hidden) + 1, seed, for_prediction, regularization)
    return _dense(spec, num_classes, LOGITS, seed, for_prediction, regularization)(x)


def pooled(pooling: str, maps: Any, *, seed: int = 0, for_prediction: bool = False) -> Any:
    """Pool feature maps, shape (batch, height, width, channels), to vectors, shape (batch, channels): `HeadSpec.pooling`."""
    layers = keras.layers
    if pooling == "max":
        return layers.GlobalMaxPooling2D(name="head_pool")(maps)
    if pooling == "fractional_max":
        fractional = FractionalMaxPooling2D(seed=seed, name="head_fractional_pool")
        maps = evenly_pooled(maps) if for_prediction else fractional(maps)
    return layers.GlobalAveragePooling2D(name="head_pool")(maps)


def _dropped(
    spec: HeadSpec, x: Any, index: int, seed: int, for_prediction: bool, regularization: Regularization | None
) -> Any:
    if for_prediction or not spec.dropout:
        return x
    rate = spec.dropout if regularization is None else lambda: regularization.dropout
    return Dropout(rate, seed=seed + 100 + index, name=f"head_dropout_{index}")(x)


def _dense(
    spec: HeadSpec, units: int, name: str, seed: int, for_prediction: bool, regularization: Regularization | None
) -> keras.layers.Layer:
    initial = {"he": keras.initializers.HeNormal, "glorot": keras.initializers.GlorotNormal}[spec.initializer]
    options = {"name": name, "dtype": "float32", "kernel_initializer": initial(seed=seed)}
    if for_prediction:
        return keras.layers.Dense(units, **options)
    if regularization is not None:
        options["kernel_regularizer"] = regularization.penalty
    elif spec.l1 or spec.l2:
        options["kernel_regularizer"] = keras.regularizers.L1L2(l1=spec.l1, l2=spec.l2 / 2)
    if spec.dropconnect:
        rate = spec.dropconnect if regularization is None else lambda: regularization.dropconnect
        return DropConnect(units, rate, seed=seed + 200, **options)
    return keras.layers.Dense(units, **options)


def _activated(activation: str, x: Any, name: str, for_prediction: bool) -> Any:
    if activation != "maxout":
        return keras.layers.Activation(activation, name=name)(x)
    return largest_of_pieces(x, PIECES) if for_prediction else Maxout(PIECES, name=name)(x)


def head_layers(model: keras.Model, below: Collection[keras.layers.Layer] = ()) -> tuple[keras.layers.Layer, ...]:
    """Return the layers with weights of the head that `build_head` has put on a model, lowest first.

    Args:
        model: With a head.
        below: Layers that are not part of it, whatever their names: those of a backbone whose layers are the model's own.
    """
    others = set(below)
    named = (layer for layer in model.layers if layer.name.startswith("head_") and layer not in others)
    return tuple(layer for layer in named if layer.weights)


def set_head(model: keras.Model, head: Head, below: Collection[keras.layers.Layer] = ()) -> None:
    """Set the weights of a model's head, unless it is new. Arguments as of `head_layers`."""
    if not head.weights:
        return
    variables = [variable for layer in head_layers(model, below) for variable in layer.weights]
    for variable, array in zip(variables, head.weights, strict=True):
        variable.assign(array)


def _tapped(backbone: keras.Model, stages: tuple[Stage, ...], taps: Sequence[Tap]) -> Any:
    """Return the feature map of a single tap without deviation, or the concatenated statistics of several taps."""
    maps = [stage_tensor(backbone, stage_named(stages, tap.stage)) for tap in taps]
    if len(taps) == 1 and not taps[0].deviation:
        return maps[0]
    columns = []
    for index, (tap, tensor) in enumerate(zip(taps, maps, strict=True)):
        columns.append(keras.layers.GlobalAveragePooling2D(name=f"tap_{index}")(tensor))
        if tap.deviation:
            columns.append(spatial_deviation(tensor, f"deviation_{index}"))
    return keras.layers.Concatenate(name="taps")(columns) if len(columns) > 1 else columns[0]


def attach_head(
    backbone: keras.Model,
    stages: Sequence[Stage],
    taps: Sequence[Tap],
    head: Head,
    temperature: float,
    name: str,
) -> keras.Model:
    """Return the whole classifier: backbone up to the last tap, pooling, standardization, the head's layers, softmax.

    Args:
        backbone: From `load_backbone`.
        stages: Its stages, earliest first.
        taps: Statistics that the head reads; of a single one without deviation, `head.spec.pooling` says how it is pooled.
        head: Trained on the features of these taps; layers that only training needs are left out.
        temperature: Divisor of the logits.
        name: Name of the model.

    Returns:
        A model from float32 pixels in [0, 255], shape (batch, height, width, 3), to probabilities, shape
        (batch, num_classes).
    """
    x = build_head(
        head.spec, _tapped(backbone, tuple(stages), taps), head.num_classes, head.mean, head.std, for_prediction=True
    )
    x = keras.layers.Rescaling(1 / temperature, name=TEMPERATURE)(x)
    outputs = keras.layers.Softmax(name="probabilities")(x)
    model = keras.Model(backbone.inputs[0], outputs, name=name)
    set_head(model, head, backbone.layers)
    model.trainable = False
    return model


VANISHED = 0.05
"""Standard deviation below which the signal has vanished; features come with 1."""

STUCK = 0.5
"""Share of saturated activations, or of units that are zero for every image, from which a layer is stuck."""

_FLAT_BEYOND = {"tanh": 0.97, "sigmoid": 0.97}
"""Distance from the middle, as a share of the way to the limit, from which the slope is below a fifteenth of the largest."""

_ROWS = 512


@dataclass(frozen=True)
class LayerSignal:
    """Activations of a hidden layer over a number of images, before any training.

    Attributes:
        layer: 1 for the lowest.
        std: Standard deviation over images, root mean square over units.
        stuck: For tanh and sigmoid, the share of saturated activations; for the others, of units that are zero for every
            image.
    """

    layer: int
    std: float
    stuck: float


def check_signal(head: keras.Model, features: np.ndarray) -> tuple[LayerSignal, ...]:
    """Run features through a head and return the statistics of each hidden layer, lowest first.

    Args:
        head: From features, or feature maps, to logits; its layers are those of `build_head`.
        features: Inputs of the head: float32, shape (n, ...); the first few hundred rows are used.
    """
    layers = [layer for layer in head.layers if layer.name.startswith("head_activation_")]
    if not layers:
        return ()
    taps = keras.Model(head.inputs[0], [layer.output for layer in layers])
    outputs = taps.predict(features[:_ROWS], verbose=0)
    outputs = outputs if isinstance(outputs, list) else [outputs]
    return tuple(
        LayerSignal(index, float(np.sqrt(np.var(output, axis=0).mean())), _stuck(layer, output))
        for index, (layer, output) in enumerate(zip(layers, map(np.asarray, outputs), strict=True), start=1)
    )


def _stuck(layer: keras.layers.Layer, output: np.ndarray) -> float:
    activation = getattr(getattr(layer, "activation", None), "__name__", "")
    if activation in _FLAT_BEYOND:
        middle, reach = (0.0, 1.0) if activation == "tanh" else (0.5, 0.5)
        return float((np.abs(output - middle) > _FLAT_BEYOND[activation] * reach).mean())
    return float((output == 0).all(axis=0).mean())


def signal_findings(signals: Sequence[LayerSignal]) -> tuple[Finding, ...]:
    """Return findings about a head's initial values; empty where the signal passes.

    Codes are `vanishing_signal` and `stuck_units`.
    """
    found = []
    vanished = next((s for s in signals if s.std < VANISHED), None)
    if vanished is not None:
        found.append(
            Finding(
                "vanishing_signal",
                f"Before training, the standard deviation over images is {vanished.std:.2g} in hidden layer "
                f"{vanished.layer}, of 1 in the features: the signal vanishes, and gradients with it.",
                {"layer": float(vanished.layer), "std": vanished.std, "last_std": signals[-1].std},
                "Use fewer layers, --head-batch-norm, or the initial values made for the activation: --initializer auto.",
            )
        )
    stuck = max(signals, key=lambda s: s.stuck, default=None)
    if stuck is not None and stuck.stuck > STUCK:
        found.append(
            Finding(
                "stuck_units",
                f"Before training, {stuck.stuck:.0%} of hidden layer {stuck.layer} is saturated or dead: no gradient passes "
                "there.",
                {"layer": float(stuck.layer), "stuck": stuck.stuck},
                "Use --head-batch-norm, or the initial values made for the activation: --initializer auto.",
            )
        )
    return tuple(found)
