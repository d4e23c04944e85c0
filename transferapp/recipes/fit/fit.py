"""Fit: the path of an image from a folder to a bundle, in the order in which it happens."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import softmax

from transferapp.backbones.engine import OpenVINOEngine, convert, save_converted
from transferapp.backbones.feature_store import CENTER
from transferapp.bundle.format import check_target, only_writer, write_manifest, writing
from transferapp.config import FitConfig
from transferapp.data.dataset import Dataset, Record
from transferapp.evaluation.pages import Thumbnail, names_shown, thumbnail, thumbnails
from transferapp.evaluation.report import render_report
from transferapp.evaluation.test_time_views import CropChoice, Scorer, choose_crops
from transferapp.images import decode_image
from transferapp.images.views import SHORT_SIDE
from transferapp.recipes.fit.export import build_network, check_parity, measured_again
from transferapp.recipes.fit.leaks import find_leaks
from transferapp.recipes.fit.manifest import describe, history_table, split_table
from transferapp.recipes.fit.measure import Measurement, Workshop, measure, measured_sample, workshop
from transferapp.recipes.fit.random_views import ViewChoice, choose_views
from transferapp.recipes.fit.resume import RunFolder
from transferapp.recipes.fit.solve import Solved, solve
from transferapp.system.backend import configured_backend
from transferapp.system.hardware import detect
from transferapp.system.progress import Progress, Silent
from transferapp.system.storage import disk_errors
from transferapp.system.threads import cpu_cores

if TYPE_CHECKING:
    from transferapp.recipes.fit.fine_tune import BakeOff

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


def fit(config: FitConfig, progress: Progress | None = None, *, fresh: bool = False) -> FitResult:
    """Turn a folder of images into a bundle.

    A fit that was killed goes on where it was when it is called again with the same settings on the same images.

    Args:
        config: What to do.
        progress: Who is told.
        fresh: Forget an unfinished fit and begin anew.

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
    with only_writer(target), workshop(config) as shop:
        run = RunFolder(target)
        if fresh:
            run.discard()
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
        tuned = fine_tune(measurement, solved, config, shop, run, progress)
        watch.lap("tune")
        ships = tuned if tuned is not None and tuned.head is not None else None
        if tuned is not None:
            # What ships may stand on a cheaper backbone than the one that was chosen.
            measurement, chosen = tuned.measurement, tuned.measurement.chosen
            backbone = shop.in_background(shop.model, chosen.spec)
        scorer: Scorer | None = None if ships else solved_scorer(measurement, solved)
        with background() as pool:
            # Keras builds on one core: OpenVINO can score crops on the others meanwhile, where the trunk has what to score by.
            crops = None
            if scorer is not None and chosen.trunk.engine.name == "openvino":
                crops = pool.submit(try_crops, measurement, scorer, choice)
            with progress.task("building the network", 0):
                network = build_network(backbone.result(), chosen, solved, tuned, target.name)
                converted = convert(network)
                parity, served = check_parity(network, converted, dataset, chosen, config)
            if ships is not None:
                solved = measured_again(solved, ships, converted, served, measurement, progress)
                scorer = OpenVINOEngine(converted, precision=served, streams=cpu_cores())
            leaks = find_leaks(measurement, solved, progress)
            watch.lap("network")
            assert scorer is not None
            with progress.task("trying crops", 0):
                test_views = crops.result() if crops else try_crops(measurement, scorer, choice, ships)
        watch.lap("crops")
        with progress.task("writing the bundle", 0), writing(target) as staging, disk_errors(target):
            network.save(staging / "model.keras")
            save_converted(converted, staging / "model.xml")
            (staging / "history.csv").write_text(history_table(chosen, tuned), encoding="utf-8")
            (staging / "split.csv").write_text(split_table(dataset), encoding="utf-8")
            manifest = describe(config, measurement, choice, solved, tuned, leaks, parity, served, test_views)
            watch.lap("write")
            manifest["seconds"] = watch.seconds
            write_report(staging, manifest, dataset, solved)
            write_manifest(staging, manifest)
        run.discard()
    return FitResult(target, manifest)


