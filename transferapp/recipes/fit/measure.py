"""Measure a folder of images: audit, split, backbones tried, similarity, size, and the plan that follows.

This is the first half of a fit, and all of `transferapp plan`.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import softmax

from transferapp.backbones.engine import resolve_engine
from transferapp.backbones.feature_store import CENTER, Chance, FeatureStore, trim_cache
from transferapp.backbones.registry import DEFAULT_BACKBONE, EMBEDDED, BackboneSpec, backbone_spec
from transferapp.backbones.stages import Stage, stage_named
from transferapp.backbones.trunk import Trunk, load_trunk
from transferapp.config import FitConfig
from transferapp.data.audit import audit, peek_sizes
from transferapp.data.dataset import Dataset
from transferapp.data.duplicates import with_clusters
from transferapp.data.findings import Findings, summarize
from transferapp.data.label_fixes import apply_label_fixes
from transferapp.data.sources import open_source
from transferapp.data.split import assign_splits
from transferapp.errors import DataError, UsageError
from transferapp.images.color_jitter import PCAColor, fit_pca_color
from transferapp.policy.input_size import InputSize, choose_input_size
from transferapp.policy.plan import FineTuning, NewHead, Overrides, Plan, make_plan
from transferapp.policy.similarity import StageScore, judge_similarity, label_divergence
from transferapp.policy.size import measure_size
from transferapp.recipes.fit.class_weighting import Weighting, weigh_classes
from transferapp.system.progress import Progress
from transferapp.system.threads import cpu_cores
from transferapp.training.probe import L2_PATH, CrossValidation, cross_validate

if TYPE_CHECKING:
    import keras

CHEAPER_WITHIN = 0.005
"""A cheaper backbone is preferred while its cross-validated accuracy is within half a point of the best, ..."""

LOSS_WITHIN = 0.1
"""... and its cross-validated loss no more than a tenth above. With a hundred images half a point is less than one of them,
so that accuracies tie by chance; the loss then still tells the better backbone."""

_CROPS = 10
_TIMED_ROUNDS = 3


@dataclass(frozen=True)
class Candidate:
    """A backbone that was tried.

    Attributes:
        spec: Which one.
        trunk: Ready to run.
        store: Its features.
        input_size: How large its input is made for these images, and why.
        validations: Cross-validation of every stage's probe on the training images, earliest first.
        plan: What the rule makes of it.
        milliseconds: One ten-crop request through the whole backbone.
    """

    spec: BackboneSpec
    trunk: Trunk
    store: FeatureStore
    input_size: InputSize
    validations: tuple[CrossValidation, ...]
    scores: tuple[StageScore, ...]
    plan: Plan
    milliseconds: float

    @property
    def cut(self) -> Stage:
        return stage_named(self.trunk.stages, self.plan.cut)

    @property
    def accuracy(self) -> float:
        """Cross-validated, at the cut that the plan chose."""
        return self.scores[self.cut.index].accuracy

    @property
    def loss(self) -> float:
        """Cross-validated, in nats, at the cut that the plan chose."""
        return self.scores[self.cut.index].loss

    def features(self, rows: np.ndarray) -> np.ndarray:
        """The cut's columns of rows from the store."""
        return rows[..., self.trunk.row_slices[self.cut.index]]


@dataclass(frozen=True)
class Measurement:
    """Everything that is known before training.

    Attributes:
        dataset: Audited and split.
        candidates: Backbones tried, in the order of their cost.
        chosen: The one to go on with. Where classes are weighed, the cross-validation at its cut is with weights, unless others
            were passed over for it.
        findings: What the audit found.
        weighting: How much each class counts in training.
        passed_over: Names of those that were chosen before it, and could not be tuned in the time there was.
    """

    dataset: Dataset
    candidates: tuple[Candidate, ...]
    chosen: Candidate
    findings: Findings
    weighting: Weighting
    passed_over: tuple[str, ...] = ()

    @property
    def plan(self) -> Plan:
        return self.chosen.plan

    @property
    def cheaper(self) -> tuple[Candidate, ...]:
        """Those that cost less than the chosen one, the dearest of them first."""
        return self.candidates[: self.candidates.index(self.chosen)][::-1]

    def passing_over(self, candidate: Candidate) -> Measurement:
        """The same with another candidate to go on with, for there is no time to tune the chosen one."""
        return replace(self, chosen=candidate, passed_over=(*self.passed_over, self.chosen.spec.name))


