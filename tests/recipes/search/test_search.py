"""A search from images to a bundle on the command line, and the settings that it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.helpers.fitted import BACKBONE, images, transferapp
from transferapp.config import make_config
from transferapp.errors import UsageError
from transferapp.recipes.evaluate import evaluate
from transferapp.recipes.search.search import base_settings
from transferapp.recipes.search.space import make_search


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"trials": 0}, "trials is out of range"),
        ({"trials": 10, "coarse": 11}, "Expected 0 to 10"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make_search(**options)  # type: ignore[arg-type]


def test_two_fifths_of_the_trials_are_coarse() -> None:
    assert make_search(trials=100).coarse == 40
    assert make_search(trials=1).coarse == 0


def test_schedules_with_cycles_and_other_poolings_are_refused() -> None:
    for change, said in (({"schedule": "sgdr"}, "no schedule sgdr"), ({"pooling": "max"}, "no max pooling")):
        with pytest.raises(UsageError, match=said):
            base_settings(make_config({"data": "x", **change}))


@pytest.mark.slow
def test_a_search_writes_a_bundle_with_its_trials(tmp_path: Path) -> None:
    out = tmp_path / "found"
    words = ("search", "--data", images(), "--out", out, "--backbone", BACKBONE, "--trials", 8)
    done = transferapp(*words)
    assert done.returncode == 0, done.stderr
    lines = [text for text in done.stdout.splitlines() if text.startswith("val_acc: ")]
    assert len(lines) == 8
    assert lines[0].endswith("(0 / 8)")
    assert "final figure" in done.stdout
    manifest = json.loads((out / "bundle.json").read_text(encoding="utf-8"))
    with (out / "history.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["phase"] for row in rows] == ["coarse"] * 3 + ["fine"] * 5
    (best,) = [row for row in rows if row["best"] == "1"]
    assert float(best["val_accuracy"]) == pytest.approx(manifest["search"]["best"]["accuracy"], abs=1e-6)
    assert manifest["metrics"]["validation"]["accuracy"] == manifest["search"]["best"]["accuracy"]
    assert "that took no part in the search" in manifest["search"]["final_figure"]
    assert {"forecast", "robustness"} <= set(manifest)
    assert '<section id="search">' in (out / "report.html").read_text(encoding="utf-8")
    assert {path.name for path in tmp_path.iterdir()} == {"found", ".found.lock"}, "the run folder is gone"
    served = evaluate(out, str(images()), views=1)
    assert served.metrics.accuracy == manifest["metrics"]["test"]["accuracy"]


@pytest.mark.slow
def test_a_search_needs_validation_images(tmp_path: Path) -> None:
    words = ("--data", images(), "--out", tmp_path / "x", "--backbone", BACKBONE, "--val-fraction", 0)
    done = transferapp("search", *words)
    assert done.returncode == 3
    assert "There are no validation images, by which a search could choose" in done.stderr
