"""Inference mode with every BatchNorm folded into the convolution before it, while both still train.

In inference mode BatchNorm is a fixed scale and shift of each channel, so a convolution followed by one is a convolution with a
scaled kernel and a bias. The scaling is part of the graph and reads kernel, gamma, beta and the statistics: outputs and
gradients are those of the two layers, to rounding, and an optimizer sees the same variables. This saves two passes over every
feature map forward and three backward, which on a CPU cost as much as the convolutions themselves: a training step of
EfficientNet-Lite is 1.3 to 1.4 times as fast (docs/decisions/0011-folded-batchnorm.md).

The 1 x 1 convolutions among them, which are most of the computation, may run as matrix products, or in half precision, where a
processor does that faster; everything else stays in float32 (docs/decisions/0015-pointwise.md).
"""

from __future__ import annotations

import inspect
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import keras
from keras import ops

from transferapp.backbones.keras_internals import graph_nodes, run_graph

Replacements = Mapping[Any, Callable[..., Any]]
"""From an operation of a network to the function that is called instead, with the same arguments."""


def foldable(network: keras.Model) -> dict[Any, Any]:
    """Return the convolutions whose output goes into a BatchNorm over its channels and nowhere else.

    Args:
        network: Functional.

    Returns:
        From a convolution to the BatchNorm that follows it.
    """
    consumers = defaultdict(list)
    nodes = graph_nodes(network)
    for node in nodes:
        for tensor in node.input_tensors:
            consumers[id(tensor)].append(node.operation)
    delivered = {id(tensor) for tensor in network.outputs}
    uses = Counter(node.operation for node in nodes)
    pairs = {}
    for node in nodes:
        conv = node.operation
        if not _is_plain(conv) or uses[conv] > 1 or id(node.outputs[0]) in delivered:
            continue
        after = consumers[id(node.outputs[0])]
        if len(after) == 1 and _normalizes_channels(after[0]) and uses[after[0]] == 1:
            pairs[conv] = after[0]
    return pairs


def run_folded(network: keras.Model, inputs: Any, replaced: Replacements, pointwise: str = "convolution") -> Any:
    """Run a network in inference mode. To be called within a layer's `call`.

    Args:
        network: Functional.
        inputs: Inputs of the network.
        replaced: Operations to replace.
        pointwise: Computation of the folded 1 x 1 convolutions, where they are in float32: one of
            `transferapp.system.backend.POINTWISE`.
    """
    pairs = foldable(network)
    folded = set(pairs.values())

    def operation(layer: Any) -> Any:
        if layer in replaced:
            return replaced[layer]
        if layer in pairs:
            return lambda x, **_: _convolved(x, layer, pairs[layer], pointwise)
        if layer in folded:
            return lambda x, **_: x  # Keras passes a `mask` to BatchNorm; there is none
        return _in_mode(layer, False)

    return run_graph(network, inputs, operation)


def run_through(network: keras.Model, inputs: Any, replaced: Replacements, training: bool | None) -> Any:
    """Run a network in a given mode with some operations replaced. To be called within a layer's `call`."""
    return run_graph(network, inputs, lambda layer: replaced.get(layer) or _in_mode(layer, training))


def _in_mode(layer: Any, training: bool | None) -> Any:
    if "training" not in inspect.signature(layer.call).parameters:
        return layer
    return lambda *args, **kwargs: layer(*args, **{**kwargs, "training": training})


def _convolved(x: Any, conv: Any, norm: Any, pointwise: str) -> Any:
    """Compute the convolution and the BatchNorm after it in one, with outputs in the precision of the convolution's layer."""
    scale = ops.rsqrt(norm.moving_variance + norm.epsilon)
    if norm.scale:
        scale = scale * norm.gamma
    shift = -norm.moving_mean * scale
    if norm.center:
        shift = shift + norm.beta
    if conv.use_bias:
        shift = shift + conv.bias * scale
    dtype = conv.compute_dtype
    if dtype != "float32" or not _is_pointwise(conv):
        pointwise = "convolution"
    within = "bfloat16" if pointwise == "bfloat16" else dtype
    x = ops.cast(x, within)
    how = {"strides": conv.strides, "padding": conv.padding, "data_format": conv.data_format}
    how["dilation_rate"] = conv.dilation_rate
    if isinstance(conv, keras.layers.DepthwiseConv2D):
        kernel = conv.kernel * ops.reshape(scale, conv.kernel.shape[2:])
        y = ops.depthwise_conv(x, ops.cast(kernel, within), **how)
    elif pointwise == "product":
        shape = (-1, *x.shape[1:-1], conv.filters)
        y = ops.reshape(ops.matmul(ops.reshape(x, (-1, x.shape[-1])), conv.kernel[0, 0] * scale), shape)
    else:
        y = ops.conv(x, ops.cast(conv.kernel * scale, within), **how)
    return ops.cast(y, dtype) + ops.cast(shift, dtype)


def _is_pointwise(conv: Any) -> bool:
    """Return whether the convolution is a matrix product at each position."""
    return (
        type(conv) is keras.layers.Conv2D and conv.kernel_size == (1, 1) and conv.strides == (1, 1) and conv.groups == 1
    )


def _is_plain(layer: Any) -> bool:
    """Return whether the layer is one of Keras' own convolutions, channels last, without an activation."""
    return (
        type(layer) in (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)
        and layer.data_format == "channels_last"
        and layer.activation is keras.activations.linear
        and not getattr(layer, "lora_enabled", False)
        and layer.quantization_mode is None
    )


def _normalizes_channels(layer: Any) -> bool:
    return type(layer) is keras.layers.BatchNormalization and layer.axis in (-1, 3)
