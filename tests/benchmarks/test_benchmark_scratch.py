"""`benchmarks/scratch.py`: what it reads, compares and draws; and one run of it, on drawings."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.scratch import Curve, epochs_to_match, link_part, main, print_table, read_curve
from tests.helpers.fitted import draw_folders, environment
from tests.helpers.networks import tiny_network

ROOT = Path(__file__).parents[2]
HISTORY = """candidate,epoch,learning_rate,loss,accuracy,val_loss,val_accuracy,averaged_val_loss,averaged_val_accuracy,seconds
whole network,1,0.001,0.9,0.5,0.8,0.6,0.7,0.7,2.5
whole network,2,0.001,0.8,0.6,0.7,0.8,0.7,0.75,2
"""


def curve(*validation: float, test: float | None = None) -> Curve:
    return Curve(validation, validation, test, 1.0)


def test_a_history_is_read_with_the_better_of_raw_and_averaged_weights() -> None:
    read = read_curve(HISTORY, {"metrics": {"test": {"accuracy": 0.75}}})
    assert read == Curve((0.5, 0.6), (0.7, 0.8), 0.75, 4.5)
    unaveraged = HISTORY.replace("0.7,0.7,2.5", ",,2.5").replace("0.7,0.75,2", ",,2")
    assert read_curve(unaveraged, {"metrics": {"test": None}}) == Curve((0.5, 0.6), (0.6, 0.8), None, 4.5)


def test_a_bundle_that_was_not_fine_tuned_is_refused() -> None:
    with pytest.raises(SystemExit, match="Nothing was fine-tuned"):
        read_curve("stage,l2,cross_validated_loss,best\ntop,10,0.5,1\n", {"metrics": {"test": None}})


def test_epochs_are_counted_until_the_slower_has_caught_up() -> None:
    assert epochs_to_match(curve(0.3, 0.5, 0.8), curve(0.5, 0.4, 0.9)) == [2, 2, None]
    assert epochs_to_match(curve(0.9), curve(0.2, 0.9)) == [1, 1]


def test_the_table_has_a_row_for_each_epoch_of_the_longer_one(capsys: pytest.CaptureFixture[str]) -> None:
    print_table({"pretrained": curve(0.5, 0.9, test=0.85), "random": curve(0.3, 0.5, 0.6)})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["1", "0.500", "0.300", "in", "epoch", "2"],
        ["2", "0.900", "0.500", "never"],
        ["3", "0.600"],
        ["test", "0.850", "-"],
    ]


def test_a_part_of_the_images_is_the_same_share_of_every_folder(tmp_path: Path) -> None:
    for folder, count in (("train/cats", 30), ("train/dogs", 10), ("test/cats", 6), ("test/dogs", 2)):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for index in range(count):
            (tmp_path / "data" / folder / f"{index:02}.png").touch()
    link_part(tmp_path / "data", tmp_path / "part", 24)
    counts = {folder: len(list((tmp_path / "part" / folder).iterdir())) for folder in ("train/cats", "train/dogs")}
    assert counts == {"train/cats": 15, "train/dogs": 5}
    assert len(list((tmp_path / "part/test/dogs").iterdir())) == 2, "none is left with a single image"
    assert all(path.resolve().is_file() for path in (tmp_path / "part").rglob("*.png"))


@pytest.mark.parametrize(("words", "said"), [([], "--data"), (["--data", "nowhere/at/all"], "there is no folder")])
def test_wrong_arguments_are_named(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_a_small_run_leaves_figures_and_a_plot(tmp_path: Path) -> None:
    data = draw_folders(tmp_path / "drawings", per_class=10)
    tiny_network().save(tmp_path / "tiny.keras")
    words = ["--data", data, "--out", tmp_path / "results", "--epochs", 2, "--image-size", 32, "--limit", 27]
    words += ["--backbone", tmp_path / "tiny.keras"]
    command = [sys.executable, "benchmarks/scratch.py", *map(str, words)]
    env = environment(PYTHONPATH=str(ROOT))
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].split()[:3] == ["epoch", "pretrained", "random"]
    document = json.loads((tmp_path / "results" / "scratch-drawings.json").read_text())
    assert (document["num_classes"], document["epochs"], document["image_size"]) == (3, 2, 32)
    for start in ("pretrained", "random"):
        assert len(document["starts"][start]["validation"]) == 2
    assert document["starts"]["pretrained"] != document["starts"]["random"]