@dataclass
class Workshop:
    """Backbones and their trunks, built in the background while images are being read.

    One thread builds them one after the other: Keras' graph building is not made for several.
    """

    config: FitConfig
    peeked: tuple[tuple[int, int], ...] = ()
    models: dict[str, keras.Model] = field(default_factory=dict)
    _trunks: dict[str, Future[Trunk]] = field(default_factory=dict)
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "backbones"))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def input_size(self, spec: BackboneSpec) -> InputSize:
        """How large a backbone's input is made, from the sizes of the images that were `peeked` at.

        A `.keras` file's own size may be the only one that it takes, so there only the person may choose another.
        """
        peeked = () if spec.source == "file" else self.peeked
        return choose_input_size(peeked, spec.image_size, self.config.image_size)

    def image_size(self, spec: BackboneSpec) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.input_size(spec).image_size

    def model(self, spec: BackboneSpec) -> keras.Model:
        """The Keras model of a backbone, built once, whichever thread asks first: what is tuned must be what is exported.

        Raises:
            UsageError: It is a file whose input has another size than asked for.
        """
        with self._lock:
            if spec.name not in self.models:
                from transferapp.backbones.loading import load_backbone

                size = self.image_size(spec)
                model = load_backbone(spec, image_size=size, weights=self._weights(spec))
                if tuple(model.inputs[0].shape[1:3]) != size:
                    raise UsageError(
                        f"{spec.name} takes images of one size only",
                        expected=f"--image-size {model.inputs[0].shape[1]}, or none",
                        got=f"{size[0]}",
                    )
                self.models[spec.name] = model
            return self.models[spec.name]

    def order(self, spec: BackboneSpec) -> None:
        """Start building a trunk."""
        self._trunks[spec.name] = self._pool.submit(self._build, spec)

    def trunk(self, spec: BackboneSpec) -> Trunk:
        """The trunk, once it is built."""
        return self._trunks[spec.name].result()

    def in_background(self, work: Any, *arguments: Any) -> Future[Any]:
        """Queue other work for the building thread."""
        return self._pool.submit(work, *arguments)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _build(self, spec: BackboneSpec) -> Trunk:
        return load_trunk(
            spec,
            lambda: self.model(spec),
            image_size=self.image_size(spec),
            weights=self._weights(spec),
            engine=resolve_engine(self.config.engine),
            precision=self.config.precision,
            streams=cpu_cores(),
        )

    def _weights(self, spec: BackboneSpec) -> Path | None:
        named = self.config.weights
        return Path(named) if named and spec == backbone_spec(self.config.backbone) else None


@contextlib.contextmanager
def workshop(config: FitConfig) -> Iterator[Workshop]:
    """A workshop that is closed at the end, without waiting for what it is still building."""
    shop = Workshop(config)
    try:
        yield shop
    finally:
        shop.close()


