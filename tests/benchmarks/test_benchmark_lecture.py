"""docs/lecture.md names existing options and tests and the newest figures; and the benchmark behind it."""

from __future__ import annotations

import ast
import itertools
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from importlib import import_module
from pathlib import Path

import click
import numpy as np
import pytest

from benchmarks import lecture, lecture_gains, lecture_plots
from transferapp.cli.main import COMMANDS

PAGE = Path(__file__).parents[2] / "docs" / "lecture.md"
TEXT = PAGE.read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TEXT.splitlines()
    if line.startswith("| ") and not line.startswith("| idea |")
]
"""Idea, option, figure, test."""


def options_of(command: str) -> dict[str, click.Option]:
    """Every spelling of a command's options."""
    assert command in COMMANDS, f"there is no command {command}"
    found: click.Command = import_module(COMMANDS[command]).command
    options = [parameter for parameter in found.params if isinstance(parameter, click.Option)]
    return {name: option for option in options for name in (*option.opts, *option.secondary_opts)}


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
        link = re.fullmatch(r"\[(\w+)\]\(\.\./(tests/[\w/]+\.py)\)", proof)
        assert link, f"{idea}: no test"
        module = ast.parse((PAGE.parents[1] / link[2]).read_text(encoding="utf-8"))
        assert link[1] in {node.name for node in module.body if isinstance(node, ast.FunctionDef)}, f"no {link[0]}"


def test_every_figure_on_the_page_is_the_newest() -> None:
    assert {idea: figure for idea, _, figure, _ in ROWS} == lecture_gains.gains()


def test_every_plot_on_the_page_is_a_small_valid_drawing() -> None:
    plots = [PAGE.parent / name for name in re.findall(r"!\[.+\]\((.+\.svg)\)", TEXT)]
    assert {path.name for path in plots} == {path.name for path in lecture_plots.IMAGES.iterdir()}
    for path in plots:
        ElementTree.parse(path)
        assert path.stat().st_size < 60_000


def test_plots_of_results_are_those_on_the_page(tmp_path: Path) -> None:
    for name, draw in (("curves", lecture_plots.training_curves), ("stages", lecture_plots.stages)):
        draw(tmp_path / f"{name}.svg", lecture.RESULTS)
        drawn, shown = ((folder / f"{name}.svg").read_text() for folder in (tmp_path, lecture_plots.IMAGES))
        assert drawn == shown, "run python benchmarks/lecture.py --plots"


@pytest.mark.slow
def test_update_rules_leave_the_saddle_and_go_down_the_ravine() -> None:
    def ravine(place: np.ndarray) -> np.ndarray:
        return np.asarray(place * np.array([0.03, lecture_plots.STEEP]))

    for rule, rate in lecture_plots.RAVINE_RATES.items():
        path = lecture_plots.descend(rule, rate, (-9, 1.2), ravine, lecture_plots.RAVINE_STEPS)
        assert math.hypot(*path[-1]) < 0.5 * math.hypot(*path[0]), rule


def test_a_mean_comes_with_the_interval_of_student() -> None:
    assert lecture_gains.mean(np.array([1.0, 2.0, 3.0])) == "2.0 ± 2.5"
    assert lecture_gains.mean(np.array([-0.01, -0.03]), 2, sign=True) == "−0.02 ± 0.13"


def test_gains_are_paired_by_split_and_pooled_over_the_sets(tmp_path: Path) -> None:
    rows = [
        {"data": data, "study": "heads", "name": name, "accuracies": accuracies}
        for data, name, accuracies in (
            ("dogs", "base", [0.5, 0.9]),
            ("dogs", "wide", [0.52, 0.92]),
            ("trash", "base", [0.1, 0.1]),
            ("trash", "wide", [0.1, 0.1]),
            ("aerial", "base", [0.3, 0.3]),
        )
    ]
    differences = lecture_gains._ablation(rows, "heads", "wide", "base")
    assert differences == pytest.approx([0.02, 0.02, 0.0, 0.0])


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


def test_an_interrupted_run_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def measured(data: str, _options: object) -> dict[str, list[float]]:
        asked.append(data)
        if data == "second" and len(asked) == 2:
            raise KeyboardInterrupt
        return {"number": [1.0]}

    monkeypatch.setattr(lecture, "measured", measured)
    words = ["--data", "first", "second", "--out", str(tmp_path / "out.json")]
    with pytest.raises(KeyboardInterrupt):
        lecture.main(words)
    lecture.main(words)
    assert asked == ["first", "second", "second"]
    assert list(json.loads((tmp_path / "out.json").read_text())["figures"]) == ["first", "second"]
