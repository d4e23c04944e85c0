"""Measure a folder of images: audit, split, backbones tried, similarity, size, class weights, and the plan that follows.

This is the first half of a fit, and all of `transferapp plan`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

from transferapp.backbones.feature_store import CENTER, FeatureStore, RandomViews, trim_cache
from transferapp.backbones.loader import BackboneLoader
from transferapp.backbones.registry import DEFAULT_BACKBONE, EMBEDDED, BackboneSpec, backbone_spec
from transferapp.backbones.stages import Stage, Tap, stage_named
from transferapp.backbones.trunk import Trunk
from transferapp.config import FitConfig
from transferapp.data.audit import Findings, audit, peek_sizes, summarize
from transferapp.data.dataset import Dataset, Split
from transferapp.data.label_fixes import apply_label_fixes
from transferapp.data.near_duplicates import with_clusters, with_similar
from transferapp.data.split import assign_splits, check_earlier
from transferapp.errors import DataError
from transferapp.images.augment import PCAColor, fit_pca_color
from transferapp.images.views import GEOMETRIES, Geometry
from transferapp.policy.choose import MixtureScore, cheaper_suffices, paired_gain, weigh_both
from transferapp.policy.class_weights import (
    WORTH_TRYING,
    WeightsFinding,
    balanced_weights,
    imbalance,
    judge_class_weights,
)
from transferapp.policy.geometry import GeometryFinding, elongated_share, geometries_to_try, judge_geometry
from transferapp.policy.plan import FineTuning, NewHead, Overrides, Plan, make_plan
from transferapp.policy.reasons import Reason
from transferapp.policy.similarity import StageScore, judge_similarity, label_divergence
from transferapp.policy.size import InputSize, measure_size
from transferapp.system.progress import Progress
from transferapp.system.threads import cpu_cores, on_all_cores
from transferapp.training.mixture import Mixture, mix
from transferapp.training.probe import L2_PATH, CrossValidation, cross_validate, cross_validation_folds, log_losses

_CROPS = 10
_TIMED_ROUNDS = 3


Members = tuple[tuple[Tap, CrossValidation], ...]
"""Taps of a mixture of stages, each with its cross-validation."""


@dataclass(frozen=True, eq=False)
class ProbedBackbone:
    """A backbone with a cross-validated linear classifier on each of its stages.

    Attributes:
        spec: Its entry in the registry.
        trunk: Ready to run.
        store: Its cached features.
        input_size: Size of its input for these images, with the reason.
        validations: Cross-validation of the linear classifier on each stage, earliest first, with equal class weights.
        scores: The figures that the policy looks at, in the same order.
        members: The taps of the mixture of stages, with their cross-validation.
        mixture: The mixture of these, cross-fitted; it is used where the plan says so.
        plan: The rule applied to this backbone.
        milliseconds: One ten-crop request through the whole backbone.
    """

    spec: BackboneSpec
    trunk: Trunk
    store: FeatureStore
    input_size: InputSize
    validations: tuple[CrossValidation, ...]
    scores: tuple[StageScore, ...]
    members: Members
    mixture: Mixture
    plan: Plan
    milliseconds: float

    @property
    def cut(self) -> Stage:
        """The stage that the linear classifier stands on."""
        return stage_named(self.trunk.stages, self.plan.cut)

    @property
    def accuracy(self) -> float:
        """Cross-validated accuracy of the solved classifier, in [0, 1]."""
        return self.mixture.accuracy if self.plan.mixture else self.scores[self.cut.index].accuracy

    @property
    def loss(self) -> float:
        """Cross-validated loss of the solved classifier, in nats."""
        return self.mixture.loss if self.plan.mixture else self.scores[self.cut.index].loss

    @property
    def logits(self) -> np.ndarray:
        """Held-out logits of the solved classifier: float, shape (n, num_classes)."""
        return self.mixture.logits if self.plan.mixture else self.validations[self.cut.index].logits

    @property
    def geometry(self) -> Geometry:
        """Way in which images become its input."""
        return self.store.random_views.geometry

    def features(self, rows: np.ndarray) -> np.ndarray:
        """Return the columns of the cut from rows of the store."""
        return rows[..., self.trunk.row_slices[self.cut.index]]


@dataclass(frozen=True, eq=False)
class Measurement:
    """All that is known before training.

    Attributes:
        dataset: Audited and split.
        findings: The audit's findings.
        backbones: The backbones that were tried, cheapest first.
        chosen: The one that the linear classifier stands on.
        geometry: Way in which images become the input of every backbone, with the reason.
        weighting: The weight of each class in training, and the cross-validation at the cut with these weights.
    """

    dataset: Dataset
    findings: Findings
    backbones: tuple[ProbedBackbone, ...]
    chosen: ProbedBackbone
    geometry: GeometryFinding
    weighting: Weighting

    @property
    def plan(self) -> Plan:
        """The plan for the chosen backbone."""
        return self.chosen.plan

    @property
    def cheaper(self) -> tuple[ProbedBackbone, ...]:
        """Backbones that cost less than the chosen one, the most expensive of them first."""
        return self.backbones[: self.backbones.index(self.chosen)][::-1]

    def backbone(self, name: str) -> ProbedBackbone:
        """Return the backbone of this name."""
        return next(backbone for backbone in self.backbones if backbone.spec.name == name)

    def validation(self, backbone: ProbedBackbone, stage: Stage) -> CrossValidation:
        """Return the cross-validation on a stage, with class weights where it was made with them."""
        if backbone is self.chosen and stage.index == backbone.cut.index:
            return self.weighting.validation
        return backbone.validations[stage.index]

    def l2(self, validation: CrossValidation) -> float:
        """Return the L2 strength of a classifier that is trained on all training images.

        It was chosen on `measured_sample` of them. The penalty is added to the mean loss; the best strength falls about with
        the root of the number of images (docs/decisions/0005-solved-head.md). A strength that the user set stays.
        """
        if len(validation.path) == 1:
            return validation.l2
        return validation.l2 * math.sqrt(len(validation.correct) / len(self.dataset.part("train")))


def backbone_loader(config: FitConfig, source: Dataset) -> BackboneLoader:
    """Return the loader of a fit: input sizes follow the images of the source."""
    weights = {}
    if config.weights:
        weights[backbone_spec(config.backbone).name] = Path(config.weights)
    return BackboneLoader(
        peek_sizes(source),
        image_size=config.image_size,
        weights=weights,
        engine=config.engine,
        precision=config.precision,
    )


def measure(
    config: FitConfig, source: Dataset, loader: BackboneLoader, progress: Progress, *, mixture: bool = True
) -> Measurement:
    """Audit and split the images, try the backbones, and apply the rule.

    Args:
        config: Settings of the fit.
        source: The images as their source delivers them.
        loader: Builds the backbones.
        progress: Receives progress updates.
        mixture: Whether the linear classifier may read a mixture of stages.

    Raises:
        DataError: The images cannot be used.
        WeightsError: The weights of a backbone are not available.
    """
    reference = backbone_spec(DEFAULT_BACKBONE)
    tried = [backbone_spec(name) for name in (EMBEDDED if config.backbone == "auto" else (config.backbone,))]
    for spec in dict.fromkeys([reference, *tried]):
        loader.start(spec)

    def trunk_of(spec: BackboneSpec) -> Trunk:
        with progress.task(f"waiting for {spec.name}", 0):
            return loader.trunk(spec)

    def top_features(images: Dataset) -> np.ndarray:
        # Of the same network whatever backbone is used, so that fits with several can be compared on the same test images.
        trunk = trunk_of(reference)
        store = FeatureStore(trunk, workers=cpu_cores(), note=progress.note)
        with progress.task(f"{trunk.name}: {len(images)} images", len(images)) as advance:
            rows, positions = store.locate(images.records, [CENTER], advance)
        return rows[positions[:, 0], trunk.row_slices[trunk.top.index]]

    dataset, findings = audit_and_split(source, config, progress, top_features)
    trim_cache()
    train = dataset.part("train")
    sample = measured_sample(train)
    augmentation = config.augmentation_for(tiny=loader.input_size(reference).tiny)
    random_views = RandomViews(augmentation, _color_components(train) if augmentation.color.pca_std else None)
    elongated = elongated_share([record.size for record in sample.records if record.size])
    geometries = geometries_to_try(config.geometry, elongated)

    @cache
    def center_rows(spec: BackboneSpec, geometry: Geometry) -> tuple[FeatureStore, np.ndarray]:
        views = replace(random_views, geometry=geometry)
        store = FeatureStore(trunk_of(spec), workers=cpu_cores(), random_views=views, note=progress.note)
        with progress.task(f"{spec.name}: {len(sample)} {_SEEN_AS[geometry]}", len(sample)) as advance:
            return store, store.collect(sample.records, [CENTER], advance)[:, 0]

    @cache
    def divergence(geometry: Geometry) -> float:
        # D is always measured with the same network, so that it means the same whatever backbone is used.
        _, rows = center_rows(reference, geometry)
        imagenet = softmax(rows[:, trunk_of(reference).row_slices[-1]].astype(np.float64), axis=1)
        return label_divergence(imagenet, sample.labels, folds=_grouped_folds(sample, config.seed))

    def probe(spec: BackboneSpec, geometry: Geometry, milliseconds: float = 0.0) -> ProbedBackbone:
        (store, rows), trunk, input_size = center_rows(spec, geometry), trunk_of(spec), loader.input_size(spec)
        validations, members, mixed = probe_stages(trunk, rows, sample, config, progress)
        scores = _stage_scores(trunk, validations, sample.groups())
        mixture_score = _mixture_score(members, mixed, sample.labels, sample.groups()) if mixture else None
        plan = _plan(spec, scores, mixture_score, divergence(geometry), input_size, dataset, config)
        return ProbedBackbone(spec, trunk, store, input_size, validations, scores, members, mixed, plan, milliseconds)

    backbones = [probe(spec, geometries[0]) for spec in tried]
    milliseconds = _request_milliseconds([backbone.trunk for backbone in backbones])
    backbones = [replace(each, milliseconds=time) for each, time in zip(backbones, milliseconds, strict=True)]
    chosen = choose_backbone(backbones, sample.labels, sample.groups())
    seen = {name: probe(chosen.spec, name, chosen.milliseconds) for name in geometries[1:]} | {geometries[0]: chosen}
    geometry = _judge_geometry(config.geometry, elongated, seen, sample)
    if geometry.geometry != chosen.geometry:
        again = seen[geometry.geometry]
        backbones = [
            again if each is chosen else probe(each.spec, geometry.geometry, each.milliseconds) for each in backbones
        ]
    backbones = [replace(each, plan=each.plan.seen_in(geometry.reason)) for each in backbones]
    chosen = choose_backbone(backbones, sample.labels, sample.groups())
    if len(backbones) > 1 and chosen.plan.mixture:
        at = backbones.index(chosen)
        reasons = (*chosen.plan.reasons, _both_together(backbones, chosen, sample, config))
        backbones[at] = chosen = replace(chosen, plan=replace(chosen.plan, reasons=reasons))
    with progress.task(f"{chosen.spec.name}: weighing the classes", 0):
        weighting = _weigh(chosen, train, config)
    if weighting.weights is not None and chosen.plan.mixture:
        at = backbones.index(chosen)
        backbones[at] = chosen = _mixed_by_class_weights(chosen, sample, config, weighting.weights)
    return Measurement(dataset, findings, tuple(backbones), chosen, geometry, weighting)


_SEEN_AS: Mapping[Geometry, str] = {
    "crop": "images",
    "resize": "whole images, resized",
    "pad": "whole images, padded",
}


def _judge_geometry(
    wanted: str, elongated: float, seen: Mapping[Geometry, ProbedBackbone], sample: Dataset
) -> GeometryFinding:
    """Compare one backbone in several geometries, on the images that it was probed with."""
    ordered = {name: seen[name].logits for name in GEOMETRIES if name in seen}
    labels = sample.labels
    losses = {name: log_losses(logits, labels) for name, logits in ordered.items()}
    correct = {name: logits.argmax(axis=1) == labels for name, logits in ordered.items()}
    return judge_geometry(wanted, elongated, losses, correct, sample.groups())


def _grouped_folds(sample: Dataset, seed: int) -> np.ndarray | None:
    """Return folds that hold near-duplicates and groups out together; None where every image stands alone."""
    groups = sample.groups()
    return None if len(np.unique(groups)) == len(groups) else cross_validation_folds(sample.labels, seed, groups)


def _weigh(chosen: ProbedBackbone, train: Dataset, config: FitConfig) -> Weighting:
    sample = measured_sample(train)
    return weigh_classes(
        chosen.features(chosen.store.collect(sample.records, [CENTER])[:, 0]),
        sample.labels,
        train.counts(),
        chosen.validations[chosen.cut.index],
        config.class_weights,
        groups=sample.groups(),
        seed=config.seed,
    )


MEASURED_AT_MOST = 4_000
"""Training images from which D, the best stage and the best backbone are measured. That many fix a cross-validated accuracy
to a standard error of half a point or so, and a large set need not be pushed through every backbone for it."""


def measured_sample(train: Dataset) -> Dataset:
    """Return the training images, or of a large set a stratified part of them, chosen by content."""
    if len(train) <= MEASURED_AT_MOST:
        return train
    share = MEASURED_AT_MOST / len(train)
    by_class: list[list[int]] = [[] for _ in train.class_names]
    for i in sorted(range(len(train)), key=lambda i: train.records[i].sha256):
        by_class[train.records[i].label].append(i)
    kept = {i for members in by_class for i in members[: max(2, round(share * len(members)))]}
    return train.with_records([record for i, record in enumerate(train.records) if i in kept])


def _color_components(train: Dataset) -> PCAColor:
    """Return the principal components of the training set's RGB values, from the pixels that the audit kept."""
    colors = b"".join(record.colors for record in train.records)
    if not colors:  # none of the sampled images is in this split
        return fit_pca_color(np.full((2, 3), 128, np.uint8))
    return fit_pca_color(np.frombuffer(colors, np.uint8).reshape(-1, 3))