def measure(config: FitConfig, shop: Workshop, progress: Progress) -> Measurement:
    """Audit, split, try the backbones, and apply the rule.

    Raises:
        DataError: The folder cannot be used; the message says why.
        WeightsError: A backbone's weights are not to be had.
    """
    tried = [backbone_spec(name) for name in (EMBEDDED if config.backbone == "auto" else (config.backbone,))]
    reference = backbone_spec(DEFAULT_BACKBONE)
    dataset = open_source(config.data, options=config.source, progress=progress)
    shop.peeked = peek_sizes(dataset)
    for spec in dict.fromkeys([reference, *tried]):
        shop.order(spec)
    dataset, findings = audit_and_split(dataset, config, progress)
    trim_cache()
    train = dataset.part("train")
    augmentation = config.augmentation_for(tiny=shop.input_size(reference).tiny)
    chance = Chance(augmentation, _color_components(train) if augmentation.color.pca_std else None)
    sample = measured_sample(train)
    divergence: float | None = None
    candidates = []
    for spec in dict.fromkeys([reference, *tried]):
        with progress.task(f"waiting for {spec.name}", 0):
            trunk = shop.trunk(spec)
        store = FeatureStore(trunk, workers=cpu_cores(), chance=chance, note=progress.note)
        with progress.task(f"{spec.name}: {len(sample)} images", len(sample)) as advance:
            rows = store.collect(sample.records, [CENTER], advance)[:, 0]
        if spec == reference and divergence is None:
            # D is always measured with the same network, so that it means the same whatever backbone is used.
            source = softmax(rows[:, trunk.row_slices[-1]].astype(np.float64), axis=1)
            divergence = label_divergence(source, sample.labels)
        if spec in tried:
            assert divergence is not None
            candidates.append(
                _try_backbone(
                    spec,
                    trunk,
                    store,
                    rows,
                    sample,
                    train,
                    divergence,
                    config,
                    shop.input_size(spec),
                    bool(len(dataset.part("val"))),
                    progress,
                )
            )
    times = _request_milliseconds([candidate.trunk for candidate in candidates])
    candidates = [replace(c, milliseconds=t) for c, t in zip(candidates, times, strict=True)]
    chosen = choose_candidate(candidates)
    with progress.task(f"{chosen.spec.name}: weighing the classes", 0):
        weighting = _weigh(chosen, train, config)
    at = candidates.index(chosen)
    validations = list(chosen.validations)
    validations[chosen.cut.index] = weighting.validation
    candidates[at] = chosen = replace(chosen, validations=tuple(validations))
    return Measurement(dataset, tuple(candidates), chosen, findings, weighting)


def _weigh(chosen: Candidate, train: Dataset, config: FitConfig) -> Weighting:
    sample = measured_sample(train)
    return weigh_classes(
        chosen.features(chosen.store.collect(sample.records, [CENTER])[:, 0]),
        sample.labels,
        train.counts(),
        chosen.validations[chosen.cut.index],
        config.class_weights,
        groups=sample.kin(),
        seed=config.seed,
    )


MEASURED_AT_MOST = 4_000
"""Training images from which D, the best stage and the best backbone are measured. That many fix a cross-validated accuracy
to a standard error of half a point or so, and a large set need not be pushed through every backbone for it."""


def measured_sample(train: Dataset) -> Dataset:
    """The training images, or of a large set a stratified part of them, chosen by content."""
    if len(train) <= MEASURED_AT_MOST:
        return train
    share = MEASURED_AT_MOST / len(train)
    by_class: list[list[int]] = [[] for _ in train.class_names]
    for i in sorted(range(len(train)), key=lambda i: train.records[i].sha256):
        by_class[train.records[i].label].append(i)
    kept = {i for members in by_class for i in members[: max(2, round(share * len(members)))]}
    return train.with_records([record for i, record in enumerate(train.records) if i in kept])


def _color_components(train: Dataset) -> PCAColor:
    """Principal components of the training set's RGB values, from the pixels that the audit kept."""
    colors = b"".join(record.colors for record in train.records)
    if not colors:  # none of the sampled images is in this split
        return fit_pca_color(np.full((2, 3), 128, np.uint8))
    return fit_pca_color(np.frombuffer(colors, np.uint8).reshape(-1, 3))


def audit_and_split(dataset: Dataset, config: FitConfig, progress: Progress) -> tuple[Dataset, Findings]:
    """Correct the labels, look at every image, and divide them so that no copy is on both sides."""
    if config.label_fixes:
        dataset = apply_label_fixes(dataset, Path(config.label_fixes))
    with progress.task(f"reading {len(dataset)} images", len(dataset)) as advance:
        dataset = audit(dataset, workers=cpu_cores(), progress=advance)
    dataset = with_clusters(dataset.in_order_of_content())
    findings = summarize(dataset)
    dataset = assign_splits(
        dataset, seed=config.seed, val_fraction=config.val_fraction, test_fraction=config.test_fraction
    )
    return dataset, findings


