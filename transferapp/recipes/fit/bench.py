"""Where contenders are tried: each is trained from the same start as far as the time goes, or left out with a reason.

What is decided on the way, epochs, views, batch, learning rate, is decided once and written down, so that an interrupted run
goes on exactly as it would have.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from transferapp.backbones.stages import stage_named
from transferapp.config import FitConfig
from transferapp.errors import ResourceError, TrainingError, TransferAppError
from transferapp.policy.budget import OVERRUN, Affordable, Cost, affordable, least_epochs, steps_in_epoch
from transferapp.policy.cuts import MIN_EPOCHS, Proposal
from transferapp.policy.plan import HEAD_EPOCHS
from transferapp.recipes.fit.feeds import NO_ROOM, Feed, Feeds, Sample
from transferapp.recipes.fit.measure import Measurement, Workshop
from transferapp.recipes.fit.resume import RunFolder
from transferapp.recipes.fit.solve import Solved
from transferapp.recipes.fit.starts import blank_head, random_weights, solved_head
from transferapp.system.hardware import detect
from transferapp.system.progress import Progress
from transferapp.training.curves import Curves, Finding, diagnose
from transferapp.training.head_spec import Head, HeadSpec
from transferapp.training.learning_rate_finder import STEPS
from transferapp.training.settings import OUT_OF_MEMORY, PATIENCE, Epoch, MakeBatches, TrainingSettings

if TYPE_CHECKING:
    import keras

    from transferapp.training.loop import Trained
    from transferapp.training.tail import Tail

MAX_FOUND_RATE = 1e-2
"""What a range test finds is never trusted above this: a solved classifier bears more for sixty steps than for a whole run."""

_SPARE = 0.9
"""Share of the time left that epochs are planned into: the rest is for the machine's moods."""

_FORWARD = 1 / 3
"""What an image costs in validation, as a share of its training step."""

_HEAD_PATIENCE = 10
"""Epochs without a better one after which a head stops training: its epochs are short, and begin at random."""

_HEAD_EPOCH = 0.2
"""Seconds that an epoch of a head takes beside its steps, in which there is little to compute."""

_UNFAIR = frozenset({"under_fitting"})
"""Findings that mean nothing where labels are probabilities: they keep the training loss up, however good the network."""

_UNFAIR_WHEN_MIXED = frozenset({"rate_too_high"})
"""Nor does a loss that bounces where images are mixed: each batch is as hard as the share that it drew."""


@dataclass(frozen=True)
class Contender:
    """What was compared.

    Attributes:
        name: For people.
        cut: The last frozen stage, or `input`.
        head_only: Whether it is a head alone, on frozen features.
        accuracy, loss: On the validation images; None where it was not trained.
        seconds: What it took, its activations included.
        planned_epochs, epochs: How many there was time for, and how many were trained.
        learning_rate, backbone_learning_rate: The highest of the run.
        reason: Why it won, lost, or was left out.
        chosen: Whether it ships.
        history: Every epoch.
        findings: What its curves say.
    """

    name: str
    cut: str
    accuracy: float | None = None
    loss: float | None = None
    seconds: float = 0.0
    planned_epochs: int = 0
    epochs: int = 0
    learning_rate: float = 0.0
    backbone_learning_rate: float = 0.0
    reason: str = ""
    chosen: bool = False
    history: tuple[Epoch, ...] = ()
    findings: tuple[Finding, ...] = ()
    head_only: bool = False

    @classmethod
    def of(cls, proposal: Proposal) -> Contender:
        """One of which nothing is known yet."""
        return cls(proposal.name, proposal.cut, head_only=proposal.head_only)

    def because(self, *reasons: str) -> Contender:
        """The same with these reasons before its own; empty ones do not count."""
        return replace(self, reason="; ".join(filter(None, (*reasons, self.reason))))


@dataclass(frozen=True)
class Entry:
    """A contender that was trained, or could not be.

    Attributes:
        contender: Its figures.
        trained: Its weights.
        views: Cached views of each image that it was trained on.
        error: Why it could not be trained.
        no_time: Whether it was left out for want of time.
        head: What its head began as.
    """

    contender: Contender
    trained: Trained | None = None
    views: int = 0
    error: TransferAppError | None = None
    no_time: bool = False
    head: Head | None = None


