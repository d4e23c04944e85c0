"""`transferapp undo`: put sorted images back."""

from __future__ import annotations

from pathlib import Path

import click

from transferapp.cli.streams import print_json
from transferapp.errors import DataError


@click.command("undo")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="The outcome as JSON.")
def command(folder: Path, as_json: bool) -> int:
    """Put images back that `predict --sort-into DIR` has sorted.

    Moved images go to where they were; copies and links are deleted. What has changed since is left alone, and the exit code
    is then 3.
    """
    from transferapp.cli.card import show_undone
    from transferapp.cli.terminal import TerminalProgress, quiet_libraries
    from transferapp.recipes.sorting import undo

    with quiet_libraries() as console:
        undone = undo(folder, TerminalProgress(console))
    if as_json:
        print_json({"num_restored": undone.num_restored, "left": dict(undone.left)})
    else:
        show_undone(undone.num_restored, undone.left)
    return DataError.exit_code if undone.left else 0
