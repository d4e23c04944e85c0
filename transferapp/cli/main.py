"""Entry point: commands, and the exit code of every error and signal."""

from __future__ import annotations

import _thread
import errno
import math
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from types import FrameType
from typing import NoReturn

import click
from click.shell_completion import shell_complete

from transferapp.cli.streams import prepare_streams, printable
from transferapp.data.names import shortened
from transferapp.errors import ResourceError, TransferAppError, UsageError

COMMANDS = {
    "fit": "transferapp.cli.fit",
    "update": "transferapp.cli.update",
    "plan": "transferapp.cli.plan",
    "audit": "transferapp.cli.audit",
    "doctor": "transferapp.cli.doctor",
    "search": "transferapp.cli.search",
    "predict": "transferapp.cli.predict",
    "undo": "transferapp.cli.undo",
    "evaluate": "transferapp.cli.evaluate",
    "ensemble": "transferapp.cli.ensemble",
    "export": "transferapp.cli.export",
    "serve": "transferapp.cli.serve",
    "backbones": "transferapp.cli.backbones",
}
INTERNAL_ERROR = 1
OUT_OF_RESOURCES = ResourceError.exit_code
SIGNAL_BASE = 128
"""Added to a signal's number, as shells do: Ctrl-C (SIGINT, 2) exits with 130, SIGTERM (15) with 143."""
_AGAIN_AFTER = 0.02
"""Seconds until a signal is sent again that arrived where it could not be raised."""

_COMPLETION = "_TRANSFERAPP_COMPLETE"
"""Environment variable with which the shell asks for completions (see Click's documentation)."""

_MAKE_ROOM, _CHOOSE_ANOTHER = "Free some space there", "Choose another place, or get the right to write there"
_UNUSABLE = {
    errno.ENOSPC: _MAKE_ROOM,
    errno.EDQUOT: _MAKE_ROOM,
    errno.EACCES: _CHOOSE_ANOTHER,
    errno.EPERM: _CHOOSE_ANOTHER,
    errno.EROFS: _CHOOSE_ANOTHER,
}
"""Hints for the errors of an unusable path."""

_MEMORY_ERRORS = (
    "can't start new thread",
    "failed to map segment",
    "cannot allocate memory",
    "bad_alloc",
    "resource_exhausted",
    "oom when allocating",
)
"""Texts with which Python, the loader, OpenVINO and TensorFlow say that memory ran out."""
_ERRORS_OF_LIBRARIES = (RuntimeError, ImportError, OSError, SystemError)
_SMALL_ADDRESS_SPACE = 8e9
"""Bytes of address space below which an unknown error of a library is taken for a lack of memory."""
_LEAST_ADDRESS_SPACE = 5e8
"""Bytes of address space below which no command runs: OpenBLAS would end the process, without an exception."""
_LEAST_TO_TRAIN = 3.5e9
"""The same for commands that build a network with TensorFlow, whose threads end the process."""


class Stopped(BaseException):
    """A signal asked the command to stop. It is not a `KeyboardInterrupt`, which libraries catch themselves."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _LazyGroup(click.Group):
    """A group that imports a command's module only when that command runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = import_module(COMMANDS[name]).command
        return command


