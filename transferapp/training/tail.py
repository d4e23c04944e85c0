"""The tail: what trains above a cut, a part of the backbone with a head on top, on the trunk's cached activations.

The trunk has run once over several views of every image, so an epoch is a pass over small tensors. Cut at the input, there is
no trunk, and the same model takes pixels.

The head starts as the solved linear classifier, so that the first gradients do not distort pretrained features (LP-FT; Kumar
et al., 2022, arXiv:2202.10054). BatchNorm runs in inference mode: batches are too small to estimate its statistics anew.
"""

from __future__ import annotations

import inspect
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from transferapp.backbones.keras_internals import (
    all_layers,
    give_weights,
    graph_nodes,
    independent_copy,
    is_sum,
    run_graph,
)
from transferapp.backbones.stages import Stage, stage_tensor
from transferapp.backbones.stages import cut as split_at
from transferapp.training.head_spec import STANDARDIZE, Head
from transferapp.training.heads import build_head, head_layers, set_head
from transferapp.training.layers import StochasticDepth

_MOMENTUM = 0.9
"""Momentum of BatchNorm's statistics where they are learned. At Keras' default of .99 a third of the initial values would
remain after a hundred steps, and prediction would be useless while training goes well."""


@dataclass(frozen=True)
class Tail:
    """A trainable tail and its parts.

    Attributes:
        model: From the cut's feature map (or pixels) to logits, shape (batch, num_classes).
        head: The layers of its head that have weights, lowest first.
        stages: Trainable layers of the backbone in it, by stage, earliest first.
    """

    model: keras.Model
    head: tuple[keras.layers.Layer, ...]
    stages: tuple[tuple[keras.layers.Layer, ...], ...]

    @property
    def residual_branches(self) -> int:
        """Number of branches that stochastic depth leaves out at times."""
        return sum(len(layer.sums) for layer in self.model.layers if isinstance(layer, _Body))

    def multipliers(self, backbone_ratio: float, layer_decay: float = 1.0) -> dict[str, float]:
        """Return learning-rate multipliers by variable path.

        Args:
            backbone_ratio: The last stage's rate over the head's, at most 0.1 by the rule.
            layer_decay: Each stage's rate over that of the stage above it; 1 for the same rate throughout.
        """
        return {
            variable.path: backbone_ratio * layer_decay**above
            for above, layers in enumerate(reversed(self.stages))
            for layer in layers
            for variable in layer.trainable_variables
        }


