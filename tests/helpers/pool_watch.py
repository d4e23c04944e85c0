"""A count of the items that a thread pool has in hand."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest


class PoolWatch:
    """While it is installed, each item that a thread pool works on takes a little longer, and items are counted.

    Attributes:
        most: Largest number of items that were submitted to one pool and not yet done. Pools are counted apart: threads of
            other tests may still be at work.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.most = 0
        self._lock, self._in_hand = threading.Lock(), Counter[int]()
        submit = ThreadPoolExecutor.submit

        def watched(pool: ThreadPoolExecutor, work: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            def slow() -> Any:
                time.sleep(0.01)
                try:
                    return work(*args, **kwargs)
                finally:  # before the result can be seen, or the next item might be submitted first
                    with self._lock:
                        self._in_hand[id(pool)] -= 1

            with self._lock:
                self._in_hand[id(pool)] += 1
                self.most = max(self.most, self._in_hand[id(pool)])
            return submit(pool, slow)

        monkeypatch.setattr(ThreadPoolExecutor, "submit", watched)
