"""Progress on a terminal and in a log."""

from __future__ import annotations

import io
import os
import re
import sys
import warnings
from pathlib import Path

import pytest
from rich.console import Console

from tests.helpers.fitted import Fitted, environment, transferapp
from transferapp.cli.terminal import TerminalProgress, duration, quiet_libraries


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def log(clock: Clock) -> tuple[TerminalProgress, io.StringIO]:
    """Progress that goes to a file."""
    stream = io.StringIO()
    return TerminalProgress(Console(file=stream, width=60, highlight=False), clock), stream


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.04, "0.0 s"),
        (8.13, "8.1 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min"),
        (60, "1 min"),
        (200, "3 min 20 s"),
        (3599.6, "1 h"),
        (7510, "2 h 5 min"),
    ],
)
def test_durations_as_people_say_them(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


def test_a_log_gets_one_line_a_task_with_time_and_rate(clock: Clock) -> None:
    progress, stream = log(clock)
    with progress.task("reading 400 images", 400) as advance:
        for done in range(0, 401, 100):
            advance(done)
            clock.now += 1
    assert stream.getvalue() == "  reading 400 images: 5.0 s, 80/s\n"


def test_what_was_cached_does_not_count_for_the_rate(clock: Clock) -> None:
    progress, stream = log(clock)
    with progress.task("features", 1000) as advance:
        advance(900)
        clock.now += 10
        advance(1000)
    assert stream.getvalue() == "  features: 10.0 s, 10/s\n"


def test_a_long_task_says_in_the_log_how_far_it_is(clock: Clock) -> None:
    progress, stream = log(clock)
    with progress.task("features", 1000) as advance:
        advance(0)
        for done in (100, 200, 300):
            clock.now += 20
            advance(done)
        clock.now += 140
        advance(1000)
    assert stream.getvalue().splitlines() == [
        "  features: 200 of 1,000, 5.0/s, about 2 min 40 s left",
        "  features: 3 min 20 s, 5.0/s",
    ]


def test_what_takes_seconds_is_counted_in_seconds(clock: Clock) -> None:
    progress, stream = log(clock)
    with progress.task("3 epochs", 3) as advance:
        for done in range(4):
            advance(done)
            clock.now += 75
    assert stream.getvalue().splitlines()[:2] == [
        "  3 epochs: 1 of 3, 1 min 15 s each, about 2 min 30 s left",
        "  3 epochs: 2 of 3, 1 min 15 s each, about 1 min 15 s left",
    ]


def test_a_short_wait_for_nothing_countable_is_not_worth_a_line(clock: Clock) -> None:
    progress, stream = log(clock)
    with progress.task("waiting", 0):
        clock.now += 0.05
    assert stream.getvalue() == ""
    with progress.task("waiting", 0):
        clock.now += 3
    assert stream.getvalue() == "  waiting: 3.0 s\n"


def test_few_items_have_no_rate_and_none_at_all_no_harm(clock: Clock) -> None:
    progress, stream = log(clock)
    for total in (6, 0):
        with progress.task(f"{total} stages", total) as advance:
            advance(0)
            clock.now += 2
            advance(total)
    assert stream.getvalue() == "  6 stages: 2.0 s\n  0 stages: 2.0 s\n"


def test_a_count_that_nobody_knows_the_end_of_is_shown_as_it_grows(clock: Clock) -> None:
    progress, stream = log(clock)
    with progress.task("looking for images", 0) as advance:
        for done in range(0, 100_001, 1000):
            advance(done)
            clock.now += 1
    assert stream.getvalue().splitlines()[0] == "  looking for images: 30,000 so far, 1000/s"
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=100, highlight=False, legacy_windows=False)
    with TerminalProgress(console, clock).task("looking for images", 0) as advance:
        advance(12_000)
    assert "12,000" in shown.getvalue()


def test_a_task_that_fails_still_lets_its_error_through(clock: Clock) -> None:
    progress, stream = log(clock)
    with pytest.raises(ZeroDivisionError), progress.task("dividing", 10):
        raise ZeroDivisionError
    assert stream.getvalue() == ""


def test_labels_and_notes_neither_color_nor_break_a_line(clock: Clock) -> None:
    progress, stream = log(clock)
    progress.note("[red]cats[/red] \x1b[31m and\ndogs")
    with progress.task("[bold]\x07 " + 90 * "x", 5):
        clock.now += 1
    assert stream.getvalue().splitlines() == [
        r"[red]cats[/red] \x1b[31m and\ndogs",
        r"  [bold]\x07 " + 90 * "x" + ": 1.0 s",
    ]


def test_a_terminal_sees_a_bar_that_vanishes_and_the_line_that_stays(clock: Clock) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100, highlight=False, legacy_windows=False)
    with TerminalProgress(console, clock).task("reading 40 images", 40) as advance:
        advance(0)
        clock.now += 2
        advance(30)
    shown = stream.getvalue()
    assert "30/40" in shown
    assert "15/s" in shown
    assert "\x1b[2K" in shown, "the bar is wiped out"
    assert "reading 40 images: 2.0 s, 15/s" in shown.splitlines()[-1]


def test_a_dumb_terminal_gets_plain_lines(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = io.StringIO()
    with TerminalProgress(Console(file=stream, force_terminal=True, width=80), clock).task("reading", 40) as advance:
        advance(40)
    assert stream.getvalue() == "  reading: 0.0 s\n"


def test_libraries_are_silenced_and_only_for_the_time_of_the_block(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet_libraries() as console:
        os.write(2, b"chatter of C++\n")
        warnings.warn("chatter of Python", stacklevel=1)
        console.print("what matters")
        print("and what is printed", file=sys.stderr)
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err == "what matters\nand what is printed\nafterwards\n"


def test_an_error_gives_standard_error_back(capfd: pytest.CaptureFixture[str]) -> None:
    before = sys.stderr
    with pytest.raises(ZeroDivisionError), quiet_libraries():
        raise ZeroDivisionError
    os.write(2, b"still there\n")
    assert sys.stderr is before
    assert capfd.readouterr().err == "still there\n"


def test_debugging_hides_nothing(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TRANSFERAPP_DEBUG", "1")
    with quiet_libraries():
        os.write(2, b"chatter of C++\n")
    assert capfd.readouterr().err == "chatter of C++\n"


def test_a_log_of_a_command_is_plain(tiny: Path, colors: Path) -> None:
    done = transferapp("evaluate", tiny, "--data", colors, "--views", "1", env=environment(FORCE_COLOR=""))
    assert done.returncode == 0
    for text in (done.stdout, done.stderr):
        assert "\x1b" not in text
        assert "\r" not in text
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == [
        "  reading 12 images",
        "  classifying 12 images, 1 views each",
    ]


@pytest.mark.slow
def test_a_fit_says_what_it_does_and_the_libraries_say_nothing(fit: Fitted) -> None:
    note = re.compile(r"^\S+\s+can\s+be\s+used\s+already;[^:]*?complete\s*$", re.MULTILINE)
    assert note.search(fit.stderr), fit.stderr
    lines = note.sub("", fit.stderr).strip("\n").splitlines()
    steps = (line.startswith("  ") and line.rstrip().endswith(("s", "/s", " each")) for line in lines if line)
    assert all(steps), fit.stderr
    told = "\n".join(lines)
    for step in ("reading 42 images", "probing 6 stages", "building the network", "writing the bundle"):
        assert step in told