SPLIT_BY_FEATURES_AT_MOST = 6_000
"""Images up to which a split looks at features. Of a larger set, only `MEASURED_AT_MOST` go through the reference backbone."""


def audit_and_split(
    dataset: Dataset,
    config: FitConfig,
    progress: Progress,
    top_features: Callable[[Dataset], np.ndarray] | None = None,
) -> tuple[Dataset, Findings]:
    """Correct the labels, audit every image, and split them so that no duplicate is on both sides.

    Args:
        dataset: The images as their source delivers them.
        config: Settings of the fit.
        progress: Receives progress updates.
        top_features: Returns features of a network's last stage: float32, shape (n, num_features). Images with similar ones
            are kept together like near-duplicates. None to look at signatures alone.

    Raises:
        DataError: The images cannot be used, or some of an earlier fit are missing.
    """
    if config.label_fixes:
        dataset = apply_label_fixes(dataset, Path(config.label_fixes))
    with progress.task(f"reading {len(dataset)} images", len(dataset)) as advance:
        dataset = audit(dataset, workers=cpu_cores(), progress=advance)
    check_earlier(dataset)
    dataset = with_clusters(dataset.in_order_of_content())
    features: dict[str, np.ndarray] = {}
    free = dataset.with_records([record for record in dataset.records if record.split in (None, "train")])
    if top_features is not None and len(free) <= SPLIT_BY_FEATURES_AT_MOST:
        features = {record.sha256: row for record, row in zip(free.records, top_features(free), strict=True)}
        if not {"val", "test"} <= set(dataset.given_splits):
            dataset = _mark_similar(dataset, features, (None, "train"))
    findings = summarize(dataset)
    dataset = assign_splits(
        dataset, seed=config.seed, val_fraction=config.val_fraction, test_fraction=config.test_fraction
    )
    if features:
        # Once more among the training images alone, so that folds depend on nothing else: not on how the split came about.
        # Those held out are compared by signature alone, as where their split is given.
        dataset = _mark_similar(dataset, features, ("train",))
    return dataset, findings


