"""Served networks composed of a tapped trunk and a linear classifier, without Keras.

The trunk's converted network is cached, so a bundle that can be served is there before TensorFlow is imported, and the whole
network is not traced and converted again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from transferapp.backbones.engine import import_openvino
from transferapp.backbones.stages import Tap
from transferapp.backbones.trunk import Trunk


def compose_classifier(
    trunk: Trunk,
    taps: Sequence[Tap],
    *,
    mean: np.ndarray,
    std: np.ndarray,
    kernel: np.ndarray,
    bias: np.ndarray,
    temperature: float,
) -> Any | None:
    """Put a linear classifier on the tapped network of a trunk.

    Args:
        trunk: Of the backbone.
        taps: The statistics that the classifier reads, in the order of its features.
        mean, std: float32, shape (num_features,): moments that the features are standardized by.
        kernel: float32, shape (num_features, num_classes).
        bias: float32, shape (num_classes,).
        temperature: Divisor of the logits.

    Returns:
        An `openvino.Model` from uint8 pixels, shape (-1, height, width, 3), to probabilities and to the features of the taps,
        as its second output; None where the trunk has no cached network, or one whose taps are not found in its graph.
    """
    if trunk.network is None:
        return None
    openvino = import_openvino()
    try:
        network = openvino.Core().read_model(trunk.network)
    except RuntimeError:  # removed or damaged since the trunk was loaded
        return None
    columns = _tapped(network, trunk, taps)
    if columns is None:
        return None
    ops = openvino.opset13
    features = columns[0] if len(columns) == 1 else ops.concat(columns, axis=1)
    standardized = ops.divide(
        ops.subtract(features, ops.constant(mean.astype(np.float32)[None])),
        ops.constant(std.astype(np.float32)[None]),
    )
    logits = ops.add(
        ops.matmul(standardized, ops.constant(kernel.astype(np.float32)), False, False),
        ops.constant(bias.astype(np.float32)[None]),
    )
    scaled = ops.multiply(logits, ops.constant(np.full((1, 1), 1 / temperature, np.float32)))
    probabilities = ops.softmax(scaled, axis=1)
    probabilities.output(0).set_names({"probabilities"})
    # The graph of the new model holds only what its result needs: the taps that are not read cost nothing.
    return openvino.Model([ops.result(probabilities), ops.result(features)], network.get_parameters(), "classifier")


def _tapped(network: Any, trunk: Trunk, taps: Sequence[Tap]) -> list[Any] | None:
    """Return the nodes of some taps' statistics; None where the network does not end in all of them side by side."""
    row = network.output(0).get_node().input(0).get_source_output().get_node()
    parts = [part.get_source_output() for part in row.inputs()]
    widths = [columns.stop - columns.start for columns in (*trunk.row_slices, *trunk.deviation_slices)]
    found = [part.get_partial_shape()[1] for part in parts if part.get_partial_shape().rank.get_length() == 2]
    if row.get_type_name() != "Concat" or [str(width) for width in found] != [str(width) for width in widths]:
        return None
    return [parts[part] for part in trunk.parts(taps)]
