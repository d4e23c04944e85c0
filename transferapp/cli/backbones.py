"""`transferapp backbones`: list the pretrained networks."""

from __future__ import annotations

import click

from transferapp.cli.streams import print_json


@click.command("backbones")
@click.option("--json", "as_json", is_flag=True, help="The list as JSON.")
def command(as_json: bool) -> None:
    """List the pretrained networks to start from."""
    from transferapp.backbones.registry import BACKBONES, availability

    rows = [
        {
            "name": spec.name,
            "availability": availability(spec),
            "parameters_millions": spec.parameters,
            "image_size": list(spec.image_size),
        }
        for spec in BACKBONES.values()
    ]
    if as_json:
        print_json(rows)
        return
    click.echo(f"{'name':<20} {'weights':<18} {'parameters':>10}  input")
    for row, spec in zip(rows, BACKBONES.values(), strict=True):
        height, width = spec.image_size
        click.echo(f"{spec.name:<20} {row['availability']:<18} {spec.parameters:>8} M  {height}×{width}")
    click.echo("\nEmbedded weights need no download. Any functional .keras file works too: --backbone path.keras")
