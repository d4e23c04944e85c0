"""`transferapp fit`: train a classifier and write a bundle."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from transferapp.cli.options import GroupedCommand, config_from, fit_options, ray_option
from transferapp.cli.streams import print_json


@click.command("fit", cls=GroupedCommand)
@fit_options()
@ray_option
@click.option("--fresh", is_flag=True, help="New start instead of resuming a fit.")
@click.option("--json", "as_json", is_flag=True, help="Manifest as JSON, instead of the card.")
def command(config_file: Path | None, cluster: str, fresh: bool, as_json: bool, **flags: Any) -> None:
    """Train a classifier on images and write it as a bundle."""
    started = time.perf_counter()
    config = config_from(config_file, flags)
    from transferapp.cli.card import show_card, show_outcome
    from transferapp.cli.terminal import TerminalProgress, quiet_libraries
    from transferapp.recipes.fit.fit import fit
    from transferapp.system.cluster import connected

    with quiet_libraries() as console, connected(cluster):
        result = fit(config, TerminalProgress(console), fresh=fresh)
    if as_json:
        print_json(result.manifest)
        return
    show_card(result.manifest)
    show_outcome(result.manifest, result.path, time.perf_counter() - started)
