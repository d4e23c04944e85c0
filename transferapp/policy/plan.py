"""The four-quadrant rule of CS231n's "Training Neural Networks II", as a pure function from findings to a plan."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transferapp.policy.budget import BATCH_SIZES, LARGE_BUDGET, USUAL_EPOCHS, default_budget
from transferapp.policy.choose import MixtureScore, use_mixture
from transferapp.policy.cuts import INPUT, TRAINED_HEAD, Proposal, propose
from transferapp.policy.reasons import Reason
from transferapp.policy.similarity import SIMILAR_BELOW, SimilarityFinding, StageScore, winning_margin
from transferapp.policy.size import LARGE_PER_CLASS, LARGE_TOTAL, InputSize, SizeFinding

TIE = 0.005
"""Stages whose cross-validated accuracies differ by less than this count as equal; the earlier one is cheaper to serve."""

HEAD_LEARNING_RATE = 1e-3
BACKBONE_LEARNING_RATE = HEAD_LEARNING_RATE / 10
"""The lecture's rule: a pretrained layer moves at no more than a tenth of the rate of a new one."""

HEAD_EPOCHS = 40
"""Epochs over cached features for a head with random initial weights: each takes a fraction of a second."""


@dataclass(frozen=True)
class Overrides:
    """Decisions that the user takes instead of the rule; `auto` leaves one to the rule.

    Attributes:
        size: `auto`, `small` or `large`.
        similarity: `auto`, `similar` or `different`.
        tune: `auto` or another of `TUNE_CHOICES`.
        tune_reason: Sentence that explains `tune` where the user did not set it.
        budget: Seconds of fine-tuning, infinite for no limit; None leaves it to `default_budget`.
        rule_only: Whether the lecture's table alone decides: nothing of a small set is fine-tuned, whatever the budget.
    """

    size: str = "auto"
    similarity: str = "auto"
    tune: str = "auto"
    tune_reason: str = ""
    budget: float | None = None
    rule_only: bool = False


RULE_DECIDES = Overrides()


@dataclass(frozen=True)
class NewHead:
    """A head that L-BFGS cannot solve, and that gradient steps train from random weights.

    Attributes:
        description: Its form in a few words.
        learning_rate: Its highest learning rate.
    """

    description: str
    learning_rate: float = HEAD_LEARNING_RATE


@dataclass(frozen=True)
class FineTuning:
    """Settings of training in steps: of a part of the backbone, or of a head.

    Attributes:
        head_rate: Highest learning rate of the head.
        backbone_rate: Highest learning rate of the backbone.
        find_rate: Whether a range test replaces these rates.
        epochs: Most epochs.
        batch_size: Images in a step.
        from_scratch: Whether the backbone begins with random weights.
        head: Head to train instead of a linear classifier; None where the linear classifier is the head.
    """

    head_rate: float = HEAD_LEARNING_RATE
    backbone_rate: float = BACKBONE_LEARNING_RATE
    find_rate: bool = False
    epochs: int = USUAL_EPOCHS
    batch_size: int = BATCH_SIZES[-1]
    from_scratch: bool = False
    head: NewHead | None = None


USUAL_TUNING = FineTuning()


