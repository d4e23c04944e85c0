"""A search from images to a bundle, as a person runs it, and what it refuses before any work."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.helpers.fitted import BACKBONE, images, transferapp
from transferapp.config import make_config
from transferapp.errors import UsageError
from transferapp.recipes.evaluate import evaluate
from transferapp.recipes.search.problem import HeadSettings, Outcome
from transferapp.recipes.search.record import line
from transferapp.recipes.search.run import base_settings
from transferapp.recipes.search.settings import make_search
from transferapp.recipes.search.study import Trial
from transferapp.training.head_spec import HeadSpec


def test_a_line_is_the_lectures() -> None:
    trial = Trial(0, "coarse", {"learning_rate": 5.349517e-04, "l2": 0.409}, Outcome(0.527, 1.0, 5, False, 0.1))
    settings = HeadSettings(HeadSpec()).with_params(trial.params, 5)
    assert line(trial, settings, 100) == "val_acc: 0.527000, lr: 5.349517e-04, reg: 4.09e-01, (0 / 100)"
    more = Trial(7, "fine", {**trial.params, "hidden": (256, 64), "dropout": 0.25}, trial.outcome)
    assert line(more, settings, 100).endswith("reg: 4.09e-01, hidden: 256x64, dropout: 0.25, (7 / 100)")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"trials": 0}, "trials is out of range"),
        ({"trials": 10, "coarse": 11}, "Expected 0 to 10"),
        ({"workers": 0}, "workers is out of range"),
        ({"storage": Path()}, "is a folder"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make_search(**options)  # type: ignore[arg-type]


def test_two_fifths_of_the_trials_are_coarse() -> None:
    assert make_search(trials=100).coarse == 40
    assert make_search(trials=1).coarse == 0


def test_what_a_trial_has_no_time_or_no_features_for_is_refused() -> None:
    for change, said in (({"schedule": "sgdr"}, "no schedule sgdr"), ({"pooling": "max"}, "no max pooling")):
        with pytest.raises(UsageError, match=said):
            base_settings(make_config({"data": "x", **change}))


@pytest.mark.slow
def test_a_search_writes_a_bundle_that_says_how_it_was_found(tmp_path: Path) -> None:
    out = tmp_path / "found"
    words = ("search", "--data", images(), "--out", out, "--backbone", BACKBONE, "--trials", 8)
    done = transferapp(*words)
    assert done.returncode == 0, done.stderr
    lines = [text for text in done.stdout.splitlines() if text.startswith("val_acc: ")]
    assert len(lines) == 8
    assert lines[0].endswith("(0 / 8)")
    assert "What was searched" in done.stdout
    manifest = json.loads((out / "bundle.json").read_text(encoding="utf-8"))
    with (out / "search.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["phase"] for row in rows] == ["coarse"] * 3 + ["fine"] * 5
    (best,) = [row for row in rows if row["best"] == "1"]
    assert float(best["val_accuracy"]) == pytest.approx(manifest["search"]["best"]["accuracy"], abs=1e-6)
    assert manifest["metrics"]["validation"]["accuracy"] == manifest["search"]["best"]["accuracy"]
    assert "that the search never saw" in manifest["search"]["final_figure"]
    assert "What was searched" in (out / "report.html").read_text(encoding="utf-8")
    assert {path.name for path in tmp_path.iterdir()} == {"found", ".found.lock"}, "no journal is left"
    served = evaluate(out, str(images()), views=1)
    assert served.metrics.accuracy == manifest["metrics"]["test"]["accuracy"]


@pytest.mark.slow
def test_without_validation_images_there_is_nothing_to_choose_by(tmp_path: Path) -> None:
    words = ("--data", images(), "--out", tmp_path / "x", "--backbone", BACKBONE, "--val-fraction", 0)
    done = transferapp("search", *words)
    assert done.returncode == 3
    assert "There are no validation images, by which a search could choose" in done.stderr
