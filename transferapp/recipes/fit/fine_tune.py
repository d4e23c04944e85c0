"""The bake-off: fine-tune what the plan proposes, within a time budget, and let the validation images choose what ships.

Every contender starts from the pretrained weights of its backbone and the probe that is solved on them. Cut at a stage, it
trains on activations that the trunk computed once; cut at the input, on fresh views of the images. Where there is no time for
any of them, the next cheaper backbone is tuned: a small network that is tuned may well beat a large one that is not
(docs/decisions/0016-no-time.md).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from scipy.special import softmax

from transferapp.config import FitConfig
from transferapp.errors import TrainingError
from transferapp.evaluation.metrics import Metrics, fit_temperature, measure
from transferapp.policy.cuts import Proposal
from transferapp.recipes.fit.bench import Bench, Contender, Entry
from transferapp.recipes.fit.measure import Measurement, Workshop
from transferapp.recipes.fit.resume import RunFolder
from transferapp.recipes.fit.solve import Solved
from transferapp.system.progress import Progress
from transferapp.training.head_spec import Head
from transferapp.training.settings import Weights, merit

if TYPE_CHECKING:
    from transferapp.training.loop import Trained
    from transferapp.training.tail import Tail

_SOLVED = "solved classifier"
"""The name of the contender that is not tuned."""

_Named = TypeVar("_Named", Contender, Proposal)


@dataclass(frozen=True)
class BakeOff:
    """Outcome of `bake_off`.

    Attributes:
        contenders: The probe first, then what was tuned or left out.
        winner: What ships.
        measurement: With the backbone that it stands on.
        head: The winner's head; None where the probe ships. The backbone then holds the winner's weights.
        stage: Where that head stands.
        members: Weights of several tails whose probabilities are averaged, a snapshot ensemble; empty for one tail.
        temperature: Calibrated on the validation images; None where the probe ships.
        validation: The winner's figures.
    """

    contenders: tuple[Contender, ...]
    winner: Contender
    measurement: Measurement
    head: Head | None = None
    stage: str = ""
    members: tuple[Weights, ...] = ()
    temperature: float | None = None
    validation: Metrics | None = None


def bake_off(
    measurement: Measurement,
    solved: Solved,
    config: FitConfig,
    shop: Workshop,
    run: RunFolder,
    progress: Progress,
) -> BakeOff:
    """Train each proposal of the plan as far as the time allows, and choose by accuracy on the validation images.

    Where time allows none, those of the plan for the next cheaper backbone; but not from scratch, for that asks what the
    pretraining of one backbone is worth.

    Args:
        measurement: Data, backbone and plan.
        solved: The probe, which ships if nothing does better.
        config: How to train, and for how long.
        shop: Has the backbone.
        run: Keeps what is decided and trained.
        progress: Who is told.

    Returns:
        All that was compared, and the winner.

    Raises:
        TrainingError: Nothing could be trained, for the loss was no number from the start; or, with `rule_only` or
            `scratch`, for whatever reason.
        ResourceError: Nothing could be trained for want of memory; or the disk is full.
    """
    deadline = time.monotonic() + config.budget_seconds
    figures = solved.validation
    assert figures is not None, "a bake-off needs validation images"
    probe = Contender(_SOLVED, measurement.chosen.cut.name, figures.accuracy, figures.loss)
    bench = Bench(measurement, solved, config, shop, run, progress)
    entries, deadline = _tried(bench, measurement.plan.proposals, deadline)
    here = measurement
    for candidate in () if config.scratch else measurement.cheaper:
        large, small = here.chosen.spec.name, candidate.spec.name
        # As it was decided the first time: a run that goes on has more time than it had.
        if not (all(e.no_time for e in entries) and run.decide(f"{small}/tried", time.monotonic() < deadline)):
            break
        if here is measurement:  # there are two backbones from here on, so each contender says which is its own
            probe, *others = (_named_after(large, c) for c in (probe, *(e.contender for e in entries)))
            entries = [replace(entry, contender=other) for entry, other in zip(entries, others, strict=True)]
        progress.note(f"There is too little time to tune {large}, so {small} is tried")
        here = here.passing_over(candidate)
        bench = Bench(here, solved, config, shop, run.within(small), progress)
        proposals = [_named_after(small, proposal) for proposal in here.plan.proposals]
        more, deadline = _tried(bench, proposals, deadline)
        entries += more
    finished = [entry for entry in entries if entry.trained is not None]
    insist = config.rule_only or config.scratch
    if not finished:
        failed = [entry.error for entry in entries if entry.error]
        if failed and (insist or here is measurement):
            raise failed[0]
        for_want_of_time = all(entry.no_time for entry in entries)
        if insist:
            ways = [
                "give it more time with --budget" if for_want_of_time else "",
                "leave out --rule-only to ship the solved classifier"
                if config.rule_only and not config.scratch
                else "",
            ]
            hint = ", or ".join(filter(None, ways))
            raise TrainingError(
                f"What {'--scratch asks for' if config.scratch else 'the rule proposes'} could not be trained: "
                + "; ".join(f"{e.contender.name} ({e.contender.reason})" for e in entries),
                hint=hint[:1].upper() + hint[1:] or None,
            )
        why = " in the time there was" if for_want_of_time else ""
        return _keep(bench, probe, entries, measurement, f"nothing else could be trained{why}")
    best = max(finished, key=lambda entry: merit(entry.contender.accuracy or 0.0, entry.contender.loss or 0.0))
    if (best.contender.accuracy or 0.0) <= figures.accuracy and not insist:
        return _keep(bench, probe, entries, measurement, "nothing that was tuned does better on the validation images")
    return _crown(bench, best, probe, entries, here)


def _named_after(backbone: str, what: _Named) -> _Named:
    """A contender or proposal that says of which backbone it is."""
    return replace(what, name=f"{backbone}: {what.name}")


def _tried(bench: Bench, proposals: Sequence[Proposal], deadline: float) -> tuple[list[Entry], float]:
    """What came of proposals, cheapest first, and the deadline less what those have had that were trained before."""
    entries: list[Entry] = []
    for proposal in proposals:
        lacking = next((e.contender.name for e in entries if e.no_time and not e.contender.head_only), "")
        if lacking and not proposal.head_only:  # more of the backbone, which takes longer yet: not worth the timing
            reason = f"left out: it takes longer than '{lacking}', for which there was too little time"
            entries.append(Entry(Contender.of(proposal).because(reason), no_time=True))
            continue
        begun = time.monotonic()
        left = deadline - begun
        if not proposal.head_only and left < bench.fewest_epochs * _seconds_of_an_epoch(entries):
            left = 0.0  # it trains more of the backbone than what takes so long: not worth the timing
        entry = bench.attempt(proposal, left)
        # What was trained before an interruption has had its share of the time too.
        deadline -= max(0.0, entry.contender.seconds - (time.monotonic() - begun))
        entries.append(entry)
    return entries, deadline


def _seconds_of_an_epoch(entries: Sequence[Entry]) -> float:
    """Of the slowest part of the backbone that was trained; 0 where none was."""
    trained = [entry.trained for entry in entries if entry.trained is not None and not entry.contender.head_only]
    return max((min(epoch.seconds for epoch in one.history) for one in trained), default=0.0)


def _keep(bench: Bench, probe: Contender, entries: Sequence[Entry], measurement: Measurement, reason: str) -> BakeOff:
    """Let the probe ship: the backbone gets back what training has changed."""
    bench.pristine()
    winner = replace(probe, chosen=True, reason=reason)
    return BakeOff((winner, *(_compared(e.contender, probe) for e in entries)), winner, measurement)


def _crown(bench: Bench, best: Entry, probe: Contender, entries: Sequence[Entry], measurement: Measurement) -> BakeOff:
    """Make the winner ready to be built: weights in the backbone, its head, its temperature, its figures."""
    trained, dataset = best.trained, measurement.dataset
    assert trained is not None
    assert best.head is not None
    labels = dataset.part("val").labels
    members, logits, head = _made_ready(bench, best, labels)
    temperature = fit_temperature(logits, labels)
    figures = measure(softmax(logits / temperature, axis=-1).mean(axis=0), labels, dataset.class_names)
    which = f"epoch {trained.epoch}{_polyak(trained)}"
    if members:
        which = f"{len(members)} snapshots averaged, each adding its tail to the cost of a request"
    winner = replace(best.contender, chosen=True, accuracy=figures.accuracy, loss=figures.loss)
    winner = _compared(winner, probe, f" ({which})")
    contenders = [winner if entry is best else _compared(entry.contender, probe) for entry in entries]
    stage = best.contender.cut if best.contender.head_only else measurement.chosen.trunk.top.name
    return BakeOff((probe, *contenders), winner, measurement, head, stage, members, temperature, figures)


def _made_ready(bench: Bench, best: Entry, labels: np.ndarray) -> tuple[tuple[Weights, ...], np.ndarray, Head]:
    """Put the winner's weights where they are built from; gives what `_snapshots` does, and its head."""
    from transferapp.training.tail import tuned_head

    trained, head = best.trained, best.head
    assert trained is not None
    assert head is not None
    if best.contender.head_only:
        bench.pristine()
        return (), trained.logits[None], replace(head, weights=tuple(trained.weights))
    tail = bench.tail(best.contender.cut, head)
    members, logits = _snapshots(bench, best, tail, labels)
    tail.model.set_weights(trained.weights)
    return members, logits, tuned_head(tail, head)