def fine_tune(
    measurement: Measurement, solved: Solved, config: FitConfig, shop: Workshop, run: RunFolder, progress: Progress
) -> BakeOff | None:
    """The bake-off, where the plan proposes to tune something; None otherwise."""
    tunes = bool(measurement.plan.proposals)  # none without validation images
    if config.stochastic_depth and not measurement.plan.tails:
        progress.note("Nothing of the backbone is tuned, so --stochastic-depth changes nothing")
    if (tunes or run.unfinished) and run.begin(run_identity(config, measurement)):
        progress.note(f"Going on with the unfinished fit in {run.path}")
    if not tunes:
        return None
    assert solved.validation is not None
    limit = "" if config.budget == "none" else f", for about {config.budget}"
    plan = measurement.plan
    head = "a head is trained" if len(plan.proposals) > len(plan.tails) else ""
    tail = "parts of the backbone are tuned" if plan.tails else ""
    escape = " (--tune none leaves the tuning out)" if tail else ""
    if config.scratch:
        tail, escape = "the whole network is trained from random weights", ""
    progress.note(
        f"The solved classifier is right on {solved.validation.accuracy:.1%} of the validation images; now "
        f"{' and '.join(filter(None, (head, tail)))}{limit}{escape}"
    )
    from transferapp.recipes.fit.fine_tune import bake_off

    return bake_off(measurement, solved, config, shop, run, progress)


_PLACES = ("data", "out", "data_dir")
"""Settings that say where things are. What the data are, their fingerprint says."""


def run_identity(config: FitConfig, measurement: Measurement) -> dict[str, Any]:
    """All that the outcome of training depends on."""
    settings = {name: value for name, value in config.to_json().items() if name not in _PLACES}
    return {
        **{name.replace("_", "-"): value for name, value in settings.items()},
        "data": measurement.dataset.fingerprint(),
        "chosen backbone": measurement.chosen.trunk.key,
        "chosen cut": measurement.chosen.cut.name,
        "hardware": _hardware(config),
    }


def _hardware(config: FitConfig) -> str:
    """What the state of an unfinished run is bound to: a loss-scaling optimizer has more variables than another, and every way
    to compute rounds otherwise."""
    hardware = detect(config.training_precision)
    return f"{hardware.kind}, {hardware.dtype_policy}, 1 x 1 {hardware.pointwise}, Keras on {configured_backend()}"


def choose_augmentation(measurement: Measurement, config: FitConfig, progress: Progress) -> ViewChoice:
    """How many random views of each image to train on, at the cut that was chosen."""
    if measurement.plan.tails and config.train_views == "auto":
        at_cut = measurement.chosen.validations[measurement.chosen.cut.index]
        whose = "the classifier that it is compared with" if config.scratch else "the classifier that it starts from"
        return ViewChoice(0, at_cut, (), f"what is trained in steps sees random views; {whose} need not")
    chosen, train = measurement.chosen, measured_sample(measurement.dataset.part("train"))
    center = chosen.features(chosen.store.collect(train.records, [CENTER])[:, 0])
    weights = measurement.weighting.weights
    return choose_views(chosen, train, center, config.train_views, config.seed, progress, weights)


@contextmanager
def background() -> Iterator[ThreadPoolExecutor]:
    """A thread for work beside; who is interrupted does not wait for it."""
    pool = ThreadPoolExecutor(1, "beside")
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def try_crops(measurement: Measurement, scorer: Scorer, choice: ViewChoice, tuned: BakeOff | None = None) -> CropChoice:
    """How many crops the bundle averages, measured on validation images by a classifier that has not seen them."""
    chosen, dataset = measurement.chosen, measurement.dataset
    work = len(dataset) * (1 + choice.views)
    if tuned is not None:
        work += sum(contender.epochs for contender in tuned.contenders) * len(dataset.part("train"))
    return choose_crops(
        dataset.part("val"), scorer, chosen.trunk.image_size, work=work, milliseconds=chosen.milliseconds
    )


def solved_scorer(measurement: Measurement, solved: Solved) -> Scorer:
    """The solved classifier that has not seen the validation images, on the trunk."""
    chosen, probe = measurement.chosen, solved.held_out

    def score(crops: np.ndarray) -> np.ndarray:
        assert probe is not None, "without validation images nothing is scored"
        scores: np.ndarray = softmax(
            probe.logits(chosen.features(chosen.trunk.rows(crops))) / solved.temperature, axis=1
        )
        return scores

    return score


def write_report(staging: Path, manifest: dict[str, Any], dataset: Dataset, solved: Solved) -> None:
    """The bundle's page for people: what the manifest says, with images."""
    samples, mistakes = _gallery(dataset, solved)
    copies = thumbnails(dataset.records, names_shown(manifest["data"]["findings"], manifest["leaks"]))
    report = render_report(manifest, samples=samples, mistakes=mistakes, copies=copies)
    (staging / "report.html").write_text(report, encoding="utf-8", newline="\n")


def _gallery(dataset: Dataset, solved: Solved) -> tuple[list[Thumbnail], list[Thumbnail]]:
    """Thumbnails for the report: an image of each of the first classes, and the test images it was most wrong about."""
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