@dataclass(frozen=True, eq=False)
class _Subject:
    """What a proposal trains, and on what.

    Attributes:
        tail: The model.
        head: What its head began as.
        epochs: To be trained, if there is time.
        max_views: Of each image, cached as far as time goes; 0 where nothing remains to be cached.
        settings: From epochs and rate to how it trains.
        rate: Of the new layers, unless one is to be found.
        ratio: The backbone's rate over that; 0 where nothing of it trains.
        sample: A little to time a training step on.
        feed: From a number of views to everything.
        findings: What is to be said before it trains.
        batch_size: Images in a step, if there is memory.
        begins_solved: Whether it starts from the solved classifier, below which half a training would end.
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
    feed: Callable[[int], Feed]
    batch_size: int
    begins_solved: bool
    findings: tuple[Finding, ...] = ()
    idle: float = 0.0


class Bench:
    """What all contenders share: images, backbone, head to start from, and pristine weights.

    Args:
        measurement: Data and backbone.
        solved: The classifier that everything starts from; a head is trained on as many views as it was.
        config: How to train.
        shop: Has the backbone.
        run: Keeps what is decided and trained.
        progress: Who is told.

    Attributes:
        head: What every tail's head stands on the top stage as: the solved classifier, or, once it is trained, a head that
            cannot be solved for.
        feeds: The data.
    """

    def __init__(
        self,
        measurement: Measurement,
        solved: Solved,
        config: FitConfig,
        shop: Workshop,
        run: RunFolder,
        progress: Progress,
    ) -> None:
        self._chosen = measurement.chosen
        self._train, self._val = measurement.dataset.part("train"), measurement.dataset.part("val")
        self._num_classes, self._weighting = len(measurement.dataset.class_names), measurement.weighting
        self._config, self._run, self._progress = config, run, progress
        self._tuning = config.tuning(len(self._train))
        self._views = solved.views
        self._hardware = detect(config.training_precision)
        self._backbone: keras.Model = shop.model(self._chosen.spec)
        if config.scratch:
            self._pristine = random_weights(self._backbone, config.seed)
            self.head = blank_head(self._chosen, self._num_classes, config)
        else:
            self._pristine = self._backbone.get_weights()
            self.head = solved_head(self._chosen, self._train, self._weighting, config, progress)
        self.feeds = Feeds(self._chosen, measurement.dataset, self._tuning, self._backbone, run, progress)

    @property
    def fewest_epochs(self) -> int:
        """Passes over the images fewer than which no part of the backbone is tuned for."""
        return min(MIN_EPOCHS, self._tuning.epochs)

    def attempt(self, proposal: Proposal, seconds: float) -> Entry:
        """Train one proposal, or say why not."""
        contender = Contender.of(proposal)
        try:
            return self._attempt(contender, proposal, seconds)
        except (TrainingError, ResourceError) as error:
            if isinstance(error, ResourceError) and error.code == NO_ROOM:
                return Entry(contender.because(f"left out: {error}"))
            if isinstance(error, ResourceError) and error.code != OUT_OF_MEMORY:
                raise
            return Entry(contender.because(f"failed: {error}"), error=error)

    def _attempt(self, contender: Contender, proposal: Proposal, seconds: float) -> Entry:
        from transferapp.training.loop import train
        from transferapp.training.mixed_precision import in_precision

        started = time.perf_counter()
        plan = f"{proposal.key}/plan"
        if seconds <= 0:
            self._run.decide(plan, {"epochs": 0, "views": 0, "batch_size": self._tuning.batch_size})
        if self._run.decided(plan) and not self._run.decide(plan, None)["epochs"]:
            return Entry(contender.because(_too_little_time(0)), no_time=True)
        subject = self._head_alone(proposal) if proposal.head_only else self._tail_above(proposal)
        multipliers = subject.tail.multipliers(subject.ratio, self._config.layer_decay)
        outlook, batch_size = self._outlook(proposal, subject, multipliers, seconds - (time.perf_counter() - started))
        contender = replace(contender, planned_epochs=outlook.epochs, seconds=time.perf_counter() - started)
        least = min(MIN_EPOCHS, subject.epochs)
        if subject.begins_solved and not self._config.epochs:
            least = least_epochs(subject.epochs, len(self._train), batch_size)
        if outlook.epochs < least:
            steps = steps_in_epoch(len(self._train), batch_size)
            reason = _too_little_time(outlook.epochs, least, steps)
            return Entry(contender.because(reason), no_time=True)
        feed = subject.feed(outlook.views)
        model, multipliers = in_precision(subject.tail.model, multipliers, self._hardware.dtype_policy)
        make_batches = self._softened(feed.make_batches)
        rate, found = self._rate(proposal, subject, model, make_batches, multipliers, batch_size)
        contender = replace(contender, learning_rate=rate, backbone_learning_rate=rate * subject.ratio)
        spent = time.perf_counter() - started
        limit = self._limit(proposal, seconds - spent)
        if limit <= 0:
            reason = "left out: what comes before its first epoch took all the time there was"
            return Entry(replace(contender, seconds=spent).because(reason), no_time=True)
        settings = subject.settings(outlook.epochs, rate)
        with self._progress.task(f"{proposal.name}: {outlook.epochs} epochs", outlook.epochs) as advance:
            trained = train(
                model,
                make_batches,
                feed.validation,
                self._val.labels,
                settings,
                batch_size=batch_size,
                multipliers=multipliers,
                checkpoints=self._run.checkpoints(proposal.key),
                seconds=limit,
                on_start=advance,
                on_epoch=lambda epoch: advance(epoch.epoch),
            )
        if proposal.head_only:
            self._start_from(subject.head, proposal, trained)
        contender = replace(
            contender,
            accuracy=trained.accuracy,
            loss=trained.loss,
            seconds=spent + trained.seconds,
            epochs=len(trained.history),
            history=trained.history,
            findings=(*subject.findings, *_findings(trained.history, settings)),
        )
        flat = self._config.stochastic_depth and not proposal.head_only and not subject.tail.residual_branches
        shallow = "no residual branch that stochastic depth could leave out" if flat else ""
        spec = self._config.head_spec
        other = not proposal.head_only and not _is_solvable_form(spec) and _is_solvable_form(subject.head.spec)
        plain = "its head is linear, for no other was trained" if other else ""
        smaller = f"batches of {batch_size}, for want of memory" if batch_size < subject.batch_size else ""
        return Entry(
            contender.because(found, plain, smaller, shallow, *trained.notes),
            trained,
            outlook.views,
            head=subject.head,
        )

    def _tail_above(self, proposal: Proposal) -> _Subject:
        config, cut = self._tuning, proposal.cut
        return _Subject(
            tail=self.tail(cut, self.head),
            head=self.head,
            epochs=config.epochs,
            max_views=self.feeds.max_views(cut),
            settings=self._settings,
            rate=config.head_learning_rate,
            ratio=config.ratio,
            sample=lambda: self.feeds.sample(cut),
            feed=lambda views: self.feeds.full(cut, views),
            batch_size=config.batch_size,
            begins_solved=not config.scratch,
        )

    def _head_alone(self, proposal: Proposal) -> _Subject:
        """A new head on the features of a stage, with what can be said of it before it is trained."""
        from transferapp.training.activation_statistics import check_signal, signal_findings
        from transferapp.training.tail import lone_head

        config, spec = self._config, self._config.head_spec
        if config.l2 == "auto" and spec.linear:
            stage = stage_named(self._chosen.trunk.stages, proposal.cut)
            spec = replace(spec, l2=self._chosen.validations[stage.index].l2)
        features = self.feeds.head(proposal.cut, spec.pooling, self._views)
        head = Head(spec, features.mean, features.std, self._num_classes)
        tail = lone_head(head, features.shape, config.seed)
        return _Subject(
            tail=tail,
            head=head,
            epochs=HEAD_EPOCHS,
            max_views=0,
            settings=lambda epochs, rate: replace(self._settings(epochs, rate), patience=_HEAD_PATIENCE),
            rate=config.new_head_learning_rate,
            ratio=0.0,
            sample=lambda: Sample(features.feed.make_batches, 0.0),
            feed=lambda _: features.feed,
            batch_size=config.head_batch_size,
            begins_solved=False,
            findings=signal_findings(check_signal(tail.model, features.some)),
            idle=_HEAD_EPOCH,
        )

    def _start_from(self, head: Head, proposal: Proposal, trained: Trained) -> None:
        """Let tails begin with a head that has been trained, where there is no solved one of its form (LP-FT)."""
        if proposal.cut == self._chosen.trunk.top.name and not _is_solvable_form(head.spec):
            spec = replace(head.spec, l2=self._config.head_spec.l2)
            self.head = replace(head, spec=spec, weights=tuple(trained.weights))

    def _softened(self, make_batches: MakeBatches) -> MakeBatches:
        """With labels as probabilities, and mixed, where the settings say so."""
        from transferapp.training.mixing import soft

        config = self._config
        if not self._settings(1, 1.0).soft_labels:
            return make_batches
        return soft(make_batches, self._num_classes, mixup=config.mixup, cutmix=config.cutmix, seed=config.seed)

    def _settings(self, epochs: int, rate: float) -> TrainingSettings:
        config = self._config
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
            class_weights=() if self._weighting.weights is None else tuple(self._weighting.weights.tolist()),
            label_smoothing=config.label_smoothing,
            mixup=config.mixup,
            cutmix=config.cutmix,
        )

    def _outlook(
        self, proposal: Proposal, subject: _Subject, multipliers: dict[str, float], seconds: float
    ) -> tuple[Affordable, int]:
        """Epochs and views that the time left allows, timed on a few steps, and the batch size: decided once a run."""

        def look() -> dict[str, int]:
            outlook = Affordable(subject.epochs, min(subject.epochs, subject.max_views))
            batch_size = subject.batch_size
            if seconds <= 0:
                outlook = Affordable(0, 0)
            elif np.isfinite(seconds):
                with self._progress.task(f"{proposal.name}: timing a training step", 0):
                    outlook, batch_size = self._timed(subject, multipliers, seconds)
            return {**asdict(outlook), "batch_size": batch_size}

        decided = self._run.decide_by(f"{proposal.key}/plan", look)
        return Affordable(decided["epochs"], decided["views"]), decided["batch_size"]

    def _timed(self, subject: _Subject, multipliers: dict[str, float], seconds: float) -> tuple[Affordable, int]:
        from transferapp.training.mixed_precision import in_precision
        from transferapp.training.session import time_step

        config, started = self._config, time.perf_counter()
        sample = subject.sample()
        model, multipliers = in_precision(subject.tail.model, multipliers, self._hardware.dtype_policy)
        step, batch_size = time_step(
            model,
            self._softened(sample.make_batches),
            subject.settings(subject.epochs, subject.rate),
            multipliers=multipliers,
            batch_size=subject.batch_size,
        )
        passes = 2 if config.average else 1  # raw and averaged weights are both judged
        cost = Cost(
            epoch=step * (len(self._train) + _FORWARD * passes * len(self._val)) + subject.idle,
            view=sample.seconds_per_view * len(self._train),
            fixed=sample.seconds_per_view * len(self._val)
            + (step * batch_size * STEPS if config.learning_rate == "find" else 0.0),
        )
        left = _SPARE * seconds - (time.perf_counter() - started)
        # One contender that is trained to its end is worth more than two that are not, so none leaves time for the next.
        return affordable(cost, left, subject.epochs, subject.max_views), batch_size

    def _limit(self, proposal: Proposal, seconds: float) -> float:
        """What the epochs may take at most, of the time left and of what the budget may be overrun by: decided once a run."""
        limit = seconds + OVERRUN * self._config.budget_seconds
        decided = self._run.decide(f"{proposal.key}/limit", limit if math.isfinite(limit) else None)
        return math.inf if decided is None else float(decided)

    def _rate(
        self,
        proposal: Proposal,
        subject: _Subject,
        model: keras.Model,
        make_batches: MakeBatches,
        multipliers: dict[str, float],
        batch_size: int,
    ) -> tuple[float, str]:
        """The head's learning rate, and how it was found, where it was: decided once a run."""
        if self._config.learning_rate != "find":
            return subject.rate, ""

        def find() -> tuple[float, str]:
            from transferapp.training.session import suggest_rate

            with self._progress.task(f"{proposal.name}: looking for a learning rate", 0):
                found = suggest_rate(
                    model,
                    make_batches,
                    subject.settings(subject.epochs, subject.rate),
                    multipliers=multipliers,
                    batch_size=batch_size,
                )
            rate = min(found.suggestion, MAX_FOUND_RATE)
            capped = f", and {rate:g} is the most that is used" if rate < found.suggestion else ""
            return rate, f"rate {rate:.2g} by a range test: {found.reason}{capped}"

        rate, reason = self._run.decide_by(f"{proposal.key}/learning-rate", find)
        return float(rate), str(reason)

    def tail(self, cut: str, head: Head) -> Tail:
        """The trainable model above a cut, with the weights that every contender starts from, and a head."""
        from transferapp.training.tail import build_tail

        self.pristine()
        return build_tail(
            self._backbone,
            self._chosen.trunk.stages,
            self.feeds.stage(cut),
            head,
            from_scratch=self._config.scratch,
            stochastic_depth=self._config.stochastic_depth,
            seed=self._config.seed,
            pointwise=self._hardware.pointwise,
        )

    def pristine(self) -> None:
        """Give the backbone back what training has changed."""
        self._backbone.set_weights(self._pristine)


def _is_solvable_form(spec: HeadSpec) -> bool:
    """Whether a head is of the form that the solved classifier has."""
    return spec.linear and spec.pooling == "average"


def _too_little_time(epochs: int, least: int = 0, steps: int = 0) -> str:
    if not epochs:
        return "left out: there was no time"
    there_was = f"there was time for {epochs} epoch{'' if epochs == 1 else 's'} of {steps} steps"
    return f"left out: {there_was}, and fewer than {least} are not worth it"


def _findings(history: Sequence[Epoch], settings: TrainingSettings) -> tuple[Finding, ...]:
    """What the curves say, as far as they can be read."""
    mixes = bool(settings.mixup or settings.cutmix)
    curves = Curves(
        train_loss=tuple(epoch.loss for epoch in history),
        # Of images that are two in one there is no right class to count.
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
