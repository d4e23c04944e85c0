"""Fixtures of the tests of a fit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def module_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of features and networks that the tests of a module share with its fixtures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRANSFERAPP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
