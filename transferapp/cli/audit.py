"""`transferapp audit`: find faults in a set of images."""

from __future__ import annotations

import json
from pathlib import Path

import click

from transferapp.cli.options import GroupedCommand, data_option, source_options
from transferapp.data.options import SourceOptions


@click.command("audit", cls=GroupedCommand)
@data_option("Images, as for fit.")
@source_options
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="File for the findings as JSON."
)
@click.option("--page", type=click.Path(path_type=Path), metavar="FILE", help="File for a page with images (HTML).")
@click.option("--label-fixes", default="", metavar="PATH", help="Corrected labels, as for fit.")
def command(data: str, json_file: Path | None, page: Path | None, label_fixes: str, **source: str) -> None:
    """Find unreadable, odd, duplicate and mislabeled images."""
    from transferapp.cli.card import show_findings
    from transferapp.cli.terminal import TerminalProgress, quiet_libraries
    from transferapp.evaluation.report.audit_report import render_audit
    from transferapp.evaluation.report.pages import names_shown, thumbnails
    from transferapp.recipes.audit import audit
    from transferapp.system.storage import write_text

    with quiet_libraries() as console:
        result = audit(
            data, source=SourceOptions(**source), label_fixes=label_fixes, progress=TerminalProgress(console)
        )
    document = result.to_json()
    if json_file:
        write_text(json_file, json.dumps(document, indent=2, ensure_ascii=True) + "\n")
    if page:
        images = thumbnails(result.dataset.records, names_shown(document))
        refusal = str(result.refusal or "")
        write_text(page, render_audit(data, document, document["ignored"], images, refusal))
    show_findings(document)
    if result.refusal is not None:  # after everything has been shown
        raise result.refusal
