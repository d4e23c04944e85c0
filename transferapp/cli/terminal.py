"""Progress of a running command: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from transferapp.cli.streams import SPELLED_OUT, ProgressStream, printable
from transferapp.system.progress import Advance

QUIET_SECONDS = 30.0
"""Interval between progress lines where there is no bar."""

_BAR = 16
"""Width in characters. It leaves room for the ^C that a terminal prints behind the line, so that the line can be cleared."""

_WORTH_A_LINE = 0.1
"""Seconds; a shorter task without items prints no line."""

_FEW = 20
"""Items; with fewer, a rate is noise."""


@contextlib.contextmanager
def quiet_libraries() -> Iterator[Console]:
    """Hide the messages of libraries, and yield a console that still reaches the terminal.

    TensorFlow's C++ code always writes to file descriptor 2. Inside the block that descriptor leads to the null device, while
    `sys.stderr` and the console keep a copy of the real one. With `--debug` nothing is hidden.
    """
    if os.environ.get("TRANSFERAPP_DEBUG"):
        yield Console(stderr=True, highlight=False)
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    before = sys.stderr
    with contextlib.suppress(OSError):
        before.flush()
    real = os.dup(2)
    binary = os.fdopen(os.dup(real), "wb")
    stream = ProgressStream(binary, encoding=before.encoding, errors=SPELLED_OUT, line_buffering=True)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        sys.stderr = stream
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield Console(file=stream, highlight=False)
    finally:
        stream.flush()
        sys.stderr = before
        os.dup2(real, 2)
        for descriptor in (real, nowhere):
            os.close(descriptor)


class TerminalProgress:
    """Progress on a console.

    Args:
        console: Console to show it on.
        clock: Returns the time in seconds.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.perf_counter) -> None:
        self._console = console
        self._clock = clock

    def note(self, text: str) -> None:
        self._console.print(printable(text), markup=False)

    @contextlib.contextmanager
    def task(self, label: str, total: int) -> Iterator[Advance]:
        label = printable(label)
        count = _Count(self._clock)
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            with RichProgress(*self._columns(total), console=self._console, transient=True) as bars:
                task = bars.add_task(label, total=total or None, rate="", so_far="")

                def advance(value: int) -> None:
                    count(value)
                    bars.update(task, completed=value, rate=count.rate(), so_far=f"{value:,}")

                yield advance
        else:
            printed = self._clock()

            def advance(value: int) -> None:
                nonlocal printed
                count(value)
                if (value < total or not total) and self._clock() - printed >= QUIET_SECONDS:
                    printed = self._clock()
                    if total:
                        self._line(f"{label}: {value:,} of {total:,}", count.rate(), count.time_left(total))
                    else:  # the total is unknown
                        self._line(f"{label}: {value:,} so far", count.rate())

            yield advance
        if count.seconds >= _WORTH_A_LINE or total:
            self._line(f"{label}: {duration(count.seconds)}", count.rate() if count.done >= _FEW else "")

    def _columns(self, total: int) -> list[ProgressColumn]:
        plain = not self._console.encoding.startswith("utf")
        columns: list[ProgressColumn] = [
            SpinnerColumn("line" if plain else "dots"),
            TextColumn("{task.description}", markup=False),
        ]
        if total:
            columns += [
                BarColumn(_BAR),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
            ]
        else:
            columns.append(TextColumn("{task.fields[so_far]}"))
        return columns

    def _line(self, *parts: str) -> None:
        line = "  " + ", ".join(part for part in parts if part)
        self._console.print(line, style="dim", markup=False, soft_wrap=True)


class _Count:
    """Count of finished items, and their rate."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._started = clock()
        self._first: int | None = None
        self.done = 0

    def __call__(self, value: int) -> None:
        if self._first is None:
            self._first = value  # cached items take no time and do not count for the rate
        self.done = value

    @property
    def seconds(self) -> float:
        return self._clock() - self._started

    def _per_second(self) -> float:
        fresh = self.done - (self._first or 0)
        return fresh / self.seconds if fresh and self.seconds > 0.05 else 0.0

    def rate(self) -> str:
        """Return the rate; empty where it is not known yet."""
        speed = self._per_second()
        if speed >= 10:
            return f"{speed:.0f}/s"
        if speed >= 0.5:
            return f"{speed:.1f}/s"
        return f"{duration(1 / speed)} each" if speed else ""

    def time_left(self, total: int) -> str:
        """Return the estimated remaining time; empty where it is not known yet."""
        speed = self._per_second()
        return f"about {duration((total - self.done) / speed)} left" if speed else ""


def duration(seconds: float) -> str:
    """Format a duration: `8.1 s`, `3 min 20 s`, `2 h 5 min`."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
