"""The bake-off on the terminal: a line for each contender, and under the table why, and what its curves say."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from tests.evaluation.test_report_contest import LEFT_OUT, PROBE, contender
from transferapp.cli.contest import contest


def shown(contenders: list[dict[str, Any]], width: int = 100) -> list[str]:
    console = Console(width=width, highlight=False, force_terminal=False)
    with console.capture() as captured:
        console.print(contest(contenders))
    return captured.get().splitlines()


def words(line: str) -> list[str]:
    return line.split()


def test_each_contender_has_a_line_and_the_one_that_ships_a_mark() -> None:
    lines = shown([PROBE, contender("last two stages", chosen=True), LEFT_OUT])
    assert lines[0] == "What was compared on the validation images; ▶ ships"
    assert words(lines[2]) == ["solved", "classifier", "top", "0.800", "0.400"]
    assert words(lines[3]) == ["▶", "last", "two", "stages", "block10", "0.800", "0.400", "3", "of", "8", "61", "s"]
    assert words(lines[4]) == ["whole", "network", "input", "-", "-", "0", "of", "2", "61", "s"]


def test_under_the_table_stands_why_and_what_the_curves_say() -> None:
    text = " ".join(" ".join(shown([PROBE, contender("last two stages", chosen=True), LEFT_OUT], width=300)).split())
    assert "last two stages +3.0 points against the solved classifier (epoch 3)" in text
    assert "Training accuracy ends at 90.0%. [gap 0.123, best epoch 2] Train fewer layers." in text
    assert "whole network left out: there was time for 2 epochs" in text
    assert "solved classifier +" not in text, "it has nothing to say"


def test_names_cannot_speak_to_the_terminal() -> None:
    text = "\n".join(shown([PROBE, contender("a\x1b[31m", cut="b[red]c", reason="[bold]d\x07", chosen=True)]))
    assert not set(text) & {"\x1b", "\x07"}
    assert "b[red]c" in text
    assert "[bold]d" in text
