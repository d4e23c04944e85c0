"""Where contenders are tried: each is trained from the same start as far as the time goes, or left out with a reason.

What is decided on the way, epochs, views, batch, learning rate, is decided once and written down, so that an interrupted run
goes on exactly as it would have.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from transferapp.accelerators import detect, distributed
from transferapp.config import FitConfig
from transferapp.errors import ResourceError, TrainingError, TransferAppError
from transferapp.features import CENTER
from transferapp.feeds import NO_ROOM, Feeds
from transferapp.measurement import Measurement, Workshop
from transferapp.policy.budget import Cost, Outlook, affordable
from transferapp.policy.proposals import MIN_EPOCHS, Proposal
from transferapp.probe import LinearProbe, fit_probe
from transferapp.progress import Progress
from transferapp.run import RunFolder
from transferapp.training.diagnosis import Curves, Finding, diagnose
from transferapp.training.finder import STEPS
from transferapp.training.settings import OUT_OF_MEMORY, PATIENCE, Epoch, TrainingSettings, Weights

if TYPE_CHECKING:
    import keras

    from transferapp.training.loop import Trained
    from transferapp.training.parallel import Prepared
    from transferapp.training.tail import Tail

MAX_FOUND_RATE = 1e-2
"""What a range test finds is never trusted above this: a solved classifier bears more for sixty steps than for a whole run."""

_SPARE = 0.9
"""Share of the time left that epochs are planned into: the rest is for the machine's moods."""

_FORWARD = 1 / 3
"""What a picture costs in validation, as a share of its training step."""


