"""`transferapp serve`: answer POST /predict over HTTP."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("serve")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for every one.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port; 0 for any free one."
)
@click.option("--workers", type=click.IntRange(1), help="Threads that classify.  [default: one a core]")
def command(bundle: Path, host: str, port: int, workers: int | None) -> None:
    """Serve a bundle over HTTP. Further settings come from TRANSFERAPP_* environment variables."""
    from service.model import find_bundle
    from service.server import run
    from service.settings import read_settings
    from transferapp.bundle import read_bundle

    settings = read_settings(bundle=bundle, host=host, port=port, workers=workers)
    read_bundle(find_bundle(settings.bundle))  # a wrong path is said before anything listens
    run(settings)
