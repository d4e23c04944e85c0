"""Threads: as many as there are cores, never far ahead, and results in order."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from transferapp.system.threads import cpu_cores, in_order


def test_cores_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {2, 5, 7}, raising=False)
    assert cpu_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cpu_cores() == 1


def test_results_come_in_order_and_items_are_taken_as_they_are_needed() -> None:
    taken = []
    second_done = threading.Event()

    def items() -> Iterator[int]:
        for number in range(10):
            taken.append(number)
            yield number

    def work(number: int) -> int:
        if number == 0:
            second_done.wait(60)
        if number == 1:
            second_done.set()
        return 10 * number

    with ThreadPoolExecutor(2) as pool:
        results = in_order(pool, work, items(), window=3)
        assert next(results) == 0, "though the second was done before it"
        assert taken == [0, 1, 2]
        assert list(results) == [10 * number for number in range(1, 10)]


def test_a_failure_ends_the_work_and_what_is_queued_is_not_begun() -> None:
    begun = []
    ended = threading.Event()

    def work(number: int) -> None:
        begun.append(number)
        if number == 0:
            raise ValueError("spoiled")
        ended.wait(60)

    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(ValueError, match="spoiled"):
            list(in_order(pool, work, range(100), window=50))
        ended.set()
    assert begun in ([0], [0, 1])
