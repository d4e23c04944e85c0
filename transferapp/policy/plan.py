"""The four-quadrant rule of CS231n's "Training Neural Networks II", as a pure function from findings to a plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transferapp.policy.budget import BATCH_SIZES, USUAL_EPOCHS
from transferapp.policy.cuts import INPUT, TRAINED_HEAD, Proposal, propose
from transferapp.policy.similarity import SIMILAR_BELOW, SimilarityFinding, StageScore
from transferapp.policy.size import LARGE_PER_CLASS, LARGE_TOTAL, SizeFinding

TIE = 0.005
"""Stages whose cross-validated accuracies differ by less than this count as equal; the earlier one is cheaper to serve."""

HEAD_LEARNING_RATE = 1e-3
BACKBONE_LEARNING_RATE = HEAD_LEARNING_RATE / 10
"""The lecture: a pretrained layer moves at no more than a tenth of the rate of a new one."""

HEAD_EPOCHS = 40
"""Passes over cached features when a head is trained from random weights: each takes a fraction of a second."""


@dataclass(frozen=True)
class Plan:
    """What to train, how, and why.

    Attributes:
        size: `small` or `large`.
        similarity: `similar` or `different`.
        divergence: D.
        num_images: Training images.
        num_classes: Classes.
        backbone: Name of the backbone.
        cut: Stage at which the solved classifier is attached.
        tuned: Which part of the backbone is tuned, in a word: `none`, `last stages`, `all`, or what --tune says.
        method: What trains.
        proposals: What is trained and compared with it: a head, parts of the backbone; empty where nothing is.
        head_learning_rate: Highest rate of the new classifier; None where L-BFGS's line search chooses every step.
        backbone_learning_rate: Rate of the tuned part of the backbone; 0 where it is frozen.
        epochs: Passes over the data; 0 where the classifier is solved to its optimum instead.
        batch_size: Images in a step of tuning, or of a head that a search found; 0 where nothing is trained in steps.
        reasons: Sentences, in the order of the argument.
        would_change: What would lead to another decision.
    """

    size: str
    similarity: str
    divergence: float
    num_images: int
    num_classes: int
    backbone: str
    cut: str
    tuned: str
    method: str
    proposals: tuple[Proposal, ...]
    head_learning_rate: float | None
    backbone_learning_rate: float
    epochs: int
    batch_size: int
    reasons: tuple[str, ...]
    would_change: tuple[str, ...]

    @property
    def tails(self) -> tuple[Proposal, ...]:
        """Those of the proposals that tune a part of the backbone."""
        return tuple(proposal for proposal in self.proposals if not proposal.head_only)

    @property
    def quadrant(self) -> str:
        return f"{self.size} + {self.similarity}"

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary for JSON."""
        return {
            "quadrant": self.quadrant,
            **{name: list(v) if isinstance(v, tuple) else v for name, v in vars(self).items()},
            "proposals": [vars(proposal) for proposal in self.proposals],
        }


def choose_stage(stages: Sequence[StageScore]) -> StageScore:
    """The stage whose probe does best; among equals (within `TIE`) the earliest, for it is the cheapest to serve."""
    best = max(score.accuracy for score in stages)
    return next(score for score in stages if score.accuracy >= best - TIE)


