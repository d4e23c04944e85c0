"""A count of the items that thread pools have in hand."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest


class PoolWatch:
    """While it is installed, each item that a thread pool works on takes a little longer, and items are counted.

    Attributes:
        most: Largest number of items that were submitted and not yet done.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.most = 0
        self._lock, self._in_hand = threading.Lock(), 0
        submit = ThreadPoolExecutor.submit

        def watched(pool: ThreadPoolExecutor, work: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            def slow() -> Any:
                time.sleep(0.01)
                try:
                    return work(*args, **kwargs)
                finally:  # before the result can be seen, or the next item might be submitted first
                    self._done()

            with self._lock:
                self._in_hand += 1
                self.most = max(self.most, self._in_hand)
            return submit(pool, slow)

        monkeypatch.setattr(ThreadPoolExecutor, "submit", watched)

    def _done(self) -> None:
        with self._lock:
            self._in_hand -= 1
