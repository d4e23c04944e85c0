"""Run a phase's trials: here, one after the other, or in processes that share them out through the journal."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from threadpoolctl import threadpool_limits

from transferapp.errors import ResourceError
from transferapp.recipes.search.problem import Problem
from transferapp.recipes.search.study import Journal, Phase, Trainers, Trial, open_storage, run_waiting

_POLL = 0.1
"""Seconds between looks at the journal while processes work."""


def run_phase(journal: Journal, phase: Phase, problem: Problem, trainers: Trainers, workers: int) -> Iterator[Trial]:
    """Run what is left of a phase; trials come as they end.

    Args:
        journal: Has the phase laid down.
        phase: Which.
        problem: What trials train on.
        trainers: For trials that are run in this process.
        workers: Processes; 1 for this one alone.

    Raises:
        ResourceError: A process ended before its work was done.
    """
    if workers > 1:
        yield from _shared_out(journal, phase, problem, workers)
        return
    # A step is a small product: threads would wait for each other longer than they work.
    with threadpool_limits(1, "blas"):
        yield from run_waiting(journal.storage, phase, problem, trainers)


def _shared_out(journal: Journal, phase: Phase, problem: Problem, workers: int) -> Iterator[Trial]:
    seen = {trial.index for trial in journal.finished(phase)}
    spawning = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="transferapp-") as name:
        problem.save(Path(name))
        processes = [
            spawning.Process(target=_work, args=(str(journal.path), name, phase, os.getpid())) for _ in range(workers)
        ]
        try:
            for process in processes:
                process.start()
            working = True
            while working:
                working = any(process.is_alive() for process in processes)
                for trial in journal.finished(phase):
                    if trial.index not in seen:
                        seen.add(trial.index)
                        yield trial
                if working:
                    time.sleep(_POLL)
        finally:
            for process in processes:
                if process.is_alive():
                    process.terminate()
                with contextlib.suppress(AssertionError):  # it was never started
                    process.join()
    failed = [process.exitcode for process in processes if process.exitcode]
    if failed:
        raise ResourceError(
            f"{len(failed)} of {workers} processes that run trials ended early (exit code {failed[0]})",
            hint="There may be too little memory for so many: the same command with fewer --workers goes on",
        )


def _work(journal: str, folder: str, phase: Phase, parent: int) -> None:
    """What a process does: trials, as long as there are any and somebody waits for them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal; who began it ends it
    problem = Problem.load(Path(folder))
    with threadpool_limits(1, "blas"):
        for _ in run_waiting(open_storage(Path(journal)), phase, problem, Trainers(problem)):
            if os.getppid() != parent:
                return
