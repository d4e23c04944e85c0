"""The solved candidate: a linear classifier on frozen features, and the number of random views that it is solved on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from transferapp.backbones.feature_store import CENTER, random_view_name
from transferapp.backbones.stages import Tap
from transferapp.config import FitConfig
from transferapp.data.dataset import Dataset
from transferapp.evaluation.metrics import fit_temperature, measure
from transferapp.policy.choose import paired_gain
from transferapp.recipes.fit.candidate import SOLVED, Candidate, Classifier
from transferapp.recipes.fit.measure import Measurement, ProbedBackbone, measured_sample
from transferapp.system.progress import Progress
from transferapp.system.threads import on_all_cores
from transferapp.training.head_spec import Head, HeadSpec
from transferapp.training.mixture import combine
from transferapp.training.probe import CrossValidation, LinearProbe, cross_validate, fit_probe, log_losses


def solve(measurement: Measurement, views: ViewChoice, config: FitConfig, progress: Progress) -> Candidate:
    """Solve the linear classifier at the cut, or the mixture of stages where the plan asks for one.

    The temperature comes from out-of-fold predictions. The validation figures are those of the same recipe solved on the
    training images alone; the classifier that ships is solved on training and validation images together.
    """
    chosen, dataset = measurement.chosen, measurement.dataset
    train, val = dataset.part("train"), dataset.part("val")
    members = solved_members(measurement, views)
    logits = chosen.mixture.logits if measurement.plan.mixture else views.validation.logits
    temperature = fit_temperature(logits, measured_sample(train).labels)
    taps = tuple(tap for tap, _, _ in members)

    def rows_of(part: Dataset, label: str) -> np.ndarray:
        with progress.task(f"{chosen.spec.name}: {len(part)} {label} images", len(part)) as advance:
            return chosen.store.collect(part.records, [CENTER], advance)

    def solve_on(part: Dataset) -> tuple[LinearProbe, Classifier]:
        rows = rows_of(part, "training")
        if views.views:
            rows = np.concatenate([rows, random_rows(chosen, part, views.views, config.seed, progress)], axis=1)
        labels = np.repeat(part.labels, rows.shape[1])
        rows = rows.reshape(len(labels), -1)
        weights = measurement.weighting.of(labels)

        def solved(member: tuple[Tap, float, float]) -> LinearProbe:
            tap, l2, _ = member
            features = chosen.trunk.features(rows, [tap])
            return fit_probe(features, labels, len(dataset.class_names), l2, sample_weight=weights)

        probes = list(on_all_cores(solved, members[::-1]))[::-1]
        probe = combine(probes, [weight for _, _, weight in members])
        return probe, Classifier(taps, Head.of(probe, HeadSpec(l2=probe.l2)), temperature, measurement.plan.cut)

    held_out = metrics = probabilities = correct = None
    if len(val):
        held_out_probe, held_out = solve_on(train)
        features = chosen.trunk.features(rows_of(val, "validation")[:, 0], taps)
        probabilities = softmax(held_out_probe.logits(features) / temperature, axis=1)
        metrics = measure(probabilities, val.labels, dataset.class_names, groups=val.groups())
        correct = probabilities.argmax(axis=1) == val.labels
    probe, classifier = solve_on(dataset.part("train", "val"))
    return Candidate(
        SOLVED,
        chosen.spec.name,
        "mixture" if measurement.plan.mixture else chosen.cut.name,
        head_only=True,
        classifier=classifier,
        held_out=held_out,
        metrics=metrics,
        probabilities=probabilities,
        correct=correct,
        steps=probe.iterations,
    )


def solved_members(measurement: Measurement, views: ViewChoice) -> list[tuple[Tap, float, float]]:
    """Return the taps that the classifier reads, each with its L2 strength and its weight in the mixture."""
    chosen = measurement.chosen
    if not measurement.plan.mixture:
        return [(Tap(chosen.cut.name), measurement.l2(views.validation), 1.0)]
    return [
        (tap, measurement.l2(validation), float(weight))
        for (tap, validation), weight in zip(chosen.members, chosen.mixture.weights, strict=True)
        if weight
    ]


TRIED_FROM = 1_000
"""Training images from which random views are tried. Their gain in accuracy is a point or so where there is one, and with fewer
images cross-validation has a standard error of that size (docs/lecture.md)."""

VIEW_STEPS = (1, 2, 4, 8)
"""Tried in turn, until a step gains no more than one standard error of the paired difference in loss."""


@dataclass(frozen=True)
class ViewsTried:
    """Cross-validation with `views` random views an image beside the center view.

    Attributes:
        views: Random views an image.
        accuracy: Cross-validated, in [0, 1].
        loss: Cross-validated, in nats.
        gain: Loss saved against the best of before; None for the first.
        standard_error: Of `gain`, paired by image.
    """

    views: int
    accuracy: float
    loss: float
    gain: float | None = None
    standard_error: float | None = None


@dataclass(frozen=True)
class ViewChoice:
    """Outcome of `choose_views`."""

    views: int
    validation: CrossValidation
    tried: tuple[ViewsTried, ...]
    reason: str


def random_rows(backbone: ProbedBackbone, part: Dataset, views: int, seed: int, progress: Progress) -> np.ndarray:
    """Return the trunk's rows of the first `views` random views: float32, shape (n, views, row_size)."""
    names = [random_view_name(index, seed) for index in range(views)]
    with progress.task(f"{backbone.spec.name}: {views} random views each", len(part) * views) as advance:
        return backbone.store.collect(part.records, names, advance)


