"""Search: the path from a folder of images to a bundle whose head was found by trial, in the order in which it happens.

Features are computed once, as for a fit. Trials train on those of the training images and are judged on the validation
images; the best settings are trained again on both together. The test images are looked at once, at the very end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

import numpy as np
from scipy.special import softmax

from transferapp.backbones.feature_store import CENTER
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
from transferapp.recipes.fit.fit import FitResult, Stopwatch, finish
from transferapp.recipes.fit.measure import Measurement, ProbedBackbone, backbone_loader, measure, measured_sample
from transferapp.recipes.fit.random_views import ViewChoice, random_rows
from transferapp.recipes.fit.report import Fitted
from transferapp.recipes.search.problem import Features, HeadSettings, Problem, TrainedHead, judged
from transferapp.recipes.search.record import Searched, head_json, line, search_json, trials_table
from transferapp.recipes.search.settings import COARSE_EPOCHS, FINE_EPOCHS, SearchSettings
from transferapp.recipes.search.space import SCHEDULES, Edge, edges, narrow, written
from transferapp.recipes.search.study import Journal, Phase, Trainers, Trial, promising, ranked
from transferapp.recipes.search.workers import run_phase
from transferapp.system.progress import Progress, Silent
from transferapp.training.head_spec import Head
from transferapp.training.probe import fit_probe

HEAD_OPTIONS = (
    "hidden",
    "dropout",
    "dropconnect",
    "l1",
    "l2",
    "label_smoothing",
    "mixup",
    "cutmix",
    "stochastic_depth",
)
"""Settings by which a fit trains a head beside the solved one."""

OnTrial = Callable[[str], None]
"""Called with the line of each trial, as it ends."""


def search(
    config: FitConfig,
    settings: SearchSettings,
    progress: Progress | None = None,
    *,
    on_trial: OnTrial | None = None,
    fresh: bool = False,
) -> FitResult:
    """Find settings of the head by trial, train the best again, and write it as a bundle.

    A search that was killed goes on where it was when it is called again with the same settings on the same images.

    Args:
        config: The images, the backbone, and what of the head is not searched.
        settings: What is searched, and how.
        progress: Who is told.
        on_trial: Who is given the lines.
        fresh: Forget an unfinished search and begin anew.

    Raises:
        UsageError: A setting makes no sense for a search.
        DataError: The folder cannot be used, has no validation images, or another search is writing to the same place.
        ResourceError: The disk is full, or a process ended early.
        TrainingError: No trial gave a head that works.
    """
    progress, say = progress or Silent(), on_trial or (lambda _line: None)
    base = base_settings(config)
    config = replace(config, tune="none")
    watch = Stopwatch()
    target = config.bundle_path
    check_target(target)
    storage = settings.storage or target.parent / f".{target.name}.search"
    with only_writer(target), Journal(storage) as journal:
        if fresh:
            journal.discard()
        source = open_source(config.data, options=config.source, progress=progress)
        with backbone_loader(config, source) as loader:
            measurement = measure(_measured_as(config), source, loader, progress)
            dataset, chosen = measurement.dataset, measurement.chosen
            if not len(dataset.part("val")):
                raise DataError(
                    "There are no validation images, by which a search could choose",
                    expected="a val/ folder, or --val-fraction above 0",
                )
            loader.submit(loader.model, chosen.spec)
            watch.lap("measure")
            problem = gather(measurement, config, progress)
            watch.lap("features")
            found = run(journal, settings, problem, base, identity(config, settings, measurement), progress, say)
            watch.lap("search")
            optimum = solved_optimum(problem, measurement)
            searched = refit(measurement, config, found, problem, progress)
            watch.lap("refit")
            views = ViewChoice(
                problem.train.rows.shape[1] - 1,
                measurement.weighting.validation,
                (),
                "not measured: a search trains on what it is told",
            )
            assert searched.classifier is not None
            extra = {
                "head": head_json(found, searched, views.views),
                "search": search_json(found, settings, optimum, len(dataset.part("val")), len(dataset.part("test"))),
            }
            files = {"search.csv": trials_table(found)}
            fitted = Fitted(measurement, views, (searched,), searched, _replanned(chosen, found), extra, files)
            result = finish(fitted, config, loader, watch, progress)
        if settings.storage is None:
            journal.remove()
    return result


def base_settings(config: FitConfig) -> HeadSettings:
    """What a trial is told of everything that is not searched.

    Raises:
        UsageError: The schedule is one that a trial has no time for.
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