def _mark_similar(dataset: Dataset, features: Mapping[str, np.ndarray], splits: Sequence[Split | None]) -> Dataset:
    """Mark the similar images of some splits, and those alone; `features` are by the hash of the image's file."""
    compared = dataset.with_records([record for record in dataset.records if record.split in splits])
    others = [replace(record, similar="") for record in dataset.records if record.split not in splits]
    if len(compared):
        compared = with_similar(compared, np.stack([features[record.sha256] for record in compared.records]))
    return dataset.with_records([*compared.records, *others]).in_order_of_content()


def choose_backbone(backbones: Sequence[ProbedBackbone], labels: np.ndarray, groups: np.ndarray) -> ProbedBackbone:
    """Return the cheapest backbone that is as good as the dearest (see `cheaper_suffices`), or else the dearest.

    Args:
        backbones: Cheapest first. Measured times play no part: they would choose one today and another tomorrow.
        labels: int, shape (n,): of the images that they were cross-validated on.
        groups: int, shape (n,): images of one number are near-duplicates or of one group.
    """
    dearest = backbones[-1]
    right = [backbone.logits.argmax(axis=1) == labels for backbone in backbones]
    for backbone, correct in zip(backbones[:-1], right[:-1], strict=True):
        if cheaper_suffices(*paired_gain(right[-1], correct, groups), backbone.loss, dearest.loss):
            return backbone
    return dearest


