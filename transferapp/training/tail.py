"""What trains above a cut: the tail of the backbone with its head on top, fed from the trunk's cached activations.

Cut at a stage, the trunk has run once over several views of every image; only what lies above the cut is a Keras model
here, and an epoch is a pass over small tensors. Cut at the input, there is no trunk, and the same model takes pixels.

The head starts from the solved linear probe, so that the first gradients do not tear up pretrained features (LP-FT; Kumar et
al., 2022, arXiv:2202.10054). BatchNorm runs in inference mode: batches are too small to estimate its statistics anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from transferapp.backbones.copies import give_weights, independent_copy
from transferapp.backbones.keras_internals import all_layers
from transferapp.backbones.stages import Stage, stage_tensor
from transferapp.backbones.stages import cut as split_at
from transferapp.training.folding import run_folded, run_through
from transferapp.training.head_spec import Head
from transferapp.training.heads import build_head, head_layers, set_head
from transferapp.training.layers import StochasticDepth
from transferapp.training.residual import random_sums, residual_sums

_MOMENTUM = 0.9
"""Of BatchNorm's running statistics, where they are learned. At Keras' usual .99 a third of them would still be what they began
as after a hundred steps, and prediction useless while training goes well."""


@dataclass(frozen=True)
class Tail:
    """A trainable tail and its parts.

    Attributes:
        model: From the cut's feature map (or pixels) to logits, shape (batch, num_classes).
        head: The layers of its head that have weights, lowest first.
        stages: Layers of the backbone in it, by stage, earliest first; for rates that fall towards the input.
    """

    model: keras.Model
    head: tuple[keras.layers.Layer, ...]
    stages: tuple[tuple[keras.layers.Layer, ...], ...]

    @property
    def residual_branches(self) -> int:
        """Branches that stochastic depth leaves out at times."""
        return sum(len(layer.sums) for layer in self.model.layers if isinstance(layer, _Body))

    def multipliers(self, backbone_ratio: float, layer_decay: float = 1.0) -> dict[str, float]:
        """Learning-rate multipliers by variable path.

        Args:
            backbone_ratio: The last stage's rate over the head's, at most 0.1 by the rule.
            layer_decay: Each stage's rate over that of the stage above it; 1 for the same rate throughout.
        """
        rates: dict[str, float] = {}
        for above, layers in enumerate(reversed(self.stages)):
            for layer in layers:
                for variable in layer.trainable_variables:
                    rates[variable.path] = backbone_ratio * layer_decay**above
        return rates


class _Body(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    """A part of a backbone as one layer, with its residual branches left out at random where that is asked for.

    Args:
        network: What to run.
        stochastic_depth: Probability that the highest residual branch is left out of a training step; the others', the less
            the lower they are (Huang et al., 2016). 0 for never.
        seed: Decides which.
        pointwise: As of `run_folded`; of no account in training mode.
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
        """The same around another network, which is a copy of this one's."""
        return type(self)(network, self.stochastic_depth, self.seed, self.pointwise, name=self.name)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        shape: tuple[int | None, ...] = self.network.compute_output_shape(input_shape)
        return shape


class InferenceMode(_Body):
    """Runs a network as in prediction, whatever is done with the model around it.

    BatchNorm keeps its statistics, dropout is off; weights can be trained all the same. The usual way to say so,
    `network(x, training=False)` in a functional model, is overruled by Keras 3.15: there `fit` hands its own mode down to
    every layer of the graph. What a layer calls within its own `call`, it does not reach. BatchNorm runs as a part of the
    convolution before it: the same function of the same variables, and faster (`transferapp.training.folding`).

    Residual branches alone are left out at random in training, where `stochastic_depth` says so. Arguments as of `_Body`.
    """

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        sums = random_sums(self.network, self.sums, training)
        return run_folded(self.network, inputs, sums, self.pointwise)


