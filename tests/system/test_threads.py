"""Threads: cores that the process may use, and ordered work with bounded memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np  # noqa: F401  # loads BLAS
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from transferapp.system import threads
from transferapp.system.threads import cpu_cores, in_order, on_all_cores, one_blas_thread


def test_cores_are_those_that_this_process_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {2, 5, 7}, raising=False)
    assert cpu_cores(tmp_path) == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cpu_cores(tmp_path) == 1


def control_groups(root: Path, groups: str, files: dict[str, str]) -> Path:
    """A `proc` and a `sys` below root in which the process is in these control groups, with these files."""
    for name, content in {"proc/self/cgroup": groups, **files}.items():
        path = root / (name if name.startswith("proc") else f"sys/fs/cgroup/{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    return root


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/", {"cpu.max": "max 100000"}, 8),
        ("0::/", {"cpu.max": "200000 100000"}, 2),
        ("0::/", {"cpu.max": "250000 100000"}, 3),
        ("0::/", {"cpu.max": "50000 100000"}, 1),
        ("0::/", {"cpu.max": "1600000 100000"}, 8),
        ("0::/system.slice/app.service", {"system.slice/app.service/cpu.max": "300000 100000"}, 3),
        ("0::/outer/inner", {"outer/cpu.max": "200000 100000", "outer/inner/cpu.max": "max 100000"}, 2),
        ("0::/docker/abc", {"cpu.max": "400000 100000"}, 4),
        ("4:cpu,cpuacct:/", {"cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 8),
        ("4:cpu,cpuacct:/", {"cpu,cpuacct/cpu.cfs_quota_us": "150000", "cpu,cpuacct/cpu.cfs_period_us": "50000"}, 3),
        ("1:cpu:/a/b\n0::/", {"cpu/a/cpu.cfs_quota_us": "200000", "cpu/a/cpu.cfs_period_us": "100000"}, 2),
        ("2:cpuacct:/", {"cpuacct/cpu.cfs_quota_us": "100000", "cpuacct/cpu.cfs_period_us": "100000"}, 8),
        ("0::/", {"cpu.max": "damaged"}, 8),
        ("0::/", {"cpu.max": "100000 0"}, 8),
        ("", {}, 8),
    ],
)
def test_cores_are_capped_by_the_quota_of_every_control_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: str, files: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)), raising=False)
    assert cpu_cores(control_groups(tmp_path, groups, files)) == expected


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


def blas_threads() -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def test_the_limit_on_blas_ends_although_two_threads_asked_for_it() -> None:
    begun, release, before = threading.Event(), threading.Event(), blas_threads()

    def first() -> None:
        with one_blas_thread():
            begun.set()
            release.wait(10)

    other = threading.Thread(target=first)
    other.start()
    begun.wait(10)
    with one_blas_thread():
        assert blas_threads() == {1}
        release.set()
        other.join()
    assert blas_threads() == before


def test_work_on_all_cores_comes_in_order_with_one_blas_thread_each() -> None:
    with threadpool_limits(2, "blas"):
        assert list(on_all_cores(lambda item: (item, blas_threads()), range(5))) == [(item, {1}) for item in range(5)]
        assert blas_threads() == {2}


def test_an_error_does_not_wait_for_the_other_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, release, ended = threading.Event(), threading.Event(), threading.Event()

    def work(fails: bool) -> None:
        if fails:
            begun.wait(5)
            raise ValueError("no")
        begun.set()
        release.wait(5)
        ended.set()

    monkeypatch.setattr(threads, "cpu_cores", lambda: 2)
    with pytest.raises(ValueError, match="no"):
        list(on_all_cores(work, [True, False]))
    assert not ended.is_set()
    release.set()