Probed = tuple[tuple[CrossValidation, ...], Members, Mixture]
"""Cross-validation of every stage by its means, of every tap of the mixture, and the mixture."""


def probe_stages(trunk: Trunk, rows: np.ndarray, sample: Dataset, config: FitConfig, progress: Progress) -> Probed:
    """Return the cross-validated linear classifiers on each stage of a trunk, and their mixture."""
    labels, num_classes, groups = sample.labels, len(sample.class_names), sample.groups()

    def validate(tap: Tap) -> CrossValidation:
        features = trunk.features(rows, [tap])
        return cross_validate(features, labels, num_classes, seed=config.seed, path=l2_path(config), groups=groups)

    tried = [Tap(stage.name, deviation) for stage in reversed(trunk.stages) for deviation in (True, False)]
    found: dict[Tap, CrossValidation] = {}
    with progress.task(f"{trunk.name}: probing {len(trunk.stages)} stages", len(tried)) as advance:
        for tap, validation in zip(tried, on_all_cores(validate, tried), strict=True):
            found[tap] = validation
            advance(len(found))
    members = tuple((tap, found[tap]) for tap in trunk.mixture_taps)
    return tuple(found[Tap(stage.name)] for stage in trunk.stages), members, _mixed(members, sample, config)


def _mixed_by_class_weights(
    backbone: ProbedBackbone, sample: Dataset, config: FitConfig, class_weights: np.ndarray
) -> ProbedBackbone:
    """Return the backbone with a mixture of stages that was cross-validated with class weights."""
    trunk, rows = backbone.trunk, backbone.store.collect(sample.records, [CENTER])[:, 0]

    def validate(tap: Tap) -> CrossValidation:
        return cross_validate(
            trunk.features(rows, [tap]),
            sample.labels,
            len(sample.class_names),
            seed=config.seed,
            path=l2_path(config),
            groups=sample.groups(),
            class_weights=class_weights,
        )

    taps = [tap for tap, _ in backbone.members]
    members = tuple(zip(taps, list(on_all_cores(validate, taps[::-1]))[::-1], strict=True))
    mixture = _mixed(members, sample, config, class_weights)
    score, plan = _mixture_score(members, mixture, sample.labels, sample.groups()), backbone.plan
    if not score.weights:  # no classifier is better than equal probabilities
        return backbone
    reasons = tuple(score.reason() if reason.topic == "cut" else reason for reason in plan.reasons)
    plan = replace(plan, mixture=score.weights, reasons=reasons)
    return replace(backbone, members=members, mixture=mixture, plan=plan)