def _polyak(trained: Trained) -> str:
    """What the Polyak average of the weights gains on the validation images at the epoch that was kept."""
    epoch = trained.history[trained.epoch - 1]
    if epoch.averaged_val_accuracy is None:
        return ""
    gain = 100 * (epoch.averaged_val_accuracy - epoch.val_accuracy)
    return f", {'averaged' if trained.averaged else 'raw'} weights; averaging them gains {gain:+.1f} points"


def _snapshots(bench: Bench, best: Entry, tail: Tail, labels: np.ndarray) -> tuple[tuple[Weights, ...], np.ndarray]:
    """The members of the snapshot ensemble with their logits, shape (members, n, classes); none, and the logits of the
    best epoch, shape (1, n, classes), where the ensemble does no better than that."""
    trained = best.trained
    assert trained is not None
    alone = trained.logits[None]
    if len(trained.snapshots) < 2:
        return (), alone
    validation = bench.feeds.full(best.contender.cut, best.views).validation
    logits = []
    for weights in trained.snapshots:
        tail.model.set_weights(weights)
        logits.append(np.asarray(tail.model.predict(validation, verbose=0), np.float32))
    together = np.stack(logits)
    mean = softmax(together / fit_temperature(together, labels), axis=-1).mean(axis=0)
    if (mean.argmax(axis=1) == labels).mean() <= trained.accuracy:
        return (), alone
    return tuple(trained.snapshots), together


def _compared(contender: Contender, probe: Contender, remark: str = "") -> Contender:
    """With how much better than the probe it is."""
    if contender.accuracy is None or probe.accuracy is None:
        return contender
    gain = 100 * (contender.accuracy - probe.accuracy)
    return contender.because(f"{gain:+.1f} points against the solved classifier{remark}")
