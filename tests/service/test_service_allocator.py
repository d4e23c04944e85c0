"""Return of freed memory to the system."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from service.server import keep_memory_flat

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

if sys.argv[1] == "flat":
    keep_memory_flat()
bytearray(4_000_000)  # from now on glibc takes images from its heap
before = resident()
images = [(bytearray(2_000_000), bytearray(20_000)) for _ in range(100)]
kept = [small for _, small in images]  # small objects between the images keep the heap from shrinking
del images
print(resident() - before)
"""


def growth(how: str) -> int:
    """Return the bytes that stay resident after a hundred images have been freed."""
    return int(subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, check=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_memory_of_images_goes_back_to_the_system() -> None:
    assert growth("flat") < 20_000_000 < 100_000_000 < growth("usual")
