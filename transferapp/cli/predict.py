"""`transferapp predict`: classify images."""

from __future__ import annotations

from pathlib import Path

import click

from transferapp.cli.streams import print_json, printable
from transferapp.errors import ImageError


@click.command("predict")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("files", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--views", type=int, metavar="[1|10|50]", help="Crops to average.  [default: as in the bundle]")
@click.option("--top-k", type=int, default=5, show_default=True, help="Number of classes to show.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per image and line.")
def command(bundle: Path, files: tuple[Path, ...], views: int | None, top_k: int, as_json: bool) -> int:
    """Classify images with a bundle. Unusable images are reported, and the exit code is then 3."""
    from transferapp.bundle.predictor import Predictor
    from transferapp.cli.tables import show_prediction

    predictor = Predictor.load(bundle)
    failures = 0
    for file in files:
        try:
            prediction = predictor.predict(file, views=views, top_k=top_k)
        except ImageError as error:
            failures += 1
            click.echo(printable(f"Error: {error}"), err=True)
            if as_json:
                print_json({"file": str(file), "error": {"code": error.code, "message": str(error)}}, indent=None)
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
            print_json(document, indent=None)
        else:
            show_prediction(file, prediction.notes, [(score.label, score.score) for score in prediction.scores])
    return ImageError.exit_code if failures else 0