def _measured_as(config: FitConfig) -> FitConfig:
    """What is measured before a search: the backbone stays frozen, and no head is tried but the solved one."""
    plain: dict[str, Any] = {field.name: field.default for field in fields(FitConfig) if field.name in HEAD_OPTIONS}
    return replace(config, tune="none", **plain)


def gather(measurement: Measurement, config: FitConfig, progress: Progress) -> Problem:
    """The features that trials train on: of a large set, a stratified part, so that a trial stays short."""
    dataset, chosen = measurement.dataset, measurement.chosen
    train = measured_sample(dataset.part("train"))
    if len(train) < len(dataset.part("train")):
        progress.note(f"Trials train on {len(train):,} of the {len(dataset.part('train')):,} training images")
    views = 0 if config.train_views == "auto" else int(config.train_views)
    return Problem(
        features_of(chosen, train, views, config, progress, "training"),
        features_of(chosen, dataset.part("val"), 0, config, progress, "validation"),
        len(dataset.class_names),
        config.seed,
    )


def features_of(
    chosen: ProbedBackbone, part: Dataset, views: int, config: FitConfig, progress: Progress, label: str
) -> Features:
    """Features at the cut: of the center view, and of so many random ones."""
    with progress.task(f"{chosen.spec.name}: {len(part)} {label} images", len(part)) as advance:
        rows = chosen.features(chosen.store.collect(part.records, [CENTER], advance))
    if views:
        rows = np.concatenate([rows, random_rows(chosen, part, views, config.seed, progress)], axis=1)
    return Features(np.ascontiguousarray(rows, np.float32), part.labels)


def identity(config: FitConfig, settings: SearchSettings, measurement: Measurement) -> dict[str, Any]:
    """All that the outcome of a search depends on."""
    told = {name: value for name, value in config.to_json().items() if name not in ("data", "out")}
    return {
        **{name.replace("_", "-"): value for name, value in told.items()},
        **settings.to_json(),
        "data": measurement.dataset.fingerprint(),
        "chosen backbone": measurement.chosen.trunk.key,
        "chosen cut": measurement.chosen.cut.name,
    }


def run(
    journal: Journal,
    settings: SearchSettings,
    problem: Problem,
    base: HeadSettings,
    outcome_of: dict[str, Any],
    progress: Progress,
    say: OnTrial,
) -> Searched:
    """All trials, coarse and then fine.

    Raises:
        DataError: The journal holds another search.
        TrainingError: No trial gave a head that works.
    """
    trainers = Trainers(problem)
    trials: list[Trial] = []
    phases: list[Phase] = []
    notes: tuple[str, ...] = ()
    space = settings.space
    for name, count, epochs in (
        ("coarse", settings.coarse, COARSE_EPOCHS),
        ("fine", settings.trials - settings.coarse, FINE_EPOCHS),
    ):
        if not count:
            continue
        if trials:
            space, notes = narrow(space, [trial.params for trial in promising(trials, len(problem.val.labels))])
            for note in notes:
                progress.note(f"Fine: {note}")
        first = len(trials)
        phase = Phase(name, space, count, first, epochs, base, problem.seed + len(phases), settings.grid)
        phases.append(phase)
        if journal.begin(phase, outcome_of) and len(phases) == 1:
            progress.note(f"Going on with the search in {journal.path}")
        for trial in _all_of(journal, phase, problem, trainers, settings.workers):
            say(line(trial, base.with_params(trial.params, phase.epochs), settings.trials))
            trials.append(trial)
    # The coarse ones had a few epochs to say where to look; what ships has had its time.
    best = ranked([trial for trial in trials if trial.phase == phases[-1].name])[0]
    if best.outcome.exploded or not math.isfinite(best.outcome.loss):
        raise TrainingError(
            "No trial gave a head that works: every cost exploded", hint="Name lower learning rates with --over"
        )
    own = phases[-1]
    at_edge = edges(own.space, best.params)
    for edge in at_edge:
        progress.note(
            f"Warning: {edge.sentence()}: better ones may lie beyond; --over {_beyond(own, edge)} looks there"
        )
    trials.sort(key=lambda trial: trial.index)
    return Searched(tuple(trials), tuple(phases), notes, best, base.with_params(best.params, own.epochs), at_edge)


