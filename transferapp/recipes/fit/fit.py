"""Fit: from a folder of images to a bundle, in the order in which it happens.

source -> audit -> split -> trunk -> plan -> linear classifier -> fine-tuned candidates -> choice -> export -> bundle
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from transferapp.backbones.engine import save_converted
from transferapp.backbones.loader import BackboneLoader
from transferapp.bundle.format import KERAS_FILE, NOVELTY, check_target, only_writer, write_manifest, writing
from transferapp.config import FitConfig
from transferapp.data.dataset import Dataset
from transferapp.data.sources import open_source
from transferapp.evaluation.learning_curve import Forecast
from transferapp.evaluation.report.model_card import model_card
from transferapp.evaluation.test_time_views import USUAL, CropChoice, CropScorer, choose_crops
from transferapp.policy.choose import choose
from transferapp.policy.reasons import Reason
from transferapp.recipes.fit.blend import blend
from transferapp.recipes.fit.calibration import calibrate
from transferapp.recipes.fit.candidate import Candidate
from transferapp.recipes.fit.export import (
    Exported,
    export,
    export_early,
    predict_test,
    score_crops,
    score_served,
)
from transferapp.recipes.fit.fine_tune import fine_tune
from transferapp.recipes.fit.forecast import forecast_accuracy
from transferapp.recipes.fit.leaks import find_leaks
from transferapp.recipes.fit.measure import Measurement, backbone_loader, measure
from transferapp.recipes.fit.report import (
    Fitted,
    Tested,
    describe,
    history_table,
    report_page,
    split_table,
    test_metrics,
)
from transferapp.recipes.fit.resume import RunFolder, run_identity
from transferapp.recipes.fit.robustness import measure_robustness
from transferapp.recipes.fit.solve import choose_views, solve
from transferapp.system.progress import Progress, Silent
from transferapp.system.storage import disk_errors


@dataclass(frozen=True)
class FitResult:
    """Result of a fit: the folder of the bundle and its manifest."""

    path: Path
    manifest: dict[str, Any]


class Stopwatch:
    """Seconds by step of work."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, step: str) -> None:
        """Add the seconds since the last step."""
        now = time.perf_counter()
        self.seconds[step] = round(self.seconds.get(step, 0.0) + now - self._last, 2)
        self._last = now


def plan(config: FitConfig, progress: Progress | None = None) -> Measurement:
    """Measure the data and apply the rule, without training anything.

    Raises:
        DataError: The images cannot be used.
        WeightsError: The weights of a backbone are not available.
    """
    progress = progress or Silent()
    source = open_source(config.data, options=config.source, progress=progress)
    with backbone_loader(config, source) as loader:
        return measure(config, source, loader, progress)


def fit(
    config: FitConfig, progress: Progress | None = None, *, fresh: bool = False, source: Dataset | None = None
) -> FitResult:
    """Turn a folder of images into a bundle.

    A fit that was killed goes on where it was when it is called again with the same settings on the same images.

    Args:
        config: Settings of the fit.
        progress: Receives progress updates.
        fresh: Forget an unfinished fit and begin anew.
        source: The images; by default those that the settings name.

    Raises:
        DataError: The images cannot be used, or another fit is writing to the same place.
        WeightsError: The weights of a backbone are not available.
        ResourceError: The disk is full.
        TrainingError: The exported network does not agree with the trained one.
    """
    progress = progress or Silent()
    watch, run = Stopwatch(), RunFolder(config.bundle_path)
    insist = config.rule_only or config.scratch
    check_target(config.bundle_path, "" if config.out else config.data)
    with only_writer(config.bundle_path):
        if fresh:
            run.discard()
        source = source or open_source(config.data, options=config.source, progress=progress)
        with backbone_loader(config, source) as loader, background() as pool:
            measurement = measure(config, source, loader, progress)
            early = not insist and not config.bundle_path.exists()
            if measurement.plan.proposals and not early:  # importing TensorFlow takes a while
                loader.submit(loader.model, measurement.chosen.spec)
            watch.lap("measure")
            views = choose_views(measurement, config, progress)
            watch.lap("views")
            solved = solve(measurement, views, config, progress)
            watch.lap("solve")
            _begin(run, config, measurement, progress)
            checked: Checked | None = None
            first: Checked | None = None
            linear = Fitted(measurement, views, (solved,), solved, measurement.plan.before_training())
            if early:
                # A usable bundle is there before the long part begins, and stays if that is interrupted.
                first = _write_early(linear, config, watch, progress)
                if first is not None:
                    progress.note(f"{config.bundle_path} can be used already; it is replaced when the fit is complete")
            forecasting = partial(forecast_accuracy, measurement, views, config)
            # Fine-tuning plans its epochs on a few timed steps, which nothing may slow down.
            forecast = None if measurement.plan.proposals else pool.submit(forecasting)
            if early and measurement.plan.proposals:
                checked = check(linear, config, loader, watch, progress, first)
                write_bundle(linear, checked, config, watch, progress)
            _announce(measurement, solved, config, progress)
            tuned = fine_tune(measurement, solved, views.views, config, loader, run, progress)
            watch.lap("tune")
            forecast = forecast or pool.submit(forecasting)
            validation = measurement.dataset.part("val")
            averaged = None if insist else blend(solved, tuned, validation)
            winner = choose((solved, *tuned), validation.groups(), insist=insist, blend=averaged)
            candidates = (solved, *tuned, *((averaged.average,) if averaged else ()))
            plan = measurement.backbone(winner.backbone).plan
            fitted = Fitted(measurement, views, candidates, winner, plan)
            if checked is None or winner is not solved:
                checked = check(fitted, config, loader, watch, progress, first if winner is solved else None)
            fitted = with_outlook(fitted, checked, forecast, watch, progress)
            result = write_bundle(fitted, checked, config, watch, progress)
        run.discard()
    return result


