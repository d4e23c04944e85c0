"""`transferapp predict`: what is on these pictures?"""

from __future__ import annotations

import json
from pathlib import Path

import click

from transferapp.errors import ImageError


@click.command("predict")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("files", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--views", type=int, help="Crops to average: 1, 10 or 50.  [default: the bundle's, 10]")
@click.option("--top-k", type=int, default=5, show_default=True, help="Classes to show.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a picture, a line each.")
def command(bundle: Path, files: tuple[Path, ...], views: int | None, top_k: int, as_json: bool) -> int:
    """Classify pictures with a bundle. A picture that cannot be used is reported and the others go on (exit 3)."""
    from transferapp.predict import Predictor

    predictor = Predictor.load(bundle)
    failures = 0
    for file in files:
        try:
            prediction = predictor.predict(file, views=views, top_k=top_k)
        except ImageError as error:
            failures += 1
            click.echo(f"Error: {error}", err=True)
            if as_json:
                click.echo(json.dumps({"file": str(file), "error": {"code": error.code, "message": str(error)}}))
            continue
        if as_json:
            document = {
                "file": str(file),
                "predictions": [vars(score) for score in prediction.scores],
                "model": predictor.bundle.name,
                "model_version": predictor.bundle.version,
                "views": prediction.views,
                "notes": list(prediction.notes),
            }
            click.echo(json.dumps(document, ensure_ascii=False))
        else:
            click.echo(f"{file}{'  (' + ', '.join(prediction.notes) + ')' if prediction.notes else ''}")
            width = max(len(score.label) for score in prediction.scores)
            for score in prediction.scores:
                click.echo(f"  {score.label:<{width}}  {score.score:6.1%}  {'█' * round(30 * score.score)}")
    return 3 if failures else 0