def _mixed(
    members: Sequence[tuple[Tap, CrossValidation]],
    sample: Dataset,
    config: FitConfig,
    class_weights: np.ndarray | None = None,
) -> Mixture:
    folds = cross_validation_folds(sample.labels, config.seed, sample.groups())
    weight = None if class_weights is None else class_weights[sample.labels]
    return mix([validation.logits for _, validation in members], sample.labels, folds, sample_weight=weight)


def _both_together(
    backbones: Sequence[ProbedBackbone], chosen: ProbedBackbone, sample: Dataset, config: FitConfig
) -> Reason:
    """Compare a mixture of the stages of all backbones with that of the chosen one."""
    together = _mixed([member for backbone in backbones for member in backbone.members], sample, config)
    losses, labels = log_losses(chosen.mixture.logits, sample.labels), sample.labels
    saved, error = paired_gain(losses, log_losses(together.logits, labels), sample.groups())
    return weigh_both(saved, error, chosen.spec.name)


def _mixture_score(members: Members, mixture: Mixture, labels: np.ndarray, groups: np.ndarray) -> MixtureScore:
    top = members[-1][1]  # the last stage by its means alone, as the rule has it
    saved, error = paired_gain(log_losses(top.logits, labels), log_losses(mixture.logits, labels), groups)
    names = [tap.describe() for tap, _ in members]
    weights = {name: float(weight) for name, weight in zip(names, mixture.weights, strict=True) if weight}
    return MixtureScore(mixture.accuracy, mixture.loss, saved, error, weights)


