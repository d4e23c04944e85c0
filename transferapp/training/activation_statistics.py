"""Activation statistics of an untrained head: whether the signal passes through its hidden layers, as numbers.

The lecture shows this in histograms. Through tanh, weights that are too small let activations shrink to nothing, and gradients
with them; weights that are too large saturate units, where gradients are nothing too. Xavier's initial values suit tanh, and
MSRA's suit ReLU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import keras
import numpy as np

from transferapp.training.curves import Finding

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
