"""Exit code and message of every kind of error."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from tests.helpers.folders import tree
from transferapp.cli import backbones, main
from transferapp.errors import TrainingError, WeightsError

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command that ends with an error; its exit code and what was said on standard error."""

    def ending_with(error: BaseException, *, debug: bool = False) -> tuple[int, str]:
        def fail(as_json: bool) -> None:
            raise error

        monkeypatch.setattr(backbones.command, "callback", fail)
        code = main._run(["backbones"], debug)
        return code, capsys.readouterr().err

    return ending_with


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (TrainingError("The loss is not a number", hint="Lower the rate"), 6, "Error: The loss is not a number."),
        (WeightsError("The weights of x are not here"), 5, "Error: The weights of x are not here."),
        (MemoryError(), 5, "Error: Out of memory. Close other programs"),
        (RuntimeError("can't start new thread"), 5, "Error: Out of memory. Close other programs"),
        (ImportError("libx.so: failed to map segment from shared object"), 5, "Error: Out of memory."),
        (RuntimeError("Exception from a.cpp:1:\nCannot load: failed to map segment"), 5, "Error: Out of memory."),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 5, "Error: Out of memory."),
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), 5, "Error: Could not use a/b: No space left on"),
        (PermissionError(errno.EACCES, "Permission denied", "c"), 5, "Error: Could not use c: Permission denied."),
        (OSError(errno.EROFS, "Read-only file system"), 5, "Error: Could not use the output: Read-only file system."),
        (main.Stopped(signal.SIGINT), 130, "Interrupted; complete files are unchanged."),
        (main.Stopped(signal.SIGTERM), 143, "Stopped by a signal; complete files are unchanged."),
        (KeyboardInterrupt(), 130, "Interrupted; complete files are unchanged."),
        (click.Abort(), 130, "Interrupted; complete files are unchanged."),
        (click.ClickException("that did not work"), 1, "Error: that did not work"),
        (click.BadParameter("no"), 2, "Error: Invalid value: no See `transferapp backbones --help`."),
        (RuntimeError("boom\nsecond line"), 1, "Error: Internal error (RuntimeError: boom). Run again with --debug"),
        (AssertionError(), 1, "Error: Internal error (AssertionError: ). Run again with --debug"),
        (OSError(errno.EIO, "Input/output error", "d"), 1, "Error: Internal error (OSError: [Errno 5] Input/output"),
        (SystemExit(3), 1, ""),
    ],
)
def test_one_line_and_the_right_code(run: Run, error: BaseException, code: int, said: str) -> None:
    ended, errors = run(error)
    assert ended == code
    assert errors.startswith(said)
    assert errors.count("\n") == (1 if said else 0)


def test_a_reader_who_left_is_no_error(run: Run) -> None:
    assert run(BrokenPipeError(errno.EPIPE, "Broken pipe")) == (0, "")


def test_a_message_cannot_break_its_line_or_command_the_terminal(run: Run) -> None:
    assert run(TrainingError("\x1b[2J\nlost"))[1] == "Error: \\x1b[2J\\nlost.\n"


@pytest.mark.parametrize(("error", "code"), [(TrainingError("lost"), 6), (RuntimeError("boom"), 1)])
def test_debug_adds_the_traceback(run: Run, error: Exception, code: int) -> None:
    ended, errors = run(error, debug=True)
    assert ended == code
    assert errors.startswith("Traceback (most recent call last):")
    assert errors.splitlines()[-1].startswith("Error: ")
    assert "--debug" not in errors.splitlines()[-1]


def test_completions_come_from_the_same_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_TRANSFERAPP_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "transferapp p")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert main._run([], False) == 0
    assert capsys.readouterr().out.split() == ["plain,plan", "plain,predict"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit the address space")
@pytest.mark.parametrize("command", ["fit", "search", "ensemble"])
def test_training_is_refused_in_an_address_space_that_tensorflow_would_exceed(command: str) -> None:
    words = [sys.executable, "-m", "transferapp", command, "--data", "x"]
    limited = ["sh", "-c", 'ulimit -v 3000000; exec "$@"', "sh", *words]
    done = subprocess.run(limited, capture_output=True, check=False, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (5, "")
    assert "limited to 3.1 GB" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit the address space")
@pytest.mark.parametrize("megabytes", [300, 400, 600])
def test_too_little_address_space_is_one_sentence(tmp_path: Path, megabytes: int) -> None:
    folders = tree(tmp_path, {"cats": 4, "dogs": 4})
    words = [sys.executable, "-m", "transferapp", "plan", "--data", str(folders)]
    limited = ["sh", "-c", f'ulimit -v {megabytes * 1000}; exec "$@"', "sh", *words]
    done = subprocess.run(limited, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 5
    said = (
        f"Error: Out of memory. The address space is limited to 0.{megabytes // 100} GB: raise the limit (ulimit -v)."
    )
    assert done.stderr.splitlines()[-1] == said


def test_unknown_errors_in_a_small_address_space(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "_address_space", lambda: 2.5e9)
    code, said = run(RuntimeError("Exception from a.cpp:1"))
    assert code == 5
    assert said.startswith("Error: Out of memory, probably (RuntimeError: Exception from a.cpp:1). The address space")
    assert run(AssertionError())[0] == 1
