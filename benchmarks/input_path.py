"""How fast are training views made, beside Keras' usual way of making them?

Both read the same folder and give batches of 224-pixel views, without a network to wait for. Ours is
`transferapp.training.image_batches.ImageBatches`: scale jitter, crop, flip, contrast, brightness, light. Keras' is the pipeline
of its own guides: `image_dataset_from_directory` to 256 pixels, then `RandomCrop`, `RandomFlip`, `RandomContrast` and
`RandomBrightness` in `tf.data`, which is less: one scale, bilinear without antialiasing, no light. "Cold" decodes every
file in every epoch; "warm" has the decoded images in memory (`DecodedCache`; `Dataset.cache`).

The two are timed in turn, several times, and the figure to look at is the ratio: views a second depend on the machine and
on whatever else it does.

    python benchmarks/input_path.py [--data DIR] [--json]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
from PIL import Image

IMAGE_SIZE = (224, 224)
BATCH_SIZE = 32
GENERATED_CLASSES = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--data", type=Path, help="a folder with one sub-folder a class; default: generated photographs"
    )
    parser.add_argument("--images", type=int, default=256, help="how many images to use at most (%(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 2, help="threads beside 1 (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="epochs timed of each (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if options.data is None:
            generate(folder, options.images)
        else:
            link(options.data, folder, options.images)
        rows = compare(folder, sorted({1, options.workers}), options.repeats)
    if options.json:
        print(json.dumps({"image_size": IMAGE_SIZE, "batch_size": BATCH_SIZE, "rows": rows}, indent=2))
    else:
        print_table(rows)


def generate(folder: Path, count: int) -> None:
    """JPEGs of 500 × 375 pixels: smooth shapes under grain, about 80 KB each, as photographs of that size have."""
    rng = np.random.default_rng(0)
    for number in range(count):
        path = folder / str(number % GENERATED_CLASSES) / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((500, 375))
        grain = rng.normal(0, 8, (375, 500, 1))
        Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)).save(path, quality=92)


def link(data: Path, folder: Path, count: int) -> None:
    """`count` of the JPEG and PNG images below `data`, spread over all of them, in class folders below `folder`."""
    found = sorted(path for path in data.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not found:
        raise SystemExit(f"There are no .jpg or .png files below {data}.")
    for number in np.unique(np.linspace(0, len(found) - 1, min(count, len(found))).astype(int)):
        source = found[number]
        target = folder / source.parent.name / f"{number}{source.suffix.lower()}"
        target.parent.mkdir(exist_ok=True)
        target.symlink_to(source.resolve())


def compare(folder: Path, worker_counts: list[int], repeats: int) -> list[dict[str, Any]]:
    """One row for each number of threads, cold and warm."""
    rows = []
    for workers in worker_counts:
        for warm in (False, True):
            epochs = {"ours": our_epochs(folder, workers, warm), "keras": keras_epochs(folder, workers, warm)}
            seconds: dict[str, list[float]] = {name: [] for name in epochs}
            for repeat in range(repeats + 1):
                for name, epoch in epochs.items():
                    views, spent = timed(epoch())
                    if repeat > 0:  # the first one fills the memory and traces the graph
                        seconds[name].append(spent / views)
            rates = {name: 1 / statistics.median(each) for name, each in seconds.items()}
            ratios = [theirs / ours for ours, theirs in zip(seconds["ours"], seconds["keras"], strict=True)]
            rows.append(
                {
                    "workers": workers,
                    "state": "warm" if warm else "cold",
                    "ours_views_per_s": round(rates["ours"], 1),
                    "keras_views_per_s": round(rates["keras"], 1),
                    "ratio": round(statistics.median(ratios), 2),
                    "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
                }
            )
    return rows


def timed(batches: Iterable[Any]) -> tuple[int, float]:
    """(views, seconds) of one epoch."""
    start = time.perf_counter()
    views = sum(len(labels) for _, labels in batches)
    return views, time.perf_counter() - start


def our_epochs(folder: Path, workers: int, warm: bool) -> Callable[[], Iterable[Any]]:
    """What starts an epoch of `ImageBatches`."""
    from transferapp.data.dataset import Record
    from transferapp.images.color_jitter import fit_pca_color
    from transferapp.training.decoded import CACHE_BYTES, training_images
    from transferapp.training.image_batches import ImageBatches

    class_names = sorted(path.name for path in folder.iterdir())
    records = [
        Record(
            str(path),
            path.name,
            class_names.index(path.parent.name),
            "train",
            hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    cache = training_images(IMAGE_SIZE, max_bytes=CACHE_BYTES if warm else 0)
    batches = ImageBatches(
        records,
        [record.label for record in records],
        image_size=IMAGE_SIZE,
        batch_size=BATCH_SIZE,
        seed=0,
        pca=fit_pca_color(np.concatenate([cache.get(record).reshape(-1, 3)[::37] for record in records[:50]])),
        cache=cache,
        workers=workers,
    )

    def epoch() -> Iterable[Any]:
        batches.epoch += 1
        return batches

    return epoch


def keras_epochs(folder: Path, workers: int, warm: bool) -> Callable[[], Iterable[Any]]:
    """What starts an epoch of `image_dataset_from_directory` with augmenting layers."""
    import keras
    import tensorflow as tf

    layers = [
        keras.layers.RandomCrop(*IMAGE_SIZE),
        keras.layers.RandomFlip("horizontal"),
        keras.layers.RandomContrast(0.2),
        keras.layers.RandomBrightness(0.2),
    ]

    def augment(pixels: Any, labels: Any) -> tuple[Any, Any]:
        for layer in layers:
            pixels = layer(pixels, training=True)
        return pixels, labels

    images = keras.utils.image_dataset_from_directory(
        str(folder),
        image_size=(256, 256),
        crop_to_aspect_ratio=True,
        batch_size=None if warm else BATCH_SIZE,
        shuffle=not warm,
        follow_links=True,
        verbose=False,
    )
    if warm:
        images = images.map(lambda pixels, label: (tf.cast(pixels, tf.uint8), label)).cache()
        images = images.shuffle(1024).batch(BATCH_SIZE)
        images = images.map(lambda pixels, label: (tf.cast(pixels, tf.float32), label))
    images = images.map(augment, num_parallel_calls=workers).prefetch(2)
    threads = tf.data.Options()
    threads.threading.private_threadpool_size = workers
    threads.threading.max_intra_op_parallelism = 1
    images = images.with_options(threads)
    return lambda: images


def print_table(rows: list[dict[str, Any]]) -> None:
    print(f"{'threads':>7}  {'state':5}  {'ours':>9}  {'Keras':>9}  {'ratio':>5}  range")
    for row in rows:
        low, high = row["ratio_range"]
        print(
            f"{row['workers']:7}  {row['state']:5}  {row['ours_views_per_s']:7.0f}/s  {row['keras_views_per_s']:7.0f}/s  "
            f"{row['ratio']:5.2f}  {low:.2f} to {high:.2f}"
        )
    print("views a second; a ratio above 1: ours is faster")


if __name__ == "__main__":
    main()
