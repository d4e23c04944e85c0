"""What `--data` may name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.folders import paint, tree
from transferapp.data.sources import open_source
from transferapp.errors import DataError


def test_a_folder_is_read_as_class_folders(tmp_path: Path) -> None:
    assert open_source(str(tree(tmp_path, {"cats": 1, "dogs": 1}))).class_names == ("cats", "dogs")


def test_a_place_that_is_not_there_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no folder .*nowhere") as caught:
        open_source(str(tmp_path / "nowhere"))
    assert caught.value.exit_code == 3


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.png is not a folder"):
        open_source(str(paint(tmp_path / "a.png")))
