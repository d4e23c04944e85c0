"""Cuts of a backbone to fine-tune above, by the rule or by `--tune`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from transferapp.errors import UsageError

INPUT = "input"
"""Name of the cut below which nothing is frozen: the whole network trains."""

TUNE_CHOICES = ("auto", "none", "last", "last-two", "most", "all")

MIN_EPOCHS = 3
"""Fewest epochs worth starting: warm-up and the first drop of the rate take two."""


@dataclass(frozen=True)
class Proposal:
    """A part of the backbone to fine-tune, or a head alone to train.

    Attributes:
        name: Name for people.
        cut: Last stage that stays frozen, or `INPUT`.
        head_only: Whether only a head on the cut trains and the whole backbone stays frozen.
    """

    name: str
    cut: str
    head_only: bool = False

    @property
    def key(self) -> str:
        """Unique identifier, usable as a file name."""
        return f"head-{self.cut}" if self.head_only else self.cut


def propose(
    size: str, similarity: str, stages: Sequence[str], tune: str = "auto", *, budget: float = math.inf
) -> tuple[Proposal, ...]:
    """Return the fine-tuning candidates beside the linear classifier.

    The lecture's rule for large sets: similar ones fine-tune the last stages, different ones the whole network. It leaves open
    how many stages; depths are tried from shallow to deep as far as the time budget allows. For small sets it fine-tunes
    nothing; where a budget is given all the same, one candidate is tried.

    Args:
        size: `small` or `large`.
        similarity: `similar` or `different`.
        stages: Names of the stages, earliest first.
        tune: One of `TUNE_CHOICES`; `auto` applies the rule.
        budget: Seconds of fine-tuning; with 0 nothing is fine-tuned.

    Returns:
        Proposals, cheapest first, which is the order in which they get time; empty where only a classifier is trained.

    Raises:
        UsageError: The backbone has too few stages for what is asked.
    """
    wanted: tuple[str, ...]
    if tune == "auto":
        if size == "small":
            wanted = ("most",) if similarity == "different" else ()
        else:
            wanted = ("last-two", "most") if similarity == "similar" else ("most", "all")
    else:
        wanted = () if tune == "none" else (tune,)
    if not budget:
        return ()
    cuts: dict[str, str] = {}
    for name in wanted:
        cut = _cut_below(name, stages)
        if cut is not None and cut not in cuts.values():  # in a short backbone two names can mean the same
            cuts[name] = cut
    if wanted and not cuts:
        if tune != "auto":
            raise UsageError(
                f"--tune {tune} does not fit this backbone", got=f"{len(stages)} stages", hint="Try --tune all"
            )
        cuts = {"all": INPUT}  # nothing can be left frozen of a single stage
    return tuple(Proposal(_NAMES[name], cut) for name, cut in cuts.items())


TRAINED_HEAD = "trained head"
"""Name of the candidate whose head is trained by gradient steps on features of the frozen backbone."""

_NAMES = {
    "last": "last stage",
    "last-two": "last two stages",
    "most": "all but the first stages",
    "all": "whole network",
}
_LAST_STAGES = {"last": 1, "last-two": 2}


def _cut_below(name: str, stages: Sequence[str]) -> str | None:
    """Return the stage below the part that is fine-tuned; None where the backbone is too short for it."""
    if name == "all":
        return INPUT
    # `most` leaves the first third of the stages frozen: edges and textures, the most generic and, at the highest
    # resolution, the most expensive to train.
    tuned = _LAST_STAGES.get(name, len(stages) - max(1, len(stages) // 3))
    position = len(stages) - 1 - tuned
    return stages[position] if tuned and position >= 0 else None
