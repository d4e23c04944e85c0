"""Small functional Keras networks with random weights whose outputs can be compared.

Keras is imported only when something is built, so that tests without it start quickly.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from transferapp.backbones.registry import backbone_spec
from transferapp.data.dataset import Record
from transferapp.system.storage import sha256_file

TINY_SIZE = (32, 32)
TINY_STAGES = (("join1", (16, 16, 8)), ("join2", (8, 8, 12)), ("top", (8, 8, 20)))
"""Stages of `tiny_network`, worked out by hand."""


def tiny_network(size: tuple[int | None, int | None] = TINY_SIZE, *, num_logits: int = 0, adapted: bool = False) -> Any:
    """Build a residual network of a thousand parameters, with a classifier on top where `num_logits` is given.

    Its stages are `TINY_STAGES`: two residual blocks at two resolutions, and a last convolution. With `adapted` it scales
    pixels by the mean and deviation of some images, as EfficientNet does.
    """
    import keras

    layers = keras.layers
    pixels = keras.Input((*size, 3), name="pixels")
    scale = layers.Rescaling(1 / 127.5, offset=-1.0, name="scale")
    if adapted:
        scale = layers.Normalization(name="scale")
        scale.adapt(noise_pixels(8).astype(np.float32))
    x = scale(pixels)
    x = layers.Conv2D(8, 3, 2, padding="same", activation="relu", name="stem")(x)
    for index, (filters, strides) in enumerate(((8, 1), (12, 2)), start=1):
        if strides == 2:
            x = layers.Conv2D(filters, 3, 2, padding="same", name=f"down{index}")(x)
        branch = layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"conv{index}")(x)
        branch = layers.BatchNormalization(name=f"bn{index}")(branch)
        x = layers.Add(name=f"join{index}")([x, layers.ReLU(name=f"relu{index}")(branch)])
    x = layers.Conv2D(20, 1, activation="relu", name="top")(x)
    if num_logits:
        x = layers.Dense(num_logits, name="logits")(layers.GlobalAveragePooling2D(name="pool")(x))
    return enliven(keras.Model(pixels, x, name="tiny"))


def enliven(model: Any, seed: int = 0) -> Any:
    """Set random weights under which every branch contributes and the outputs neither vanish nor explode.

    Keras' initial values hide most of a deep network: statistics of 0 and 1, branches scaled by a millionth.
    """
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        if type(layer).__name__ == "Normalization":  # input scaling is not learned
            continue
        for variable in layer.weights:
            shape = tuple(variable.shape)
            if len(shape) > 1:
                fan_in = np.prod(shape[:2]) if "Depthwise" in type(layer).__name__ else np.prod(shape[:-1])
                values = rng.normal(0, np.sqrt(2 / fan_in), shape)
            elif variable.name in ("gamma", "moving_variance"):
                values = rng.uniform(0.5, 1.5, shape)
            else:
                values = rng.normal(0, 0.1, shape)
            variable.assign(values.astype(np.float32))
    return model


def draws_in_training(model: Any, x: np.ndarray, count: int) -> np.ndarray:
    """Return outputs of a model or layer for one batch in training mode, `count` times: shape (count, *outputs' shape).

    It is compiled once and called by `predict`, because a call layer by layer takes a hundred times as long.
    """
    import keras

    class InTraining(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def call(self, inputs: Any) -> Any:
            return self.inner(inputs, training=True)

    given = InTraining().predict(np.concatenate([x] * count), batch_size=len(x), verbose=0)
    return given.reshape(count, len(x), *given.shape[1:])


@functools.cache
def pretrained(name: str) -> Any:
    """Return an embedded backbone with its weights, built once for all tests."""
    from transferapp.backbones.loading import load_backbone

    return load_backbone(backbone_spec(name))


def noise_pixels(count: int, size: tuple[int, int] = TINY_SIZE, seed: int = 0) -> np.ndarray:
    """Return uint8 images, shape (count, height, width, 3): noise on colors that differ between images."""
    rng = np.random.default_rng(seed)
    color = rng.integers(0, 200, (count, 1, 1, 3))
    return (color + rng.integers(0, 56, (count, *size, 3))).astype(np.uint8)


def write_images(folder: Path, count: int, size: tuple[int, int] = (90, 70), seed: int = 0) -> list[Record]:
    """Write PNG files of `noise_pixels` and return audited records; the label is the position modulo 2."""
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for index, pixels in enumerate(noise_pixels(count, size, seed)):
        path = folder / f"{seed}-{index:03}.png"
        Image.fromarray(pixels).save(path)
        records.append(Record(str(path), path.name, index % 2, "train", sha256_file(path)))
    return records
