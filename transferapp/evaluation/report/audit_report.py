"""Pages of `transferapp audit` and `transferapp doctor`, each one HTML file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transferapp.data.near_duplicates import MIN_COSINE
from transferapp.evaluation.report.pages import harmless, page_environment
from transferapp.evaluation.report.wording import data_sentences

LABELS_SHOWN = 120
"""Images that the page shows of the suspected labels, and as many of the others; the CSV lists all."""


def render_audit(
    origin: str,
    findings: Mapping[str, Any],
    ignored: Sequence[Mapping[str, Any]],
    thumbnails: Mapping[str, str],
    refusal: str = "",
) -> str:
    """Write the page of an audit.

    Args:
        origin: Value of `--data`.
        findings: `Findings.to_json()`.
        ignored: Files that were left out: `name`, `code`, `reason`.
        thumbnails: `data:` URIs by name, for the images of `names_shown`.
        refusal: Error that a fit of these images would end with; empty for none.

    Returns:
        A self-contained HTML document.
    """
    template = page_environment().get_template("audit.html.j2")
    return harmless(
        template.render(
            title=_title(origin),
            origin=origin,
            f=findings,
            ignored=ignored,
            codes=Counter(item["code"] for item in ignored).most_common(),
            thumbnails=thumbnails,
            refusal=refusal,
            sentences=data_sentences(findings),
            min_cosine=MIN_COSINE,
        )
    )


def render_doctor(diagnosis: Mapping[str, Any], thumbnails: Mapping[str, str], csv_name: str) -> str:
    """Write the page of the label doctor.

    Args:
        diagnosis: `Diagnosis.to_json()`.
        thumbnails: `data:` URIs by path.
        csv_name: Name of the list.

    Returns:
        A self-contained HTML document.
    """
    template = page_environment().get_template("doctor.html.j2")
    page = template.render(
        title=_title(diagnosis["data"]), d=diagnosis, thumbnails=thumbnails, csv=csv_name, shown=LABELS_SHOWN
    )
    return harmless(page)


def labels_shown(diagnosis: Mapping[str, Any]) -> list[str]:
    """Return the paths of the images that the page of the label doctor shows."""
    images = diagnosis["images"]
    suspected = [image["path"] for image in images if image["suspected"]]
    others = [image["path"] for image in images if not image["suspected"]]
    return [*suspected[:LABELS_SHOWN], *others[:LABELS_SHOWN]]


def _title(origin: str) -> str:
    return Path(origin).resolve().name or origin