def make_plan(
    size: SizeFinding,
    similarity: SimilarityFinding,
    stages: Sequence[StageScore],
    *,
    num_classes: int,
    backbone: str,
    size_override: str | None = None,
    similarity_override: str | None = None,
    tune: str = "auto",
    tune_reason: str = "",
    from_scratch: bool = False,
    rates: tuple[float, float] = (HEAD_LEARNING_RATE, BACKBONE_LEARNING_RATE),
    find_rate: bool = False,
    epochs: int = USUAL_EPOCHS,
    batch_size: int = BATCH_SIZES[-1],
    input_reason: str = "",
    head: str = "",
    new_head_rate: float = HEAD_LEARNING_RATE,
) -> Plan:
    """Apply the four-quadrant rule.

    Args:
        size: From `measure_size`.
        similarity: From `judge_similarity`.
        stages: Cross-validated probes, earliest stage first.
        num_classes: Classes in the data.
        backbone: Its name, for the record.
        size_override, similarity_override: What the person insists on, instead of what was measured.
        tune: Which part of the backbone to tune: `auto` for the rule; see `propose`.
        tune_reason: Why that, where it is neither the rule's nor the person's choice.
        from_scratch: Whether the backbone begins with random weights.
        rates: Of a new classifier and of the backbone, where one is tuned.
        find_rate: Whether a range test is to find better ones.
        epochs, batch_size: Passes over the data and images in a step, where the backbone is tuned.
        input_reason: How large the network's input is, and why.
        head: In a few words, a head that L-BFGS cannot solve; empty for a linear one that it can.
        new_head_rate: Of such a head, which begins at random.
    """
    reasons = [f"size: {size.reason}", *(f"similarity: {reason}" for reason in similarity.reasons)]
    if input_reason:
        reasons.append(f"input: {input_reason}")
    would_change = _would_change(size, similarity, len(stages))
    if size_override and size_override != size.size:
        reasons.append(f"size: set to {size_override} by --size, against the measurement")
        would_change.insert(0, f"leaving out --size {size_override} would make it {size.size}, as measured")
    if similarity_override and similarity_override != similarity.similarity:
        reasons.append(f"similarity: set to {similarity_override} by --similarity, against the measurement")
        would_change.insert(
            0, f"leaving out --similarity {similarity_override} would make it {similarity.similarity}, as measured"
        )
    is_large = (size_override or size.size) == "large"
    is_similar = (similarity_override or similarity.similarity) == "similar"
    stage, cut_reason = _cut(stages, is_similar, is_large)
    verdict = ("large" if is_large else "small", "similar" if is_similar else "different")
    reasons += [f"rule: {_RULE[is_large, is_similar]}", f"cut: {cut_reason}"]
    tails = propose(*verdict, [score.stage for score in stages], tune)
    stands_on = stages[-1].stage if tails else stage.stage
    if head:
        reasons.append(
            f"head: {head}: no optimum to solve for, so it is trained on the features of {stands_on}, up to {HEAD_EPOCHS} "
            f"epochs at a rate of {new_head_rate:g}; it ships only where it does better than the solved classifier"
        )
    if tune_reason:
        reasons.append(f"tune: {tune_reason}")
    elif from_scratch:
        reasons.append("tune: all of the network, for --scratch begins with random weights, whatever the rule says")
    elif tune != "auto":
        reasons.append(f"tune: set to {tune} by --tune, whatever the rule says")
    if tails:
        start = "that head or, where it is linear, from the solved classifier" if head else "the solved classifier"
        names = " and ".join(f"{p.name} (above {p.cut})" if p.cut != INPUT else p.name for p in tails)
        head_rate, backbone_rate = rates
        found = "to be found by a range test" if find_rate else f"{head_rate:g}"
        passes = f"up to {epochs} epochs in batches of {batch_size}"
        if from_scratch:
            reasons.append(f"tuning: {names}, from random weights; it ships, whatever it is worth")
            reasons.append(f"rate: {found} for the classifier and the backbone alike; {passes}")
        else:
            reasons.append(f"tuning: {names}, from {start}; whichever does best on the validation images ships")
            reasons.append(
                f"rate: new classifier {found}, backbone "
                f"{f'{backbone_rate / head_rate:g} of it' if find_rate else f'{backbone_rate:g}'}, so that what is pretrained "
                f"is refined and not destroyed; {passes}"
            )
    elif not head:
        reasons.append("rate: none to choose: a linear classifier is convex, L-BFGS solves it to its optimum")
    heads = (Proposal(TRAINED_HEAD, stands_on, head_only=True),) if head else ()
    trained = [*([f"a trained head ({head})"] if head else []), *(["fine-tuning"] if tails else [])]
    return Plan(
        size=verdict[0],
        similarity=verdict[1],
        divergence=similarity.divergence,
        num_images=size.num_images,
        num_classes=num_classes,
        backbone=backbone,
        cut=stage.stage,
        tuned=_tuned(tails, is_similar, tune),
        method="all of the network, from random weights" if from_scratch else ", then ".join([_PROBE_METHOD, *trained]),
        proposals=(*heads, *tails),
        head_learning_rate=rates[0] if tails else new_head_rate if head else None,
        backbone_learning_rate=rates[1] if tails else 0.0,
        epochs=epochs if tails else HEAD_EPOCHS if head else 0,
        batch_size=batch_size if tails else 0,
        reasons=tuple(reasons),
        would_change=tuple(would_change),
    )


