"""Progress reports of long work. The library is silent; the command line draws bars."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Protocol

Advance = Callable[[int], None]
"""Called with the number of items done so far."""


class Progress(Protocol):
    """Receiver of progress updates."""

    def note(self, text: str) -> None:
        """Report a finding or a decision: a line to keep."""
        ...

    def task(self, label: str, total: int) -> contextlib.AbstractContextManager[Advance]:
        """Begin a task of `total` items (0 if unknown); call the result as items are done."""
        ...


class Silent:
    """Progress that nobody sees."""

    def note(self, text: str) -> None:
        pass

    def task(self, label: str, total: int) -> contextlib.AbstractContextManager[Advance]:
        return contextlib.nullcontext(lambda _done: None)
