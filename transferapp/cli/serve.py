"""`transferapp serve`: serve bundles over HTTP."""

from __future__ import annotations

from pathlib import Path

import click

from transferapp.errors import UsageError


@click.command("serve")
@click.argument("models", type=click.Path(path_type=Path), required=False)
@click.option("--host", help="Address to listen on; 0.0.0.0 for all.  [default:\N{NO-BREAK SPACE}127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port; 0 for any free one.  [default: 8000]")
@click.option("--workers", type=click.IntRange(1), help="Inference threads.  [default: one per core]")
def command(models: Path | None, host: str | None, port: int | None, workers: int | None) -> None:
    """Serve a bundle, or every bundle in a folder, over HTTP.

    All other settings come from TRANSFERAPP_* environment variables (docs/service.md). Without MODELS and TRANSFERAPP_MODELS,
    the folder models/ is served.
    """
    try:
        from service.registry import find_bundles
        from service.server import run
        from service.settings import read_settings
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("service"):
            raise
        raise UsageError(
            "Another package named `service` hides the one of transferapp",
            hint="Run `transferapp serve` in another folder, or without that package on PYTHONPATH",
        ) from error

    settings = read_settings(models=models, host=host, port=port, workers=workers)
    find_bundles(settings.models)  # reports a wrong path before the server listens
    run(settings)
