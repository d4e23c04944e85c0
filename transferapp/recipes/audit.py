"""Audit of a source without training."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from transferapp.backbones.registry import DEFAULT_BACKBONE
from transferapp.config import make_config
from transferapp.data.audit import Findings, check_usable, summarize, with_similar_pairs
from transferapp.data.dataset import Dataset
from transferapp.data.near_duplicates import similar_rows, too_uniform
from transferapp.data.options import SourceOptions
from transferapp.errors import DataError
from transferapp.recipes.features import featurize
from transferapp.system.progress import Progress, Silent


@dataclass(frozen=True)
class Audit:
    """Outcome of `audit`.

    Attributes:
        dataset: Audited images.
        findings: Duplicates, contradicting labels, odd images.
        refusal: Error that a fit of these images would end with; None where they can be trained on.
    """

    dataset: Dataset
    findings: Findings
    refusal: DataError | None

    def to_json(self) -> dict[str, Any]:
        """Return a plain dictionary for JSON."""
        return {
            "data": self.dataset.origin,
            **self.findings.to_json(),
            "ignored": [asdict(item) for item in self.dataset.ignored],
            "refusal": str(self.refusal) if self.refusal else None,
        }


def audit(
    data: str, *, source: SourceOptions | None = None, label_fixes: str = "", progress: Progress | None = None
) -> Audit:
    """Read every image of a source and report duplicates, contradicting labels and odd images.

    Args:
        data: Value of `--data`.
        source: Options of the source.
        label_fixes: Path of a CSV with corrected labels; empty for none.
        progress: Receives progress updates.

    Raises:
        DataError: There is nothing that can be audited.
    """
    progress = progress or Silent()
    config = make_config(
        {**asdict(source or SourceOptions()), "data": data, "label_fixes": label_fixes, "backbone": DEFAULT_BACKBONE}
    )
    seen = featurize(config, progress, refuse=False)
    findings = summarize(seen.dataset)
    if seen.trunk is not None:
        with progress.task("comparing the images with each other", 0):
            top = seen.rows[:, seen.trunk.row_slices[seen.trunk.top.index]]
            uniform = too_uniform(top, seen.dataset.labels)
            findings = with_similar_pairs(findings, seen.dataset, None if uniform else similar_rows(top))
    refusal = None
    try:
        check_usable(seen.source, seen.dataset)
    except DataError as error:
        refusal = error
    return Audit(seen.dataset, findings, refusal)
