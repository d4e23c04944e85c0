"""`transferapp predict`: classify images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import click

from transferapp.cli.streams import print_json, printable
from transferapp.errors import DataError, ImageError


@click.command("predict")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("files", metavar="PATH...", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--views", type=int, metavar="[1|10|50]", help="Crops to average.  [default: as in the bundle]")
@click.option("--top-k", type=int, default=5, show_default=True, help="Number of classes to show.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per image and line.")
def command(bundle: Path, files: tuple[Path, ...], views: int | None, top_k: int, as_json: bool) -> int:
    """Classify images with a bundle.

    A folder stands for all images in it and below it. Unusable images are reported, and the exit code is then 3.
    """
    from transferapp.bundle.predictor import Predictor
    from transferapp.cli.card import show_prediction

    predictor = Predictor.load(bundle)
    failures = 0
    for file in _images(files):
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


def _images(paths: tuple[Path, ...]) -> Iterator[Path]:
    """Return the files as they are, and for each folder its images in the order of their paths."""
    from transferapp.data.names import UNREAD_SUFFIXES, is_image, is_litter, suffix_of

    def failed(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read ({error.strerror or error})") from error

    for path in paths:
        if not path.is_dir():
            yield path
            continue
        found: list[Path] = []
        for folder, folders, names in os.walk(path, onerror=failed):
            folders[:] = [name for name in folders if not is_litter(name)]
            found += [Path(folder, name) for name in names if not is_litter(name)]
        images = [file for file in sorted(found) if is_image(str(file)) or suffix_of(file.name) in UNREAD_SUFFIXES]
        if not images:
            raise DataError(f"{path} has no images", expected="an image, or a folder with images in it or below it")
        yield from images
