"""Ctrl-C and SIGTERM at a chosen moment: exit code, one line, and no partial files."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.fitted import BACKBONE, Fitted, command, environment
from transferapp.bundle.format import read_bundle
from transferapp.system.storage import sha256_file

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
SAID = {
    signal.SIGINT: "Interrupted; complete files are unchanged.",
    signal.SIGTERM: "Stopped by a signal; complete files are unchanged.",
}
both = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)


class Running:
    """A command under way, whose progress can be waited for."""

    def __init__(self, *words: object) -> None:
        self.process = subprocess.Popen(
            command(*words),
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        self.lines: list[str] = []

    def until(self, text: str) -> None:
        """Wait for a line of progress that holds `text`."""
        assert self.process.stderr
        while not self.lines or text not in self.lines[-1]:
            line = self.process.stderr.readline()
            assert line, self.lines
            self.lines.append(line.rstrip("\n"))

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self, seconds: float = 120) -> tuple[int, list[str]]:
        """Its exit code, and what it said from now on."""
        _, errors = self.process.communicate(timeout=seconds)
        return self.process.returncode, errors.splitlines()


@pytest.fixture
def started() -> Iterator[list[Running]]:
    """Commands to be killed at the end, whatever becomes of the test."""
    commands: list[Running] = []
    yield commands
    for running in commands:
        running.process.kill()
        running.process.communicate()


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images enough for `evaluate --views 50` to take a while."""
    root = tmp_path_factory.mktemp("many")
    for name, paint in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        (root / name).mkdir()
        for index in range(60):
            Image.new("RGB", (700, 700 + index), paint).save(root / name / f"{index}.png")
    return root


@both
def test_a_signal_in_the_middle_of_work(tiny: Path, many: Path, started: list[Running], number: int) -> None:
    running = Running("evaluate", tiny, "--data", many, "--views", "50")
    started.append(running)
    running.until("reading 120 images")
    running.send(number)
    assert running.end() == (CODES[number], [SAID[number]])


def doing(work: str) -> subprocess.Popen[str]:
    """The command line under way with a command that does `work`, which is Python with `os` and `time` at hand."""
    code = (
        "import os, time\n"
        "from transferapp.cli import backbones, main\n"
        "def work():\n"
        f"{textwrap.indent(textwrap.dedent(work), '    ')}\n"
        "backbones.command.callback = lambda as_json: work()\n"
        "main.main(['backbones'])\n"
    )
    return subprocess.Popen(
        [*command()[:1], "-c", code],
        env=environment(),
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_second_signal_ends_what_the_first_does_not() -> None:
    process = doing(
        """
        try:
            print('working', flush=True)
            time.sleep(600)
        finally:
            print('tidying up', flush=True)
            time.sleep(600)
        """
    )
    assert process.stdout
    assert process.stderr
    for expected in ("working\n", "tidying up\n"):
        assert process.stdout.readline() == expected
        process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    process.stdout.close()
    process.stderr.close()


@both
def test_a_signal_that_strikes_in_a_finalizer_is_not_lost(number: int) -> None:
    process = doing(
        f"""
        class Finalized:
            def __del__(self):
                os.kill(os.getpid(), {int(number)})
                time.sleep(5)
        Finalized()
        time.sleep(600)
        """
    )
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors.splitlines()) == (CODES[number], [SAID[number]])


def test_an_ignored_ctrl_c_stays_ignored(tiny: Path, many: Path, started: list[Running]) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # so do scripts start what they put in the background
    try:
        running = Running("evaluate", tiny, "--data", many, "--views", "1")
    finally:
        signal.signal(signal.SIGINT, before)
    started.append(running)
    running.until("reading 120 images")
    running.send(signal.SIGINT)
    assert running.end()[0] == 0


@both
def test_a_server_ends_in_order(tiny: Path, started: list[Running], number: int) -> None:
    running = Running("serve", tiny, "--port", "0")
    started.append(running)
    running.until("model_ready")
    running.send(number)
    code, lines = running.end()
    assert code == {signal.SIGINT: 130, signal.SIGTERM: 0}[number]
    assert not any("Traceback" in line for line in lines)


def contents(bundle: Path) -> dict[str, str]:
    return {file.name: sha256_file(file) for file in bundle.iterdir()}


@pytest.mark.slow
@both
@pytest.mark.parametrize("moment", ["reading 42 images", "probing 6 stages", "9 test images"])
def test_a_signal_in_the_middle_of_a_fit_leaves_the_old_bundle(
    fit: Fitted, tmp_path: Path, started: list[Running], number: int, moment: str
) -> None:
    bundle = tmp_path / "models" / "drawings"
    shutil.copytree(fit.bundle, bundle)
    before = contents(bundle)
    running = Running("fit", "--data", fit.images, "--out", bundle, "--backbone", BACKBONE)
    started.append(running)
    running.until(moment)
    running.send(number)
    code, lines = running.end()
    assert (code, lines[-1]) == (CODES[number], SAID[number])
    assert not any("Traceback" in line for line in lines)
    assert contents(bundle) == before
    left = {path.name for path in bundle.parent.iterdir()}
    assert left <= {"drawings", ".drawings.lock"}


@pytest.mark.slow
def test_a_signal_while_the_bundle_is_written_leaves_one_that_is_whole(
    fit: Fitted, tmp_path: Path, started: list[Running]
) -> None:
    bundle = tmp_path / "models" / "drawings"
    shutil.copytree(fit.bundle, bundle)
    for delay in (0.0, 0.2, 0.5):
        running = Running("fit", "--data", fit.images, "--out", bundle, "--backbone", BACKBONE)
        started.append(running)
        running.until("building the network")
        time.sleep(delay)
        running.send(signal.SIGINT)
        code, lines = running.end()
        assert code in (0, 130), lines
        assert not any("Traceback" in line for line in lines), lines
        whole = read_bundle(bundle)
        for name in whole.manifest["files"]:
            whole.file(name)
        assert {path.name for path in bundle.parent.iterdir()} <= {"drawings", ".drawings.lock"}
