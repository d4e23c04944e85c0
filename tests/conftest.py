"""What all tests share."""

import collections
import signal

import hypothesis
import pytest

from tests.helpers.fitted import workplace

workplace()  # before pytest-xdist starts processes that share it

# On a busy machine any example can take long once; what is slow in itself shows in the durations.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

# A program that a script starts in the background is told to ignore Ctrl-C, and so is whatever it starts. The tests that send
# Ctrl-C to commands must not depend on how they were started themselves.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with many slow tests first: where processes share a run, file by file, none is left with a long one at the end."""
    slow = collections.Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])