def _plan(
    spec: BackboneSpec,
    scores: Sequence[StageScore],
    mixture: MixtureScore | None,
    divergence: float,
    input_size: InputSize,
    dataset: Dataset,
    config: FitConfig,
) -> Plan:
    train = dataset.part("train")
    tuning = config.tuning(len(train))
    new_head = NewHead(config.trained_head, config.new_head_learning_rate)
    steps = FineTuning(
        head_rate=tuning.head_learning_rate,
        backbone_rate=tuning.head_learning_rate * config.ratio,
        find_rate=config.learning_rate == "find",
        epochs=tuning.epochs,
        batch_size=tuning.batch_size,
        from_scratch=config.scratch,
        head=new_head if config.trained_head and not config.scratch else None,
    )
    rule = partial(
        make_plan,
        measure_size(train.counts()),
        judge_similarity(divergence, scores),
        scores,
        backbone=spec.name,
        input_size=input_size,
        mixture=mixture,
    )
    overrides = Overrides(
        config.size, config.similarity, config.tune, budget=config.budget_seconds, rule_only=config.rule_only
    )
    plan = rule(overrides=overrides, tuning=steps)
    if plan.proposals and not len(dataset.part("val")):
        if config.rule_only or config.scratch:
            raise DataError(
                "There are no validation images, without which nothing can be fine-tuned",
                expected="a val/ folder, or --val-fraction above 0",
            )
        reason = "Nothing is fine-tuned: there are no validation images to compare by."
        return rule(overrides=replace(overrides, tune="none", tune_reason=reason), tuning=replace(steps, head=None))
    return plan


def l2_path(config: FitConfig) -> tuple[float, ...]:
    """Return the L2 strengths to try: a single one where the user set it."""
    return L2_PATH if config.l2 == "auto" else (float(config.l2),)