def choose_views(measurement: Measurement, config: FitConfig, progress: Progress) -> ViewChoice:
    """Choose the number of random views of each image that the linear classifier at the cut is solved on.

    They are tried on `measured_sample` of the training images, from `TRIED_FROM` images on. Where parts of the backbone will
    be tuned, none are tried: the tuning sees random views, and the classifier that it starts from need not. Nor are they for
    a mixture of stages.
    """
    backbone = measurement.chosen
    best = measurement.weighting.validation
    if measurement.plan.tails and config.train_views == "auto":
        whose = "the classifier that it is compared with" if config.scratch else "the classifier that it starts from"
        return ViewChoice(0, best, (), f"training in steps sees random views; {whose} need not")
    sample = measured_sample(measurement.dataset.part("train"))
    if config.train_views == "auto" and (measurement.plan.mixture or len(sample) < TRIED_FROM):
        few = f"not tried on {len(sample)} images: the gain is smaller than cross-validation can see"
        reason = "not tried: a mixture of stages is solved on the center views" if measurement.plan.mixture else few
        return ViewChoice(0, best, (), reason)
    center = backbone.features(backbone.store.collect(sample.records, [CENTER])[:, 0])
    labels, groups, seed = sample.labels, sample.groups(), config.seed

    def validate(views: int) -> CrossValidation:
        extra = backbone.features(random_rows(backbone, sample, views, seed, progress)) if views else None
        return cross_validate(
            center,
            labels,
            len(sample.class_names),
            extra=extra,
            seed=seed,
            path=best.path,
            groups=groups,
            class_weights=measurement.weighting.weights,
        )

    if config.train_views != "auto":
        views = int(config.train_views)
        chosen = validate(views) if views else best
        return ViewChoice(views, chosen, (ViewsTried(views, chosen.accuracy, chosen.loss),), "set by --train-views")
    tried = [ViewsTried(0, best.accuracy, best.loss)]
    views = 0
    for step in VIEW_STEPS:
        validation = validate(step)
        gain, error = paired_gain(log_losses(best.logits, labels), log_losses(validation.logits, labels), groups)
        tried.append(ViewsTried(step, validation.accuracy, validation.loss, gain, error))
        if gain <= error:
            break
        best, views = validation, step
    last = tried[-1]
    assert last.gain is not None
    assert last.standard_error is not None
    outcome = (
        f"{last.views} random view{'' if last.views == 1 else 's'} an image {'lower' if last.gain >= 0 else 'raise'}"
        f"{'s' if last.views == 1 else ''} the cross-validated loss by {abs(last.gain):.3f} ± {last.standard_error:.3f}"
    )
    if views == last.views:
        reason = f"{outcome}: still a gain at the most that is tried"
    else:
        reason = (
            f"{outcome}: no gain beyond one standard error over {'the center view alone' if views == 0 else f'{views}'}"
        )
    return ViewChoice(views, best, tuple(tried), reason)