def choose_candidate(candidates: list[Candidate]) -> Candidate:
    """The most accurate backbone, or the cheapest that is as good (see `CHEAPER_WITHIN`).

    Args:
        candidates: Cheapest first. What was timed is not asked: it would choose one today and another tomorrow.
    """
    best = max(candidates, key=lambda candidate: (candidate.accuracy, -candidate.loss))
    return next(
        candidate
        for candidate in candidates
        if candidate is best
        or (candidate.accuracy >= best.accuracy - CHEAPER_WITHIN and candidate.loss <= best.loss * (1 + LOSS_WITHIN))
    )


def _try_backbone(
    spec: BackboneSpec,
    trunk: Trunk,
    store: FeatureStore,
    rows: np.ndarray,
    sample: Dataset,
    train: Dataset,
    divergence: float,
    config: FitConfig,
    input_size: InputSize,
    validated: bool,
    progress: Progress,
) -> Candidate:
    labels, num_classes, kin = sample.labels, len(sample.class_names), sample.kin()
    validations = []
    with progress.task(f"{spec.name}: probing {len(trunk.stages)} stages", len(trunk.stages)) as advance:
        for stage, columns in zip(trunk.stages, trunk.row_slices, strict=False):  # the last slice may be the logits
            validations.append(
                cross_validate(
                    rows[:, columns], labels, num_classes, seed=config.seed, path=l2_path(config), groups=kin
                )
            )
            advance(stage.index + 1)
    scores = tuple(_stage_score(s, v, validations[-1]) for s, v in zip(trunk.stages, validations, strict=True))
    tuning = config.tuning(len(train))
    rule = partial(
        make_plan,
        measure_size(train.counts()),
        judge_similarity(divergence, scores),
        scores,
        backbone=spec.name,
        input_size=input_size,
        tuning=FineTuning(
            head_rate=tuning.head_learning_rate,
            backbone_rate=tuning.head_learning_rate * config.ratio,
            find_rate=config.learning_rate == "find",
            epochs=tuning.epochs,
            batch_size=tuning.batch_size,
            from_scratch=config.scratch,
        ),
    )
    new_head = NewHead(config.trained_head, config.new_head_learning_rate)
    overrides = Overrides(config.size, config.similarity, config.tune)
    plan = rule(overrides=overrides, head=new_head if config.trained_head and not config.scratch else None)
    if plan.proposals and not validated:
        if config.rule_only or config.scratch:
            raise DataError(
                "There are no validation images, without which nothing can be fine-tuned",
                expected="a val/ folder, or --val-fraction above 0",
            )
        reason = "Nothing is fine-tuned: there are no validation images to compare by."
        plan = rule(overrides=replace(overrides, tune="none", tune_reason=reason))
    return Candidate(spec, trunk, store, input_size, tuple(validations), scores, plan, milliseconds=0.0)


def l2_path(config: FitConfig) -> tuple[float, ...]:
    """The strengths of the solved classifier's penalty that are tried: one, where the person has chosen it."""
    return L2_PATH if config.l2 == "auto" else (float(config.l2),)


def _stage_score(stage: Stage, validation: CrossValidation, top: CrossValidation) -> StageScore:
    difference = validation.correct.astype(float) - top.correct.astype(float)
    return StageScore(
        stage=stage.name,
        accuracy=validation.accuracy,
        loss=validation.loss,
        gain_over_top=float(difference.mean()),
        standard_error=float(difference.std(ddof=1) / np.sqrt(len(difference))),
    )


def _request_milliseconds(trunks: Sequence[Trunk]) -> list[float]:
    """Milliseconds of one ten-crop request through each trunk.

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