def _stage_scores(trunk: Trunk, validations: Sequence[CrossValidation], groups: np.ndarray) -> tuple[StageScore, ...]:
    top = validations[-1]
    scores = []
    for stage, validation in zip(trunk.stages, validations, strict=True):
        gain, error = paired_gain(validation.correct, top.correct, groups)
        scores.append(StageScore(stage.name, validation.accuracy, validation.loss, gain, error))
    return tuple(scores)


def _request_milliseconds(trunks: Sequence[Trunk]) -> list[float]:
    """Return the milliseconds of one ten-crop request through each trunk.

    Taken in turns once all of them are built, and the fastest of each: what else goes on then slows none more than another.
    """
    rng = np.random.default_rng(0)
    requests = [rng.integers(0, 256, (_CROPS, *trunk.image_size, 3), dtype=np.uint8) for trunk in trunks]
    fastest = [math.inf] * len(trunks)
    for _ in range(_TIMED_ROUNDS):
        for index, (trunk, crops) in enumerate(zip(trunks, requests, strict=True)):
            started = time.perf_counter()
            trunk.rows(crops)
            fastest[index] = min(fastest[index], 1000 * (time.perf_counter() - started))
    return fastest


_EVEN = 1.05
"""Classes are equal, for what is printed, where the largest is no more than this many times the smallest."""


@dataclass(frozen=True)
class Weighting:
    """Weight of each class in training.

    Attributes:
        weights: float64, shape (num_classes,), mean 1 over the training images; None where all images count the same.
        finding: What was measured, and why this was chosen.
        validation: Cross-validation of the classifier with these weights.
        imbalance: The largest class of the training images over the smallest.
    """

    weights: np.ndarray | None
    finding: WeightsFinding
    validation: CrossValidation
    imbalance: float

    def of(self, labels: np.ndarray) -> np.ndarray | None:
        """Return the weight of each image, shaped as `labels`; None where all images count the same."""
        return None if self.weights is None else self.weights[labels]

    def to_json(self) -> dict[str, Any]:
        """Return a plain dictionary for JSON."""
        weights = None if self.weights is None else [round(float(weight), 4) for weight in self.weights]
        return {**asdict(self.finding), "imbalance": self.imbalance, "weights": weights}


def weigh_classes(
    features: np.ndarray,
    labels: np.ndarray,
    counts: Sequence[int],
    plain: CrossValidation,
    wanted: str,
    *,
    groups: np.ndarray,
    seed: int,
) -> Weighting:
    """Choose how much each class counts.

    Args:
        features: float32, shape (n, num_features): the images that the decision is measured on.
        labels: Their classes: int, shape (n,).
        counts: Training images of each class.
        plain: Cross-validation of the same images without weights; with them, the same strengths are tried.
        wanted: `auto`, `none` or `balanced`.
        groups: Which of the images stay together in cross-validation; shape (n,).
        seed: Seeds the folds.
    """
    ratio = imbalance(counts)
    if wanted == "none":
        return Weighting(
            None,
            WeightsFinding("none", Reason("classes", "--class-weights none turns class weights off.")),
            plain,
            ratio,
        )
    if wanted == "auto" and ratio < WORTH_TRYING:
        if ratio < _EVEN:
            text = "The classes have about as many images each, so class weights are not needed."
        else:
            text = f"The largest class has {ratio:.1f} times the images of the smallest, too few for class weights to matter."
        return Weighting(None, WeightsFinding("none", Reason("classes", text, {"imbalance": ratio})), plain, ratio)
    weights = balanced_weights(counts)
    weighed = cross_validate(
        features, labels, len(counts), seed=seed, path=plain.path, groups=groups, class_weights=weights
    )
    finding = judge_class_weights(labels, plain.correct, weighed.correct, groups)
    if wanted == "balanced":
        set_by = Reason("classes", "--class-weights balanced turns class weights on.", finding.reason.values)
        finding = replace(finding, kind="balanced", reason=set_by)
    if finding.kind == "none":
        return Weighting(None, finding, plain, ratio)
    return Weighting(weights, finding, weighed, ratio)
