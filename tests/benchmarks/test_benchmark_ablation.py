"""The ablation benchmark: paired differences and intervals worked out by hand, and a small run of every study."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import ablation
from benchmarks.ablation import Row, described, line, main
from benchmarks.common import interval
from tests.helpers.fine_tuning import draw_textures


def test_the_interval_of_a_mean_is_students() -> None:
    # Deviation 1, three values: 1 / sqrt(3) times the quantile 4.3027 of two degrees of freedom.
    assert interval(np.array([1.0, 2.0, 3.0])) == pytest.approx(4.3027 / 3**0.5, rel=1e-4)
    assert interval(np.array([2.0, 2.0])) == 0.0


def test_differences_are_paired_by_split() -> None:
    base = Row("dogs", "heads", "base", "", (0.5, 0.9))
    rows = [base, Row("aerial", "heads", "base", "", (0.0, 0.0)), Row("dogs", "heads", "better", "base", (0.52, 0.92))]
    better = described(rows[2], rows)
    assert better["gain"] == pytest.approx(2.0)
    assert better["interval"] == pytest.approx(0.0, abs=1e-6), "both splits gain the same, however far they lie apart"
    assert "+2.0 ± 0.0 against base" in line(better)
    assert described(base, rows)["gain"] is None


def test_too_few_seeds_for_an_interval_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--data", "x", "--seeds", "1"])
    assert "two seeds" in capsys.readouterr().err


def test_an_interrupted_run_resumes_with_the_studies_that_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []

    class Short:
        def __init__(self, data: str, _options: object) -> None:
            self.data = data

        def run(self, study: str) -> list[Row]:
            ran.append((self.data, study))
            if len(ran) == 2:
                raise KeyboardInterrupt
            return [Row(self.data, study, "base", "", (0.5, 0.5))]

    monkeypatch.setattr(ablation, "Ablation", Short)
    words = ["--data", "a", "b", "--only", "heads", "tails", "--out", str(tmp_path / "out.json")]
    with pytest.raises(KeyboardInterrupt):
        main(words)
    main(words)
    assert ran == [("a", "heads"), ("a", "tails"), ("a", "tails"), ("b", "heads"), ("b", "tails")]
    main([*words, "--views", "1"])
    assert len(ran) == 9, "figures of other options are not reused"
    assert [row["data"] for row in json.loads((tmp_path / "out.json").read_text())["rows"]] == ["a", "a", "b", "b"]


@pytest.mark.slow
def test_every_study_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = draw_textures(tmp_path / "textures", per_class=8)
    monkeypatch.setenv("TRANSFERAPP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(ablation, "HEAD_EPOCHS", 1)
    monkeypatch.setattr(ablation, "HEADS", dict(list(ablation.HEADS.items())[:1]))
    monkeypatch.setattr(ablation, "REGULARIZERS", {"mixup 0.2": ablation.REGULARIZERS["mixup 0.2"]})
    tails = {name: ablation.TAILS[name] for name in ("stochastic depth 0.2", "CutMix 1")}
    monkeypatch.setattr(ablation, "TAILS", tails)
    options = ["--data", str(root / "images"), "--backbone", str(root / "tiny.keras"), "--views", "1"]
    main([*options, "--seeds", "2", "--tail-seeds", "2", "--tail-epochs", "1", "--out", str(tmp_path / "out.json")])
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert {row["study"] for row in rows} == set(ablation.STUDIES)
    assert all(len(row["accuracies"]) == 2 and 0 <= row["accuracy"] <= 1 for row in rows)
    assert [row["name"] for row in rows if row["study"] == "tails"][2:] == [
        "last two stages tuned, stochastic depth 0.2",
        "last two stages tuned, CutMix 1",
    ]