@click.group(
    cls=_LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(package_name="transferapp", message="%(package)s %(version)s")
@click.option("--debug", is_flag=True, help="Show tracebacks and the libraries' own messages.")
@click.pass_context
def cli(context: click.Context, debug: bool) -> None:  # noqa: ARG001  # `main` has already removed --debug from the arguments
    """Train an image classifier on a folder of images, measure it, explain it and serve it.

    \b
    transferapp audit --data ./dogs        find faults in the images
    transferapp plan --data ./dogs         show what would be trained, and why
    transferapp fit --data ./dogs          train, and write the bundle models/dogs
    transferapp predict models/dogs a.jpg  classify an image
    transferapp serve models/dogs          serve the bundle over HTTP
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code."""
    prepare_streams()
    # Pillow warns of each damaged tag; the result or the error says what matters, and a server logs no line of an uploader's
    # choosing. A filter of the process, because `warnings.catch_warnings` is not safe in threads.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]  # allowed anywhere among the arguments
    if debug:
        os.environ["TRANSFERAPP_DEBUG"] = "1"
    _stop_on_signals()
    code = _run(words, debug)
    _on_signals(_leave)
    try:
        sys.stdout.flush()
    except OSError as error:
        code = code or _judge(error, debug)
    # Threads that still build a network would delay a regular exit by seconds.
    os._exit(code)


def _run(words: list[str], debug: bool) -> int:
    """Run a command and return its exit code; errors print at most one line on standard error."""
    try:
        if instruction := os.environ.get(_COMPLETION):
            return shell_complete(cli, {}, "transferapp", _COMPLETION, instruction)
        least = _LEAST_TO_TRAIN if {"fit", "search", "ensemble"} & set(words[:1]) else _LEAST_ADDRESS_SPACE
        if _address_space() < least and not {"-h", "--help", "--version"} & set(words):
            raise MemoryError
        # `cli.main` would turn a broken pipe into exit code 1 and print blank lines around an interruption.
        with cli.make_context("transferapp", words) as context:
            outcome = cli.invoke(context)
        return outcome if isinstance(outcome, int) else 0
    except click.exceptions.Exit as done:
        return done.exit_code
    except SystemExit as error:  # raised by Rich when the reader of a pipe has left
        return 0 if isinstance(error.__context__, BrokenPipeError) else INTERNAL_ERROR
    except BaseException as error:
        return _judge(error, debug)


def _judge(error: BaseException, debug: bool) -> int:
    """Print an error and return its exit code."""
    if isinstance(error, BrokenPipeError):
        return 0  # the reader has seen enough, as with `| head`
    if debug and not isinstance(error, click.ClickException):
        traceback.print_exception(error)
    if isinstance(error, Stopped):
        cause = "Interrupted" if error.number == signal.SIGINT else "Stopped by a signal"
        return _say(f"{cause}; complete files are unchanged.", SIGNAL_BASE + error.number)
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return _say("Interrupted; complete files are unchanged.", SIGNAL_BASE + signal.SIGINT)
    if isinstance(error, click.UsageError):
        command = error.ctx.command_path if error.ctx else "transferapp"
        return _say(f"Error: {error.format_message()} See `{command} --help`.", error.exit_code)
    if isinstance(error, click.ClickException):
        return _say(f"Error: {error.format_message()}", error.exit_code)
    if isinstance(error, TransferAppError):
        return _say(f"Error: {error}", error.exit_code)
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] not in (
        "transferapp",
        "service",
    ):
        missing = f"The package {error.name} is missing, and this command needs it."
        return _say(f"Error: {missing} Install transferapp in full, or use its `fit` image.", OUT_OF_RESOURCES)
    if _is_out_of_memory(error):
        return _say(f"Error: Out of memory. {_memory_hint()}", OUT_OF_RESOURCES)
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        name = shortened(printable(os.fsdecode(error.filename or "")))
        return _say(f"Error: The path {name} is too long for this system. Use a shorter one.", UsageError.exit_code)
    if isinstance(error, OSError) and error.errno in _UNUSABLE:
        place = error.filename or "the output"
        return _say(f"Error: Could not use {place}: {error.strerror}. {_UNUSABLE[error.errno]}.", OUT_OF_RESOURCES)
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    if isinstance(error, _ERRORS_OF_LIBRARIES) and _address_space() < _SMALL_ADDRESS_SPACE:
        return _say(f"Error: Out of memory, probably ({text}). {_memory_hint()}", OUT_OF_RESOURCES)
    advice = "" if debug else "Run again with --debug for the details; please report it."
    return _say(f"Error: Internal error ({text}). {advice}".rstrip(), INTERNAL_ERROR)


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether an error or one of its causes means that memory ran out; libraries have texts of their own for that."""
    while error is not None:
        text = str(error).lower()
        if isinstance(error, MemoryError) or any(mark in text for mark in _MEMORY_ERRORS):
            return True
        error = error.__cause__ or error.__context__
    return False


def _address_space() -> float:
    """Return the largest address space of this process in bytes, as `ulimit -v` sets it."""
    try:
        import resource
    except ImportError:  # Windows
        return math.inf
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return math.inf if limit == resource.RLIM_INFINITY else limit


def _memory_hint() -> str:
    space = _address_space()
    if space < _SMALL_ADDRESS_SPACE:
        return f"The address space is limited to {space / 1e9:.1f} GB: raise the limit (ulimit -v)."
    return "Close other programs, or use fewer or smaller images."


def _say(message: str, code: int) -> int:
    try:
        if code > SIGNAL_BASE and sys.stderr.isatty():
            sys.stderr.write("\n")  # below the ^C that the terminal prints
        sys.stderr.write(f"{printable(message)}\n")
        sys.stderr.flush()
    except OSError:
        pass  # standard error is closed
    return code


def _stop_on_signals() -> None:
    """Make Ctrl-C and SIGTERM raise `Stopped`, so that unfinished work is cleaned up; a second signal exits at once.

    Python prints an exception raised inside a finalizer or a C callback and continues. A signal that arrives there is therefore
    sent again a moment later, so that it is not lost.
    """

    def stop(number: int, _frame: FrameType | None) -> None:
        _on_signals(_leave)
        raise Stopped(number)

    def unraisable(lost: sys.UnraisableHookArgs) -> None:
        if not isinstance(lost.exc_value, Stopped):
            sys.__unraisablehook__(lost)
            return
        _on_signals(stop)
        again = threading.Timer(_AGAIN_AFTER, _send_to_main_thread, [lost.exc_value.number])
        again.daemon = True
        again.start()

    sys.unraisablehook = unraisable
    _on_signals(stop)


def _send_to_main_thread(number: int) -> None:
    if sys.platform != "win32":  # which also interrupts a blocking system call
        signal.pthread_kill(threading.main_thread().ident or 0, number)
    else:
        _thread.interrupt_main(number)


def _leave(number: int, _frame: FrameType | None) -> None:
    os._exit(SIGNAL_BASE + number)


def _on_signals(handler: Callable[[int, FrameType | None], None]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # a script's background job, which keeps ignoring it
            signal.signal(number, handler)
