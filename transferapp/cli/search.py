"""`transferapp search`: find the settings of a head by trial."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from transferapp.cli.options import GroupedCommand, config_from, fit_options
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
"""Settings of a fit that mean nothing to a search: it freezes the backbone, and finds the rate itself."""


@click.command("search", cls=GroupedCommand)
@click.option("--trials", type=int, default=100, show_default=True, help="Trials in all.")
@click.option(
    "--coarse",
    type=int,
    help="How many of them are coarse: few epochs, over the whole range.  [default:\N{NO-BREAK SPACE}two fifths]",
)
@click.option(
    "--over",
    multiple=True,
    metavar="NAME=LOW..HIGH",
    help="What is searched, as NAME=LOW..HIGH or NAME=a,b,c; may be given several times. Any setting of the head and its "
    "training: learning_rate, l2, l1, dropout, dropconnect, hidden (128, or 256x128 for two layers), activation, "
    "initializer, batch_norm, optimizer, schedule, batch_size, weight_decay, label_smoothing.  "
    "[default:\N{NO-BREAK SPACE}learning_rate=1e-6..1e-1 and l2=1e-5..1e1]",
)
@click.option("--grid", is_flag=True, help="The points of grids instead of random ones, for comparison.")
@click.option("--workers", type=int, default=1, show_default=True, help="Processes that run trials.")
@click.option(
    "--storage",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Keep the trials in this file (an Optuna journal).  "
    "[default:\N{NO-BREAK SPACE}beside the bundle, until that is written]",
)
@fit_options(*_OF_FINE_TUNING)
@click.option("--fresh", is_flag=True, help="Forget an unfinished search and begin anew, instead of going on with it.")
@click.option("--json", "as_json", is_flag=True, help="Print the bundle's manifest instead of trials and card.")
def command(
    trials: int,
    coarse: int | None,
    over: tuple[str, ...],
    grid: bool,
    workers: int,
    storage: Path | None,
    config_file: Path | None,
    fresh: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Find the best settings of a classifier by trial.

    Learning rate and regularization, or whatever --over names; the best is written as a bundle. Random search, on a
    logarithmic scale for rates and strengths, coarse and then fine, on cached features: a trial is over in a fraction of a
    second. The validation images choose; the final figure is of test images that the search never saw.
    """
    started = time.perf_counter()
    from transferapp.recipes.search.settings import make_search

    settings = make_search(over, trials=trials, coarse=coarse, grid=grid, workers=workers, storage=storage)
    config = config_from(config_file, flags)
    from transferapp.cli.card import show_card, show_outcome, show_search
    from transferapp.cli.terminal import TerminalProgress, quiet_libraries
    from transferapp.recipes.search.run import search

    def show(line: str) -> None:
        click.echo(printable(line))

    with quiet_libraries() as console:
        result = search(config, settings, TerminalProgress(console), on_trial=None if as_json else show, fresh=fresh)
    manifest = result.manifest
    if as_json:
        print_json(manifest)
        return
    show_card(manifest["plan"], manifest["backbones"], manifest["data"]["ignored"], (), manifest["hardware"])
    show_search(manifest["search"])
    show_outcome(manifest, result.path, time.perf_counter() - started)