@dataclass(frozen=True)
class Plan:
    """Outcome of `make_plan`: the decision, its settings and its reasons.

    Attributes:
        size: `small` or `large`.
        similarity: `similar` or `different`.
        divergence: D.
        num_images: Training images.
        num_classes: Classes.
        backbone: Name of the backbone.
        cut: Stage that the linear classifier reads, or the best single one where it reads a mixture.
        mixture: Weights of the mixture of stages that the linear classifier reads, by tap; empty where it reads one stage.
        tuned: Part of the backbone that is fine-tuned: `none`, `last stages`, `all`, or the value of `--tune`.
        method: What is trained, in a few words.
        proposals: Candidates beside the linear classifier: a head, parts of the backbone; empty where there are none.
        head_learning_rate: Highest rate of the head; None where the line search of L-BFGS chooses every step.
        backbone_learning_rate: Highest rate of the backbone; 0 where it is frozen.
        budget: Seconds of training beside the linear classifier; infinite for no limit, 0 where nothing is trained.
        epochs: Most epochs; 0 where the classifier is solved to its optimum instead.
        batch_size: Images in a step of fine-tuning, or of a head found by a search; 0 where nothing trains in steps.
        reasons: Steps of the argument, in order.
        would_change: Conditions that would lead to another decision.
    """

    size: str
    similarity: str
    divergence: float
    num_images: int
    num_classes: int
    backbone: str
    cut: str
    mixture: Mapping[str, float]
    tuned: str
    method: str
    proposals: tuple[Proposal, ...]
    head_learning_rate: float | None
    backbone_learning_rate: float
    budget: float
    epochs: int
    batch_size: int
    reasons: tuple[Reason, ...]
    would_change: tuple[Reason, ...]

    @property
    def tails(self) -> tuple[Proposal, ...]:
        """Proposals that fine-tune a part of the backbone."""
        return tuple(proposal for proposal in self.proposals if not proposal.head_only)

    @property
    def quadrant(self) -> str:
        """Size and similarity, such as `small + similar`."""
        return f"{self.size} + {self.similarity}"

    def seen_in(self, geometry: Reason) -> Plan:
        """Return the plan with the reason of the geometry, in front of the others."""
        return replace(self, reasons=(geometry, *self.reasons))

    def before_training(self) -> Plan:
        """Return the plan as it is carried out until training in steps begins: a linear classifier alone."""
        if not self.proposals:
            return self
        text = "Fine-tuning had not finished when this bundle was written; the same command resumes it."
        solved = [
            reason for reason in self.reasons if reason.topic not in ("head", "tune", "fine-tuning", "rate", "budget")
        ]
        return replace(
            self,
            tuned="none",
            method=_LINEAR,
            proposals=(),
            head_learning_rate=None,
            backbone_learning_rate=0.0,
            budget=0.0,
            epochs=0,
            batch_size=0,
            reasons=(*solved, Reason("fine-tuning", text)),
        )

    def to_json(self) -> dict[str, Any]:
        """Return a plain dictionary for JSON."""
        return {
            "quadrant": self.quadrant,
            **vars(self),
            "mixture": dict(self.mixture),
            "budget": self.budget if math.isfinite(self.budget) else None,
            "proposals": [vars(proposal) for proposal in self.proposals],
            "reasons": [reason.to_json() for reason in self.reasons],
            "would_change": [reason.to_json() for reason in self.would_change],
        }


def choose_stage(stages: Sequence[StageScore]) -> StageScore:
    """Return the stage with the highest accuracy; of those within `TIE` the earliest, which is the cheapest to serve.

    Where none classifies a single image correctly, which says nothing (each class has one training image, and none while it is
    held out), the last stage is returned.
    """
    best = max(score.accuracy for score in stages)
    if best == 0:
        return stages[-1]
    return next(score for score in stages if score.accuracy >= best - TIE)


def make_plan(
    size: SizeFinding,
    similarity: SimilarityFinding,
    stages: Sequence[StageScore],
    *,
    backbone: str,
    input_size: InputSize | None = None,
    overrides: Overrides = RULE_DECIDES,
    tuning: FineTuning = USUAL_TUNING,
    mixture: MixtureScore | None = None,
) -> Plan:
    """Apply the four-quadrant rule.

    Args:
        size: From `measure_size`.
        similarity: From `judge_similarity`.
        stages: Cross-validated scores of the stages, earliest first.
        backbone: Name of the backbone.
        input_size: From `choose_input_size`; None leaves it out of the reasons.
        overrides: Decisions of the user.
        tuning: Settings of training in steps.
        mixture: Figures of a mixture of stages; None rules it out.
    """
    head = tuning.head
    decided = (
        size.size if overrides.size == "auto" else overrides.size,
        similarity.similarity if overrides.similarity == "auto" else overrides.similarity,
    )
    overruled = tuple(_overruled(size, similarity, overrides))
    stage, cut_reason = _cut(stages, *decided)
    # On similar images the lecture's table knows the last stage alone.
    strict = overrides.rule_only and decided[1] == "similar"
    mixed = mixture if mixture is not None and not strict and use_mixture(decided[1], mixture) else None
    budget = overrides.budget
    if budget is None:
        budget = default_budget(*decided, size.num_images, overrides.tune)
    obeyed = overrides.rule_only and overrides.tune == "auto" and decided[0] == "small"
    tails = () if obeyed else propose(*decided, [score.stage for score in stages], overrides.tune, budget=budget)
    if head and not tails and overrides.budget is None:
        budget = LARGE_BUDGET
    head_stage = stages[-1].stage if tails else stage.stage
    heads = (Proposal(TRAINED_HEAD, head_stage, head_only=True),) if head else ()
    trained = [*([f"a trained head ({head.description})"] if head else []), *(["fine-tuning"] if tails else [])]
    return Plan(
        size=decided[0],
        similarity=decided[1],
        divergence=similarity.divergence,
        num_images=size.num_images,
        num_classes=size.num_classes,
        backbone=backbone,
        cut=stage.stage,
        mixture=mixed.weights if mixed else {},
        tuned=_tuned(tails, *decided, overrides.tune),
        method="whole network from random weights" if tuning.from_scratch else ", then ".join([_LINEAR, *trained]),
        proposals=(*heads, *tails),
        head_learning_rate=tuning.head_rate if tails else head.learning_rate if head else None,
        backbone_learning_rate=tuning.backbone_rate if tails else 0.0,
        budget=budget if tails or head else 0.0,
        epochs=tuning.epochs if tails else HEAD_EPOCHS if head else 0,
        batch_size=tuning.batch_size if tails else 0,
        reasons=(
            size.reason,
            *(reason for reason, _ in overruled if reason.topic == "size"),
            *similarity.reasons,
            *(reason for reason, _ in overruled if reason.topic == "similarity"),
            *([input_size.reason] if input_size else []),
            Reason("rule", _RULES[decided], {"size": decided[0], "similarity": decided[1]}),
            mixed.reason() if mixed else cut_reason,
            *_training_reasons(tails, tuning, head_stage, overrides),
            *(
                [_budget_reason(budget, decided[0])]
                if tails and math.isfinite(budget) and not tuning.from_scratch
                else []
            ),
        ),
        would_change=(
            *(undone for _, undone in overruled),
            *_would_change(size, similarity, len(stages)),
        ),
    )


