"""`transferapp doctor`: list labels that are probably wrong."""

from __future__ import annotations

from pathlib import Path

import click

from transferapp.cli.options import GroupedCommand, data_option, source_options
from transferapp.cli.streams import print_json
from transferapp.data.options import SourceOptions


@click.command("doctor", cls=GroupedCommand)
@data_option("Images, as for fit.")
@source_options
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("labels.csv"),
    metavar="FILE",
    help="The list to fill in; a page with images goes beside it.  [default:\N{NO-BREAK SPACE}labels.csv]",
)
@click.option(
    "--bundle", type=click.Path(path_type=Path), metavar="PATH", help="Bundle whose backbone and cut are used."
)
@click.option("--label-fixes", default="", metavar="PATH", help="Corrected labels, as for fit.")
@click.option("--json", "as_json", is_flag=True, help="The list as JSON.")
def command(data: str, out: Path, bundle: Path | None, label_fixes: str, as_json: bool, **source: str) -> None:
    """List labels that are probably wrong, for a person to check.

    Fill in the fix column of the list: the right class, `drop` to leave the image out, or nothing to keep the label. Then
    pass the list to `transferapp fit --label-fixes`.
    """
    from transferapp.cli.card import show_diagnosis
    from transferapp.cli.terminal import TerminalProgress, quiet_libraries
    from transferapp.data.label_fixes import check_list_target
    from transferapp.evaluation.report.audit_report import labels_shown, render_doctor
    from transferapp.evaluation.report.pages import thumbnails
    from transferapp.recipes.label_doctor import diagnose
    from transferapp.system.storage import write_text

    check_list_target(out)
    with quiet_libraries() as console:
        diagnosis = diagnose(
            data, bundle, source=SourceOptions(**source), label_fixes=label_fixes, progress=TerminalProgress(console)
        )
    document = diagnosis.to_json()
    page = out.with_suffix(".html")
    write_text(out, diagnosis.to_csv())
    images = thumbnails(diagnosis.dataset.records, labels_shown(document))
    write_text(page, render_doctor(document, images, str(out)))
    if as_json:
        print_json(document)
    else:
        show_diagnosis(document, [str(out), str(page)])