@dataclass(frozen=True, eq=False)
class Checked:
    """An exported network and its figures."""

    exported: Exported
    tested: Tested


def check(
    fitted: Fitted,
    config: FitConfig,
    loader: BackboneLoader,
    watch: Stopwatch,
    progress: Progress,
    first: Checked | None = None,
) -> Checked:
    """Export the winner, compare the exported network with it, measure it on the test images, and choose the crops.

    Args:
        fitted: The candidates and the one that ships.
        config: Settings of the fit.
        loader: Builds the backbones.
        watch: Records the seconds of each step.
        progress: Receives progress updates.
        first: The same classifier as it was in the first bundle, where there is one. What it lacks is new: the crops, and the
            Keras model where it could not be composed.
    """
    backbone, dataset = fitted.backbone, fitted.measurement.dataset
    held_out, name = fitted.winner.held_out, config.bundle_path.name
    arguments = (name, dataset, config.precision)
    scorer = score_crops(held_out, backbone) if held_out and held_out.frozen else None
    with background() as pool:
        crops: Future[CropChoice] | None = None
        with progress.task("building the network", 0):
            exported = first.exported if first else export_early(fitted.classifier, backbone, *arguments)
            if scorer and held_out and held_out.head.spec.linear and backbone.trunk.engine.name == "openvino":
                # Keras builds the network on one core, so OpenVINO can score crops on the others meanwhile.
                crops = pool.submit(try_crops, fitted, scorer)
            if exported is None or exported.archive is None:
                exported = export(fitted.classifier, backbone, loader.model(backbone.spec), *arguments)
        watch.lap("network")
        with progress.task("trying crops", 0):
            scorer = scorer or score_served(exported, backbone, fitted.classifier, held_out)
            chosen_crops = crops.result() if crops else try_crops(fitted, scorer)
        watch.lap("crops")
    tested = first.tested if first else test_winner(fitted, exported, config, progress)
    watch.lap("test")
    return Checked(exported, replace(tested, crops=chosen_crops))


_UNTRIED = CropChoice(USUAL, (), 0, (Reason("crops", "Ten crops are averaged, because others were not tried yet."),))


def test_winner(fitted: Fitted, exported: Exported, config: FitConfig, progress: Progress) -> Tested:
    """Measure the winner on the test images, and calibrate novelty and prediction sets. Crops are not tried.

    Args:
        fitted: The candidates and the one that ships.
        exported: The network of the winner. Where the backbone is frozen, its cached features stand for it.
        config: Settings of the fit.
        progress: Receives progress updates.
    """
    backbone, dataset = fitted.backbone, fitted.measurement.dataset
    probabilities = predict_test(fitted.classifier, backbone, exported, dataset.part("test"), progress)
    leaks = find_leaks(fitted.measurement, backbone, probabilities, progress)
    with progress.task("calibrating novelty and prediction sets", 0):
        calibrated = calibrate(fitted, exported, probabilities, config.coverage, progress)
    return Tested(probabilities, test_metrics(probabilities, dataset), leaks, _UNTRIED, calibrated)


def _write_early(fitted: Fitted, config: FitConfig, watch: Stopwatch, progress: Progress) -> Checked | None:
    """Write a bundle that can be served, before Keras is imported, which takes seconds.

    Returns:
        Its network and figures; None where it could not be written.
    """
    dataset, name = fitted.measurement.dataset, config.bundle_path.name
    exported = export_early(fitted.classifier, fitted.backbone, name, dataset, config.precision)
    if exported is None:
        return None
    first = Checked(exported, test_winner(fitted, exported, config, progress))
    watch.lap("first bundle")
    write_bundle(fitted, first, config, watch, progress)
    return first