_LINEAR = "linear classifier, full-batch L-BFGS"

_RULES = {
    ("small", "similar"): "small + similar: train only a new linear classifier on the last stage; more would over-fit.",
    (
        "small",
        "different",
    ): "small + different: train a linear classifier on earlier stages, whose features are more general.",
    ("large", "similar"): "large + similar: fine-tune the last stages from the linear classifier, at a reduced rate.",
    (
        "large",
        "different",
    ): "large + different: fine-tune the whole network from the linear classifier, at a reduced rate.",
}


def _tuned(tails: tuple[Proposal, ...], size: str, similarity: str, tune: str) -> str:
    if not tails:
        return "none"
    if tune != "auto":
        return tune
    if size == "small":
        return "most"
    return "last stages" if similarity == "similar" else "all"


def _budget_reason(budget: float, size: str) -> Reason:
    text = f"Fine-tuning may take {budget:.0f} seconds; --budget sets another time, and --budget 0 leaves it out."
    if size == "small":
        text = f"The rule fine-tunes nothing of a small set; held-out images decide whether it pays. {text}"
    return Reason("budget", text, {"seconds": budget})


def _overruled(
    size: SizeFinding, similarity: SimilarityFinding, overrides: Overrides
) -> Iterator[tuple[Reason, Reason]]:
    """Yield, for each override that differs from the measurement, its reason and the condition that would undo it."""
    for topic, measured, chosen in (
        ("size", size.size, overrides.size),
        ("similarity", similarity.similarity, overrides.similarity),
    ):
        if chosen not in ("auto", measured):
            values = {"measured": measured, "override": chosen}
            yield (
                Reason(topic, f"--{topic} overrules the measurement: the set is treated as {chosen}.", values),
                Reason(topic, f"Without --{topic} {chosen} the set is {measured}, as measured.", values),
            )


def _cut(stages: Sequence[StageScore], size: str, similarity: str) -> tuple[StageScore, Reason]:
    """Choose the stage that the linear classifier reads."""
    top = stages[-1]
    best = choose_stage(stages)
    if size == "small" and similarity == "similar":
        text = f"The classifier reads the last stage, {top.stage} (cross-validated accuracy {top.accuracy:.3f})."
        return top, Reason("cut", text, {"stage": top.stage, "accuracy": top.accuracy})
    if best.accuracy == 0:
        text = f"The classifier reads the last stage, {top.stage}: no stage does better on images that are held out."
        return top, Reason("cut", text, {"stage": top.stage, "accuracy": 0.0})
    if best is not top:
        text = (
            f"The classifier reads {best.stage}: cross-validated accuracy {best.accuracy:.3f}, "
            f"{100 * best.gain_over_top:+.1f} ± {100 * best.standard_error:.1f} points against the last stage."
        )
        return best, Reason("cut", text, vars(best))
    runner_up = max(stages[:-1], key=lambda score: score.accuracy, default=None)
    if runner_up is None:
        return top, Reason("cut", f"The backbone has only one stage, {top.stage}.", {"stage": top.stage})
    behind = f"{-100 * runner_up.gain_over_top:.1f} ± {100 * runner_up.standard_error:.1f} points"
    tie = ", a tie within one standard error" if -runner_up.gain_over_top <= runner_up.standard_error else ""
    text = (
        f"The last stage, {top.stage}, does best (cross-validated accuracy {top.accuracy:.3f}); {runner_up.stage}, the best "
        f"earlier stage, is {behind} behind{tie}."
    )
    return top, Reason("cut", text, {**vars(top), "runner_up": runner_up.stage, "behind": -runner_up.gain_over_top})


