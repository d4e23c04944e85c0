"""docs/lecture.md: its options and tests exist, its figures are the newest; and what the benchmark behind it computes."""

from __future__ import annotations

import ast
import itertools
import json
import re
from importlib import import_module
from pathlib import Path

import click
import numpy as np
import pytest

from benchmarks import lecture, lecture_table
from benchmarks.lecture_table import PAGE, UNMEASURED, about, cells, filled
from transferapp.cli.main import COMMANDS

ROOT = Path(__file__).parents[2]
TEXT = PAGE.read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TEXT.partition("## What each change")[0].splitlines()
    if line.startswith("| ") and not line.startswith("| idea |")
]
"""Idea, option, figure, when it pays, test."""


def options_of(command: str) -> dict[str, click.Option]:
    """Every spelling of a command's options."""
    assert command in COMMANDS, f"there is no command {command}"
    found: click.Command = import_module(COMMANDS[command]).command
    options = [parameter for parameter in found.params if isinstance(parameter, click.Option)]
    return {name: option for option in options for name in (*option.opts, *option.secondary_opts)}


def test_the_page_has_a_whole_row_for_each_idea() -> None:
    assert len(ROWS) > 50
    assert all(len(row) == 5 and all(row) for row in ROWS)


def test_every_option_on_the_page_exists_and_takes_the_value_it_is_given() -> None:
    for idea, named, *_ in ROWS:
        spans = [span.split() for span in re.findall(r"`([^`]+)`", named)]
        assert spans or named.startswith("always"), f"{idea}: nothing turns it on"
        command = "fit"
        for words in spans:
            if words[0] == "transferapp":
                command = words[1]
                assert options_of(command)
            for flag, value in itertools.pairwise([*words, ""]):
                if not flag.startswith("--"):
                    continue
                option = options_of(command).get(flag)
                assert option is not None, f"{idea}: transferapp {command} has no {flag}"
                if value and isinstance(option.type, click.Choice):
                    assert value in map(str, option.type.choices), f"{idea}: {flag} takes no {value}"


def test_every_test_on_the_page_exists() -> None:
    for idea, *_, proof in ROWS:
        named = re.findall(r"`(tests/[^`]+)::(\w+)`", proof)
        assert named, f"{idea}: nothing proves it"
        for file, name in named:
            module = ast.parse((ROOT / file).read_text(encoding="utf-8"))
            assert name in {node.name for node in module.body if isinstance(node, ast.FunctionDef)}, (
                f"no {file}::{name}"
            )


def test_every_figure_on_the_page_is_measured_and_named() -> None:
    asked = [re.match(r"<!-- (\w+) -->", row[2]) for row in ROWS]
    assert all(asked)
    names = {match[1] for match in asked if match}
    assert names <= set(cells())
    assert not set(cells()) - names, "a figure is measured and not shown"


def test_the_page_shows_the_newest_results() -> None:
    assert filled(TEXT) == TEXT, "run python benchmarks/lecture_table.py"
    assert filled(filled(TEXT)) == filled(TEXT)


def test_without_results_the_page_says_so(tmp_path: Path) -> None:
    assert set(cells(tmp_path).values()) == {UNMEASURED}
    assert filled(TEXT, tmp_path).count(UNMEASURED) == len(ROWS) + 1


def test_a_mean_comes_with_the_interval_of_student() -> None:
    assert about([1.0, 2.0, 3.0]) == "2.0 ± 2.5"
    assert about([-0.01, -0.03], 2, sign=True) == "−0.02 ± 0.13"
    assert about([3.0, None]) == "never in 200"


def test_gains_of_the_ablation_are_paired_by_split() -> None:
    rows = [
        {"data": data, "study": "heads", "name": name, "against": against, "accuracy": 0.5, "accuracies": accuracies}
        for data, name, against, accuracies in (
            ("dogs", "base", "", [0.5, 0.9]),
            ("dogs", "base, wide", "base", [0.52, 0.92]),
            ("trash", "base", "", [0.1, 0.1]),
        )
    ]
    assert lecture_table.ablation_gains(rows, "heads", "base, wide", "base") == {"dogs": "+2.0 ± 0.0"}
    lines = lecture_table.ablation_table(rows).splitlines()
    assert lines[0] == "| change | of | dogs | trash |"
    assert lines[2:] == ["| **base** | | 0.500 | 0.500 |", "| wide | base | +2.0 ± 0.0 |  |"]


@pytest.fixture
def task() -> lecture.Task:
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 3
    features = (rng.normal(size=(120, 6)) + 2 * np.eye(6)[labels]).astype(np.float32)
    return lecture.make_task(features, labels, lecture.splits(labels, 1)[0])


def test_training_comes_to_the_optimum_and_not_below_it(task: lecture.Task) -> None:
    weights = lecture.after(300, lecture.descend(task, "nesterov", 0.1))
    assert task.best <= task.objective(weights) < 1.01 * task.best


def test_a_rule_that_never_arrives_has_no_figure(task: lecture.Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lecture, "MOST_PASSES", 2)
    figures = lecture.update_rules(task)
    assert figures["passes sgd"] is None
    assert figures["lbfgs iterations"] > 0


def test_a_run_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def measured(data: str, _options: object) -> dict[str, list[float]]:
        asked.append(data)
        if data == "second" and len(asked) == 2:
            raise KeyboardInterrupt
        return {"number": [1.0]}

    monkeypatch.setattr(lecture, "measured", measured)
    (tmp_path / "page.md").write_text("nothing to fill in\n")
    words = ["--data", "first", "second", "--out", str(tmp_path / "out.json"), "--page", str(tmp_path / "page.md")]
    with pytest.raises(KeyboardInterrupt):
        lecture.main(words)
    lecture.main(words)
    assert asked == ["first", "second", "second"]
    assert list(json.loads((tmp_path / "out.json").read_text())["figures"]) == ["first", "second"]
