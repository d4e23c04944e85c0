"""Training of one proposal, a tail of the backbone or a head alone, into a candidate, as far as the time goes.

Epochs, cached views, batch size and learning rate are decided once a run and recorded, so that an interrupted run goes on
exactly as it would have.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import softmax

from transferapp.backbones.feature_store import CENTER
from transferapp.backbones.stages import Tap, stage_named
from transferapp.config import FitConfig
from transferapp.errors import ResourceError, TrainingError
from transferapp.evaluation.metrics import fit_temperature, measure
from transferapp.policy.budget import OVERRUN, Affordable, Cost, affordable, least_epochs, steps_in_epoch
from transferapp.policy.cuts import MIN_EPOCHS, Proposal
from transferapp.policy.plan import HEAD_EPOCHS
from transferapp.recipes.fit.candidate import Candidate, Classifier
from transferapp.recipes.fit.measure import Measurement, ProbedBackbone
from transferapp.recipes.fit.resume import RunFolder
from transferapp.recipes.fit.training_data import NO_ROOM, DataProvider, Sample, TrainingData
from transferapp.system.hardware import detect
from transferapp.system.progress import Progress
from transferapp.training.curves import Curves, Finding, diagnose
from transferapp.training.head_spec import Head, HeadSpec
from transferapp.training.learning_rate_finder import STEPS
from transferapp.training.probe import fit_probe
from transferapp.training.settings import (
    OUT_OF_MEMORY,
    PATIENCE,
    Epoch,
    MakeBatches,
    TrainingJob,
    TrainingSettings,
    Weights,
)

if TYPE_CHECKING:
    import keras

    from transferapp.training.loop import Trained
    from transferapp.training.tail import Tail

MAX_FOUND_RATE = 1e-2
"""Upper bound of a rate found by a range test: a linear classifier bears more for sixty steps than for a whole run."""

_SPARE = 0.9
"""Share of the time left that epochs are planned into; the rest absorbs variations of the machine's speed."""

_FORWARD = 1 / 3
"""Cost of an image in validation, as a share of its training step."""

_HEAD_PATIENCE = 10
"""Epochs without improvement after which a head stops training: its epochs are short, and begin at random."""

_HEAD_EPOCH = 0.2
"""Seconds that an epoch of a head takes beside its steps, in which there is little to compute."""

_UNFAIR = frozenset({"under_fitting"})
"""Findings that mean nothing where labels are probabilities, which keep the training loss up however good the network is."""

_UNFAIR_WHEN_MIXED = frozenset({"rate_too_high"})
"""Findings that mean nothing where images are mixed: each batch is as hard as the share that it drew."""


@dataclass(frozen=True, eq=False)
class _Job:
    """One proposal, ready to train.

    Attributes:
        tail: The model.
        head: The head that it starts with.
        epochs: Epochs to train, if there is time.
        max_views: Views of each image to cache at most; 0 where nothing is cached.
        settings: From epochs and rate to the training settings.
        rate: Of the new layers, unless a range test finds one.
        ratio: The backbone's rate over that; 0 where the backbone is frozen.
        sample: A few images to time a training step on.
        data: From a number of views to the training data.
        batch_size: Images in a step, if there is memory.
        begins_solved: Whether it starts from the linear classifier, below which half a training would end.
        findings: Findings known before training.
        idle: Seconds of an epoch beside its steps.
    """

    tail: Tail
    head: Head
    epochs: int
    max_views: int
    settings: Callable[[int, float], TrainingSettings]
    rate: float
    ratio: float
    sample: Callable[[], Sample]
    data: Callable[[int], TrainingData]
    batch_size: int
    begins_solved: bool
    findings: tuple[Finding, ...] = ()
    idle: float = 0.0


@dataclass(frozen=True)
class Baseline:
    """The linear classifier that training is compared with.

    Attributes:
        views: Random views of each image that it was solved on; a head alone is trained on as many.
        accuracy: On the validation images; 0 where every proposal is trained to its end.
    """

    views: int
    accuracy: float


