"""`transferapp plan`: show the decision without training."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from transferapp.cli.options import GroupedCommand, config_from, fit_options
from transferapp.cli.streams import print_json


@click.command("plan", cls=GroupedCommand)
@fit_options("out", "train_views")
@click.option("--json", "as_json", is_flag=True, help="Decision as JSON, instead of the card.")
def command(config_file: Path | None, as_json: bool, **flags: Any) -> None:
    """Measure images and show what would be trained, and why."""
    config = config_from(config_file, flags)
    from transferapp.cli.card import show_card
    from transferapp.cli.terminal import TerminalProgress, quiet_libraries
    from transferapp.recipes.fit.fit import plan
    from transferapp.recipes.fit.report import backbone_json
    from transferapp.system.hardware import detect

    with quiet_libraries() as console:
        measurement = plan(config, TerminalProgress(console))
    manifest: dict[str, Any] = {
        "plan": measurement.plan.to_json(),
        "backbones": [backbone_json(each, each is measurement.chosen) for each in measurement.backbones],
        "data": {
            "ignored": [asdict(item) for item in measurement.dataset.ignored],
            "findings": measurement.findings.to_json(),
        },
        "geometry": measurement.geometry.to_json(),
        "class_weights": measurement.weighting.to_json(),
        "hardware": detect(config.training_precision).to_json(),
    }
    if as_json:
        print_json({**manifest.pop("plan"), **manifest.pop("data"), **manifest})
    else:
        show_card(manifest)