def _training_reasons(
    tails: tuple[Proposal, ...], tuning: FineTuning, head_stage: str, overrides: Overrides
) -> Iterator[Reason]:
    """Yield the reasons about training: the head, what is fine-tuned, and the rates."""
    head = tuning.head
    if head:
        text = (
            f"A head that cannot be solved for ({head.description}) is trained on the features of {head_stage} for up to "
            f"{HEAD_EPOCHS} epochs at a rate of {head.learning_rate:g}; it ships only if it beats the linear classifier on "
            "the validation images."
        )
        yield Reason("head", text, {"learning_rate": head.learning_rate, "epochs": HEAD_EPOCHS, "stage": head_stage})
    if overrides.tune_reason:
        yield Reason("tune", overrides.tune_reason, {"tune": overrides.tune})
    elif overrides.budget == 0:
        yield Reason("budget", "--budget 0 leaves fine-tuning out.", {"seconds": 0})
    elif tuning.from_scratch:
        yield Reason("tune", "--scratch trains the whole network from random weights, whatever the rule says.")
    elif overrides.tune != "auto":
        text = f"--tune {overrides.tune} sets what is fine-tuned, whatever the rule says."
        yield Reason("tune", text, {"tune": overrides.tune})
    if not tails:
        if not head:
            text = "There is no learning rate to choose: a linear classifier is convex, and L-BFGS solves it to its optimum."
            yield Reason("rate", text)
        return
    names = " and ".join(f"{p.name} (above {p.cut})" if p.cut != INPUT else p.name for p in tails)
    steps = f"training takes up to {tuning.epochs} epochs in batches of {tuning.batch_size}"
    rates = {"head_rate": tuning.head_rate, "backbone_rate": tuning.backbone_rate}
    values = {**rates, "epochs": tuning.epochs, "batch_size": tuning.batch_size}
    if tuning.from_scratch:
        text = f"Training starts from random weights, and the result ships whatever its accuracy: {names}."
        yield Reason("fine-tuning", text, {p.key: p.name for p in tails})
        found = (
            "A range test finds the learning rate" if tuning.find_rate else f"The learning rate is {tuning.head_rate:g}"
        )
        yield Reason("rate", f"{found} for head and backbone alike; {steps}.", values)
        return
    solved = "a linear classifier on the last stage"
    start = f"that head or, where it is linear, from {solved}" if head else solved
    text = (
        f"Fine-tuning starts from {start} and trains: {names}. The best candidate ships if it is clearly better on the "
        "validation images."
    )
    yield Reason("fine-tuning", text, {p.key: p.name for p in tails})
    if tuning.find_rate:
        found = f"A range test finds the head's rate, and the backbone's is {tuning.backbone_rate / tuning.head_rate:g} of it"
    else:
        found = f"The head's rate is {tuning.head_rate:g} and the backbone's {tuning.backbone_rate:g}"
    yield Reason("rate", f"{found}, which refines the pretrained weights without destroying them; {steps}.", values)


def _would_change(size: SizeFinding, similarity: SimilarityFinding, num_stages: int) -> Iterator[Reason]:
    """Yield the measurements that would have led to another decision."""
    if size.size == "small":
        missing = LARGE_TOTAL - size.num_images
        more = [f"{missing:,} more training images"] if missing > 0 else []
        fuller = [f"{LARGE_PER_CLASS:,} images in the median class"] if size.median_per_class < LARGE_PER_CLASS else []
        needed = " and ".join([*more, *fuller])
        text = f"{needed} would make the set large, and part of the backbone would be fine-tuned."
        yield Reason("size", text, {"missing_images": max(missing, 0), "large_per_class": LARGE_PER_CLASS})
    else:
        text = (
            f"Fewer than {LARGE_TOTAL:,} training images, or than {LARGE_PER_CLASS:,} in the median class, would make the set "
            "small, and the backbone would stay frozen."
        )
        yield Reason("size", text, {"large_total": LARGE_TOTAL, "large_per_class": LARGE_PER_CLASS})
    measured = f"(it is {similarity.divergence:.2f})"
    values = {"divergence": similarity.divergence, "similar_below": SIMILAR_BELOW}
    if similarity.similarity == "similar":
        yield Reason("similarity", f"D of {SIMILAR_BELOW} or more would make the set different {measured}.", values)
        if num_stages > 1:
            margin = winning_margin(num_stages - 1)
            text = f"An earlier stage more than {margin:.1f} standard errors ahead of the last would make the set different."
            yield Reason("similarity", text, {"standard_errors": margin})
    elif similarity.divergence < SIMILAR_BELOW:
        text = f"Without an earlier stage that beats the last, D would make the set similar {measured}."
        yield Reason("similarity", text, values)
    else:
        tie = ", and no earlier stage that beats the last," if similarity.earlier_stage_wins else ""
        yield Reason("similarity", f"D below {SIMILAR_BELOW}{tie} would make the set similar {measured}.", values)
    text = "D compares labels with ImageNet's classes, not the style of images; --size and --similarity overrule it."
    yield Reason("similarity", text)
