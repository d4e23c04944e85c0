"""What the service asks of the system's allocator: that freed memory is given back. Elsewhere than with glibc, nothing."""

from __future__ import annotations

import ctypes
import sys

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8
"""Parameters of mallopt(3)."""

_OWN_MAPPING_FROM = 1 << 20
"""Bytes from which an allocation is a mapping of its own, given back as soon as it is freed: decoded images and crops. glibc
would otherwise raise the threshold to the largest one seen, and keep images' memory in fragments."""

_ARENAS = 2
"""glibc makes eight heaps a core, and what is freed in one of them serves no other."""


def keep_memory_flat() -> None:
    """Set the allocator up for a process that decodes images for weeks. To be called before it has threads."""
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, _ARENAS)
        mallopt(_M_MMAP_THRESHOLD, _OWN_MAPPING_FROM)
