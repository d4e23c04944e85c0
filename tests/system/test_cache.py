"""The place of the cache: the one that is named, or the first that is writable."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest

from transferapp.errors import ResourceError, UsageError
from transferapp.system.cache import cache_directory


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user with an empty home and an empty temporary folder, and nothing set."""
    for name in ("TRANSFERAPP_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name in ("home", "tmp"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return tmp_path


def temporary(user: Path) -> Path:
    return user / "tmp" / f"transferapp-cache-{os.getuid()}"


def test_the_cache_lies_where_the_variable_says_made_if_need_be(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFERAPP_CACHE", "~/deep/cache")
    assert cache_directory() == user / "home/deep/cache"
    assert (user / "home/deep/cache").is_dir()


def test_the_cache_lies_in_the_home_or_in_the_place_for_caches(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_directory() == user / "home/.cache/transferapp"
    monkeypatch.setenv("XDG_CACHE_HOME", str(user / "caches"))
    assert cache_directory() == user / "caches/transferapp"
    assert (user / "caches/transferapp").is_dir()


def test_a_named_cache_that_cannot_be_made_is_an_error_and_not_replaced(
    user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (user / "file").touch()
    monkeypatch.setenv("TRANSFERAPP_CACHE", str(user / "file" / "cache"))
    with pytest.raises(ResourceError, match="Could not write"):
        cache_directory()


def test_a_named_cache_of_a_user_that_is_none_is_a_matter_of_usage(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFERAPP_CACHE", "~nobody-of-this-name/cache")
    with pytest.raises(UsageError, match="TRANSFERAPP_CACHE"):
        cache_directory()


def test_a_home_that_cannot_be_written_gives_way_to_a_private_temporary_folder(
    user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (user / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(user / "file"))
    assert cache_directory() == temporary(user)
    assert stat.S_IMODE(temporary(user).stat().st_mode) == 0o700
    assert cache_directory() == temporary(user)  # the same again: what was cached is found


def test_a_user_without_a_home_has_a_cache_all_the_same(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert cache_directory() == temporary(user)


def test_a_temporary_folder_that_another_user_has_laid_out_is_not_trusted(
    user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (user / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(user / "file"))
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    temporary(user).mkdir()  # by the owner, under the name that our user would take
    with pytest.raises(ResourceError, match="belongs to another user") as caught:
        cache_directory()
    assert "TRANSFERAPP_CACHE" in str(caught.value)
