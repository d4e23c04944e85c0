"""Fit: the path of a picture from a folder to a bundle, in the order in which it happens."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from transferapp.bundle import check_target, write_manifest, writing
from transferapp.config import FitConfig
from transferapp.data.dataset import Dataset, Record
from transferapp.engine import convert, save_converted
from transferapp.errors import DataError
from transferapp.evaluation.report import Thumbnail, render_report, thumbnail
from transferapp.export import build_network, check_parity
from transferapp.features import CENTER
from transferapp.images import decode_image
from transferapp.manifest import describe, history_table, split_table
from transferapp.measurement import Measurement, measure, workshop
from transferapp.progress import Progress, Silent
from transferapp.selection import ViewChoice, choose_views
from transferapp.solving import Solved, solve
from transferapp.storage import disk_errors
from transferapp.views import SHORT_SIDE

MISTAKES_SHOWN = 24
SAMPLES_SHOWN = 12


@dataclass(frozen=True)
class FitResult:
    """What a fit leaves behind: the bundle's folder and its manifest."""

    path: Path
    manifest: dict[str, Any]


class Stopwatch:
    """Seconds by step of work."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, step: str) -> None:
        now = time.perf_counter()
        self.seconds[step] = round(now - self._last, 2)
        self._last = now


def plan(config: FitConfig, progress: Progress | None = None) -> Measurement:
    """Measure the data and apply the rule, without training anything.

    Raises:
        DataError: The folder cannot be used.
        WeightsError: A backbone's weights are not to be had.
    """
    with workshop(config) as shop:
        return measure(config, shop, progress or Silent())


def fit(config: FitConfig, progress: Progress | None = None) -> FitResult:
    """Turn a folder of pictures into a bundle.

    Raises:
        DataError: The folder cannot be used, or another fit is writing to the same place.
        WeightsError: A backbone's weights are not to be had.
        ResourceError: The disk is full.
        TrainingError: The exported network does not do what the trained one does.
    """
    progress = progress or Silent()
    watch = Stopwatch()
    target = config.bundle_path
    check_target(target)
    with _only_writer(target), workshop(config) as shop:
        measurement = measure(config, shop, progress)
        chosen, dataset = measurement.chosen, measurement.dataset
        backbone = shop.in_background(
            shop.model, chosen.spec
        )  # needed only at the end; importing TensorFlow takes a while
        watch.lap("measure")
        choice = choose_augmentation(measurement, config, progress)
        watch.lap("views")
        solved = solve(measurement, choice, config, progress)
        watch.lap("solve")
        with progress.task("building the network", 0):
            network = build_network(backbone.result(), chosen, solved, target.name)
            converted = convert(network)
            parity, served = check_parity(network, converted, dataset, chosen, config)
        watch.lap("network")
        with progress.task("writing the bundle", 0), writing(target) as staging, disk_errors(target):
            network.save(staging / "model.keras")
            save_converted(converted, staging / "model.xml")
            (staging / "history.csv").write_text(history_table(chosen), encoding="utf-8")
            (staging / "split.csv").write_text(split_table(dataset), encoding="utf-8")
            manifest = describe(config, measurement, choice, solved, parity, served)
            watch.lap("write")
            manifest["seconds"] = watch.seconds
            samples, mistakes = _gallery(dataset, solved)
            report = render_report(manifest, samples=samples, mistakes=mistakes)
            (staging / "report.html").write_text(report, encoding="utf-8")
            write_manifest(staging, manifest)
    return FitResult(target, manifest)


@contextmanager
def _only_writer(target: Path) -> Iterator[None]:
    """Hold the lock of a bundle's place, so that two fits do not write to it at once."""
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(target.parent / f".{target.name}.lock", blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise DataError(
            f"Another fit is writing to {target} right now", hint="Wait for it, or name another folder with --out"
        ) from error
    try:
        yield
    finally:
        lock.release()


def choose_augmentation(measurement: Measurement, config: FitConfig, progress: Progress) -> ViewChoice:
    """How many random views of each picture to train on, at the cut that was chosen."""
    chosen, train = measurement.chosen, measurement.dataset.part("train")
    center = chosen.features(chosen.store.collect(train.records, [CENTER])[:, 0])
    return choose_views(chosen, train, center, config.train_views, config.seed, progress)


def _gallery(dataset: Dataset, solved: Solved) -> tuple[list[Thumbnail], list[Thumbnail]]:
    """Thumbnails for the report: a picture of each of the first classes, and the test pictures it was most wrong about."""
    names = dataset.class_names

    def shown(record: Record, predicted: str | None = None, score: float | None = None) -> Thumbnail:
        image = decode_image(record.path, min_short_side=SHORT_SIDE).image
        return Thumbnail(record.name, thumbnail(image), names[record.label], predicted, score)

    first_of_class = {record.label: record for record in reversed(dataset.part("train").records)}
    samples = [shown(first_of_class[label]) for label in sorted(first_of_class)[:SAMPLES_SHOWN]]
    test = dataset.part("test")
    wrong = np.flatnonzero(solved.test_probabilities.argmax(axis=1) != test.labels)
    confidence = solved.test_probabilities.max(axis=1)[wrong] if len(wrong) else np.empty(0)
    worst = [int(wrong[i]) for i in np.argsort(-confidence)[:MISTAKES_SHOWN]]
    mistakes = [
        shown(test.records[i], names[solved.test_probabilities[i].argmax()], float(solved.test_probabilities[i].max()))
        for i in worst
    ]
    return samples, mistakes
