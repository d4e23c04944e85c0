"""Which parts of a backbone the rule would tune: the cuts to try, from shallow to deep, and what each may cost. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transferapp.errors import UsageError

INPUT = "input"
"""The name of the cut below which there is nothing: the whole network trains."""

TUNE_CHOICES = ("auto", "none", "last", "last-two", "most", "all")

MIN_EPOCHS = 3
"""Fewer passes than this are not worth starting: warm-up and the first drop of the rate take two."""


@dataclass(frozen=True)
class Proposal:
    """A part of the backbone to tune, or a head alone to train.

    Attributes:
        name: For people.
        cut: The last stage that stays frozen, or `INPUT`.
        head_only: Whether nothing of the backbone trains: the head stands on the cut.
    """

    name: str
    cut: str
    head_only: bool = False

    @property
    def key(self) -> str:
        """Tells it from all others; a file name."""
        return f"head-{self.cut}" if self.head_only else self.cut


def propose(size: str, similarity: str, stages: Sequence[str], tune: str = "auto") -> tuple[Proposal, ...]:
    """The contenders of the bake-off beside the probe.

    The lecture's rule for large sets: similar ones tune the last stages, different ones the whole network. What it leaves
    open, how many stages, is tried from shallow to deep as far as the time budget goes.

    Args:
        size: `small` or `large`.
        similarity: `similar` or `different`.
        stages: The stages' names, earliest first.
        tune: `auto` for the rule, or one of `TUNE_CHOICES` to overrule it.

    Returns:
        Proposals, cheapest first, and in that order each is given the time that it needs; empty where only a classifier is
        to be trained.

    Raises:
        UsageError: The backbone has too few stages for what is asked.
    """
    wanted: tuple[str, ...]
    if tune == "auto":
        wanted = () if size == "small" else ("last-two", "most") if similarity == "similar" else ("most", "all")
    else:
        wanted = () if tune == "none" else (tune,)
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
"""The name of the contender whose head is trained by gradient steps, on features of the frozen backbone."""

_NAMES = {
    "last": "last stage",
    "last-two": "last two stages",
    "most": "all but the first stages",
    "all": "whole network",
}
_LAST_STAGES = {"last": 1, "last-two": 2}


def _cut_below(name: str, stages: Sequence[str]) -> str | None:
    """The stage below the part that is tuned; None where the backbone is too short for it."""
    if name == "all":
        return INPUT
    # `most` leaves the first third of the stages frozen: edges and textures, the most generic and, at the highest
    # resolution, the dearest to train.
    tuned = _LAST_STAGES.get(name, len(stages) - max(1, len(stages) // 3))
    position = len(stages) - 1 - tuned
    return stages[position] if tuned and position >= 0 else None
