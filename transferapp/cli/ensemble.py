"""`transferapp ensemble`: average several bundles."""

from __future__ import annotations

from pathlib import Path

import click

from transferapp.cli.streams import printable


@click.command("ensemble")
@click.argument("bundles", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="PATH", help="Folder of the new bundle.")
def command(bundles: tuple[Path, ...], out: Path) -> None:
    """Average several bundles into one.

    They must have the same classes. The result is served like any other bundle; a request costs as much as all of them
    together. `transferapp evaluate` measures the gain.
    """
    from transferapp.cli.terminal import TerminalProgress, quiet_libraries
    from transferapp.recipes.ensemble import ensemble

    with quiet_libraries() as console, TerminalProgress(console).task("building the ensemble", 0):
        result = ensemble(bundles, out)
    names = ", ".join(member["name"] for member in result.manifest["members"])
    click.echo(printable(f"{result.path}: the average of {names}"))
    click.echo(printable(f"  transferapp evaluate {result.path} --data DIR"))
