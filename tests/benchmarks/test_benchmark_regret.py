"""`benchmarks/regret.py`: the split of the images, and a regret that noise alone does not make."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import regret


def test_a_fifth_of_each_class_is_held_out_whatever_is_trained_on(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name in ("train/a", "train/b", "test/a", "test/b"):
        (data / name).mkdir(parents=True)
        for index in range(10):
            (data / name / f"{index}.png").write_text(f"{name} {index}")
    classes = regret.class_files(data)
    assert {name: len(files) for name, files in classes.items()} == {"a": 20, "b": 20}
    held_out = []
    for count in (16, 0):
        regret.link(classes, tmp_path / str(count), count, seed=1)
        train, test = (
            {file.read_text() for file in (tmp_path / str(count) / part).rglob("*.png")} for part in ("train", "test")
        )
        assert (len(train), len(test)) == (count or 32, 8)
        assert not train & test
        held_out.append(test)
    assert held_out[0] == held_out[1]


def test_many_equal_candidates_give_no_regret() -> None:
    rng, lost, naive = np.random.default_rng(0), [], []
    for _ in range(300):
        outcomes = {str(i): rng.random(100) < 0.8 for i in range(15)}
        outcomes[regret.DEFAULT] = rng.random(100) < 0.8
        halves = rng.permutation(100) < 50
        lost.append(regret.regret(outcomes, halves)[0])
        best = max(right.mean() for name, right in outcomes.items() if name != regret.DEFAULT)
        naive.append(best - outcomes[regret.DEFAULT].mean())
    assert abs(np.mean(lost)) < 0.012
    assert np.mean(naive) > 0.05


def test_a_better_candidate_is_found() -> None:
    rng = np.random.default_rng(0)
    outcomes = {regret.DEFAULT: rng.random(400) < 0.7, "worse": rng.random(400) < 0.6, "better": rng.random(400) < 0.9}
    lost, best = regret.regret(outcomes, rng.permutation(400) < 200)
    assert best == "better"
    assert lost == pytest.approx(outcomes["better"].mean() - outcomes[regret.DEFAULT].mean(), abs=1e-9)


def test_a_missing_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        regret.main([str(tmp_path / "nowhere")])
    assert caught.value.code == 2
    assert "nowhere" in capsys.readouterr().err
