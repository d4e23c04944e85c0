"""Search: a fit whose head is searched.

source -> audit -> split -> trunk -> plan -> coarse trials -> fine trials -> best head on all images -> export -> bundle

Trials train on cached features of the training images and are judged on the validation images. The best settings are trained
again on both together. The test images are used once, at the end.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import softmax

from transferapp.backbones.feature_store import CENTER
from transferapp.backbones.stages import Tap
from transferapp.bundle.format import check_target, only_writer
from transferapp.config import FitConfig
from transferapp.data.dataset import Dataset
from transferapp.data.sources import open_source
from transferapp.errors import DataError, TrainingError, UsageError
from transferapp.evaluation.metrics import fit_temperature
from transferapp.evaluation.metrics import measure as measure_scores
from transferapp.policy.plan import Plan
from transferapp.policy.reasons import Reason
from transferapp.recipes.fit.candidate import Candidate, Classifier
from transferapp.recipes.fit.fit import FitResult, Stopwatch, background, check, with_outlook, write_bundle
from transferapp.recipes.fit.forecast import forecast_accuracy
from transferapp.recipes.fit.measure import Measurement, ProbedBackbone, backbone_loader, measure, measured_sample
from transferapp.recipes.fit.report import Fitted
from transferapp.recipes.fit.resume import RunFolder, run_identity
from transferapp.recipes.fit.solve import ViewChoice, random_rows
from transferapp.recipes.search.space import SCHEDULES, SearchSettings, written
from transferapp.recipes.search.trials import (
    Features,
    HeadSettings,
    Journal,
    Problem,
    Searched,
    TrainedHead,
    Trial,
    judged,
    ranked,
    run_trials,
)
from transferapp.system.progress import Progress, Silent
from transferapp.training.probe import fit_probe

if TYPE_CHECKING:
    from transferapp.recipes.search.trials import HeadTrainer


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
                progress.note(f"Resuming the unfinished search in {run.path}")
            from transferapp.recipes.search.trials import HeadTrainer

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
            plan, files = carried_out(measurement.plan, searched), {"history.csv": trials_table(searched)}
            manifest = {"search": search_json(searched, settings, optimum, measurement.dataset)}
            fitted = Fitted(measurement, views, (candidate,), candidate, plan, manifest, files)
            with background() as pool:
                forecast = pool.submit(forecast_accuracy, measurement, views, config)
                checked = check(fitted, config, loader, watch, progress)
                fitted = with_outlook(fitted, checked, forecast, watch, progress)
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
        measurement.weighting.weights,
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
    l2 = measurement.l2(measurement.validation(measurement.chosen, measurement.chosen.cut))
    weights = measurement.weighting.of(problem.train.labels)
    probe = fit_probe(problem.train.center, problem.train.labels, problem.num_classes, l2, sample_weight=weights)
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
    if trained.exploded:
        raise TrainingError(
            "The cost exploded when the best head was trained again, on training and validation images together",
            hint="Search lower learning rates with --over",
        )

    def classifier(trained: TrainedHead) -> Classifier:
        return Classifier((Tap(cut),), trained.head, temperature, cut)

    return Candidate(
        "searched head",
        chosen.spec.name,
        cut,
        head_only=True,
        classifier=classifier(trained),
        held_out=classifier(held_out),
        metrics=measure_scores(
            softmax(held_out.logits / temperature, axis=1),
            problem.val.labels,
            dataset.class_names,
            groups=dataset.part("val").groups(),
        ),
        epochs=trained.epochs,
        learning_rate=settings.learning_rate,
    )


TOP_SHOWN = 10
"""Trials in the table of the report."""


def carried_out(plan: Plan, searched: Searched) -> Plan:
    """Return the plan with a searched head in place of the solved one."""
    settings, trials = searched.settings, len(searched.trials)
    hidden = written(settings.head.hidden)
    form = "linear classifier" if settings.head.linear else f"head with hidden layers of {hidden}"
    text = f"The learning rate is {settings.learning_rate:.3g}, found by {trials} trials on the validation images."
    rate = Reason("rate", text, {"learning_rate": settings.learning_rate, "trials": trials})
    return replace(
        plan,
        proposals=(),
        method=f"{form}, {settings.optimizer} by search",
        head_learning_rate=settings.learning_rate,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        reasons=(*(reason for reason in plan.reasons if reason.topic not in ("head", "rate", "tune")), rate),
    )


def search_json(
    searched: Searched, settings: SearchSettings, optimum: dict[str, float], dataset: Dataset
) -> dict[str, Any]:
    """Return the manifest's entry on the search."""
    num_validation, num_test = len(dataset.part("val")), len(dataset.part("test"))
    return {
        **settings.to_json(),
        "phases": [
            {
                "name": phase.name,
                "over": [dimension.written() for dimension in phase.space],
                "trials": phase.trials,
                "epochs": phase.base.epochs,
            }
            for phase in searched.phases
        ],
        "narrowed": list(searched.notes),
        "edges": [edge.sentence() for edge in searched.edges],
        "settings": searched.settings.to_json(),
        "best": trial_json(searched.best),
        "top": [trial_json(trial) for trial in ranked(searched.trials)[:TOP_SHOWN]],
        "points": [
            [trial.params["learning_rate"], trial.params["l2"], trial.outcome.accuracy, trial.phase]
            for trial in searched.trials
        ],
        "optimum": optimum,
        "chosen_by": f"{num_validation} validation images; the figure of the best of many trials is optimistic",
        "final_figure": (
            f"{num_test} test images that took no part in the search" if num_test else "none: there are no test images"
        ),
    }


def trial_json(trial: Trial) -> dict[str, Any]:
    """Return a trial as a plain dictionary."""
    loss = trial.outcome.loss
    return {
        "trial": trial.index,
        "phase": trial.phase,
        "params": {name: written(v) if isinstance(v, tuple) else v for name, v in trial.params.items()},
        "accuracy": trial.outcome.accuracy,
        "loss": loss if math.isfinite(loss) else None,
        "epochs": trial.outcome.epochs,
        "exploded": trial.outcome.exploded,
        "seconds": round(trial.outcome.seconds, 4),
    }


def trials_table(searched: Searched) -> str:
    """Return all trials as CSV."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    names = [dimension.name for dimension in searched.phases[0].space]
    writer.writerow(["trial", "phase", *names, "val_accuracy", "val_loss", "epochs", "exploded", "seconds", "best"])
    for trial in searched.trials:
        values = [f"{v:.8g}" if isinstance(v, float) else written(v) for v in (trial.params[name] for name in names)]
        entry = trial_json(trial)
        loss = "" if entry["loss"] is None else f"{entry['loss']:.6f}"
        outcome = [f"{entry['accuracy']:.6f}", loss, entry["epochs"], int(entry["exploded"]), entry["seconds"]]
        writer.writerow([trial.index, trial.phase, *values, *outcome, int(trial is searched.best)])
    return table.getvalue()
