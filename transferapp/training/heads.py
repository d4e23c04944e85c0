"""Put a head on a backbone: from a stage's feature map to class probabilities, as one Keras model."""

from __future__ import annotations

import keras
import numpy as np

from transferapp.backbones.stages import Stage, stage_tensor
from transferapp.probe import LinearProbe


def attach_probe(backbone: keras.Model, stage: Stage, probe: LinearProbe, temperature: float, name: str) -> keras.Model:
    """The whole classifier: backbone up to the cut, average pooling, standardisation, linear layer, softmax.

    Args:
        backbone: From `load_backbone`.
        stage: The cut.
        probe: Solved on that stage's pooled features.
        temperature: What the logits are divided by.
        name: The model's name.

    Returns:
        A model from float32 pixels in [0, 255], shape (batch, height, width, 3), to probabilities, shape
        (batch, num_classes).
    """
    layers = keras.layers
    num_classes = len(probe.bias)
    x = layers.GlobalAveragePooling2D(name="head_pool")(stage_tensor(backbone, stage))
    standardise = layers.Normalization(mean=probe.mean, variance=np.square(probe.std), name="head_standardise")
    classify = layers.Dense(num_classes, name="head_logits")
    x = classify(standardise(x))
    x = layers.Rescaling(1 / temperature, name="head_temperature")(x)
    outputs = layers.Softmax(name="probabilities")(x)
    classify.set_weights([probe.kernel, probe.bias])
    model = keras.Model(backbone.inputs[0], outputs, name=name)
    model.trainable = False
    return model
