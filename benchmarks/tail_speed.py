"""Speed of training a tail on cached activations against Keras' whole network with the same layers frozen.

    python benchmarks/tail_speed.py [--data DIR] [--images N] [--cut STAGE] [--epochs E] [--image-size S] [--pointwise HOW]

Both train the layers above the cut, from the same weights and the same solved head, through plain `model.fit`: the same views
in the same order, batch size, optimizer and schedule. One takes the activations at the cut, which the trunk has computed once;
the other takes pixels and runs the frozen layers for every image in every epoch. Its views are rendered beforehand, so only
the networks are compared. BatchNorm is in inference mode for both; the tail runs it folded into the convolutions, and its 1 x 1
convolutions as suits the processor, or as `--pointwise` says.

Epochs alternate, so that a noisy machine slows both alike. The figure is the ratio of the median epochs without the first,
which traces the graph; the ratio of processor time, and the ratio with the time to fill the cache, stand beside it.

Without `--data` the images are those of woven textile in the package conformal-clip-data. Results go to
benchmarks/results/tail_speed.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from benchmarks.common import RESULTS, TEXTILE, image_folder, set_name, spread, write_results
from transferapp.backbones.feature_store import (
    CENTER,
    WITHOUT_COLOR,
    FeatureStore,
    center_pixels,
    random_view_name,
    view_pixels,
)
from transferapp.backbones.registry import backbone_spec
from transferapp.backbones.stages import stage_named
from transferapp.backbones.trunk import Trunk
from transferapp.data.dataset import Dataset
from transferapp.images.views import short_side_to_decode
from transferapp.system.backend import POINTWISE
from transferapp.system.hardware import detect
from transferapp.system.threads import cpu_cores

TARGET = 3.0
HEAD_RATE = 1e-3
BACKBONE_RATIO = 0.1


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", default=TEXTILE, help="a folder with one sub-folder a class, or textile (%(default)s)"
    )
    parser.add_argument("--images", type=int, default=1000, help="how many to use at most, evenly spread (%(default)s)")
    parser.add_argument("--backbone", default="efficientnet_lite0", help="%(default)s")
    parser.add_argument("--cut", default="block10", help="the last frozen stage (%(default)s)")
    parser.add_argument("--image-size", type=int, default=224, help="side of the network's input (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="images in a step (%(default)s)")
    parser.add_argument("--epochs", type=int, default=8, help="passes over the images, 2 or more (%(default)s)")
    parser.add_argument("--views", type=int, default=4, help="views of each image, taken in turn (%(default)s)")
    parser.add_argument("--pointwise", choices=POINTWISE, help="how 1 x 1 convolutions run (as suits the processor)")
    parser.add_argument("--out", type=Path, default=RESULTS / "tail_speed.json", help="where the figures go")
    options = parser.parse_args(arguments)
    if options.epochs < 2:
        parser.error("--epochs must be 2 or more: the first is not counted")
    document = run(options)
    print_table(document)
    write_results(options.out, document)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Train both and return the figures."""
    from transferapp.backbones.loading import load_backbone
    from transferapp.backbones.trunk import cut_trunk, load_trunk
    from transferapp.training.batches import CachedBatches, CachedCenters
    from transferapp.training.head_spec import Head
    from transferapp.training.tail import build_tail

    size = (options.image_size, options.image_size)
    spec = backbone_spec(options.backbone)
    dataset = read_split(image_folder(options.data), options.images)
    train, val = dataset.part("train"), dataset.part("val")
    backbone = load_backbone(spec, image_size=size)
    pointwise = options.pointwise or detect().pointwise
    trunk = load_trunk(spec, lambda: backbone, image_size=size, streams=cpu_cores())
    stage = stage_named(trunk.stages, options.cut)
    probe = solved_head(trunk, train)
    tails = {
        "cached": build_tail(backbone, trunk.stages, stage, Head.of(probe), pointwise=pointwise),
        "whole": frozen_below(build_tail(backbone, trunk.stages, None, Head.of(probe)), stage),
    }
    views = [random_view_name(index, 0) for index in range(options.views)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        started = time.perf_counter()
        below = cut_trunk(backbone, stage, trunk.key, image_size=size, streams=cpu_cores())
        store = FeatureStore(below, workers=cpu_cores(), dtype="float16", folder=folder / "activations")
        rows, positions = store.locate(train.records, views)
        filling = time.perf_counter() - started
        val_rows, val_positions = store.locate(val.records, [CENTER])
        pixels, val_pixels = render_all(train, views, size, folder), render_centers(val, size)
        grid = np.arange(len(pixels)).reshape(len(train), len(views))
        shape, batch_size = (*size, 3), options.batch_size
        make = {"labels": train.labels, "batch_size": batch_size, "seed": 0}
        candidates = {
            "cached": Candidate(
                tails["cached"],
                CachedBatches(rows, positions, shape=below.shape, **make),
                CachedCenters(val_rows, val_positions[:, 0], below.shape, batch_size=batch_size),
            ),
            "whole": Candidate(
                tails["whole"],
                CachedBatches(pixels, grid, shape=shape, **make),
                CachedCenters(val_pixels, np.arange(len(val)), shape, batch_size=batch_size),
            ),
        }
        before = {key: candidate.accuracy(val.labels) for key, candidate in candidates.items()}
        train_in_turn(list(candidates.values()), options.epochs)
        after = {key: candidate.accuracy(val.labels) for key, candidate in candidates.items()}
    seconds = {key: candidate.seconds for key, candidate in candidates.items()}
    ratios = quotients(candidates["whole"].seconds, candidates["cached"].seconds)
    return {
        "data": set_name(options.data),
        "backbone": spec.name,
        "cut": stage.name,
        "cut_shape": list(stage.shape),
        "image_size": list(size),
        "batch_size": batch_size,
        "pointwise": pointwise,
        "num_train": len(train),
        "num_val": len(val),
        "views": len(views),
        "trained_parameters": sum(int(np.prod(v.shape)) for v in tails["cached"].model.trainable_variables),
        "seconds_per_epoch": {key: statistics.median(each[1:]) for key, each in seconds.items()},
        "seconds_of_each_epoch": seconds,
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "ratio_of_processor_time": statistics.median(
            quotients(candidates["whole"].processor_seconds, candidates["cached"].processor_seconds)
        ),
        "filling_seconds": filling,
        "ratio_with_filling": sum(seconds["whole"]) / (filling + sum(seconds["cached"])),
        "target": TARGET,
        "val_accuracy_before": before,
        "val_accuracy": after,
    }


@dataclass
class Candidate:
    """A tail with its data, and the seconds of its epochs.

    Attributes:
        tail: From `build_tail`.
        batches, validation: Training and validation data.
        seconds, processor_seconds: Wall and processor time of each epoch.
    """

    tail: Any
    batches: Any
    validation: Any

    def __post_init__(self) -> None:
        self.seconds: list[float] = []
        self.processor_seconds: list[float] = []

    def compile(self, epochs: int) -> None:
        """Compile with Adam and a cosine schedule, at a tenth of the head's rate below the head."""
        import keras

        from transferapp.training.optimizers import make_optimizer
        from transferapp.training.schedules import make_schedule

        schedule = make_schedule("cosine", HEAD_RATE, epochs * len(self.batches))
        self.tail.model.compile(
            optimizer=make_optimizer("adam", schedule, multipliers=self.tail.multipliers(BACKBONE_RATIO)),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            jit_compile=False,
        )

    def train_epoch(self, number: int) -> None:
        """Train epoch `number`, counted from 0."""
        from transferapp.training.batches import FollowEpochs

        started, used = time.perf_counter(), time.process_time()
        self.tail.model.fit(
            self.batches,
            initial_epoch=number,
            epochs=number + 1,
            shuffle=False,
            verbose=0,
            callbacks=[FollowEpochs(self.batches)],
        )
        self.seconds.append(time.perf_counter() - started)
        self.processor_seconds.append(time.process_time() - used)

    def accuracy(self, labels: np.ndarray) -> float:
        """Accuracy on the validation images."""
        logits = self.tail.model.predict(self.validation, verbose=0)
        return float((logits.argmax(axis=1) == labels).mean())


def quotients(slow: list[float], fast: list[float]) -> list[float]:
    """Ratios of the epochs, without the first."""
    return [whole / cached for whole, cached in zip(slow[1:], fast[1:], strict=True)]


def train_in_turn(candidates: list[Candidate], epochs: int) -> None:
    """Train an epoch of each in turn; the order alternates."""
    for candidate in candidates:
        candidate.compile(epochs)
    for number in range(epochs):
        for candidate in candidates[:: 1 if number % 2 == 0 else -1]:
            candidate.train_epoch(number)


def frozen_below(whole: Any, stage: Any) -> Any:
    """Freeze the layers below the cut in a tail of the whole network, and run it without folding BatchNorm."""
    import keras

    from transferapp.backbones.stages import cut

    class LayerByLayer(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
        """Inference mode, which `fit` would otherwise override."""

        def __init__(self, network: Any) -> None:
            super().__init__()
            self.network = network

        def call(self, inputs: Any) -> Any:
            return self.network(inputs, training=False)

    inputs, body, *head = whole.model.layers
    for layer in cut(body.network, stage)[0].layers:
        layer.trainable = False
    x = LayerByLayer(body.network)(inputs.output)
    for layer in head:
        x = layer(x)
    return dataclasses.replace(whole, model=keras.Model(inputs.output, x))


def solved_head(trunk: Trunk, train: Dataset) -> Any:
    """Solve the linear classifier on the top stage, from which both start."""
    from transferapp.training.probe import cross_validate, fit_probe

    columns = trunk.row_slices[trunk.top.index]
    features = FeatureStore(trunk, workers=cpu_cores()).collect(train.records, [CENTER])[:, 0, columns]
    l2 = cross_validate(features, train.labels, len(train.class_names), seed=0).l2
    return fit_probe(features, train.labels, len(train.class_names), l2)


def read_split(data: Path, limit: int) -> Dataset:
    """Read at most `limit` images of a folder, evenly spread over its classes, split into train and val."""
    from transferapp.config import make_config
    from transferapp.data.sources import open_source
    from transferapp.recipes.fit.measure import audit_and_split
    from transferapp.system.progress import Silent

    dataset = open_source(str(data))
    # Records come class by class, so that an even spread takes the same share of each.
    dataset = dataset.with_records([dataset.records[index] for index in spread(len(dataset), limit)])
    divided, _ = audit_and_split(dataset, make_config({"data": str(data), "test_fraction": 0.0}), Silent())
    return divided


def render_all(train: Dataset, views: Sequence[str], size: tuple[int, int], folder: Path) -> np.ndarray:
    """Render every view as the feature store does, into a mapped file: uint8, (images * views, flattened pixels)."""
    shape = (len(train) * len(views), size[0] * size[1] * 3)
    pixels: np.ndarray = np.memmap(folder / "pixels", np.uint8, "w+", shape=shape)
    needed = short_side_to_decode(WITHOUT_COLOR.augmentation.short_sides[1], size)
    for index, record in enumerate(train.records):
        image = record.decode(needed).image
        for turn, view in enumerate(views):
            pixels[index * len(views) + turn] = view_pixels(image, view, record.sha256, size).ravel()
    return np.asarray(pixels)


def render_centers(val: Dataset, size: tuple[int, int]) -> np.ndarray:
    """Render the center views: uint8, (images, flattened pixels)."""
    return np.stack([center_pixels(record, size, "crop").ravel() for record in val.records])


def print_table(document: dict[str, Any]) -> None:
    print(
        f"{document['num_train']} training images, {document['backbone']} cut at {document['cut']}, "
        f"{document['trained_parameters']:,} parameters trained"
    )
    print(f"{'input':<20} {'seconds an epoch':>16} {'accuracy before':>16} {'and after':>10}")
    for key, label in (("cached", "cached activations"), ("whole", "pixels, whole net")):
        print(
            f"{label:<20} {document['seconds_per_epoch'][key]:16.2f} {document['val_accuracy_before'][key]:16.3f} "
            f"{document['val_accuracy'][key]:10.3f}"
        )
    low, high = document["ratio_range"]
    print(
        f"ratio {document['ratio']:.2f} ({low:.2f} to {high:.2f}), of processor time "
        f"{document['ratio_of_processor_time']:.2f}; wanted: {document['target']:.0f} or more"
    )
    print(
        f"ratio {document['ratio_with_filling']:.2f} over all {len(document['seconds_of_each_epoch']['cached'])} epochs with "
        f"the {document['filling_seconds']:.1f} s counted in that filling the cache took"
    )


if __name__ == "__main__":
    main()