class _Body(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    """A part of a backbone as one layer, with stochastic depth in its residual sums where asked for.

    Args:
        network: Functional model to run.
        stochastic_depth: Probability that the highest residual branch is left out of a training step; it falls linearly
            towards the input (Huang et al., 2016). 0 for never.
        seed: Seed of the draws.
        pointwise: As of `run_folded`; ignored in training mode.
    """

    def __init__(
        self,
        network: keras.Model,
        stochastic_depth: float = 0.0,
        seed: int = 0,
        pointwise: str = "convolution",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.network = network
        self.stochastic_depth = stochastic_depth
        self.seed = seed
        self.pointwise = pointwise
        count = len(residual_sums(network)) if stochastic_depth else 0
        self.sums = [
            StochasticDepth(stochastic_depth * (position + 1) / count, seed=seed + position)
            for position in range(count)
        ]

    def like(self, network: keras.Model) -> _Body:
        """Return the same layer around another network, which is a copy of this one's."""
        return type(self)(network, self.stochastic_depth, self.seed, self.pointwise, name=self.name)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        shape: tuple[int | None, ...] = self.network.compute_output_shape(input_shape)
        return shape

    def _replacements(self, training: bool | None) -> dict[Any, Callable[..., Any]]:
        """Return, for each residual sum that may leave its branch out, the function to call instead."""
        if not self.sums:
            return {}
        pairs = zip(residual_sums(self.network).items(), self.sums, strict=True)
        return {operation: _random_sum(layer, branch, training) for (operation, branch), layer in pairs}


class InferenceMode(_Body):
    """Runs a network in inference mode inside a model that trains.

    BatchNorm uses its stored statistics and dropout is off; weights train all the same. `network(x, training=False)` in a
    functional model is not enough: Keras 3.15 passes the mode of `fit` to every layer of the graph, but not to layers that are
    called within another layer's `call`. BatchNorm runs as a part of the convolution before it, which is faster; see
    `transferapp.training.tail`. Only stochastic depth is random. Arguments as of `_Body`.
    """

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return run_folded(self.network, inputs, self._replacements(training), self.pointwise)


class TrainingMode(_Body):
    """Runs a network in the mode of the model around it, for random weights. Arguments as of `_Body`."""

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return run_through(self.network, inputs, self._replacements(training), training)


def residual_sums(network: keras.Model) -> dict[Any, int]:
    """Return the sums of a shortcut and a branch that was computed from it, inputs first.

    Only such a branch can be left out with the signal still passing. Where a block changes resolution or width, its shortcut
    is a computation too, and the block always stays.

    Args:
        network: Functional.

    Returns:
        From an operation that adds two tensors to the position of the branch among them.
    """
    nodes = graph_nodes(network)
    uses = Counter(node.operation for node in nodes)
    before: dict[int, set[int]] = {}
    found = {}
    for node in nodes:
        inputs = [id(tensor) for tensor in node.input_tensors]
        if is_sum(node.operation) and uses[node.operation] == 1 and len(inputs) == 2:
            for branch, (own, other) in enumerate((inputs, inputs[::-1])):
                if other in before.get(own, set()):
                    found[node.operation] = branch
        behind = set(inputs).union(*(before.get(tensor, set()) for tensor in inputs))
        before.update((id(tensor), behind) for tensor in node.outputs)
    return found


def _random_sum(layer: StochasticDepth, branch: int, training: bool | None) -> Callable[..., Any]:
    def add(*arguments: Any, **_: Any) -> Any:
        # An operation is called with two tensors, a layer with a list of them.
        tensors = arguments if len(arguments) == 2 else arguments[0]
        return layer([tensors[1 - branch], tensors[branch]], training=training)

    return add


def build_tail(
    backbone: keras.Model,
    stages: Sequence[Stage],
    cut: Stage | None,
    head: Head,
    *,
    from_scratch: bool = False,
    stochastic_depth: float = 0.0,
    seed: int = 0,
    pointwise: str = "convolution",
) -> Tail:
    """Build the trainable part of a backbone above a cut, with a head on its top stage.

    Args:
        backbone: From `load_backbone`, with pretrained weights; it stays unchanged, because the tail has layers of its own.
        stages: Its stages, earliest first.
        cut: The last stage that stays frozen; None trains the whole network.
        head: Trained on the top stage's features, or new.
        from_scratch: Start from random weights, drawn by `seed`. BatchNorm must then learn its statistics, and so runs in
            training mode.
        stochastic_depth: Probability that the highest residual branch is left out of a training step.
        seed: Seed of stochastic depth and of a new head's weights.
        pointwise: Computation of 1 x 1 convolutions, unless `from_scratch`: as of `run_folded`.
    """
    body = _own_copy(tail_body(backbone, stages, cut), seed if from_scratch else None)
    inputs = keras.Input(body.inputs[0].shape[1:], dtype=body.inputs[0].dtype)
    run: Any
    if not from_scratch:
        run = InferenceMode(body, stochastic_depth, seed, pointwise, name="body")
    else:
        _lower_momentum(body)
        run = TrainingMode(body, stochastic_depth, seed, name="body") if stochastic_depth else body
    model = _with_head(inputs, run(inputs), head, seed)
    return Tail(model, head_layers(model), _by_stage(body, stages))


def _own_copy(body: keras.Model, seed: int | None) -> keras.Model:
    """Return a copy of a body with weights of its own: the same ones, or random ones drawn by a seed.

    A `Normalization` keeps the weights that it scales pixels by: they belong to the input, and are not learned.
    """
    if seed is None:
        return independent_copy(body)
    keras.utils.set_random_seed(seed)
    copy = keras.models.clone_model(body)
    for ours, theirs in zip(all_layers(copy), all_layers(body), strict=True):
        if isinstance(theirs, keras.layers.Normalization):
            ours.set_weights(theirs.get_weights())
            ours.finalize_state()
    return copy


def _lower_momentum(network: keras.Model) -> None:
    """Let BatchNorm's statistics follow the batches within tens of steps: small sets have no more to give."""
    for layer in all_layers(network):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = min(layer.momentum, _MOMENTUM)


def lone_head(head: Head, shape: tuple[int, ...], seed: int) -> Tail:
    """Build a head alone, to be trained on the trunk's output.

    Args:
        head: Usually new.
        shape: (height, width, channels) of feature maps, or (channels,) of pooled features.
        seed: Seed of its weights, where it is new, and of dropout.
    """
    inputs = keras.Input(shape)
    model = _with_head(inputs, inputs, head, seed)
    return Tail(model, head_layers(model), ())


def tail_body(backbone: keras.Model, stages: Sequence[Stage], cut: Stage | None) -> keras.Model:
    """Return the part of a backbone from a cut, or from the pixels, to the top stage; it shares the backbone's layers.

    All of it trains, except for layers that are used below the cut too: the cached activations depend on them.
    """
    whole = keras.Model(backbone.inputs[0], stage_tensor(backbone, stages[-1]), name="body")
    # Both, because TensorFlow ignores a flag that is set to its own value, and would not pass it on to the layers within.
    whole.trainable = False
    whole.trainable = True
    if cut is None:
        return whole
    below, body = split_at(whole, cut)
    for layer in below.layers:
        layer.trainable = False
    return body


def plain_tail(backbone: keras.Model, stages: Sequence[Stage], cut: Stage | None, head: Head, name: str) -> keras.Model:
    """Return a tail as `build_tail` makes it, for prediction only; its weights are in the same order."""
    body = keras.models.clone_model(tail_body(backbone, stages, cut))
    inputs = keras.Input(body.inputs[0].shape[1:], dtype=body.inputs[0].dtype)
    model = _with_head(inputs, body(inputs), head, 0, for_prediction=True)
    model.name = name
    return model


def _with_head(inputs: Any, maps: Any, head: Head, seed: int, *, for_prediction: bool = False) -> keras.Model:
    logits = build_head(
        head.spec, maps, head.num_classes, head.mean, head.std, seed=seed, for_prediction=for_prediction
    )
    model = keras.Model(inputs, logits)
    set_head(model, head)
    return model


def _by_stage(body: keras.Model, stages: Sequence[Stage]) -> tuple[tuple[keras.layers.Layer, ...], ...]:
    """Return the body's layers that train, grouped by the stage that they belong to."""
    ends = {stage.name for stage in stages}
    groups: list[list[keras.layers.Layer]] = [[]]
    for layer in body.layers:
        if layer.trainable_variables:
            groups[-1].append(layer)
        if layer.name in ends and groups[-1]:
            groups.append([])
    return tuple(tuple(group) for group in groups if group)


def attach_tails(
    backbone: keras.Model,
    stages: Sequence[Stage],
    cut: Stage | None,
    head: Head,
    members: Sequence[Sequence[np.ndarray]],
    temperature: float,
    name: str,
    linear: keras.Model | None = None,
) -> keras.Model:
    """Return a network with fine-tuned tails on one trunk; of several, a snapshot ensemble, probabilities are averaged.

    Huang et al., "Snapshot ensembles: train 1, get M for free", 2017 (arXiv:1704.00109).

    Args:
        backbone: Its part below the cut is shared; the part above is copied for each member.
        stages: Its stages, earliest first.
        cut: The last frozen stage; None where the whole network was trained.
        head: The head that the tails started with; gives their form.
        members: Weights of each, in the order of `Tail.model.weights`.
        temperature: Divisor of each member's logits.
        name: The model's name.
        linear: From `attach_head` on the same backbone: a classifier whose probabilities count as much as those of the tails.

    Returns:
        As `attach_head`.
    """
    start = backbone.inputs[0] if cut is None else stage_tensor(backbone, cut)
    scores = []
    for index, weights in enumerate(members):
        member = plain_tail(backbone, stages, cut, head, f"member_{index}")
        give_weights(member, weights)
        features = member.get_layer(STANDARDIZE).input
        member = keras.Model(member.inputs[0], [member.outputs[0], features], name=f"member_{index}")
        logits = keras.layers.Rescaling(1 / temperature, name=f"temperature_{index}")(member(start)[0])
        scores.append(keras.layers.Softmax(name=f"probabilities_{index}")(logits))
    outputs = keras.layers.Average(name="tails")(scores) if len(scores) > 1 else scores[0]
    if linear is not None:  # its layers are the backbone's own, so the part below the cut is computed once
        outputs = keras.layers.Average(name="blend")([outputs, linear.outputs[0]])
    model = keras.Model(backbone.inputs[0], outputs, name=name)
    model.trainable = False
    return model


def with_features(network: keras.Model) -> keras.Model:
    """Return a network with a second output: the pooled features that its head reads, shape (batch, channels).

    Args:
        network: From `attach_head` or `attach_tails`; of several tails, the features are the first one's.
    """
    tails = (node.output_tensors for node in graph_nodes(network) if node.operation.name == "member_0")
    _, features = next(tails, (None, None))
    if features is None:
        features = network.get_layer(STANDARDIZE).input
    return keras.Model(network.inputs[0], [network.outputs[0], features], name=network.name)


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
