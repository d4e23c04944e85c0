"""transferapp against the Keras guide's own transfer-learning recipe: wall time and accuracy, side by side in one run.

    python benchmarks/keras_guide.py --data DIR [--repeats N]

The recipe is that of the guide "Transfer learning & fine-tuning", first phase: a frozen pretrained base in inference mode,
random flips and rotations, global average pooling, dropout, a dense layer, Adam, 15 epochs of batches of 32. Both get the same
images and the same EfficientNet-Lite0 weights; transferapp also tries Lite2, as it does by default. Each side is a process of
its own with an empty cache, timed from its start to the model on disk, and judged on the same test folder with single views.
`--data` must hold train/ and test/ folders of class folders. Results go to benchmarks/results/keras_guide.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import RESULTS, write_results

EPOCHS = 15
BATCH_SIZE = 32


def train_as_the_guide(data: Path, out: Path) -> None:
    """Train by the guide's recipe; run in a process of its own."""
    import keras

    from transferapp.backbones.loading import load_backbone
    from transferapp.backbones.registry import backbone_spec

    size = (224, 224)
    options: dict[str, Any] = {"image_size": size, "batch_size": BATCH_SIZE, "seed": 0, "verbose": False}
    train = keras.utils.image_dataset_from_directory(data / "train", **options)
    test = keras.utils.image_dataset_from_directory(data / "test", shuffle=False, **options)
    num_classes = len(train.class_names)
    train, test = train.cache().prefetch(2), test.cache().prefetch(2)

    whole = load_backbone(backbone_spec("efficientnet_lite0"), image_size=size)
    base = keras.Model(whole.inputs[0], whole.get_layer("top").output)
    base.trainable = False
    inputs = keras.Input((*size, 3))
    x = keras.layers.RandomFlip("horizontal")(inputs)
    x = keras.layers.RandomRotation(0.1)(x)
    x = base(x, training=False)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dropout(0.2)(x)
    model = keras.Model(inputs, keras.layers.Dense(num_classes)(x))
    model.compile(
        optimizer=keras.optimizers.Adam(),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(train, epochs=EPOCHS, verbose=0)
    model.save(out / "model.keras")
    saved = time.time()
    _, accuracy = model.evaluate(test, verbose=0)
    (out / "result.json").write_text(json.dumps({"accuracy": accuracy, "saved": saved}))


def time_guide(data: Path) -> dict[str, float]:
    """Seconds from process start to the saved model, and accuracy on the test folder."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--data", str(data), "--as-the-guide", folder]
        started = time.time()
        subprocess.run(command, check=True, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"})
        result = json.loads(Path(folder, "result.json").read_text())
        return {"seconds": result["saved"] - started, "accuracy": result["accuracy"]}


def time_transferapp(data: Path, *options: str) -> dict[str, float]:
    """Seconds from process start to its exit, and accuracy on the test folder with single views."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder, "bundle")
        command = [sys.executable, "-m", "transferapp"]
        environment = {**os.environ, "TRANSFERAPP_CACHE": str(Path(folder, "cache"))}
        started = time.time()
        subprocess.run(
            [*command, "fit", "--data", str(data), "--out", str(bundle), *options],
            check=True,
            env=environment,
            capture_output=True,
        )
        seconds = time.time() - started
        judged = subprocess.run(
            [*command, "evaluate", str(bundle), "--data", str(data), "--views", "1", "--json"],
            check=True,
            env=environment,
            capture_output=True,
        )
        return {"seconds": seconds, "accuracy": json.loads(judged.stdout)["accuracy"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with train/ and test/")
    parser.add_argument("--repeats", type=int, default=1, help="rounds; each runs every candidate once")
    parser.add_argument("--as-the-guide", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.as_the_guide:
        train_as_the_guide(arguments.data, arguments.as_the_guide)
        return
    rounds = []
    for _ in range(arguments.repeats):
        rounds.append(
            {
                "keras_guide": time_guide(arguments.data),
                "transferapp": time_transferapp(arguments.data),
                "transferapp_lite0": time_transferapp(arguments.data, "--backbone", "efficientnet_lite0"),
            }
        )
        print(json.dumps(rounds[-1]), file=sys.stderr)
    summary = {}
    for name in rounds[0]:
        ratios = [r["keras_guide"]["seconds"] / r[name]["seconds"] for r in rounds]
        summary[name] = {
            "seconds": statistics.median(r[name]["seconds"] for r in rounds),
            "accuracy": statistics.median(r[name]["accuracy"] for r in rounds),
            "times_faster": statistics.median(ratios),
        }
    print(f"{'':<20} {'seconds':>8} {'accuracy':>9} {'times faster':>13}")
    for name, row in summary.items():
        print(f"{name:<20} {row['seconds']:8.1f} {row['accuracy']:9.3f} {row['times_faster']:13.1f}")
    document = {"data": arguments.data.name, "cores": os.cpu_count(), "rounds": rounds, "summary": summary}
    write_results(RESULTS / "keras_guide.json", document)


if __name__ == "__main__":
    main()