class Trainer:
    """Trains the proposals for one backbone, each from the pretrained weights.

    Args:
        backbone: The probed backbone.
        network: Its Keras model with pretrained weights; training leaves it unchanged.
        measurement: The images and the class weights.
        baseline: The linear classifier.
        config: Settings of the fit.
        run: Records decisions, activations and checkpoints.
        progress: Receives progress updates.

    Attributes:
        data: The training data of all cuts.
    """

    def __init__(
        self,
        backbone: ProbedBackbone,
        network: keras.Model,
        measurement: Measurement,
        baseline: Baseline,
        config: FitConfig,
        run: RunFolder,
        progress: Progress,
    ) -> None:
        self._backbone, self._network, self._measurement = backbone, network, measurement
        self._baseline, self._config, self._run, self._progress = baseline, config, run, progress
        self._train, self._val = measurement.dataset.part("train"), measurement.dataset.part("val")
        self._num_classes = len(measurement.dataset.class_names)
        self._tuning = config.tuning(len(self._train))
        self._hardware = detect(config.training_precision)
        self._start = self._blank_head() if config.scratch else self._solved_head()
        self.data = DataProvider(backbone, measurement.dataset, self._tuning, network, run, progress)

    @property
    def fewest_epochs(self) -> int:
        """Fewest epochs worth starting."""
        return min(MIN_EPOCHS, self._tuning.epochs)

    def train(self, proposal: Proposal, seconds: float) -> Candidate:
        """Train one proposal within about `seconds`, or say why not."""
        candidate = Candidate(proposal.name, self._backbone.spec.name, proposal.cut, head_only=proposal.head_only)
        try:
            return self._trained(candidate, proposal, seconds)
        except (TrainingError, ResourceError) as error:
            if isinstance(error, ResourceError) and error.code == NO_ROOM:
                return replace(candidate, notes=(f"left out: {error}",))
            if isinstance(error, ResourceError) and error.code != OUT_OF_MEMORY:
                raise
            return replace(candidate, notes=(f"failed: {error}",), error=error)

    def _trained(self, candidate: Candidate, proposal: Proposal, seconds: float) -> Candidate:
        from transferapp.training.loop import train
        from transferapp.training.session import in_precision

        started = time.perf_counter()
        plan = f"{proposal.key}/plan"
        if seconds <= 0:
            self._run.decide(plan, {"epochs": 0, "views": 0, "batch_size": self._tuning.batch_size})
        if self._run.decided(plan) and not self._run.decide(plan, None)["epochs"]:
            return _left_out(candidate, "there was no time")
        job = self._head_alone(proposal) if proposal.head_only else self._tail_above(proposal)
        multipliers = job.tail.multipliers(job.ratio, self._config.layer_decay)
        outlook, batch_size = self._outlook(proposal, job, multipliers, seconds - (time.perf_counter() - started))
        candidate = replace(candidate, planned_epochs=outlook.epochs, seconds=time.perf_counter() - started)
        if not outlook.epochs:
            return _left_out(candidate, "there was no time")
        least = self._least_epochs(job, batch_size)
        if outlook.epochs < least:
            steps = steps_in_epoch(len(self._train), batch_size)
            epochs = f"{outlook.epochs} epoch{'' if outlook.epochs == 1 else 's'} of {steps} steps"
            return _left_out(candidate, f"there was time for {epochs}, and fewer than {least} are not worth it")
        data = job.data(outlook.views)
        model, multipliers = in_precision(job.tail.model, multipliers, self._hardware.dtype_policy)
        settings = job.settings(outlook.epochs, job.rate)
        training = TrainingJob(model, self._softened(data.make_batches), settings, multipliers, batch_size)
        rate, found = self._rate(proposal, job, lambda: self._range_test(proposal, training))
        spent = time.perf_counter() - started
        limit = self._limit(proposal, seconds - spent)
        if limit <= 0:
            return _left_out(
                replace(candidate, seconds=spent), "the work before its first epoch took all the time there was"
            )
        training = replace(training, settings=replace(settings, learning_rate=rate))
        with self._progress.task(f"{proposal.name}: {outlook.epochs} epochs", outlook.epochs) as advance:
            trained = train(
                training,
                data.validation,
                self._val.labels,
                checkpoints=self._run.checkpoints(proposal.key),
                seconds=limit,
                on_start=advance,
                on_epoch=lambda epoch: advance(epoch.epoch),
            )
        if proposal.head_only:
            self._start_from(job.head, proposal, trained)
        classifier, logits, which = self._classifier(proposal, job, trained, data)
        smaller = f"batches of {batch_size}, because memory ran out" if batch_size < job.batch_size else ""
        probabilities = softmax(logits / classifier.temperature, axis=-1).mean(axis=0)
        return replace(
            candidate,
            classifier=classifier,
            metrics=measure(
                probabilities, self._val.labels, self._measurement.dataset.class_names, groups=self._val.groups()
            ),
            probabilities=probabilities,
            correct=probabilities.argmax(axis=1) == self._val.labels,
            seconds=spent + trained.seconds,
            epochs=len(trained.history),
            learning_rate=rate,
            backbone_learning_rate=rate * job.ratio,
            steps=len(trained.history) * steps_in_epoch(len(self._train), batch_size),
            notes=tuple(filter(None, (which, found, *self._remarks(proposal, job), smaller, *trained.notes))),
            history=trained.history,
            findings=(*job.findings, *_findings(trained.history, settings)),
        )

    def _classifier(
        self, proposal: Proposal, job: _Job, trained: Trained, data: TrainingData
    ) -> tuple[Classifier, np.ndarray, str]:
        """Return the weights, their logits on the validation images, shape (members, n, classes), and the epoch in words."""
        labels = self._val.labels
        epoch = f"epoch {trained.epoch}{_polyak(trained)}"
        logits = trained.logits[None]
        if proposal.head_only:
            head = replace(job.head, weights=tuple(trained.weights))
            temperature = fit_temperature(logits, labels)
            return Classifier((Tap(proposal.cut),), head, temperature, proposal.cut), logits, epoch
        tails: tuple[Weights, ...] = (trained.weights,)
        if len(trained.snapshots) > 1:
            members = _predictions(job.tail.model, trained.snapshots, data.validation)
            mean = softmax(members / fit_temperature(members, labels), axis=-1).mean(axis=0)
            if (mean.argmax(axis=1) == labels).mean() > trained.accuracy:
                tails, logits = tuple(trained.snapshots), members
                epoch = f"{len(tails)} snapshots averaged, each adding its tail to the cost of a request"
        temperature = fit_temperature(logits, labels)
        taps = (Tap(self._backbone.trunk.top.name),)
        return Classifier(taps, job.head, temperature, proposal.cut, tails), logits, epoch

    def _remarks(self, proposal: Proposal, job: _Job) -> list[str]:
        remarks = []
        spec = self._config.head_spec
        if not proposal.head_only and not _is_solvable_form(spec) and _is_solvable_form(job.head.spec):
            remarks.append("its head is linear, because no other was trained")
        if self._config.stochastic_depth and not proposal.head_only and not job.tail.residual_branches:
            remarks.append("it has no residual branch that stochastic depth could leave out")
        return remarks

    def _least_epochs(self, job: _Job, batch_size: int) -> int:
        if job.begins_solved and not self._config.epochs:
            return least_epochs(job.epochs, len(self._train), batch_size)
        return min(MIN_EPOCHS, job.epochs)

    def _solved_head(self) -> Head:
        """Solve the linear classifier on the top stage, where a tail's head stands; the cut that ships may be another."""
        backbone, train = self._backbone, self._train
        top = backbone.trunk.top
        columns = backbone.trunk.row_slices[top.index]
        with self._progress.task(f"{backbone.spec.name}: {len(train)} training images", len(train)) as advance:
            rows = backbone.store.collect(train.records, [CENTER], advance)[:, 0, columns]
        with self._progress.task("solving the head to start from", 0):
            l2 = self._measurement.l2(self._measurement.validation(backbone, top))
            weights = self._measurement.weighting.of(train.labels)
            probe = fit_probe(rows, train.labels, self._num_classes, l2, sample_weight=weights)
        spec = self._config.head_spec
        return Head.of(probe, HeadSpec(dropout=spec.dropout, dropconnect=spec.dropconnect, l1=spec.l1, l2=spec.l2))

    def _blank_head(self) -> Head:
        """Return an untrained head: a linear one starts at 0, hidden layers start at random."""
        channels = self._backbone.trunk.top.shape[2]
        mean, std = np.zeros(channels, np.float32), np.ones(channels, np.float32)
        spec = self._config.head_spec
        if spec.hidden:
            return Head(spec, mean, std, self._num_classes)
        weights = (np.zeros((channels, self._num_classes), np.float32), np.zeros(self._num_classes, np.float32))
        return Head(spec, mean, std, self._num_classes, weights)

    def _tail_above(self, proposal: Proposal) -> _Job:
        from transferapp.training.tail import build_tail

        config, cut = self._tuning, proposal.cut
        tail = build_tail(
            self._network,
            self._backbone.trunk.stages,
            self.data.stage(cut),
            self._start,
            from_scratch=config.scratch,
            stochastic_depth=config.stochastic_depth,
            seed=config.seed,
            pointwise=self._hardware.pointwise,
        )
        return _Job(
            tail=tail,
            head=self._start,
            epochs=config.epochs,
            max_views=self.data.max_views(cut),
            settings=self._settings,
            rate=config.head_learning_rate,
            ratio=config.ratio,
            sample=lambda: self.data.sample(cut),
            data=lambda views: self.data.full(cut, views),
            batch_size=config.batch_size,
            begins_solved=not config.scratch,
        )

    def _head_alone(self, proposal: Proposal) -> _Job:
        from transferapp.training.heads import check_signal, signal_findings
        from transferapp.training.tail import lone_head

        config, spec = self._config, self._config.head_spec
        if config.l2 == "auto" and spec.linear:
            stage = stage_named(self._backbone.trunk.stages, proposal.cut)
            spec = replace(spec, l2=self._measurement.l2(self._measurement.validation(self._backbone, stage)))
        features = self.data.head(proposal.cut, spec.pooling, self._baseline.views)
        head = Head(spec, features.mean, features.std, self._num_classes)
        tail = lone_head(head, features.shape, config.seed)
        return _Job(
            tail=tail,
            head=head,
            epochs=HEAD_EPOCHS,
            max_views=0,
            settings=lambda epochs, rate: replace(self._settings(epochs, rate), patience=_HEAD_PATIENCE),
            rate=config.new_head_learning_rate,
            ratio=0.0,
            sample=lambda: Sample(features.data.make_batches, 0.0),
            data=lambda _: features.data,
            batch_size=config.head_batch_size,
            begins_solved=False,
            findings=signal_findings(check_signal(tail.model, features.some)),
            idle=_HEAD_EPOCH,
        )

    def _start_from(self, head: Head, proposal: Proposal, trained: Trained) -> None:
        """Let tails start from a trained head, where no solved one of its form exists (LP-FT)."""
        if proposal.cut == self._backbone.trunk.top.name and not _is_solvable_form(head.spec):
            spec = replace(head.spec, l2=self._config.head_spec.l2)
            self._start = replace(head, spec=spec, weights=tuple(trained.weights))

    def _softened(self, make_batches: MakeBatches) -> MakeBatches:
        """Return batches with smoothed and mixed labels, where the settings ask for these."""
        from transferapp.training.batches import soft

        config = self._config
        if not self._settings(1, 1.0).soft_labels:
            return make_batches
        return soft(make_batches, self._num_classes, mixup=config.mixup, cutmix=config.cutmix, seed=config.seed)

    def _settings(self, epochs: int, rate: float) -> TrainingSettings:
        config, weights = self._config, self._measurement.weighting.weights
        return TrainingSettings(
            optimizer=config.optimizer,
            learning_rate=rate,
            schedule=config.schedule,
            epochs=epochs,
            cycles=min(config.cycles, epochs),
            average=config.average,
            weight_decay=config.decay,
            # Random weights stand still for epochs before they learn, and so do epochs of few steps.
            patience=epochs if config.scratch else max(PATIENCE, epochs // 3),
            to_beat=self._baseline.accuracy,
            class_weights=() if weights is None else tuple(weights.tolist()),
            label_smoothing=config.label_smoothing,
            mixup=config.mixup,
            cutmix=config.cutmix,
        )

    def _outlook(
        self, proposal: Proposal, job: _Job, multipliers: dict[str, float], seconds: float
    ) -> tuple[Affordable, int]:
        """Return the epochs and views that the time left allows, timed on a few steps, and the batch size."""

        def look() -> dict[str, int]:
            outlook = Affordable(job.epochs, min(job.epochs, job.max_views))
            batch_size = job.batch_size
            if seconds <= 0:
                outlook = Affordable(0, 0)
            elif np.isfinite(seconds):
                with self._progress.task(f"{proposal.name}: timing a training step", 0):
                    outlook, batch_size = self._timed(job, multipliers, seconds)
            return {**asdict(outlook), "batch_size": batch_size}

        decided = self._run.decide_by(f"{proposal.key}/plan", look)
        return Affordable(decided["epochs"], decided["views"]), decided["batch_size"]

    def _timed(self, job: _Job, multipliers: dict[str, float], seconds: float) -> tuple[Affordable, int]:
        from transferapp.training.session import in_precision, time_step

        config, started = self._config, time.perf_counter()
        sample = job.sample()
        model, multipliers = in_precision(job.tail.model, multipliers, self._hardware.dtype_policy)
        settings = job.settings(job.epochs, job.rate)
        step, batch_size = time_step(
            TrainingJob(model, self._softened(sample.make_batches), settings, multipliers, job.batch_size)
        )
        passes = 2 if config.average else 1  # raw and averaged weights are both evaluated
        cost = Cost(
            epoch=step * (len(self._train) + _FORWARD * passes * len(self._val)) + job.idle,
            view=sample.seconds_per_view * len(self._train),
            fixed=sample.seconds_per_view * len(self._val)
            + (step * batch_size * STEPS if config.learning_rate == "find" else 0.0),
        )
        left = _SPARE * seconds - (time.perf_counter() - started)
        # One candidate trained to its end is worth more than two that are not, so none leaves time for the next.
        return affordable(cost, left, job.epochs, job.max_views), batch_size

    def _limit(self, proposal: Proposal, seconds: float) -> float:
        """Return the seconds that the epochs may take: the time left and the share by which the budget may be overrun."""
        limit = seconds + OVERRUN * self._measurement.plan.budget
        decided = self._run.decide(f"{proposal.key}/limit", limit if math.isfinite(limit) else None)
        return math.inf if decided is None else float(decided)

    def _rate(self, proposal: Proposal, job: _Job, range_test: Callable[[], tuple[float, str]]) -> tuple[float, str]:
        """Return the head's learning rate and, where a range test found it, a note that says so."""
        if self._config.learning_rate != "find":
            return job.rate, ""
        rate, reason = self._run.decide_by(f"{proposal.key}/learning-rate", range_test)
        return float(rate), str(reason)

    def _range_test(self, proposal: Proposal, training: TrainingJob) -> tuple[float, str]:
        from transferapp.training.session import suggest_rate

        with self._progress.task(f"{proposal.name}: searching for a learning rate", 0):
            found = suggest_rate(training)
        rate = min(found.suggestion, MAX_FOUND_RATE)
        capped = f", and {rate:g} is the most that is used" if rate < found.suggestion else ""
        return rate, f"rate {rate:.2g} by a range test: {found.reason}{capped}"


def _left_out(candidate: Candidate, why: str) -> Candidate:
    return replace(candidate, notes=(f"left out: {why}",), no_time=True)


def _predictions(model: keras.Model, snapshots: Sequence[Weights], validation: Any) -> np.ndarray:
    """Return the logits of several sets of weights on the validation images: float32, shape (members, n, num_classes)."""
    logits = []
    for weights in snapshots:
        model.set_weights(weights)
        logits.append(np.asarray(model.predict(validation, verbose=0), np.float32))
    return np.stack(logits)


def _polyak(trained: Trained) -> str:
    """Return the gain of the Polyak average on the validation images at the epoch that was kept, as words."""
    epoch = trained.history[trained.epoch - 1]
    if epoch.averaged_val_accuracy is None:
        return ""
    gain = 100 * (epoch.averaged_val_accuracy - epoch.val_accuracy)
    return f", {'averaged' if trained.averaged else 'raw'} weights; averaging them gains {gain:+.1f} points"


def _is_solvable_form(spec: HeadSpec) -> bool:
    """Return whether a head has the form of the linear classifier."""
    return spec.linear and spec.pooling == "average"


def _findings(history: Sequence[Epoch], settings: TrainingSettings) -> tuple[Finding, ...]:
    mixes = bool(settings.mixup or settings.cutmix)
    curves = Curves(
        train_loss=tuple(epoch.loss for epoch in history),
        # An image mixed of two has no right class to count.
        train_accuracy=() if mixes else tuple(epoch.accuracy for epoch in history),
        val_loss=tuple(epoch.best[1] for epoch in history),
        val_accuracy=tuple(epoch.best[0] for epoch in history),
        learning_rate=tuple(epoch.learning_rate for epoch in history),
    )
    finite = all(math.isfinite(epoch.loss) and math.isfinite(epoch.best[1]) for epoch in history)
    unfair = (_UNFAIR if settings.soft_labels else frozenset()) | (
        _UNFAIR_WHEN_MIXED if mixes and finite else frozenset()
    )
    return tuple(finding for finding in diagnose(curves) if finding.code not in unfair)
