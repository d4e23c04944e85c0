"""`transferapp search`: a fit whose head is searched."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from transferapp.cli.options import GroupedCommand, config_from, fit_options, ray_option
from transferapp.cli.streams import print_json, printable

_OF_FINE_TUNING = (
    "tune",
    "rule_only",
    "scratch",
    "budget",
    "epochs",
    "learning_rate",
    "backbone_ratio",
    "layer_decay",
    "cycles",
    "average",
    "l2",
    "pooling",
    "mixup",
    "cutmix",
    "stochastic_depth",
)
"""Settings that a search has no use for: the backbone stays frozen, and the learning rate is searched."""


@click.command("search", cls=GroupedCommand)
@click.option("--trials", type=int, default=100, show_default=True, help="Number of all trials.")
@click.option(
    "--coarse",
    type=int,
    help="Number of coarse trials: a few epochs each, over the whole range.  [default:\N{NO-BREAK SPACE}two fifths]",
)
@click.option(
    "--over",
    multiple=True,
    metavar="NAME=LOW..HIGH",
    help="Setting to search, as NAME=LOW..HIGH or NAME=a,b,c; may be given several times. Any setting of the head and "
    "its training: learning_rate, l2, l1, dropout, dropconnect, hidden (128, or 256x128 for two layers), activation, "
    "initializer, batch_norm, optimizer, schedule, batch_size, weight_decay, label_smoothing.  "
    "[default:\N{NO-BREAK SPACE}learning_rate=1e-6..1e-1 and l2=1e-5..1e1]",
)
@fit_options(*_OF_FINE_TUNING)
@ray_option
@click.option("--fresh", is_flag=True, help="New start instead of resuming a search.")
@click.option("--json", "as_json", is_flag=True, help="Manifest as JSON, instead of trials and card.")
def command(
    trials: int,
    coarse: int | None,
    over: tuple[str, ...],
    config_file: Path | None,
    cluster: str,
    fresh: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Fit a classifier whose settings are searched.

    Searches learning rate and L2, or the settings of --over, by random trials on cached features, coarse and then fine. The
    validation images choose the best trial, which is written as a bundle; the final figure comes from test images that take
    no part in the search.
    """
    started = time.perf_counter()
    from transferapp.recipes.search.space import make_search

    settings = make_search(over, trials=trials, coarse=coarse)
    config = config_from(config_file, flags)
    from transferapp.cli.card import show_card, show_outcome, show_search
    from transferapp.cli.terminal import TerminalProgress, quiet_libraries
    from transferapp.system.cluster import connected

    def show(line: str) -> None:
        if not as_json:
            click.echo(printable(line))

    with quiet_libraries() as console, connected(cluster):
        from transferapp.recipes.search.search import search  # imports TensorFlow, which prints

        result = search(config, settings, TerminalProgress(console), on_trial=show, fresh=fresh)
    manifest = result.manifest
    if as_json:
        print_json(manifest)
        return
    show_card(manifest)
    show_search(manifest["search"])
    show_outcome(manifest, result.path, time.perf_counter() - started)
