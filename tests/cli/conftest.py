"""Fixtures of the command line's tests: bundles, images, terminals, and one real fit."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.helpers.fitted import Fitted, fitted
from tests.helpers.tiny_bundle import make_tiny_bundle

ANSI = re.compile(r"\x1b\[[0-9;]*m")
Show = Callable[..., list[str]]

PAINTS = {"red": (250, 20, 30), "green": (10, 240, 20), "blue": (20, 30, 250)}


@pytest.fixture(scope="session")
def fit() -> Fitted:
    """A fit on drawings, made by the command itself. Only for tests marked slow."""
    return fitted()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that tells red, green and blue apart, in well under a second."""
    return make_tiny_bundle(tmp_path_factory.mktemp("models") / "tiny", calibrated=True)


@pytest.fixture(scope="session")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of four plain images each."""
    root = tmp_path_factory.mktemp("colors")
    for name, paint in PAINTS.items():
        (root / name).mkdir()
        for index in range(4):
            Image.new("RGB", (64 + index, 48), paint).save(root / name / f"{index}.png")
    return root


@pytest.fixture
def on_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Show:
    """Print on a terminal of some width and return the lines without colors."""

    def show(width: int, function: Callable[..., None], *arguments: Any) -> list[str]:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.setenv("COLUMNS", str(width))
        function(*arguments)
        colored = capsys.readouterr().out
        assert ANSI.search(colored)
        return ANSI.sub("", colored).splitlines()

    return show


@pytest.fixture
def in_pipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Show:
    """Print into a pipe and return the lines."""

    def show(function: Callable[..., None], *arguments: Any) -> list[str]:
        for name in ("FORCE_COLOR", "COLUMNS"):
            monkeypatch.delenv(name, raising=False)
        function(*arguments)
        return capsys.readouterr().out.splitlines()

    return show