class TrainingMode(_Body):
    """Runs a network in the mode of the model around it, for one whose weights are random. Arguments as of `_Body`."""

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return run_through(self.network, inputs, random_sums(self.network, self.sums, training), training)


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
    """Put a head on the top stage and set free what lies above the cut.

    Args:
        backbone: From `load_backbone`, with pretrained weights; it stays unchanged, for the tail has layers of its own.
        stages: Its stages, earliest first.
        cut: The last stage that stays frozen; None trains the whole network.
        head: Trained on the top stage's features, or new.
        from_scratch: Start from random weights, drawn by `seed`: BatchNorm must learn its statistics, and so runs in training
            mode.
        stochastic_depth: Probability that the highest residual branch is left out of a training step.
        seed: Decides what is left out, and the weights of a new head.
        pointwise: How 1 x 1 convolutions are computed, unless `from_scratch`: as of `run_folded`.
    """
    body = _own_copy(tail_body(backbone, stages, cut), seed if from_scratch else None)
    inputs = keras.Input(body.inputs[0].shape[1:], dtype=body.inputs[0].dtype)
    run: Any
    if not from_scratch:
        run = InferenceMode(body, stochastic_depth, seed, pointwise, name="body")
    else:
        _follow_closely(body)
        run = TrainingMode(body, stochastic_depth, seed, name="body") if stochastic_depth else body
    model = _with_head(inputs, run(inputs), head, seed)
    return Tail(model, head_layers(model), _by_stage(body, stages))


def _own_copy(body: keras.Model, seed: int | None) -> keras.Model:
    """Return a copy of a body with weights of its own: the same ones, or random ones drawn by a seed.

    Weights by which a `Normalization` scales pixels stay: they belong to the input, and are not learned.
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


def _follow_closely(network: keras.Model) -> None:
    """Let BatchNorm's statistics follow the batches within tens of steps, not hundreds: small sets have no more to give."""
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = min(layer.momentum, _MOMENTUM)
        elif isinstance(layer, keras.Model):
            _follow_closely(layer)


def lone_head(head: Head, shape: tuple[int, ...], seed: int) -> Tail:
    """A head without any of the backbone, to be trained on what the trunk gave.

    Args:
        head: Usually new.
        shape: (height, width, channels) of feature maps, or (channels,) of features that are pooled already.
        seed: Decides its weights, where it is new, and what is left out in training.
    """
    inputs = keras.Input(shape)
    model = _with_head(inputs, inputs, head, seed)
    return Tail(model, head_layers(model), ())


def tail_body(backbone: keras.Model, stages: Sequence[Stage], cut: Stage | None) -> keras.Model:
    """The part of a backbone from a cut, or from the pixels, to the top stage; it shares the backbone's layers.

    All of it trains, but for layers that are used below the cut too: there the cached activations rely on them.
    """
    whole = keras.Model(backbone.inputs[0], stage_tensor(backbone, stages[-1]), name="body")
    # Both, for TensorFlow takes no notice where a flag is set to what it is, and would not pass it on to the layers within.
    whole.trainable = False
    whole.trainable = True
    if cut is None:
        return whole
    below, body = split_at(whole, cut)
    for layer in below.layers:
        layer.trainable = False
    return body


def plain_tail(backbone: keras.Model, stages: Sequence[Stage], cut: Stage | None, head: Head, name: str) -> keras.Model:
    """A tail as `build_tail` makes it, with layers of its own and not for training; its weights are in the same order."""
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
    """The body's layers that train, grouped by the stage that they end in."""
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
) -> keras.Model:
    """Return a network with fine-tuned tails on one trunk; of several, a snapshot ensemble, probabilities are averaged.

    Huang et al., "Snapshot ensembles: train 1, get M for free", 2017 (arXiv:1704.00109).

    Args:
        backbone: Its part below the cut is shared; the part above is copied for each member.
        stages: Its stages, earliest first.
        cut: The last frozen stage; None where the whole network was trained.
        head: What the tails' heads began as; gives their form.
        members: Weights of each, in the order of `Tail.model.weights`.
        temperature: What each member's logits are divided by.
        name: The model's name.

    Returns:
        As `attach_head`.
    """
    start = backbone.inputs[0] if cut is None else stage_tensor(backbone, cut)
    scores = []
    for index, weights in enumerate(members):
        member = plain_tail(backbone, stages, cut, head, f"member_{index}")
        give_weights(member, weights)
        logits = keras.layers.Rescaling(1 / temperature, name=f"temperature_{index}")(member(start))
        scores.append(keras.layers.Softmax(name=f"probabilities_{index}")(logits))
    outputs = keras.layers.Average(name="probabilities")(scores) if len(scores) > 1 else scores[0]
    model = keras.Model(backbone.inputs[0], outputs, name=name)
    model.trainable = False
    return model
