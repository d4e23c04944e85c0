"""Fine-tuning: each proposal of the plan trained within the time budget, for the choice on the validation images.

Every candidate starts from the pretrained weights of its backbone and the linear classifier solved on them. Cut at a stage, it
trains on activations that the trunk computed once; cut at the input, on fresh views of the images. Where the budget is too
short for any of them, the next cheaper backbone is tuned: a small network that is tuned may well beat a large one that is not
(docs/decisions/0016-cheaper-backbone.md).
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from transferapp.backbones.loader import BackboneLoader
from transferapp.config import FitConfig
from transferapp.errors import TrainingError
from transferapp.policy.cuts import Proposal
from transferapp.recipes.fit.candidate import Candidate
from transferapp.recipes.fit.measure import Measurement, ProbedBackbone
from transferapp.recipes.fit.resume import RunFolder
from transferapp.recipes.fit.trainer import Baseline, Trainer
from transferapp.system.progress import Progress


def fine_tune(
    measurement: Measurement,
    solved: Candidate,
    views: int,
    config: FitConfig,
    loader: BackboneLoader,
    run: RunFolder,
    progress: Progress,
) -> tuple[Candidate, ...]:
    """Train each proposal of the plan as far as the budget allows; nothing where the plan proposes nothing.

    Where there is time for none, the proposals for the next cheaper backbone are trained; but not from scratch, which asks
    for the value of one backbone's pretraining.

    Args:
        measurement: Images, backbones and plan.
        solved: The linear classifier, which the others must beat.
        views: Random views of each image that the linear classifier used.
        config: Settings of the fit.
        loader: Builds the backbones.
        run: Records decisions, activations and checkpoints.
        progress: Receives progress updates.

    Returns:
        A candidate for each proposal, trained or with the reason why not.

    Raises:
        TrainingError: Nothing could be trained because the loss was NaN from the start; or, with `rule_only` or `scratch`,
            for whatever reason.
        ResourceError: Nothing could be trained because memory ran out; or the disk is full.
    """
    proposals = measurement.plan.proposals
    if not proposals:
        return ()
    deadline = time.monotonic() + measurement.plan.budget
    baseline = Baseline(views, 0.0 if config.rule_only or config.scratch else solved.accuracy or 0.0)

    def trainer(backbone: ProbedBackbone, run: RunFolder) -> Trainer:
        network = loader.model(backbone.spec)
        return Trainer(backbone, network, measurement, baseline, config, run, progress)

    candidates, deadline = _train_all(trainer(measurement.chosen, run), proposals, deadline)
    passed_over = measurement.chosen.spec
    for cheaper in () if config.scratch else measurement.cheaper:
        small = cheaper.spec.name
        # Decided once a run: a run that goes on has more time than it had.
        if not (all(c.no_time for c in candidates) and run.decide(f"{small}/tried", time.monotonic() < deadline)):
            break
        progress.note(f"There is too little time to tune {passed_over.name}, so {small} is tried")
        more, deadline = _train_all(trainer(cheaper, run.within(small)), cheaper.plan.proposals, deadline)
        candidates += more
        passed_over = cheaper.spec
    _require_one(candidates, config, several_backbones=passed_over != measurement.chosen.spec)
    return tuple(candidates)


def _train_all(trainer: Trainer, proposals: Sequence[Proposal], deadline: float) -> tuple[list[Candidate], float]:
    """Train proposals, cheapest first; return the deadline less the time of those that were trained before a resume."""
    candidates: list[Candidate] = []
    for proposal in proposals:
        lacking = next((c.name for c in candidates if c.no_time and not c.head_only), "")
        if lacking and not proposal.head_only:  # It trains more of the backbone and takes longer yet.
            reason = f"left out: it takes longer than '{lacking}', for which there was too little time"
            skipped = Candidate(proposal.name, candidates[-1].backbone, proposal.cut, notes=(reason,), no_time=True)
            candidates.append(skipped)
            continue
        begun = time.monotonic()
        left = deadline - begun
        if not proposal.head_only and left < trainer.fewest_epochs * _seconds_of_an_epoch(candidates):
            left = 0.0  # It trains more of the backbone than a candidate that takes so long, so it is not even timed.
        candidate = trainer.train(proposal, left)
        deadline -= max(0.0, candidate.seconds - (time.monotonic() - begun))
        candidates.append(candidate)
    return candidates, deadline


def _seconds_of_an_epoch(candidates: Sequence[Candidate]) -> float:
    """Return the seconds of an epoch of the slowest tail that was trained; 0 where none was."""
    tails = [candidate.history for candidate in candidates if candidate.history and not candidate.head_only]
    return max((min(epoch.seconds for epoch in history) for history in tails), default=0.0)


def _require_one(candidates: Sequence[Candidate], config: FitConfig, *, several_backbones: bool) -> None:
    """Raise where nothing was trained although it must be: `rule_only` and `scratch` insist, and errors are not hidden."""
    if any(candidate.classifier for candidate in candidates):
        return
    insist = config.rule_only or config.scratch
    errors = [candidate.error for candidate in candidates if candidate.error]
    if errors and (insist or not several_backbones):
        raise errors[0]
    if not insist:
        return
    ways = []
    if all(candidate.no_time for candidate in candidates):
        ways.append("give it more time with --budget and --fresh")
    if config.rule_only and not config.scratch:
        ways.append("leave out --rule-only to ship the linear classifier")
    hint = ", or ".join(ways)
    raise TrainingError(
        f"{'The network of --scratch' if config.scratch else 'The proposal of the rule'} could not be trained: "
        + "; ".join(f"{candidate.name} ({', '.join(candidate.notes)})" for candidate in candidates),
        hint=hint[:1].upper() + hint[1:] or None,
    )
