"""Entry point: commands, and what becomes of every error."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

import click

from transferapp.errors import TransferAppError

COMMANDS = {
    "fit": "transferapp.cli.fit",
    "plan": "transferapp.cli.plan",
    "predict": "transferapp.cli.predict",
    "evaluate": "transferapp.cli.evaluate",
    "serve": "transferapp.cli.serve",
    "backbones": "transferapp.cli.backbones",
}
INTERRUPTED = 130
OUT_OF_RESOURCES = 5


class _LazyGroup(click.Group):
    """Imports a command's module only when that command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = import_module(COMMANDS[name]).command
        return command


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="transferapp", message="%(package)s %(version)s")
@click.option("--debug", is_flag=True, help="Show tracebacks and the libraries' own messages.")
def cli(debug: bool) -> None:
    """Turn a folder of pictures into a trustworthy image classifier, and serve it.

    \b
    transferapp plan --data ./dogs         what would be done with these pictures, and why
    transferapp fit --data ./dogs          do it: writes the bundle models/dogs
    transferapp predict models/dogs a.jpg  what is on this picture?
    transferapp serve models/dogs          answer POST /predict over HTTP
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]  # welcome anywhere on the line
    if debug:
        os.environ["TRANSFERAPP_DEBUG"] = "1"
    code = _run(words, debug)
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads that still build a network nobody needs any more would hold an orderly exit back for seconds.
    os._exit(code)


def _run(words: list[str], debug: bool) -> int:
    try:
        outcome = cli.main(args=words, prog_name="transferapp", standalone_mode=False)
        return outcome if isinstance(outcome, int) else 0
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "transferapp"
        return _complain(f"{error.format_message()} See `{command} --help`.", error.exit_code)
    except click.ClickException as error:
        return _complain(error.format_message(), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return _complain("Interrupted; what was there before is unchanged.", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the last flush does not complain too
        return 0
    except TransferAppError as error:
        if debug:
            raise
        return _complain(str(error), error.exit_code)
    except MemoryError:
        if debug:
            raise
        return _complain("Out of memory. Close other programs, or use fewer or smaller pictures.", OUT_OF_RESOURCES)
    except Exception as error:
        if debug:
            raise
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        return _complain(f"Internal error ({text}). Run again with --debug for the details; please report it.", 1)


def _complain(message: str, code: int) -> int:
    sys.stderr.write(f"Error: {message}\n" if code != INTERRUPTED else f"\n{message}\n")
    return code
