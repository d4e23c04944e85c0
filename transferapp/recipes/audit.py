"""The audit on its own: look at every image, say what was found, and learn nothing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from transferapp.backbones.registry import DEFAULT_BACKBONE
from transferapp.config import make_config
from transferapp.data.audit import check_usable
from transferapp.data.dataset import Dataset
from transferapp.data.duplicates import similar_rows
from transferapp.data.findings import Findings, summarize, with_look_alikes
from transferapp.data.options import SourceOptions
from transferapp.errors import DataError
from transferapp.recipes.looking import look
from transferapp.system.progress import Progress, Silent


@dataclass(frozen=True)
class Checkup:
    """What came of it.

    Attributes:
        dataset: Audited.
        findings: What was found.
        refusal: The error that a fit would end with; None where the set can be learned from.
    """

    dataset: Dataset
    findings: Findings
    refusal: DataError | None

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary for JSON."""
        return {
            "data": self.dataset.origin,
            **self.findings.to_json(),
            "ignored": [asdict(item) for item in self.dataset.ignored],
            "refusal": str(self.refusal) if self.refusal else None,
        }


def check_up(
    data: str,
    *,
    source: SourceOptions | None = None,
    fast: bool = False,
    label_fixes: str = "",
    progress: Progress | None = None,
) -> Checkup:
    """Audit what `--data` names.

    Args:
        data: What `--data` names.
        source: Columns and places that the person named.
        fast: Leave out what needs the network: pairs that only their features show to be alike.
        label_fixes: Corrections made so far: the path of a CSV, or nothing.
        progress: Who is told.

    Raises:
        DataError: There is nothing there that can be audited.
    """
    progress = progress or Silent()
    config = make_config(
        {**asdict(source or SourceOptions()), "data": data, "label_fixes": label_fixes, "backbone": DEFAULT_BACKBONE}
    )
    seen = look(config, progress, with_network=not fast, refuse=False)
    findings = summarize(seen.dataset)
    if seen.trunk is not None:
        with progress.task("comparing the images with each other", 0):
            top = seen.rows[:, seen.trunk.row_slices[seen.trunk.top.index]]
            findings = with_look_alikes(findings, seen.dataset, similar_rows(top))
    refusal = None
    try:
        check_usable(seen.source, seen.dataset)
    except DataError as error:
        refusal = error
    return Checkup(seen.dataset, findings, refusal)
