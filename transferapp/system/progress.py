"""How long-running work tells whoever watches what it is doing. The library is silent; the command line draws bars."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Protocol

Advance = Callable[[int], None]
"""Called with the number of items done so far."""


class Progress(Protocol):
    """Who is told."""

    def note(self, text: str) -> None:
        """A line worth keeping: a finding, a decision."""
        ...

    def task(self, label: str, total: int) -> contextlib.AbstractContextManager[Advance]:
        """A piece of work of `total` items; call what it gives as items are done."""
        ...


class Silent:
    """Tells nobody."""

    def note(self, text: str) -> None:
        pass

    def task(self, label: str, total: int) -> contextlib.AbstractContextManager[Advance]:
        return contextlib.nullcontext(lambda _done: None)