def _all_of(journal: Journal, phase: Phase, problem: Problem, trainers: Trainers, workers: int) -> Iterator[Trial]:
    """Trials that were run before, and then those that are left."""
    yield from journal.finished(phase)
    yield from run_phase(journal, phase, problem, trainers, workers)


def _beyond(phase: Phase, edge: Edge) -> str:
    dimension = next(d for d in phase.space if d.name == edge.name)
    if edge.upper:
        wider = replace(dimension, high=min(dimension.value_at(1.5), dimension.setting.high))
    else:
        wider = replace(dimension, low=max(dimension.value_at(-0.5), dimension.setting.low))
    return wider.written()


def solved_optimum(problem: Problem, measurement: Measurement) -> dict[str, float]:
    """Return the figures of the L-BFGS optimum on the same images, at the cross-validated strength."""
    chosen = measurement.chosen
    l2 = measurement.validation(chosen, chosen.cut).l2
    probe = fit_probe(problem.train.center, problem.train.labels, problem.num_classes, l2)
    accuracy, loss = judged(probe.logits(problem.val.center), problem.val.labels)
    return {"accuracy": accuracy, "loss": loss, "l2": l2}


def refit(
    measurement: Measurement, config: FitConfig, found: Searched, problem: Problem, progress: Progress
) -> Candidate:
    """Train with the best settings on training and validation images together; return the result as a candidate.

    The temperature and the validation figures are those of the same head trained without the validation images.
    """
    dataset, chosen, settings = measurement.dataset, measurement.chosen, found.settings
    val = problem.val
    trainer = Trainers(problem).of(settings)
    held_out = trainer.train(settings)
    logits = trainer.logits(settings, held_out, val.center)
    temperature = fit_temperature(logits, val.labels)
    views = problem.train.rows.shape[1] - 1
    together = features_of(chosen, dataset.part("train", "val"), views, config, progress, "training and validation")
    trained = Trainers(replace(problem, train=together)).of(settings).train(settings)

    def classifier(head: TrainedHead) -> Classifier:
        weights = Head(settings.head, head.mean, head.std, problem.num_classes, tuple(head.weights))
        return Classifier(chosen.cut.name, weights, temperature, chosen.cut.name)

    return Candidate(
        "searched head",
        chosen.spec.name,
        chosen.cut.name,
        head_only=True,
        classifier=classifier(trained),
        held_out=classifier(held_out),
        metrics=measure_scores(softmax(logits / temperature, axis=1), val.labels, dataset.class_names),
        epochs=trained.epochs,
        learning_rate=settings.learning_rate,
        steps=trained.steps,
    )


def _replanned(chosen: ProbedBackbone, found: Searched) -> Plan:
    """Return the plan as it was carried out: the head was found by trial instead of solved."""
    settings = found.settings
    form = (
        "linear classifier" if settings.head.linear else f"head with hidden layers of {written(settings.head.hidden)}"
    )
    text = f"The learning rate is {settings.learning_rate:.3g}, found by {len(found.trials)} trials on the validation images."
    rate = Reason("rate", text, {"learning_rate": settings.learning_rate, "trials": len(found.trials)})
    reasons = [reason for reason in chosen.plan.reasons if reason.topic not in ("rate", "tune")]
    return replace(
        chosen.plan,
        method=f"{form}, {settings.optimizer} by search",
        head_learning_rate=settings.learning_rate,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        reasons=(*reasons, rate),
    )
