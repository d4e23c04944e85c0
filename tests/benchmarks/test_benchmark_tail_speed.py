"""`benchmarks/tail_speed.py`: arguments, equal conditions for both candidates, and one small run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.tail_speed import frozen_below, main, quotients, read_split, render_all, train_in_turn
from tests.helpers.fitted import draw_folders, environment
from transferapp.backbones.feature_store import WITHOUT_COLOR, FeatureStore, random_view_name

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folders(tmp_path_factory.mktemp("tail") / "drawings", per_class=8)


class Pixels:
    """Stands for a trunk: its rows are the pixels themselves."""

    name, key, image_size, row_size = "pixels", "pixels", (40, 48), 40 * 48 * 3

    def rows(self, batch: np.ndarray) -> np.ndarray:
        return batch.reshape(len(batch), -1).astype(np.float32)


def test_both_are_given_the_same_views(drawings: Path, tmp_path: Path) -> None:
    train = read_split(drawings, 100).part("train")
    views = [random_view_name(index, 0) for index in range(2)]
    stored = FeatureStore(Pixels(), folder=tmp_path / "store", random_views=WITHOUT_COLOR).collect(train.records, views)
    rendered = render_all(train, views, Pixels.image_size, tmp_path)
    assert rendered.dtype == np.uint8
    np.testing.assert_array_equal(rendered.reshape(stored.shape), stored)


def test_both_train_the_same_variables() -> None:
    from tests.helpers.networks import tiny_network
    from transferapp.backbones.stages import find_stages
    from transferapp.training.head_spec import Head
    from transferapp.training.probe import LinearProbe
    from transferapp.training.tail import build_tail

    zeros, ones = np.zeros(20, np.float32), np.ones(20, np.float32)
    probe = LinearProbe(zeros, ones, np.zeros((20, 3), np.float32), np.zeros(3, np.float32), 1.0, 1)
    paths = []
    for whole in (False, True):
        backbone = tiny_network()
        stages = find_stages(backbone)
        tail = build_tail(backbone, stages, None if whole else stages[0], Head.of(probe))
        if whole:
            tail = frozen_below(tail, stages[0])
        paths.append({variable.path for variable in tail.model.trainable_variables})
        assert set(tail.multipliers(0.1)) <= paths[-1]
    assert paths[0] == paths[1]
    assert not any("conv1" in path for path in paths[0])
    assert any("conv2" in path for path in paths[0])


def test_epochs_alternate_and_take_turns_in_going_first() -> None:
    order: list[tuple[str, int]] = []

    class Recorder:
        def __init__(self, name: str) -> None:
            self.name = name

        def compile(self, epochs: int) -> None:
            assert epochs == 3

        def train_epoch(self, number: int) -> None:
            order.append((self.name, number))

    candidates: Any = [Recorder("a"), Recorder("b")]
    train_in_turn(candidates, 3)
    assert order == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]


def test_the_first_epoch_is_not_counted() -> None:
    assert quotients([100.0, 6.0, 8.0], [1.0, 2.0, 4.0]) == [3.0, 2.0]


def test_a_part_of_the_images_has_every_class(drawings: Path) -> None:
    dataset = read_split(drawings, 12)
    assert len(dataset) == 12
    assert dataset.counts() == [4, 4, 4]
    assert len(read_split(drawings, 1000)) == 24


@pytest.mark.parametrize(("words", "said"), [(["--epochs", "1"], "2 or more"), (["--cut"], "expected one argument")])
def test_wrong_arguments_are_named(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_a_small_run_leaves_its_figures(drawings: Path, tmp_path: Path) -> None:
    out = tmp_path / "tail_speed.json"
    words = ["--data", drawings, "--out", out, "--epochs", 2, "--views", 2, "--image-size", 64, "--batch-size", 8]
    command = [sys.executable, "benchmarks/tail_speed.py", *map(str, words)]
    env = environment(PYTHONPATH=str(ROOT))
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(out.read_text())
    assert document["ratio"] == quotients(*(document["seconds_of_each_epoch"][key] for key in ("whole", "cached")))[0]
    assert (document["cut"], document["views"], document["num_train"] + document["num_val"]) == ("block10", 2, 24)
    assert document["val_accuracy_before"]["cached"] == pytest.approx(document["val_accuracy_before"]["whole"], abs=0.3)
    assert "ratio" in done.stdout
