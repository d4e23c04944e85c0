"""`transferapp export`: a bundle in another format."""

from __future__ import annotations

from pathlib import Path

import click

from transferapp.cli.options import GroupedCommand, Option, data_option, source_options
from transferapp.cli.streams import print_json
from transferapp.data.options import SourceOptions

FORMATS = ("onnx", "litert", "savedmodel", "html", "openvino-int8")


@click.command("export", cls=GroupedCommand)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--format", "kind", cls=Option, type=click.Choice(FORMATS), required=True, help="Format of the export.")
@click.option(
    "--out",
    cls=Option,
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Folder to write.  [default:\N{NO-BREAK SPACE}exports/NAME-FORMAT]",
)
@data_option("Labeled images to compare on.  [default:\N{NO-BREAK SPACE}those of the fit]", required=False)
@source_options
@click.option(
    "--runtime",
    cls=Option,
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Of html: the package onnxruntime-web.  [default:\N{NO-BREAK SPACE}fetched with npm]",
)
@click.option("--json", "as_json", cls=Option, is_flag=True, help="The comparison as JSON.")
def command(
    bundle: Path, kind: str, out: Path | None, data: str | None, runtime: Path | None, as_json: bool, **source: str
) -> None:
    """Export a bundle to run without transferapp.

    Preprocessing is part of the network: uint8 pixels in, probabilities out. The export is run on held-out images and kept
    only if it agrees with the bundle. docs/exports.md shows how to use each format.
    """
    from transferapp.cli.card import show_export
    from transferapp.cli.terminal import TerminalProgress, quiet_libraries
    from transferapp.recipes.export import export

    with quiet_libraries() as console:
        result = export(
            bundle,
            kind,
            out,
            data=data,
            source=SourceOptions(**source),
            runtime=runtime,
            progress=TerminalProgress(console),
        )
    figures = {"path": str(result.path), "file": str(result.file), "bytes": result.num_bytes, **result.parity.to_json()}
    if as_json:
        print_json(figures)
    else:
        show_export(figures)
