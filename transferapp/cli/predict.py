"""`transferapp predict`: classify images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from transferapp.cli.options import ray_option
from transferapp.cli.streams import print_json, printable
from transferapp.data.options import SourceOptions
from transferapp.errors import ImageError, UsageError

TOP_K = 5
"""Classes that are shown of an image."""


@click.command("predict")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("paths", metavar="PATH...", type=click.Path(), nargs=-1, required=True)
@click.option("--views", type=int, metavar="[1|10|50]", help="Crops to average.  [default: as in the bundle]")
@click.option("--top-k", type=int, help=f"Number of classes to show.  [default: {TOP_K}]")
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="FILE", help="File of all answers: .csv, .jsonl or .parquet."
)
@click.option(
    "--sort-into",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder to move the images into: a sub-folder per class, unsure, unknown, unreadable.",
)
@click.option("--copy", "method", flag_value="copy", help="Copies instead, with --sort-into.")
@click.option("--link", "method", flag_value="link", help="Symbolic links instead, with --sort-into.")
@click.option("--path-column", default="", metavar="NAME", help="Table column of the image paths.")
@click.option(
    "--encoding",
    default="",
    metavar="NAME",
    help="Encoding of a table or of names in a zip, such as gbk; otherwise detected.",
)
@ray_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object per image; with --out, one of the counts.")
def command(bundle: Path, paths: tuple[str, ...], path_column: str, encoding: str, **options: Any) -> int:
    """Classify images with a bundle.

    A PATH is an image, a folder of images at any depth, a table of paths, or an archive; with --out also the address of an
    image or a folder (s3://, gs://, https://). Unusable images are reported, and
    the exit code is then 3. A run with --out or --sort-into that was interrupted goes on when it is given again.
    """
    source = SourceOptions(path_column=path_column, encoding=encoding)
    from transferapp.data.remote import is_address

    given = [path if is_address(path) else Path(path) for path in paths]
    if options["out"] or options["sort_into"]:
        return _batch(bundle, given, source, **options)
    return _show(bundle, given, source, **options)


def _show(
    bundle: Path,
    paths: Sequence[Path | str],
    source: SourceOptions,
    *,
    views: int | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Print the classes of each image."""
    if options["method"]:
        raise UsageError(f"--{options['method']} means nothing without --sort-into")
    if options["cluster"]:
        raise UsageError("--ray means nothing without --out or --sort-into")
    if addresses := [path for path in paths if isinstance(path, str)]:
        raise UsageError("Images at an address are read with --out only", got=addresses[0])
    top_k = TOP_K if options["top_k"] is None else options["top_k"]
    from transferapp.bundle.predictor import Predictor
    from transferapp.cli.card import show_prediction
    from transferapp.cli.terminal import TerminalProgress, quiet_libraries
    from transferapp.data.image_files import list_images

    predictor = Predictor.load(bundle)
    with quiet_libraries() as console:
        images = list_images(paths, source, progress=TerminalProgress(console))
    failures = 0
    for image in images:
        file = Path(image.name)
        try:
            if image.error:
                raise ImageError(f"{printable(image.name)} {image.reason}", code=image.error)
            prediction = predictor.predict(Path(image.location), views=views, top_k=top_k)
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
                "novelty": prediction.novelty,
                "known": prediction.known,
                "prediction_set": prediction.prediction_set,
                "views": prediction.views,
                "notes": list(prediction.notes),
            }
            print_json(document, indent=None)
        else:
            show_prediction(file, prediction, predictor.bundle.coverage)
    return ImageError.exit_code if failures else 0


def _batch(bundle: Path, paths: Sequence[Path | str], source: SourceOptions, *, as_json: bool, **options: Any) -> int:
    """Write the answers to a file, and sort the images by them."""
    if options["top_k"] is not None:
        raise UsageError("--top-k means nothing with --out or --sort-into, which keep the most probable class")
    if options["method"] and not options["sort_into"]:
        raise UsageError(f"--{options['method']} means nothing without --sort-into")
    from transferapp.cli.card import show_batch
    from transferapp.cli.terminal import TerminalProgress, quiet_libraries
    from transferapp.recipes.predict import BatchSettings, predict_images
    from transferapp.system.cluster import connected

    out, sort_into = options["out"], options["sort_into"]
    settings = BatchSettings(out, sort_into, options["method"] or "move", options["views"], source)
    with quiet_libraries() as console, connected(options["cluster"]):
        result = predict_images(bundle, paths, settings, TerminalProgress(console))
    if as_json:
        print_json(result.to_json())
    else:
        show_batch(result.to_json(), out, sort_into)
    return ImageError.exit_code if result.num_errors else 0
