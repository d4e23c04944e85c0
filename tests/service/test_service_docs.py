"""Agreement of docs/service.md and the container files with the code."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from service.problems import PROBLEMS, problems_table
from service.settings import ENV_PREFIX, Settings, settings_table

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "service.md").read_text(encoding="utf-8")
OTHERS = {"TRANSFERAPP_CACHE", "TRANSFERAPP_DEBUG", "TRANSFERAPP_USER"}
"""Variables that are not settings of the service; the last one belongs to compose.yaml."""


@pytest.mark.parametrize("table", [settings_table(), problems_table()], ids=["settings", "problems"])
def test_the_page_has_the_table_of_the_code(table: str) -> None:
    header = table.splitlines()[0]
    found = PAGE[PAGE.index(header) :].partition("\n\n")[0] + "\n"
    assert found == table


@pytest.mark.parametrize("name", ["docs/service.md", "Dockerfile", "compose.yaml"])
def test_variables_that_are_named_exist(name: str) -> None:
    named = set(re.findall(r"TRANSFERAPP_[A-Z_]+", (ROOT / name).read_text(encoding="utf-8")))
    assert named
    assert named <= OTHERS | {f"{ENV_PREFIX}{field.upper()}" for field in Settings.model_fields}


def test_the_example_of_an_error_is_one() -> None:
    code = re.search(r'"code": "(\w+)"', PAGE)
    assert code
    assert f'"title": "{PROBLEMS[code[1]].title}"' in PAGE
    assert f'"status": {PROBLEMS[code[1]].status}' in PAGE


def test_the_image_is_built_from_files_that_exist() -> None:
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    sources = [source for line in copied for source in line.split()]
    assert {"pyproject.toml", "service", "transferapp"} <= set(sources)
    assert all((ROOT / source).exists() for source in sources)
    admitted = (ROOT / ".dockerignore").read_text(encoding="utf-8")
    assert all(f"!{source.partition('/')[0]}" in admitted for source in sources)


def test_the_served_process_needs_only_packages_of_its_lock_file() -> None:
    lock = (ROOT / "requirements" / "serve.txt").read_text(encoding="utf-8")
    locked = {_normal(name) for name in re.findall(r"^([\w.-]+)==", lock, re.MULTILINE)} | {"transferapp"}
    others = [
        module
        for module, packages in packages_distributions().items()
        if not locked & {_normal(package) for package in packages} and module not in sys.stdlib_module_names
    ]
    blocked = (
        f"import sys; sys.modules.update(dict.fromkeys({others!r}))"  # importing a None raises ModuleNotFoundError
    )
    code = f"{blocked}; import service.healthcheck, service.server, transferapp.cli.main, transferapp.cli.serve"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def _normal(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()
