"""Text, width and imports of `--help`."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.fitted import ROOT, environment, transferapp
from tests.helpers.golden import check_golden
from transferapp.cli.main import COMMANDS
from transferapp.config import COMMON, GROUPS, FitConfig

HEAVY = ("tensorflow", "keras", "torch", "jax", "openvino", "scipy")
PAGES = [(), *((name,) for name in COMMANDS)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: "-".join(page) or "transferapp")
def test_help_imports_nothing_heavy_and_fits_eighty_columns(page: tuple[str, ...]) -> None:
    code = (
        "import os, sys\n"
        f"os._exit = lambda code: print([name for name in {HEAVY!r} if name in sys.modules], code)\n"
        "from transferapp.cli.main import main\n"
        f"main({[*page, '--help']!r})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), cwd=ROOT, capture_output=True, encoding="utf-8", check=True
    )
    *lines, imported = done.stdout.splitlines()
    assert imported == "[] 0"
    assert lines[0].startswith(" ".join(["Usage: transferapp", *page]))
    assert max(map(len, lines)) <= 80
    assert not any(line.rstrip().endswith(("...", "[default:")) for line in lines[1:]), "cut off, or torn apart"


def test_a_bare_command_line_shows_the_help() -> None:
    done = transferapp()
    assert done.returncode == 0
    assert done.stdout == transferapp("--help").stdout
    assert done.stderr == ""
    for name in COMMANDS:
        assert f"\n  {name} " in done.stdout


def test_every_setting_is_an_option_below_the_heading_of_its_group() -> None:
    first, *sections = re.split(r"\n\n(?=\S)", transferapp("fit", "--help").stdout.split("\n\n", 2)[2])
    assert len(first.splitlines()) <= 30, "the most used options fit on one screen"
    assert [section.partition(":")[0] for section in sections] == list(GROUPS)
    for spec in dataclasses.fields(FitConfig):
        heading = "Options" if spec.name in COMMON else spec.metadata["group"]
        (section,) = (text for text in (first, *sections) if text.startswith(f"{heading}:"))
        assert re.search(rf"^  --{spec.name.replace('_', '-')}\b", section, re.MULTILINE), spec.name


def test_the_text_of_all_pages() -> None:
    pages = [transferapp(*page, "--help").stdout for page in PAGES]
    check_golden(Path(__file__).parent / "golden" / "help.txt", "\n\n".join(pages))


def test_the_version() -> None:
    done = transferapp("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("transferapp ")
