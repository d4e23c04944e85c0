"""`transferapp update`: add images or classes to a bundle."""

from __future__ import annotations

from pathlib import Path

import click

from transferapp.cli.options import GroupedCommand, Option, source_options
from transferapp.cli.streams import print_json
from transferapp.data.options import SourceOptions
from transferapp.errors import UsageError


@click.command("update", cls=GroupedCommand)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--data",
    cls=Option,
    metavar="PATH",
    help="Images to add, as for fit.  [default: those that were added to the bundle's own data]",
)
@source_options
@click.option("--json", "as_json", is_flag=True, help="The outcome as JSON.")
def command(bundle: Path, data: str | None, as_json: bool, **options: str) -> None:
    """Add images or classes to a bundle.

    It is fitted again on all images, old and new, with its own settings and backbone, and replaced in one step. Old images
    keep their split, and their cached features are used again; they must still be where they were.
    """
    if not data and any(options.values()):
        raise UsageError("Options of tables and archives apply to --data", expected="--data with a place of new images")
    from transferapp.cli.card import show_update
    from transferapp.cli.terminal import TerminalProgress, quiet_libraries
    from transferapp.recipes.update import update

    with quiet_libraries() as console:
        result = update(bundle, data, source=SourceOptions(**options), progress=TerminalProgress(console))
    outcome = result.to_json()
    if as_json:
        print_json(outcome)
    else:
        show_update(outcome)
