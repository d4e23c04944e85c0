"""Choices on held-out figures: among candidates, and between one stage and a mixture of stages. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import numpy as np

from transferapp.policy.reasons import Reason


class Scored(Protocol):
    """A candidate as far as the choice looks at it: the figures are None where it was not trained."""

    @property
    def accuracy(self) -> float | None: ...
    @property
    def loss(self) -> float | None: ...
    @property
    def correct(self) -> np.ndarray | None: ...


C = TypeVar("C", bound=Scored)


def merit(accuracy: float | None, loss: float | None) -> tuple[float, float]:
    """Return a sort key: accuracy first, then the smaller loss; what was not trained or has no finite loss comes last."""
    if accuracy is None or loss is None or not math.isfinite(loss):
        return (-1.0, 0.0)
    return (accuracy, -loss)


CLEARLY = 2.0
"""Standard errors, paired by image, by which the best trained candidate must beat the solved classifier on validation images.

It was selected there as the best of epochs, raw or averaged weights, and candidates, and so looks better than it is: by 1.8 to
3.1 points at 100 images, about a standard error. With this margin it wins in at most a fifth of the cases where it is no better
(`tests/policy/test_choose_fairness.py` simulates them), and a true gain of five points at 100 images is still mostly taken."""


BETTER = 1.0
"""Standard errors by which the average of the linear classifier and a fine-tuned network must beat the linear classifier on
validation images: half of what a network alone must, because averaging gains by itself, and because one half of the average was
not selected there (docs/decisions/0029-blend.md)."""

BY_FAR = 4.0
"""Standard errors from which a fine-tuned network's lead is so large that averaging it with the linear classifier would add
hardly anything but cost. A smaller lead may be due to its selection: leads of 6 to 10 points on 80 validation images were none
on the test images, where the average led by 3."""


@dataclass(frozen=True, eq=False)
class Blend(Generic[C]):
    """The average of the linear classifier and a fine-tuned network as a candidate, and the network."""

    average: C
    network: C


def choose(candidates: Sequence[C], groups: np.ndarray, *, insist: bool = False, blend: Blend[C] | None = None) -> C:
    """Return the candidate that ships.

    Args:
        candidates: The linear classifier first, then the candidates trained beside it.
        groups: int, shape (n,): validation images of one number are near-duplicates or of one group.
        insist: Whether to pass the linear classifier over where anything else was trained (`--rule-only`, `--scratch`).
        blend: The linear classifier averaged with one of the others, where there is one.
    """
    solved, *others = candidates
    trained = [candidate for candidate in others if candidate.accuracy is not None]
    if not trained:
        return solved
    best = max(trained, key=lambda candidate: merit(candidate.accuracy, candidate.loss))
    if insist or solved.correct is None or best.correct is None:
        return best
    finite = best.loss is not None and math.isfinite(best.loss)
    winner = best if finite and leads(best.correct, solved.correct, groups, CLEARLY) else solved
    if blend is None or blend.average.correct is None or blend.network.correct is None:
        return winner
    averaged = blend.average.correct
    lead, error = paired_gain(blend.network.correct, solved.correct, groups)
    alike = -error < lead <= BY_FAR * error
    surpassed = winner is best and (best is not blend.network or leads(best.correct, averaged, groups, CLEARLY))
    return blend.average if alike and not surpassed and leads(averaged, solved.correct, groups, BETTER) else winner


def leads(correct: np.ndarray, other: np.ndarray, groups: np.ndarray, errors: float) -> bool:
    """Return whether a classifier is better than another by more than a number of standard errors.

    Args:
        correct, other, groups: As of `paired_gain`.
        errors: Standard errors.
    """
    gain, error = paired_gain(correct, other, groups)
    return gain > errors * error


HOPELESS_FROM = 0.5
"""Share of its epochs after which a candidate in training may be given up. Before that, the learning rate is high and the
accuracy on validation images says little about the end."""


def cannot_win(best: float, to_beat: float, num_images: int, share: float) -> bool:
    """Return whether a candidate in training is so far behind that more epochs are a waste.

    It would have to end no worse than the solved classifier, and is clearly below it, by `CLEARLY` standard errors.

    Args:
        best: Its best accuracy on the validation images so far, in [0, 1].
        to_beat: Accuracy of the solved classifier on the same images.
        num_images: Validation images.
        share: Share of its epochs that are over, in [0, 1].
    """
    error = math.sqrt(to_beat * (1 - to_beat) / max(num_images, 1))
    return share >= HOPELESS_FROM and best < to_beat - CLEARLY * max(error, 1 / max(num_images, 1))


def paired_gain(correct: np.ndarray, other: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """Return the mean difference of two classifiers' figures on the same images, and its standard error.

    Args:
        correct, other: bool or float, shape (n,): whether each image is classified right, or its loss.
        groups: int, shape (n,): as of `standard_error`.
    """
    difference = correct.astype(float) - other.astype(float)
    return float(difference.mean()), standard_error(difference, groups)


def standard_error(values: np.ndarray, groups: np.ndarray) -> float:
    """Return the standard error of a mean over images of which some belong together (Liang and Zeger, 1986).

    Near-duplicates and images of one patient are not independent: ten copies of an image say no more than one.

    Args:
        values: float, shape (n,).
        groups: int, shape (n,): images of one number belong together.

    Returns:
        That of independent images where each is its own group. Of a single group, whose error cannot be estimated, the size
        of the mean: then no difference is beyond its error.
    """
    members = np.unique(groups, return_inverse=True)[1]
    count = int(members.max()) + 1
    if count < 2:
        return abs(float(values.mean()))
    deviations = np.bincount(members, values - values.mean())
    return float(np.sqrt(count / (count - 1) * (deviations @ deviations)) / len(values))


DEARER_GAINS, DEARER_SPREAD = 0.019, 0.014
"""Accuracy that the next dearer embedded backbone gains on a set of images, and its spread among sets: 1.9 points on average on
six sets with 60 to 400 images, from -0.2 to 3.2 (`benchmarks/backbone_choice.py`)."""


def expected_gain(gain: float, error: float) -> float:
    """Return what a dearer backbone is expected to gain, from what cross-validation measured and what is usual.

    A few hundred images measure the gain to two or three points, which is more than it usually is. Both figures are averaged,
    weighted by their precision (the posterior mean of a normal prior).

    Args:
        gain: Measured difference in accuracy.
        error: Its standard error, paired by image; 0 where it is certain.
    """
    if error <= 0:
        return gain
    usual, measured = DEARER_SPREAD**-2, error**-2
    return (usual * DEARER_GAINS + measured * gain) / (usual + measured)


CHEAPER_WITHIN = 0.005
"""A cheaper backbone is preferred where the dearest is expected to gain no more than half a point of accuracy, ..."""

LOSS_WITHIN = 0.1
"""... and its own cross-validated loss is no more than a tenth above: where accuracies tie, the loss still tells the better."""


def cheaper_suffices(gain: float, error: float, loss: float, dearer_loss: float) -> bool:
    """Return whether a backbone is as good as a dearer one.

    Args:
        gain, error: Measured gain of the dearer one in accuracy, and its standard error, as of `expected_gain`.
        loss, dearer_loss: Cross-validated losses of both, in nats.
    """
    return expected_gain(gain, error) <= CHEAPER_WITHIN and loss <= dearer_loss * (1 + LOSS_WITHIN)


CLEARLY_LOWER = 2.0
"""Standard errors by which a mixture must lower the held-out loss of the last stage on images similar to ImageNet, for which
the rule keeps the last stage. On different images the rule itself asks for earlier stages, and the mixture is used as it is:
its weights are shrunk toward the best stage, so it rarely loses (docs/decisions/0018-mixture.md)."""

SHOWN_FROM = 0.05
"""Share of the weight from which a stage is named in the reason."""


@dataclass(frozen=True)
class MixtureScore:
    """Cross-fitted figures of a mixture of stages.

    Attributes:
        accuracy: In [0, 1].
        loss: Mean negative log-likelihood, in nats.
        saved: Loss of the linear classifier on the last stage less `loss`.
        standard_error: Of `saved`, paired by image.
        weights: Weight of each tap, by name; taps of weight 0 are left out. Empty where every classifier is worse than equal
            probabilities.
    """

    accuracy: float
    loss: float
    saved: float
    standard_error: float
    weights: Mapping[str, float] = field(default_factory=dict)

    def reason(self) -> Reason:
        """Return the reason of the cut, where the mixture is used."""
        total = sum(self.weights.values())
        shares = {name: weight / total for name, weight in self.weights.items()}
        named = ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if share >= SHOWN_FROM)
        side = "below" if self.saved >= 0 else "above"
        text = (
            f"The classifier reads a mixture of stages ({named}): cross-validated accuracy {self.accuracy:.3f}, loss "
            f"{self.loss:.3f}, {abs(self.saved):.3f} ± {self.standard_error:.3f} {side} that of the last stage."
        )
        return Reason("cut", text, {"accuracy": self.accuracy, "loss": self.loss, "saved": self.saved, **shares})


def use_mixture(similarity: str, mixture: MixtureScore) -> bool:
    """Return whether the linear classifier reads a mixture of stages.

    Args:
        similarity: `similar` or `different`.
        mixture: Its figures.
    """
    clearly = mixture.saved > CLEARLY_LOWER * mixture.standard_error
    return bool(mixture.weights) and (similarity == "different" or clearly)


def weigh_both(saved: float, standard_error: float, chosen: str) -> Reason:
    """Return the reason that says what a mixture of the stages of both backbones would gain over the chosen one's.

    It would need both networks in each request, and so is not used by itself: in 20 splits of four sets it was clearly better
    in none (`benchmarks/mixture.py --both`, docs/decisions/0018-mixture.md).

    Args:
        saved: Cross-fitted loss of the chosen backbone's mixture less that of both together, in nats.
        standard_error: Of `saved`, paired by image.
        chosen: Name of the chosen backbone.
    """
    clearly = saved > CLEARLY_LOWER * standard_error
    change = f"{'lower' if saved >= 0 else 'raise'} the cross-validated loss by {abs(saved):.3f} ± {standard_error:.3f}"
    verdict = (
        "That is clear: fit a bundle with each --backbone, and join the two with transferapp ensemble."
        if clearly
        else "That does not justify running two networks in each request."
    )
    text = f"Both backbones together would {change} against {chosen} alone. {verdict}"
    return Reason("both", text, {"saved": saved, "standard_error": standard_error})