def with_outlook(
    fitted: Fitted, checked: Checked, forecast: Future[Forecast | None], watch: Stopwatch, progress: Progress
) -> Fitted:
    """Add what no choice depends on: the forecast with more images, and the accuracy on changed ones.

    Args:
        fitted, checked: The winner, its network and its figures.
        forecast: From `forecast_accuracy`, which needs no network and so may have begun long before.
        watch: Records the seconds of each step.
        progress: Receives progress updates.
    """
    changed = measure_robustness(fitted, checked.exported, progress)
    watch.lap("robustness")
    with progress.task("forecasting the accuracy with more images", 0):
        figures = {"forecast": forecast.result(), "robustness": changed}
    watch.lap("forecast")
    return replace(
        fitted, manifest={**fitted.manifest, **{key: each and each.to_json() for key, each in figures.items()}}
    )


def write_bundle(
    fitted: Fitted, checked: Checked, config: FitConfig, watch: Stopwatch, progress: Progress
) -> FitResult:
    """Write the bundle with its tables and its report, in one step."""
    exported, tested, dataset = checked.exported, checked.tested, fitted.measurement.dataset
    target = config.bundle_path
    manifest = describe(fitted, exported, tested, config)
    with progress.task("writing the bundle", 0), writing(target) as staging, disk_errors(target):
        if exported.network is not None:
            exported.network.save(staging / KERAS_FILE)
        elif exported.archive is not None:
            (staging / KERAS_FILE).write_bytes(exported.archive)
        save_converted(exported.converted, staging / "model.xml")
        files = {
            "history.csv": history_table(fitted),
            "split.csv": split_table(dataset, tested.probabilities),
            **fitted.files,
        }
        for name, text in files.items():
            (staging / name).write_text(text, encoding="utf-8")
        if tested.calibrated.novelty is not None:
            (staging / NOVELTY).write_bytes(tested.calibrated.novelty.to_bytes())
        watch.lap("write")
        manifest["seconds"] = watch.seconds
        page = report_page(manifest, dataset, tested.probabilities)
        (staging / "report.html").write_text(page, encoding="utf-8", newline="\n")
        (staging / "README.md").write_text(model_card(manifest), encoding="utf-8", newline="\n")
        write_manifest(staging, manifest)
    return FitResult(target, manifest)


def _begin(run: RunFolder, config: FitConfig, measurement: Measurement, progress: Progress) -> None:
    """Open the folder of the run, where one is needed, and say so where it is resumed."""
    if (measurement.plan.proposals or run.unfinished) and run.begin(run_identity(config, measurement)):
        progress.note(f"Resuming the unfinished fit in {run.path}")


def _announce(measurement: Measurement, solved: Candidate, config: FitConfig, progress: Progress) -> None:
    """Say what is trained beside the solved classifier, and for how long."""
    plan = measurement.plan
    if config.stochastic_depth and not plan.tails:
        progress.note("Nothing of the backbone is fine-tuned, so --stochastic-depth changes nothing")
    if not plan.proposals:
        return
    limit = f", for about {plan.budget:.0f} seconds" if math.isfinite(plan.budget) else ""
    head = "a head is trained" if len(plan.proposals) > len(plan.tails) else ""
    tail = "parts of the backbone are fine-tuned" if plan.tails else ""
    escape = " (--budget 0 leaves that out)" if tail else ""
    if config.scratch:
        tail, escape = "the whole network is trained from random weights", ""
    progress.note(
        f"The linear classifier is right on {solved.accuracy:.1%} of the validation images; now "
        f"{' and '.join(filter(None, (head, tail)))}{limit}{escape}"
    )


@contextmanager
def background() -> Iterator[ThreadPoolExecutor]:
    """Run one background task; an interrupt abandons it."""
    pool = ThreadPoolExecutor(1, "background")
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def try_crops(fitted: Fitted, scorer: CropScorer) -> CropChoice:
    """Choose the number of crops that the bundle averages, on the validation images.

    Args:
        fitted: Has the images, and the work that the fit did.
        scorer: A classifier that was not trained on the validation images.
    """
    dataset, backbone = fitted.measurement.dataset, fitted.backbone
    networks = 2 if fitted.classifier.linear else 1  # at most: below the cut they share one
    work = len(dataset) * (1 + fitted.views.views)
    if not fitted.classifier.frozen:
        work += sum(len(candidate.history) for candidate in fitted.candidates) * len(dataset.part("train"))
    return choose_crops(
        dataset.part("val"),
        scorer,
        work=work,
        milliseconds=networks * backbone.milliseconds,
        geometry=backbone.geometry,
    )
