"""Put a head on a backbone: from pixels to class probabilities, as one Keras model that needs nothing of this package."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np

from transferapp.backbones.copies import give_weights
from transferapp.backbones.stages import Stage, stage_tensor
from transferapp.training.head_spec import Head
from transferapp.training.heads import build_head
from transferapp.training.probe import LinearProbe
from transferapp.training.tail import plain_tail, set_head


def attach_probe(backbone: keras.Model, stage: Stage, probe: LinearProbe, temperature: float, name: str) -> keras.Model:
    """`attach_head` for a solved linear classifier."""
    return attach_head(backbone, stage, Head.of(probe), temperature, name)


def attach_head(backbone: keras.Model, stage: Stage, head: Head, temperature: float, name: str) -> keras.Model:
    """The whole classifier: backbone up to the cut, pooling, standardization, the head's layers, softmax.

    Args:
        backbone: From `load_backbone`.
        stage: The cut.
        head: Trained on that stage's pooled features; what regularized it is left out.
        temperature: What the logits are divided by.
        name: The model's name.

    Returns:
        A model from float32 pixels in [0, 255], shape (batch, height, width, 3), to probabilities, shape
        (batch, num_classes).
    """
    maps = stage_tensor(backbone, stage)
    x = build_head(head.spec, maps, head.num_classes, head.mean, head.std, for_prediction=True)
    x = keras.layers.Rescaling(1 / temperature, name="head_temperature")(x)
    outputs = keras.layers.Softmax(name="probabilities")(x)
    model = keras.Model(backbone.inputs[0], outputs, name=name)
    set_head(model, head, backbone.layers)
    model.trainable = False
    return model


def attach_ensemble(
    backbone: keras.Model,
    stages: Sequence[Stage],
    cut: Stage | None,
    head: Head,
    members: Sequence[Sequence[np.ndarray]],
    temperature: float,
    name: str,
) -> keras.Model:
    """Several tails on one trunk, their probabilities averaged: a snapshot ensemble (Huang et al., 2017).

    Args:
        backbone: Its part below the cut is shared; the part above is copied for each member.
        stages: Its stages, earliest first.
        cut: The last frozen stage; None where the whole network was trained.
        head: What the tails' heads began as; gives their form.
        members: Weights of each, in the order of `Tail.model.weights`.
        temperature: What each member's logits are divided by.
        name: The model's name.

    Returns:
        As of `attach_probe`.
    """
    start = backbone.inputs[0] if cut is None else stage_tensor(backbone, cut)
    scores = []
    for index, weights in enumerate(members):
        member = plain_tail(backbone, stages, cut, head, f"member_{index}")
        give_weights(member, weights)
        logits = keras.layers.Rescaling(1 / temperature, name=f"temperature_{index}")(member(start))
        scores.append(keras.layers.Softmax(name=f"probabilities_{index}")(logits))
    model = keras.Model(backbone.inputs[0], keras.layers.Average(name="probabilities")(scores), name=name)
    model.trainable = False
    return model
