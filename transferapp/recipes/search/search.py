"""Search: a fit whose head is searched.

source -> audit -> split -> trunk -> plan -> coarse trials -> fine trials -> best head on all images -> export -> bundle

Trials train on cached features of the training images and are judged on the validation images. The best settings are trained
again on both together. The test images are used once, at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import softmax

from transferapp.backbones.feature_store import CENTER
from transferapp.backbones.stages import Tap
from transferapp.bundle.format import check_target, only_writer
from transferapp.config import FitConfig
from transferapp.data.dataset import Dataset
from transferapp.data.sources import open_source
from transferapp.errors import DataError, UsageError
from transferapp.evaluation.metrics import fit_temperature
from transferapp.evaluation.metrics import measure as measure_scores
from transferapp.recipes.fit.candidate import Candidate, Classifier
from transferapp.recipes.fit.fit import FitResult, Stopwatch, check, write_bundle
from transferapp.recipes.fit.measure import Measurement, ProbedBackbone, backbone_loader, measure, measured_sample
from transferapp.recipes.fit.random_views import ViewChoice, random_rows
from transferapp.recipes.fit.report import Fitted
from transferapp.recipes.fit.resume import RunFolder, run_identity
from transferapp.recipes.search.report import carried_out, search_json, trials_table
from transferapp.recipes.search.space import SCHEDULES, SearchSettings
from transferapp.recipes.search.trials import Features, HeadSettings, Journal, Problem, TrainedHead, judged, run_trials
from transferapp.system.progress import Progress, Silent
from transferapp.training.probe import fit_probe

if TYPE_CHECKING:
    from transferapp.recipes.search.trainer import HeadTrainer


def search(
    config: FitConfig,
    settings: SearchSettings,
    progress: Progress | None = None,
    *,
    on_trial: Callable[[str], None] = lambda _line: None,
    fresh: bool = False,
) -> FitResult:
    """Search the settings of a head, train the best again, and write it as a bundle.

    A search that was killed goes on where it was when it is called again with the same settings on the same images.

    Args:
        config: Settings of the fit; of the head, those that are not searched.
        settings: Settings of the search.
        progress: Receives progress updates.
        on_trial: Receives the line of each trial.
        fresh: Forget an unfinished search and begin anew.

    Raises:
        UsageError: A search does not support a setting.
        DataError: The images cannot be used, none is for validation, or another fit is writing to the same place.
        WeightsError: The weights of a backbone are not available.
        ResourceError: The disk is full.
        TrainingError: The cost of every trial exploded, or the exported network does not agree with the trained one.
    """
    progress = progress or Silent()
    base, config = base_settings(config), replace(config, tune="none")
    watch, run = Stopwatch(), RunFolder(config.bundle_path)
    check_target(config.bundle_path, "" if config.out else config.data)
    with only_writer(config.bundle_path):
        if fresh:
            run.discard()
        source = open_source(config.data, options=config.source, progress=progress)
        with backbone_loader(config, source) as loader:
            measurement = measure(config, source, loader, progress, mixture=False)
            # Needed by the first trial, and importing TensorFlow takes a while.
            loader.submit(loader.model, measurement.chosen.spec)
            watch.lap("measure")
            problem = gather(measurement, config, progress)
            optimum = solved_optimum(problem, measurement)
            watch.lap("features")
            if run.begin({**run_identity(config, measurement), **settings.to_json()}):
                progress.note(f"Going on with the unfinished search in {run.path}")
            from transferapp.recipes.search.trainer import HeadTrainer

            trainer, journal = HeadTrainer(problem), Journal(run.path / "trials.jsonl")
            searched = run_trials(settings, base, problem, trainer, journal, progress, on_trial)
            watch.lap("search")
            candidate = refit(searched.settings, problem, trainer, measurement, config, progress)
            watch.lap("refit")
            extra_views = problem.train.rows.shape[1] - 1
            views = ViewChoice(
                extra_views,
                measurement.weighting.validation,
                (),
                "a search adds random views only where --train-views says so",
            )
            plan, files = carried_out(measurement.plan, searched), {"search.csv": trials_table(searched)}
            manifest = {"search": search_json(searched, settings, optimum, measurement.dataset)}
            fitted = Fitted(measurement, views, (candidate,), candidate, plan, manifest, files)
            checked = check(fitted, config, loader, watch, progress)
            result = write_bundle(fitted, checked, config, watch, progress)
        run.discard()
    return result


def base_settings(config: FitConfig) -> HeadSettings:
    """Return the settings of trials that are not searched.

    Raises:
        UsageError: A search does not support a setting.
    """
    if config.schedule not in SCHEDULES:
        raise UsageError(f"A search has no schedule {config.schedule}", expected=f"one of {', '.join(SCHEDULES)}")
    if config.pooling != "average":
        raise UsageError(
            f"A search has no {config.pooling} pooling",
            expected="average: the features that trials train on are averages",
            hint="`transferapp fit` compares the others",
        )
    return HeadSettings(
        config.head_spec,
        optimizer=config.optimizer,
        schedule=config.schedule,
        batch_size=config.head_batch_size,
        weight_decay=config.weight_decay,
        label_smoothing=config.label_smoothing,
    )


def gather(measurement: Measurement, config: FitConfig, progress: Progress) -> Problem:
    """Return the features that trials train on; of a large set, those of a stratified sample, so that trials stay short.

    Raises:
        DataError: There are no validation images.
    """
    dataset, chosen = measurement.dataset, measurement.chosen
    train, val = measured_sample(dataset.part("train")), dataset.part("val")
    if not len(val):
        raise DataError(
            "There are no validation images, by which a search could choose",
            expected="a val/ folder, or --val-fraction above 0",
        )
    if len(train) < len(dataset.part("train")):
        progress.note(f"Trials train on {len(train):,} of the {len(dataset.part('train')):,} training images")
    views = 0 if config.train_views == "auto" else int(config.train_views)
    return Problem(
        _features(chosen, train, "training", views, config.seed, progress),
        _features(chosen, val, "validation", 0, config.seed, progress),
        len(dataset.class_names),
        config.seed,
    )


def _features(
    backbone: ProbedBackbone, part: Dataset, label: str, views: int, seed: int, progress: Progress
) -> Features:
    """Return features at the cut: of the center view, and of `views` random ones."""
    with progress.task(f"{backbone.spec.name}: {len(part)} {label} images", len(part)) as advance:
        rows = backbone.features(backbone.store.collect(part.records, [CENTER], advance))
    if views:
        rows = np.concatenate([rows, backbone.features(random_rows(backbone, part, views, seed, progress))], axis=1)
    return Features(np.ascontiguousarray(rows, np.float32), part.labels)


def solved_optimum(problem: Problem, measurement: Measurement) -> dict[str, float]:
    """Return the figures of the L-BFGS optimum on the same images, at the cross-validated strength."""
    l2 = measurement.validation(measurement.chosen, measurement.chosen.cut).l2
    probe = fit_probe(problem.train.center, problem.train.labels, problem.num_classes, l2)
    accuracy, loss = judged(probe.logits(problem.val.center), problem.val.labels)
    return {"accuracy": accuracy, "loss": loss, "l2": l2}


def refit(
    settings: HeadSettings,
    problem: Problem,
    trainer: HeadTrainer,
    measurement: Measurement,
    config: FitConfig,
    progress: Progress,
) -> Candidate:
    """Train a head on training and validation images together; return it as a candidate.

    The temperature and the validation figures are those of the same head trained without the validation images.
    """
    dataset, chosen, cut = measurement.dataset, measurement.chosen, measurement.chosen.cut.name
    held_out = trainer.train(settings)
    temperature = fit_temperature(held_out.logits, problem.val.labels)
    both, views = dataset.part("train", "val"), problem.train.rows.shape[1] - 1
    together = _features(chosen, both, "training and validation", views, config.seed, progress)
    trained = type(trainer)(replace(problem, train=together)).train(settings)

    def classifier(trained: TrainedHead) -> Classifier:
        return Classifier((Tap(cut),), trained.head, temperature, cut)

    return Candidate(
        "searched head",
        chosen.spec.name,
        cut,
        head_only=True,
        classifier=classifier(trained),
        held_out=classifier(held_out),
        metrics=measure_scores(softmax(held_out.logits / temperature, axis=1), problem.val.labels, dataset.class_names),
        epochs=trained.epochs,
        learning_rate=settings.learning_rate,
    )