@dataclass(frozen=True)
class Contender:
    """What was compared.

    Attributes:
        name: For people.
        cut: The last frozen stage, or `input`.
        accuracy, loss: On the validation pictures; None where it was not trained.
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

    def because(self, *reasons: str) -> Contender:
        """The same with these reasons before its own; empty ones do not count."""
        return replace(self, reason="; ".join(filter(None, (*reasons, self.reason))))


@dataclass(frozen=True)
class Entry:
    """A contender that was trained, or could not be."""

    contender: Contender
    trained: Trained | None = None
    views: int = 0
    error: TransferAppError | None = None


class Bench:
    """What all contenders share: pictures, backbone, head to start from, and pristine weights.

    Args:
        measurement: Data and backbone.
        config: How to train.
        shop: Has the backbone.
        run: Keeps what is decided and trained.
        progress: Who is told.

    Attributes:
        head: What every tail's head stands on the top stage as.
        feeds: The data.
    """

    def __init__(
        self, measurement: Measurement, config: FitConfig, shop: Workshop, run: RunFolder, progress: Progress
    ) -> None:
        self._chosen = measurement.chosen
        self._train, self._val = measurement.dataset.part("train"), measurement.dataset.part("val")
        self._class_names, self._weighting = measurement.dataset.class_names, measurement.weighting
        self._config, self._run, self._progress = config, run, progress
        self._hardware = detect()
        self._backbone: keras.Model = shop.model(self._chosen.spec)
        self._pristine = self._random_weights() if config.scratch else self._backbone.get_weights()
        self.head = self._blank_head() if config.scratch else self._top_probe()
        self._ratio = 1.0 if config.scratch else config.backbone_ratio
        self.feeds = Feeds(self._chosen, measurement.dataset, config, self._backbone, run, progress)

    def attempt(self, proposal: Proposal, seconds: float) -> Entry:
        """Train one proposal, or say why not."""
        contender = Contender(proposal.name, proposal.cut)
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
        from transferapp.training.parallel import prepare

        started = time.perf_counter()
        tail = self.tail(proposal.cut)
        multipliers = tail.multipliers(self._ratio, self._config.layer_decay)
        outlook, batch_size = self._outlook(proposal, tail, multipliers, seconds)
        contender = replace(contender, planned_epochs=outlook.epochs, seconds=time.perf_counter() - started)
        if outlook.epochs < min(MIN_EPOCHS, self._config.epochs):
            return Entry(contender.because(_too_little_time(outlook.epochs)))
        feed = self.feeds.full(proposal.cut, outlook.views)
        with distributed(self._hardware):
            ready = prepare(tail.model, feed.make_batches, multipliers, self._hardware, feed.validation)
            rate, found = self._rate(proposal, ready, batch_size)
            contender = replace(contender, learning_rate=rate, backbone_learning_rate=rate * self._ratio)
            spent = time.perf_counter() - started
            with self._progress.task(f"{proposal.name}: {outlook.epochs} epochs", outlook.epochs) as advance:
                trained = train(
                    ready.model,
                    ready.make_batches,
                    ready.validation,
                    self._val.labels,
                    self._settings(outlook.epochs, rate),
                    batch_size=batch_size,
                    multipliers=ready.multipliers,
                    checkpoints=self._run.checkpoints(proposal.cut),
                    on_epoch=lambda epoch: advance(epoch.epoch),
                )
                advance(outlook.epochs)
        contender = replace(
            contender,
            accuracy=trained.accuracy,
            loss=trained.loss,
            seconds=spent + trained.seconds,
            epochs=len(trained.history),
            history=trained.history,
            findings=diagnose(_curves(trained.history)),
        )
        smaller = f"batches of {batch_size}, for want of memory" if batch_size < self._config.batch_size else ""
        return Entry(contender.because(found, smaller, *trained.notes), trained, outlook.views)

    def _settings(self, epochs: int, rate: float) -> TrainingSettings:
        config = self._config
        return TrainingSettings(
            optimizer=config.optimizer,
            learning_rate=rate,
            schedule=config.schedule,
            epochs=epochs,
            cycles=min(config.cycles, epochs),
            average=config.average,
            weight_decay=config.weight_decay,
            # Random weights stand still for epochs before they learn, and so do epochs of few steps.
            patience=epochs if config.scratch else max(PATIENCE, epochs // 3),
            class_weights=() if self._weighting.weights is None else tuple(self._weighting.weights.tolist()),
        )

    def _outlook(
        self, proposal: Proposal, tail: Tail, multipliers: dict[str, float], seconds: float
    ) -> tuple[Outlook, int]:
        """Epochs and views that the time left allows, timed on a few steps, and the batch size: decided once a run."""
        config, name = self._config, f"{proposal.cut}/plan"
        if not self._run.decided(name):
            views = min(config.epochs, self.feeds.max_views(proposal.cut))
            outlook, batch_size = Outlook(config.epochs, views), config.batch_size
            if seconds <= 0:
                outlook = Outlook(0, 0)
            elif np.isfinite(seconds):
                with self._progress.task(f"{proposal.name}: timing a training step", 0):
                    outlook, batch_size = self._timed(proposal, tail, multipliers, seconds)
            self._run.decide(name, {**asdict(outlook), "batch_size": batch_size})
        decided = self._run.decide(name, None)
        return Outlook(decided["epochs"], decided["views"]), decided["batch_size"]

    def _timed(
        self, proposal: Proposal, tail: Tail, multipliers: dict[str, float], seconds: float
    ) -> tuple[Outlook, int]:
        from transferapp.training.parallel import prepare
        from transferapp.training.session import time_step

        config, started = self._config, time.perf_counter()
        sample = self.feeds.sample(proposal.cut)
        with distributed(self._hardware):
            ready = prepare(tail.model, sample.make_batches, multipliers, self._hardware)
            step, batch_size = time_step(
                ready.model,
                ready.make_batches,
                self._settings(config.epochs, config.head_learning_rate),
                multipliers=ready.multipliers,
                batch_size=config.batch_size,
            )
        passes = 2 if config.average else 1  # raw and averaged weights are both judged
        cost = Cost(
            epoch=step * (len(self._train) + _FORWARD * passes * len(self._val)),
            view=sample.seconds_per_view * len(self._train),
            fixed=sample.seconds_per_view * len(self._val)
            + (step * batch_size * STEPS if config.learning_rate == "find" else 0.0),
        )
        left = _SPARE * seconds - (time.perf_counter() - started)
        # One contender that is trained to its end is worth more than two that are not, so none leaves time for the next.
        return affordable(cost, left, config.epochs, self.feeds.max_views(proposal.cut)), batch_size

    def _rate(self, proposal: Proposal, ready: Prepared, batch_size: int) -> tuple[float, str]:
        """The head's learning rate, and how it was found, where it was: decided once a run."""
        config, name = self._config, f"{proposal.cut}/learning-rate"
        if config.learning_rate != "find":
            return config.head_learning_rate, ""
        if not self._run.decided(name):
            from transferapp.training.session import suggest_rate

            with self._progress.task(f"{proposal.name}: looking for a learning rate", 0):
                found = suggest_rate(
                    ready.model,
                    ready.make_batches,
                    self._settings(config.epochs, config.head_learning_rate),
                    multipliers=ready.multipliers,
                    batch_size=batch_size,
                )
            rate = min(found.suggestion, MAX_FOUND_RATE)
            capped = f", and {rate:g} is the most that is used" if rate < found.suggestion else ""
            self._run.decide(name, [rate, f"rate {rate:.2g} by a range test: {found.reason}{capped}"])
        rate, reason = self._run.decide(name, None)
        return float(rate), str(reason)

    def tail(self, cut: str) -> Tail:
        """The trainable model above a cut, with the weights and the head that every contender starts from."""
        from transferapp.training.tail import build_tail

        self.pristine()
        return build_tail(
            self._backbone,
            self._chosen.trunk.stages,
            self.feeds.stage(cut),
            self.head,
            from_scratch=self._config.scratch,
        )

    def pristine(self) -> None:
        """Give the backbone back what training has changed."""
        self._backbone.set_weights(self._pristine)

    def _random_weights(self) -> Weights:
        """What pretraining is to be compared with: the same network with new random weights."""
        import keras

        keras.utils.set_random_seed(self._config.seed)
        weights: Weights = keras.models.clone_model(self._backbone).get_weights()
        return weights

    def _blank_head(self) -> LinearProbe:
        """A head that knows nothing."""
        channels, classes = self._chosen.trunk.top.shape[2], len(self._class_names)
        blank = np.zeros(channels, np.float32)
        kernel, bias = np.zeros((channels, classes), np.float32), np.zeros(classes, np.float32)
        return LinearProbe(blank, blank + 1, kernel, bias, l2=0.0, iterations=0)

    def _top_probe(self) -> LinearProbe:
        """The probe on the top stage: where a tail's head stands, wherever the probe that would ship is cut."""
        top = self._chosen.trunk.top
        columns = self._chosen.trunk.row_slices[top.index]
        with self._progress.task("solving the head to start from", 0):
            rows = self._chosen.store.collect(self._train.records, [CENTER])[:, 0, columns]
            l2 = self._chosen.validations[top.index].l2
            labels = self._train.labels
            return fit_probe(rows, labels, len(self._class_names), l2, sample_weight=self._weighting.of(labels))


def _too_little_time(epochs: int) -> str:
    there_was = f"there was time for {epochs} epoch{'' if epochs == 1 else 's'}" if epochs else "there was no time"
    return f"left out: {there_was}, and fewer than {MIN_EPOCHS} are not worth it"


def _curves(history: Sequence[Epoch]) -> Curves:
    return Curves(
        train_loss=tuple(epoch.loss for epoch in history),
        train_accuracy=tuple(epoch.accuracy for epoch in history),
        val_loss=tuple(epoch.best[1] for epoch in history),
        val_accuracy=tuple(epoch.best[0] for epoch in history),
        learning_rate=tuple(epoch.learning_rate for epoch in history),
    )
