"""Train a small tail on one device and on two, in a process of its own: `python -m tests.helpers.two_devices`, prints JSON.

A process, because the devices are two halves of the CPU, which a backend can be told of only before it is first used. Which
backend, `KERAS_BACKEND` says.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import numpy as np

IMAGES = {"even": 20, "odd": 21}
"""In batches of 10: of the odd set the last batch is one image, so that one device has nothing of its own to do. Validation
is in batches of 7, each of which is filled up."""

EPOCHS = 3


def main() -> None:
    split_the_cpu()
    from transferapp.system.hardware import Hardware

    one, two = Hardware(), Hardware(devices=("cpu:0", "cpu:1"))
    outcome = {name: {"one": trained(count, one), "two": trained(count, two)} for name, count in IMAGES.items()}
    json.dump(outcome, sys.stdout)


def split_the_cpu() -> None:
    if os.environ.get("KERAS_BACKEND") == "jax":
        os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
        return
    import tensorflow as tf

    half = tf.config.LogicalDeviceConfiguration()
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], [half, half])


def trained(count: int, hardware: Any) -> dict[str, Any]:
    """What came of training on `count` images."""
    import keras

    from tests.helpers.networks import tiny_network
    from transferapp.backbones.stages import find_stages
    from transferapp.system.hardware import distributed
    from transferapp.training.head_spec import Head
    from transferapp.training.optimizers import averaged_weights, make_optimizer
    from transferapp.training.parallel import predicted, prepare
    from transferapp.training.probe import LinearProbe
    from transferapp.training.tail import CachedBatches, CachedCenters, build_tail

    rng = np.random.default_rng(0)
    backbone = tiny_network()
    stages = find_stages(backbone)
    kernel = rng.normal(0, 0.1, (20, 3)).astype(np.float32)
    probe = LinearProbe(np.zeros(20, np.float32), np.ones(20, np.float32), kernel, np.zeros(3, np.float32), 1.0, 1)
    tail = build_tail(backbone, stages, stages[0], Head.of(probe))
    shape = stages[0].shape
    rows = rng.normal(size=(2 * count, int(np.prod(shape)))).astype(np.float16)
    positions, labels = np.arange(2 * count).reshape(count, 2), np.arange(count) % 3

    def make_batches(batch_size: int) -> CachedBatches:
        return CachedBatches(rows, positions, labels, shape, batch_size=batch_size, seed=0)

    validation = CachedCenters(rows, positions[:, 0], shape, batch_size=7)
    with distributed(hardware):
        ready = prepare(tail.model, make_batches, tail.multipliers(0.1, 0.5), hardware, validation)
        model = ready.model
        model.compile(
            optimizer=make_optimizer("adam", 1e-2, multipliers=ready.multipliers, average=0.9, clip_norm=0.05),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            weighted_metrics=["accuracy"],
            jit_compile="auto" if keras.backend.backend() == "jax" else False,
        )
        history = model.fit(ready.make_batches(10), epochs=EPOCHS, shuffle=False, verbose=0).history
        logits = predicted(model, ready.validation)
    variable = model.trainable_variables[0].value
    return {
        "history": history,
        "steps": int(keras.ops.convert_to_numpy(model.optimizer.iterations)),
        "weights": [keras.ops.convert_to_numpy(w).tolist() for w in model.weights],
        "average": [np.asarray(w).tolist() for w in averaged_weights(model.optimizer)],
        "logits": logits.tolist(),
        "devices": len(
            variable.sharding.device_set if hasattr(variable, "sharding") else getattr(variable, "values", [1])
        ),
        "same_model": model is tail.model,
    }


if __name__ == "__main__":
    main()
