"""A fit that is killed and run again ends as one that was left alone. The benchmark does this as often as one likes."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.kill_resume import figures, run

pytestmark = pytest.mark.slow


def test_a_killed_fit_resumes_to_the_same_figures(tmp_path: Path) -> None:
    outcome = run(tmp_path, kills=1, backbone=None, epochs=2, seed=5)
    assert [kill.problem for kill in outcome] == [""]
    assert all(kill.good for kill in outcome), outcome
    compared = figures(tmp_path / "undisturbed" / "bundle")
    assert "/metrics/test/accuracy" in compared
    assert any(name.endswith("/history/1/val_loss") for name in compared)
    assert not any("seconds" in name for name in compared)
