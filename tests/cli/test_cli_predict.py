"""`transferapp predict` with `--out` and `--sort-into`, and `undo`: exit codes, counts and files."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from tests.helpers.fitted import transferapp

USAGE, DATA = 2, 3


@pytest.fixture
def inbox(colors: Path, tmp_path: Path) -> Path:
    """Twelve plain images, and one file that is none."""
    shutil.copytree(colors, tmp_path / "inbox")
    (tmp_path / "inbox" / "bad.png").write_text("no image")
    return tmp_path / "inbox"


def test_answers_go_to_a_file_and_a_bad_image_to_the_exit_code(tiny: Path, inbox: Path, tmp_path: Path) -> None:
    done = transferapp("predict", tiny, inbox, "--out", tmp_path / "answers.csv", "--json")
    assert done.returncode == DATA
    document = json.loads(done.stdout)
    assert document["labels"] == {"blue": 4, "green": 4, "red": 4}
    assert document["doubts"] == {}
    assert (document["num_images"], document["errors"], document["folders"]) == (13, {"unsupported_format": 1}, {})
    with (tmp_path / "answers.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["label"] for row in rows if "/red/" in row["file"]} == {"red"}
    (inbox / "bad.png").unlink()
    again = transferapp("predict", tiny, inbox, "--out", tmp_path / "answers.csv")
    assert again.returncode == 0
    assert "12 images classified" in again.stdout
    assert str(tmp_path / "answers.csv") in again.stdout


def test_sorted_images_are_put_back_by_the_command_that_is_printed(tiny: Path, inbox: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in inbox.rglob("*.png")}
    done = transferapp("predict", tiny, "inbox", "--sort-into", "sorted", cwd=tmp_path, env=_environment())
    assert done.returncode == DATA
    assert not list(inbox.rglob("*.png"))
    assert len(list((tmp_path / "sorted/green").iterdir())) == 4
    assert (tmp_path / "sorted/unreadable/bad.png").is_file()
    assert "transferapp undo sorted" in done.stdout
    undone = transferapp("undo", "sorted", cwd=tmp_path, env=_environment())
    assert undone.returncode == 0
    assert "13 files put back" in undone.stdout
    assert {path: path.read_bytes() for path in inbox.rglob("*.png")} == before
    assert transferapp("undo", "sorted", cwd=tmp_path, env=_environment()).returncode == DATA


def _environment() -> dict[str, str]:
    from tests.helpers.fitted import ROOT, environment

    return environment(PYTHONPATH=str(ROOT))


def test_what_cannot_be_undone_is_said(tiny: Path, inbox: Path, tmp_path: Path) -> None:
    into = tmp_path / "sorted"
    transferapp("predict", tiny, inbox / "red", "--sort-into", into, "--copy")
    (into / "red" / "0.png").write_bytes(b"edited")
    undone = transferapp("undo", into, "--json")
    assert undone.returncode == DATA
    document = json.loads(undone.stdout)
    assert document["num_restored"] == 3
    assert list(document["left"]) == ["red/0.png"]


def test_links_lead_to_the_images(tiny: Path, inbox: Path, tmp_path: Path) -> None:
    done = transferapp("predict", tiny, inbox / "blue", "--sort-into", tmp_path / "sorted", "--link")
    assert (done.returncode, done.stderr.count("Error")) == (0, 0)
    assert (tmp_path / "sorted/blue/3.png").readlink() == inbox / "blue/3.png"


@pytest.mark.parametrize(
    "words",
    [
        ["--copy"],
        ["--link", "--out", "answers.csv"],
        ["--out", "answers.csv", "--top-k", "3"],
        ["--out", "answers.xlsx"],
        ["--out", "answers.csv", "--views", "7"],
        ["--path-column", "nowhere"],
    ],
    ids=" ".join,
)
def test_options_that_do_not_fit(tiny: Path, inbox: Path, words: list[str]) -> None:
    (inbox / "list.csv").write_text("path\nbad.png\n")
    done = transferapp("predict", tiny, inbox / "list.csv", *words)
    assert (done.returncode, done.stdout) == (USAGE, "")
    assert done.stderr.startswith("Error: ")


def test_the_images_of_a_table_are_shown_without_a_file(tiny: Path, inbox: Path) -> None:
    (inbox / "list.csv").write_text("path\nred/0.png\nmissing.png\n")
    done = transferapp("predict", tiny, inbox / "list.csv", "--json")
    assert done.returncode == DATA
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert (first["file"], first["predictions"][0]["label"]) == ("red/0.png", "red")
    assert (second["file"], second["error"]["code"]) == ("missing.png", "missing_file")
