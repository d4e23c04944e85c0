"""What the person at the terminal sees while work goes on: bars on a terminal, plain lines anywhere else."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import warnings
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from transferapp.progress import Advance


@contextlib.contextmanager
def quiet_libraries() -> Iterator[Console]:
    """Keep the libraries' own messages off the terminal, and give the console that still reaches it.

    TensorFlow's C++ code writes to file descriptor 2 whatever it is told. For the time of the block that descriptor leads to
    nowhere, while Python's `sys.stderr` and the console keep a copy of the real one. With `--debug` nothing is hidden.
    """
    if os.environ.get("TRANSFERAPP_DEBUG"):
        yield Console(stderr=True, highlight=False)
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    real = os.dup(2)
    before = sys.stderr
    stream = os.fdopen(os.dup(real), "w", encoding=before.encoding, errors="backslashreplace", buffering=1)
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
    """Progress on a console."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def note(self, text: str) -> None:
        self._console.print(text, markup=False)

    @contextlib.contextmanager
    def task(self, label: str, total: int) -> Iterator[Advance]:
        started = time.perf_counter()
        done = first = 0
        seen = False

        def count(value: int) -> None:
            nonlocal done, first, seen
            if not seen:
                first, seen = value, True  # what the cache already had costs no time and does not count for the rate
            done = value

        if not self._console.is_terminal:
            yield count
        else:
            columns = [SpinnerColumn(), TextColumn("{task.description}", markup=False)]
            if total:
                columns += [
                    BarColumn(24),
                    MofNCompleteColumn(),
                    TextColumn("{task.fields[rate]}"),
                    TimeRemainingColumn(),
                ]
            with RichProgress(*columns, console=self._console, transient=True) as bars:
                task = bars.add_task(label, total=total or None, rate="")

                def advance(value: int) -> None:
                    count(value)
                    bars.update(task, completed=value, rate=_rate(done - first, time.perf_counter() - started))

                yield advance
        seconds = time.perf_counter() - started
        rate = _rate(done - first, seconds) if total >= 20 else ""
        if seconds >= 0.1 or total:
            line = f"  {label}: {seconds:.1f} s{', ' + rate if rate else ''}"
            self._console.print(line, style="dim", markup=False)


def _rate(count: int, seconds: float) -> str:
    return f"{count / seconds:.0f}/s" if count and seconds > 0.05 else ""
