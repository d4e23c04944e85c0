"""Options and YAML settings, and their precedence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from transferapp.cli.options import config_from, data_option, fit_options, source_options
from transferapp.config import FitConfig
from transferapp.data.options import SourceOptions
from transferapp.errors import UsageError


def settings(*words: str, file: str | None = None, folder: Path | None = None) -> FitConfig:
    """The settings that a command line gives."""
    found: list[FitConfig] = []

    @click.command()
    @fit_options()
    def command(config_file: Path | None, **flags: Any) -> None:
        found.append(config_from(config_file, flags))

    given = list(words)
    if file is not None:
        assert folder is not None
        (folder / "fit.yaml").write_text(file)
        given += ["--config", str(folder / "fit.yaml")]
    outcome = CliRunner().invoke(command, ["--data", "images", *given], catch_exceptions=True)
    if outcome.exception and not isinstance(outcome.exception, SystemExit):
        raise outcome.exception
    assert outcome.exit_code == 0, outcome.output
    return found[0]


def test_no_flags_are_the_defaults() -> None:
    assert settings() == FitConfig(data="images")


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--no-flip"], "flip", False),
        (["--flip"], "flip", True),
        (["--no-random-crop"], "random_crop", False),
        (["--rule-only"], "rule_only", True),
        (["--scratch"], "scratch", True),
        (["--learning-rate", "3e-4"], "learning_rate", "3e-4"),
        (["--learning-rate", "find"], "learning_rate", "find"),
        (["--budget", "90s"], "budget", "90s"),
        (["--image-size", "128"], "image_size", 128),
        (["--scale-max", "320"], "scale_max", 320),
        (["--tune", "last-two"], "tune", "last-two"),
    ],
)
def test_a_flag_sets_its_setting_and_no_other(words: list[str], name: str, value: object) -> None:
    changed = {name: value}
    if name == "scratch":
        changed["tune"] = "all"
    assert settings(*words) == FitConfig(**{"data": "images", **changed})


def test_what_is_said_of_the_data_reaches_the_source() -> None:
    words = ["--path-column", "file", "--label-column", "breed", "--group-column", "dog", "--data-dir", "/data"]
    source = settings(*words).source
    assert source == SourceOptions(path_column="file", label_column="breed", group_column="dog", data_dir="/data")
    assert settings().source == SourceOptions()


def test_commands_without_a_fit_take_the_options_of_a_source_alone() -> None:
    @click.command()
    @source_options
    def command(**source: str) -> None:
        click.echo(repr(SourceOptions(**source)))

    outcome = CliRunner().invoke(command, ["--split-column", "part"])
    assert outcome.output == f"{SourceOptions(split_column='part')!r}\n"
    assert CliRunner().invoke(command, ["--epochs", "3"]).exit_code == 2


def test_switches_come_from_a_file_and_flags_win(tmp_path: Path) -> None:
    file = "flip: false\nrule_only: true\nrandom_crop: no\nlearning_rate: 0.002\nbudget: 90\n"
    config = settings(file=file, folder=tmp_path)
    assert (config.flip, config.rule_only, config.random_crop) == (False, True, False)
    assert (config.head_learning_rate, config.budget_seconds) == (0.002, 90)
    config = settings("--flip", "--learning-rate", "auto", file=file, folder=tmp_path)
    assert (config.flip, config.random_crop, config.learning_rate) == (True, False, "auto")


@pytest.mark.parametrize("words", [["--no-rule-only"], ["--tune", "everything"], ["--epochs", "two"], ["--flip", "no"]])
def test_what_is_no_option_is_refused(words: list[str]) -> None:
    @click.command()
    @fit_options()
    def command(**_: Any) -> None:
        raise AssertionError

    assert CliRunner().invoke(command, words).exit_code == 2


@pytest.mark.parametrize("decorator", [fit_options(), data_option("Images.")])
def test_data_that_is_given_twice_is_refused(decorator: Any) -> None:
    @click.command()
    @decorator  # type: ignore[untyped-decorator]
    def command(**_flags: Any) -> None:
        raise AssertionError

    outcome = CliRunner().invoke(command, ["--data", "a", "--data", "b"])
    assert isinstance(outcome.exception, UsageError)
    assert "--data was given 2 times" in str(outcome.exception)
    assert CliRunner().invoke(command, ["--data"]).exit_code == 2