_PROBE_METHOD = "linear classifier, full-batch L-BFGS"


def _tuned(proposals: tuple[Proposal, ...], is_similar: bool, tune: str) -> str:
    if not proposals:
        return "none"
    if tune != "auto":
        return tune
    return "last stages" if is_similar else "all"


_RULE = {
    (False, True): "small + similar: train only a new linear classifier on the top; tuning more would over-fit",
    (False, False): "small + different: put the classifier on an earlier stage, whose features are more generic",
    (True, True): "large + similar: fine-tune the last stages from the solved classifier, at a reduced rate",
    (True, False): "large + different: fine-tune the whole network from the solved classifier, at a reduced rate",
}


def _cut(stages: Sequence[StageScore], is_similar: bool, is_large: bool) -> tuple[StageScore, str]:
    top = stages[-1]
    best = choose_stage(stages)
    if is_similar and not is_large:
        return top, f"{top.stage}, the last stage ({top.accuracy:.3f} cross-validated)"
    if best is top:
        runner_up = max(stages[:-1], key=lambda score: score.accuracy, default=None)
        if runner_up is None:
            return top, f"{top.stage}, the only stage"
        behind = f"{-100 * runner_up.gain_over_top:.1f} ± {100 * runner_up.standard_error:.1f} points"
        tie = ", a tie by one standard error" if -runner_up.gain_over_top <= runner_up.standard_error else ""
        return (
            top,
            f"{top.stage}: the last stage still does best; {runner_up.stage}, the best earlier one, is {behind} behind{tie}",
        )
    lead = f"{100 * best.gain_over_top:+.1f} ± {100 * best.standard_error:.1f} points against the last stage"
    return best, f"{best.stage}: {best.accuracy:.3f} cross-validated, {lead}"


def _would_change(size: SizeFinding, similarity: SimilarityFinding, num_stages: int) -> list[str]:
    """What other measurements would have led elsewhere."""
    notes = []
    if size.size == "small":
        few, thin = size.num_images < LARGE_TOTAL, size.median_per_class < LARGE_PER_CLASS
        more = f"{LARGE_TOTAL - size.num_images:,} more training images" if few else ""
        fuller = f"{LARGE_PER_CLASS:,} in the median class" if thin else ""
        notes.append(
            f"{' and '.join(filter(None, (more, fuller)))} would make the set large, and part of the backbone would be tuned"
        )
    else:
        notes.append(
            f"fewer than {LARGE_TOTAL:,} training images, or {LARGE_PER_CLASS:,} in the median class, would freeze the "
            "backbone"
        )
    measured = f"(D is {similarity.divergence:.2f})"
    if similarity.similarity == "similar":
        notes.append(f"D from {SIMILAR_BELOW} would make it different {measured}")
        if num_stages > 1:
            notes.append("an earlier stage beating the last by more than one standard error would make it different")
    elif similarity.divergence < SIMILAR_BELOW:
        notes.append(f"without an earlier stage that beats the last, it would be similar {measured}")
    elif similarity.earlier_stage_wins:
        notes.append(
            f"D below {SIMILAR_BELOW}, and no earlier stage that beats the last, would make it similar {measured}"
        )
    else:
        notes.append(f"D below {SIMILAR_BELOW} would make it similar {measured}")
    notes.append(
        "D compares labels with ImageNet's classes, not photographic style; --size and --similarity overrule it"
    )
    return notes
