"""Train a small tail under JAX on the devices that there are: `python -m tests.helpers.several_devices COUNT`, prints JSON.

A process of its own, because the CPU is divided into devices before JAX is first used.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any


def main(count: str) -> None:
    os.environ.update(KERAS_BACKEND="jax", XLA_FLAGS=f"--xla_force_host_platform_device_count={count}")
    json.dump(trained(), sys.stdout)


def trained() -> dict[str, Any]:
    """Return the outcome of three epochs of 48 images in batches of 10, so that the last batch has 8, and of validation."""
    from tests.helpers.toys import toy_data, toy_model
    from transferapp.system.backend import divides_batches
    from transferapp.training.checkpoint import CheckpointStore
    from transferapp.training.loop import train
    from transferapp.training.settings import TrainingJob, TrainingSettings

    divided = divides_batches()
    make, validation, labels = toy_data()
    model = toy_model(dropout=0.2)
    settings = TrainingSettings(epochs=3, learning_rate=5e-2, average=0.9)
    with tempfile.TemporaryDirectory() as folder:
        job = TrainingJob(model, make, settings, {}, 10)
        found = train(job, validation, labels, checkpoints=CheckpointStore(Path(folder)))
    return {
        "divided": divided,
        "devices": len(model.trainable_variables[0].value.sharding.device_set),
        "loss": [epoch.loss for epoch in found.history],
        "val_loss": [epoch.val_loss for epoch in found.history],
        "averaged_val_loss": [epoch.averaged_val_loss for epoch in found.history],
        "logits": found.logits.tolist(),
    }


if __name__ == "__main__":
    main(sys.argv[1])
