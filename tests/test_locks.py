"""The locked sets of packages: a plain installation has none of those of the extras."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def package(requirement: str) -> str:
    """Return the normalized name of a requirement."""
    return re.split(r"[^\w.-]", requirement.strip(), maxsplit=1)[0].lower().replace("_", "-")


def locked(name: str) -> set[str]:
    """Return the packages of a lock file."""
    lines = (ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines()
    return {package(line) for line in lines if re.match(r"\w", line)}


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PLAIN = {package(requirement) for requirement in PROJECT["dependencies"]}


def test_the_locks_hold_the_plain_dependencies() -> None:
    assert PLAIN <= locked("fit.txt") <= locked("dev.txt")
    assert locked("serve.txt") <= locked("fit.txt")


@pytest.mark.parametrize("extra", sorted(set(PROJECT["optional-dependencies"])))
def test_a_plain_installation_has_no_package_of_an_extra(extra: str) -> None:
    added = {package(requirement) for requirement in PROJECT["optional-dependencies"][extra]} - PLAIN
    for lock in ("fit.txt", "serve.txt"):
        assert not added & locked(lock), f"{lock} has packages of the extra {extra}"


_SERVED = """
import importlib.metadata
import sys

import service.app
import service.server
import transferapp.cli.serve

owners = importlib.metadata.packages_distributions()
loaded = {name.partition(".")[0] for name in sys.modules}
print(*sorted(",".join(owners[name]) for name in loaded & set(owners) - {"transferapp", "service"}))
"""


def test_the_served_process_imports_locked_packages_alone() -> None:
    done = subprocess.run([sys.executable, "-c", _SERVED], cwd=ROOT, capture_output=True, text=True, check=True)
    owners = [{package(name) for name in names.split(",")} for names in done.stdout.split()]
    assert {"starlette"} in owners
    there = locked("serve.txt") | {"setuptools", "watchfiles"}  # uvicorn imports the last one where it is installed
    assert [names for names in owners if not names & there] == []


def test_the_packages_of_exports_are_locked_for_tests() -> None:
    assert {package(requirement) for requirement in PROJECT["optional-dependencies"]["export"]} <= locked("dev.txt")
