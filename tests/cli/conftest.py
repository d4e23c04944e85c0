"""What the tests of the command line share: bundles, images, and the one real fit."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.fitted import Fitted, fitted
from tests.helpers.tiny_bundle import make_tiny_bundle

PAINTS = {"red": (250, 20, 30), "green": (10, 240, 20), "blue": (20, 30, 250)}


@pytest.fixture(scope="session")
def fit() -> Fitted:
    """A fit on drawings, made by the command itself. Only for tests marked slow."""
    return fitted()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that tells red, green and blue apart, in well under a second."""
    return make_tiny_bundle(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of four plain images each."""
    root = tmp_path_factory.mktemp("colors")
    for name, paint in PAINTS.items():
        (root / name).mkdir()
        for index in range(4):
            Image.new("RGB", (64 + index, 48), paint).save(root / name / f"{index}.png")
    return root
