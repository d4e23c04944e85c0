"""`transferapp evaluate`: measure a bundle on labeled images."""

from __future__ import annotations

from pathlib import Path

import click

from transferapp.cli.options import GroupedCommand, data_option, source_options
from transferapp.cli.streams import print_json
from transferapp.data.options import SourceOptions


@click.command("evaluate", cls=GroupedCommand)
@click.argument("bundle", type=click.Path(path_type=Path))
@data_option("Images, as for fit; of given splits, test.")
@source_options
@click.option("--views", type=int, metavar="[1|10|50]", help="Crops to average.  [default: as in the bundle]")
@click.option("--include-seen", is_flag=True, help="Include images that the bundle was trained on.")
@click.option("--json", "as_json", is_flag=True, help="The figures as JSON.")
def command(bundle: Path, data: str, views: int | None, include_seen: bool, as_json: bool, **source: str) -> None:
    """Measure a bundle on labeled images. Images that it was trained on are left out and counted."""
    from transferapp.cli.card import show_evaluation
    from transferapp.cli.terminal import TerminalProgress, quiet_libraries
    from transferapp.recipes.evaluate import evaluate

    with quiet_libraries() as console:
        evaluation = evaluate(
            bundle,
            data,
            source=SourceOptions(**source),
            views=views,
            include_seen=include_seen,
            progress=TerminalProgress(console),
        )
    if as_json:
        print_json(evaluation.to_json())
    else:
        show_evaluation(evaluation.to_json())
