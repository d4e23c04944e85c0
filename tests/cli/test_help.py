"""What `--help` says, how wide it is, and what is imported to say it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.helpers.fitted import ROOT, environment, transferapp
from transferapp.cli.main import COMMANDS

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


def test_every_setting_is_an_option_and_says_its_default() -> None:
    text = " ".join(transferapp("fit", "--help").stdout.replace("\N{NO-BREAK SPACE}", " ").split())
    for words in ("--seed INTEGER", "[default: 0.2]", "--backbone NAME", "[auto|small|large]", "[default: auto]"):
        assert words in text


def test_the_version() -> None:
    done = transferapp("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("transferapp ")
