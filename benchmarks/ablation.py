"""The worth of each head, regularizer and augmentation: one changed at a time, on held-out images.

    python benchmarks/ablation.py --data DIR [DIR ...] [--seeds 5] [--images 400] [--only heads regularizers ...]

For every seed the images are split anew, three quarters for training and one held out, and everything that is compared sees
the same split. So a row's figure is a paired difference against the row that it is a change of, with a 95 % interval over the
seeds (Student's t). Features and activations come from the trunk once and are cached; a head then trains in a second or two.

Heads and regularizers stand on the top stage of the frozen backbone, on the center view and `--views` random ones; `tails`
fine-tune the last two stages, for `--tail-epochs` epochs and `--tail-seeds` seeds, and cost most: run them on a few of the
folders with `--only tails`. The word `textile` for a folder means the images of woven textile in the package
conformal-clip-data.

Figures go to benchmarks/results/ablation.json after each study. A run that was interrupted, or one with more folders, resumes
from there if its other options are the same, unless `--fresh`.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from benchmarks.common import RESULTS, Split, interval, read_images, read_results, set_name, splits, write_results
from transferapp.backbones.feature_store import CENTER, FeatureStore, RandomViews, random_view_name
from transferapp.backbones.registry import backbone_spec
from transferapp.backbones.stages import stage_named
from transferapp.images.augment import Augmentation, ColorJitter, fit_pca_color
from transferapp.system.threads import cpu_cores
from transferapp.training.head_spec import Head, HeadSpec
from transferapp.training.probe import cross_validate, fit_probe, moments
from transferapp.training.settings import Batches, MakeBatches, TrainingJob, TrainingSettings

SOLVED = "linear, solved"
HIDDEN = "256 relu"
TAIL = "last two stages tuned"
_ONE_LAYER = HeadSpec(hidden=(256,))

HEADS: dict[str, HeadSpec] = {
    "linear, by gradient steps": HeadSpec(),
    HIDDEN: _ONE_LAYER,
    "256 leaky relu": HeadSpec(hidden=(256,), activation="leaky_relu"),
    "256 elu": HeadSpec(hidden=(256,), activation="elu"),
    "256 tanh": HeadSpec(hidden=(256,), activation="tanh", initializer="glorot"),
    "256 sigmoid": HeadSpec(hidden=(256,), activation="sigmoid", initializer="glorot"),
    "256 maxout": HeadSpec(hidden=(256,), activation="maxout"),
    "256-128 relu": HeadSpec(hidden=(256, 128)),
    "256 relu, batch norm": HeadSpec(hidden=(256,), batch_norm=True),
}
"""Compared with the solved linear classifier; all of them see the same views."""

REGULARIZERS: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "dropout 0.5": ({"dropout": 0.5}, {}),
    "DropConnect 0.5": ({"dropconnect": 0.5}, {}),
    "L2 0.01": ({"l2": 1e-2}, {}),
    "L1 0.0001": ({"l1": 1e-4}, {}),
    "elastic net": ({"l1": 1e-4, "l2": 1e-2}, {}),
    "label smoothing 0.1": ({}, {"label_smoothing": 0.1}),
    "mixup 0.2": ({}, {"mixup": 0.2}),
}
"""Regularizers of the hidden layer: changes of the head, and of the training settings."""

TAILS: dict[str, tuple[float, dict[str, Any], dict[str, float]]] = {
    "stochastic depth 0.2": (0.2, {}, {}),
    "mixup 0.2": (0.0, {}, {"mixup": 0.2}),
    "CutMix 1": (0.0, {}, {"cutmix": 1.0}),
}
"""Regularizers of the fine-tuned tail: stochastic depth, changes of the head, and of the training settings. Only those that
need feature maps or residual branches, and mixup to compare CutMix with: a tail costs ten times a head."""

_PLAIN = ColorJitter(0.0, 0.0, 0.0)
_STILL = Augmentation(flip=False, short_sides=(256, 256), random_crop=False, color=_PLAIN)
AUGMENTATIONS: dict[str, Augmentation] = {
    "flip": dataclasses.replace(_STILL, flip=True),
    "crop and scale": dataclasses.replace(_STILL, random_crop=True, short_sides=(256, 480)),
    "contrast and brightness": dataclasses.replace(_STILL, color=ColorJitter(0.2, 0.2, 0.0)),
    "PCA color": dataclasses.replace(_STILL, color=ColorJitter(0.0, 0.0, 0.1)),
    "all together": Augmentation(),
}
"""Random views beside the center one, compared with the center view alone; the classifier is solved on each."""

POOLINGS = ("max", "fractional_max")
COMPARABLE = ("seeds", "images", "views", "tail_epochs", "tail_seeds", "backbone")
"""Options that figures depend on: a run resumes only where they are the same."""

STUDIES = ("augmentation", "pooling", "heads", "regularizers", "tails")
HEAD_EPOCHS, HEAD_RATE = 20, 1e-3
BATCH = 64
TAIL_RATE, BACKBONE_RATIO = 3e-3, 0.1


@dataclass(frozen=True)
class Row:
    """One line of the table: accuracies by seed, and the row that it is a change of (empty for a baseline)."""

    data: str
    study: str
    name: str
    against: str
    accuracies: tuple[float, ...]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, help="folders, or the word textile")
    parser.add_argument("--seeds", type=int, default=5, help="splits, 2 or more (%(default)s)")
    parser.add_argument("--images", type=int, default=400, help="of each folder at most (%(default)s)")
    parser.add_argument("--views", type=int, default=3, help="random views beside the center one (%(default)s)")
    parser.add_argument("--only", nargs="+", choices=STUDIES, default=list(STUDIES), help="some of the studies")
    parser.add_argument("--tail-epochs", type=int, default=8, help="%(default)s")
    parser.add_argument("--tail-seeds", type=int, default=3, help="2 or more (%(default)s)")
    parser.add_argument("--backbone", default="efficientnet_lite0", help="%(default)s")
    parser.add_argument("--fresh", action="store_true", help="start anew instead of resuming")
    parser.add_argument("--out", type=Path, default=RESULTS / "ablation.json", help="where the figures go")
    options = parser.parse_args(arguments)
    if min(options.seeds, options.tail_seeds) < 2:
        parser.error("an interval needs two seeds or more")
    asked = {name: getattr(options, name) for name in COMPARABLE}
    document: dict[str, Any] = {"options": asked, "seconds": {}, "rows": []}
    if not options.fresh and (before := read_results(options.out)).get("options") == asked:
        document = before
    for data in options.data:
        done = {row["study"] for row in document["rows"] if row["data"] == set_name(data)}
        left = [study for study in STUDIES if study in options.only and study not in done]
        if not left:
            print(f"\n{set_name(data)}: already measured")
            continue
        ablation = Ablation(data, options)
        for study in left:
            started = time.perf_counter()
            rows = ablation.run(study)
            document["rows"] += [described(row, rows) for row in rows]
            document["seconds"][f"{set_name(data)}, {study}"] = round(time.perf_counter() - started, 1)
            write_results(options.out, document)


class Ablation:
    """One folder of images, its features, and the studies on them."""

    def __init__(self, data: str, options: argparse.Namespace) -> None:
        from transferapp.backbones.loading import load_backbone
        from transferapp.backbones.trunk import load_trunk

        self._options = options
        self._name, self._records, self._classes = read_images(data, options.images)
        self._labels = np.array([record.label for record in self._records])
        spec = backbone_spec(options.backbone)
        self._backbone = load_backbone(spec)
        self._trunk = load_trunk(spec, lambda: self._backbone, image_size=spec.image_size, streams=cpu_cores())
        colors = np.frombuffer(b"".join(record.colors for record in self._records), np.uint8).reshape(-1, 3)
        self._pca = fit_pca_color(colors)
        self._splits = splits(self._labels, options.seeds)
        self._rows: list[Row] = []
        print(f"\n{self._name}: {len(self._records)} images, {len(self._classes)} classes", flush=True)

    def run(self, study: str) -> list[Row]:
        """Run one study, printing each row."""
        self._rows = []
        studies: dict[str, Callable[[], None]] = {
            "augmentation": self._augmentation,
            "pooling": self._pooling,
            "heads": self._heads,
            "regularizers": self._regularizers,
            "tails": self._tails,
        }
        studies[study]()
        return self._rows

    def _record(self, study: str, name: str, against: str, accuracies: Sequence[float]) -> None:
        self._rows.append(Row(self._name, study, name, against, tuple(accuracies)))
        print(line(described(self._rows[-1], self._rows)), flush=True)

    def _features(self, augmentation: Augmentation, views: int) -> np.ndarray:
        """Top-stage averages of the center view and of random ones: float32, shape (n, 1 + views, channels)."""
        store = FeatureStore(self._trunk, workers=cpu_cores(), random_views=RandomViews(augmentation, self._pca))
        names = [CENTER, *(random_view_name(index, 0) for index in range(views))]
        return store.collect(self._records, names)[..., self._trunk.row_slices[self._trunk.top.index]]

    def _solved(self, features: np.ndarray) -> list[float]:
        return [self._solve(features, split) for split in self._splits]

    def _solve(self, features: np.ndarray, split: Split) -> float:
        """Held-out accuracy of the linear classifier with its cross-validated L2."""
        labels, views = self._labels[split.train], features.shape[1]
        own = features[split.train]
        extra = own[:, 1:] if views > 1 else None
        l2 = cross_validate(own[:, 0], labels, len(self._classes), extra=extra, seed=split.seed).l2
        probe = fit_probe(own.reshape(-1, own.shape[-1]), np.repeat(labels, views), len(self._classes), l2)
        return self._accuracy(probe.logits(features[split.held_out, 0]), split)

    def _accuracy(self, logits: np.ndarray, split: Split) -> float:
        return float((logits.argmax(axis=1) == self._labels[split.held_out]).mean())

    def _augmentation(self) -> None:
        base = "center view alone"
        self._record("augmentation", base, "", self._solved(self._features(Augmentation(), 0)))
        for name, augmentation in AUGMENTATIONS.items():
            self._record("augmentation", name, base, self._solved(self._features(augmentation, self._options.views)))

    def _pooling(self) -> None:
        base = "average pooling"
        self._record("pooling", base, "", self._solved(self._features(Augmentation(), 0)))
        with tempfile.TemporaryDirectory() as folder:
            maps = self._maps(self._trunk.top.name, [CENTER], Path(folder))
            for pooling in POOLINGS:
                features = np.concatenate([pool(pooling, maps[i : i + 64]) for i in range(0, len(maps), 64)])
                name = f"{pooling.replace('_', ' ')} pooling"
                self._record("pooling", name, base, self._solved(features[:, None]))

    def _heads(self) -> None:
        features = self._features(Augmentation(), self._options.views)
        self._record("heads", SOLVED, "", self._solved(features))
        for name, spec in HEADS.items():
            self._record("heads", name, SOLVED, [self._train_head(features, split, spec, {}) for split in self._splits])

    def _regularizers(self) -> None:
        features = self._features(Augmentation(), self._options.views)
        plain = [self._train_head(features, split, _ONE_LAYER, {}) for split in self._splits]
        self._record("regularizers", HIDDEN, "", plain)
        for name, (changes, how) in REGULARIZERS.items():
            spec = dataclasses.replace(_ONE_LAYER, **changes)
            trained = [self._train_head(features, split, spec, how) for split in self._splits]
            self._record("regularizers", f"{HIDDEN}, {name}", HIDDEN, trained)

    def _train_head(self, features: np.ndarray, split: Split, spec: HeadSpec, how: dict[str, float]) -> float:
        from transferapp.training.tail import lone_head

        own = features[split.train]
        count, views, channels = own.shape
        rows = own.reshape(-1, channels)
        head = Head(spec, *moments(rows), len(self._classes))
        tail = lone_head(head, (channels,), split.seed)
        positions = np.arange(count * views).reshape(count, views)
        settings = TrainingSettings(learning_rate=HEAD_RATE, epochs=HEAD_EPOCHS, average=0.0, **how)  # type: ignore[arg-type]
        self._fit(tail.model, rows, positions, (channels,), split, settings, {})
        return self._accuracy(np.asarray(tail.model(features[split.held_out, 0], training=False)), split)

    def _tails(self) -> None:
        cut = self._trunk.stages[-3].name
        names = [CENTER, *(random_view_name(index, 0) for index in range(self._options.views))]
        splits = self._splits[: self._options.tail_seeds]
        features = self._features(Augmentation(), 0)
        with tempfile.TemporaryDirectory() as folder:
            maps = self._maps(cut, names, Path(folder))
            solved = [self._solve(features, split) for split in splits]
            self._record("tails", SOLVED, "", solved)
            plain = [self._train_tail(maps, features, split, cut, 0.0, {}, {}) for split in splits]
            self._record("tails", TAIL, SOLVED, plain)
            for name, (depth, changes, how) in TAILS.items():
                tuned = [self._train_tail(maps, features, split, cut, depth, changes, how) for split in splits]
                self._record("tails", f"{TAIL}, {name}", TAIL, tuned)

    def _train_tail(
        self,
        maps: np.ndarray,
        features: np.ndarray,
        split: Split,
        cut: str,
        depth: float,
        changes: dict[str, Any],
        how: dict[str, float],
    ) -> float:
        from transferapp.training.tail import build_tail

        own, labels = features[split.train, 0], self._labels[split.train]
        l2 = cross_validate(own, labels, len(self._classes), seed=split.seed).l2
        head = Head.of(fit_probe(own, labels, len(self._classes), l2), HeadSpec(**changes))
        stage = stage_named(self._trunk.stages, cut)
        tail = build_tail(self._backbone, self._trunk.stages, stage, head, stochastic_depth=depth, seed=split.seed)
        views = maps.shape[1]
        rows = maps.reshape(len(maps) * views, -1)
        positions = split.train[:, None] * views + np.arange(views)
        epochs = self._options.tail_epochs
        settings = TrainingSettings(learning_rate=TAIL_RATE, epochs=epochs, average=0.0, **how)  # type: ignore[arg-type]
        self._fit(tail.model, rows, positions, stage.shape, split, settings, tail.multipliers(BACKBONE_RATIO))
        held_out = maps[split.held_out, 0].astype(np.float32)
        return self._accuracy(tail.model.predict(held_out, batch_size=64, verbose=0), split)

    def _maps(self, cut: str, names: Sequence[str], folder: Path) -> np.ndarray:
        """Activations of a stage: float16, shape (n, views, height, width, channels)."""
        from transferapp.backbones.trunk import cut_trunk

        stage = stage_named(self._trunk.stages, cut)
        below = cut_trunk(
            self._backbone, stage, self._trunk.key, image_size=self._trunk.image_size, streams=cpu_cores()
        )
        random_views = RandomViews(Augmentation(), self._pca)
        store = FeatureStore(
            below, workers=cpu_cores(), dtype="float16", random_views=random_views, folder=folder / "maps"
        )
        rows, positions = store.locate(self._records, names)
        return np.array(rows[positions]).reshape(*positions.shape, *stage.shape)

    def _fit(
        self,
        model: Any,
        rows: np.ndarray,
        positions: np.ndarray,
        shape: tuple[int, ...],
        split: Split,
        settings: TrainingSettings,
        multipliers: dict[str, float],
    ) -> None:
        """Train all epochs; the weights are those of the last."""
        from transferapp.training.batches import CachedBatches, soft
        from transferapp.training.session import Session

        labels = self._labels[split.train]

        def plain(batch_size: int) -> Batches:
            return CachedBatches(rows, positions, labels, shape, batch_size=batch_size, seed=split.seed)

        make: MakeBatches = plain
        if settings.soft_labels:
            make = soft(plain, len(self._classes), mixup=settings.mixup, cutmix=settings.cutmix, seed=split.seed)
        Session(TrainingJob(model, make, settings, multipliers, BATCH), None)  # compiles the model
        batches = make(BATCH)
        for epoch in range(settings.epochs):
            batches.epoch = epoch
            # `fit` takes twice as long: these steps are shorter than its own work around each.
            for index in range(len(batches)):
                model.train_on_batch(*batches[index])


def pool(pooling: str, maps: np.ndarray) -> np.ndarray:
    """Pool maps of shape (n, 1, height, width, channels) as a head does in prediction: float32, shape (n, channels)."""
    import keras

    from transferapp.training.heads import pooled

    start = keras.Input(maps.shape[2:])
    model = keras.Model(start, pooled(pooling, start, for_prediction=True))
    return np.asarray(model(maps[:, 0].astype(np.float32)))


def described(row: Row, rows: Sequence[Row]) -> dict[str, Any]:
    """Add the mean to a row, and its gain over the row that it is a change of, in points with a 95 % interval."""
    document: dict[str, Any] = {**vars(row), "accuracy": float(np.mean(row.accuracies)), "gain": None}
    if row.against:
        of = next(r for r in rows if (r.data, r.study, r.name) == (row.data, row.study, row.against))
        gains = 100 * (np.array(row.accuracies) - np.array(of.accuracies))
        document["gain"], document["interval"] = float(gains.mean()), interval(gains)
    return document


def line(row: dict[str, Any]) -> str:
    """Format a row for printing."""
    gain = "" if row["gain"] is None else f"{row['gain']:+6.1f} ± {row['interval']:.1f} against {row['against']}"
    return f"  {row['study']:13} {row['name']:44} {row['accuracy']:.3f}  {gain}"


if __name__ == "__main__":
    main()
