"""Links, files, commands and options in the documents exist."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import click
import pytest

from transferapp.cli.main import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "models" / "README.md"]
OTHERS = {
    "--help",
    "--target",
    "--rm",
    "--user",
    "--init",
    "--read-only",
    "--cap-drop",
    "--security-opt",
    "--tmpfs",
} | {
    "--data-binary",
    "--http",
    "--factory",
    "--from-literal",
    "--raw",
    "--head",
    "--address",
}
"""Options of every command, and of docker, curl, uvicorn, kubectl and ray, that pages name."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_everything_that_a_page_names_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    links = [page.parent / link for link in re.findall(r"\]\((?!https?:|#)([^)#]+)[^)]*\)", prose)]
    files = re.findall(r"`((?:transferapp|service|tests|benchmarks|scripts)/[\w/.-]+)", text)
    scripts = re.findall(r"python (\w+/\w+\.py)", text)
    missing = [str(path) for path in [*links, *(ROOT / name for name in (*files, *scripts))] if not path.exists()]
    assert not missing, f"{page.name} names {missing}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_and_option_on_a_page_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w/.])transferapp ([a-z]+)(?= [A-Z-]|`)", text))
    assert named <= set(COMMANDS), f"{page.name} names {named - set(COMMANDS)}"
    known = set(OTHERS)
    for module in COMMANDS.values():
        command: click.Command = import_module(module).command
        known |= {spelling for option in command.params for spelling in (*option.opts, *option.secondary_opts)}
    for script in (ROOT / "benchmarks").glob("*.py"):
        known |= set(re.findall(r'"(--[a-z-]+)"', script.read_text(encoding="utf-8")))
    unknown = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text)) - known
    assert not unknown, f"{page.name} names {unknown}"


def test_the_readme_keeps_its_table_of_benchmarks_short() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = text.partition("## Benchmarks")[2].partition("## ")[0].splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows if row.startswith("| ")]
    assert len(cells) - 1 <= 10
    assert all(len(cell.split()) <= 12 for row in cells for cell in row)
