"""Private names of other libraries: used in one file per library, whose version has an upper bound."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOMES = {"transferapp/backbones/keras_internals.py": "keras", "service/uvicorn_internals.py": "uvicorn"}
"""The files that may use private names, and the library that they are of."""

PUBLIC = {"_asdict", "_exit", "_fields", "_replace"}
"""Names that only look private: of named tuples and of `os`."""


def defined_names(source: str) -> set[str]:
    """Names of functions, classes, attributes and variables that a source file defines."""
    nodes = list(ast.walk(ast.parse(source)))
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    own |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    own |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return own


def private_names(source: str, own: set[str]) -> list[str]:
    """Private attributes and modules that a source file uses and that are not its `own`, with their lines."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Attribute):
            names = [node.attr]
        elif (
            isinstance(node, ast.ImportFrom) and node.module and not node.module.startswith(("transferapp", "service"))
        ):
            names = [*node.module.split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            names = [str(argument.value) for argument in node.args[1:2] if isinstance(argument, ast.Constant)]
        for name in names:
            if re.match(r"_[a-z]", name) and name not in own and name not in PUBLIC:
                found.append(f"{getattr(node, 'lineno', 0)}: {name}")
    return found


def test_private_names_of_libraries_are_used_in_one_file_each() -> None:
    files = [file for top in ("transferapp", "service") for file in sorted((ROOT / top).rglob("*.py"))]
    sources = {file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8") for file in files}
    own = set().union(*(defined_names(source) for name, source in sources.items() if name not in HOMES))
    faults = [
        f"{name}:{found}"
        for name, source in sources.items()
        if name not in HOMES
        for found in private_names(source, own)
    ]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("library", HOMES.values())
def test_a_library_whose_private_names_are_used_has_an_upper_bound(library: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (requirement,) = [each for each in project["dependencies"] if re.split(r"[<>=]", each)[0] == library]
    assert "<" in requirement, requirement


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("model._flatten_layers()", ["1: _flatten_layers"]),
        ("getattr(model, '_nodes', None)", ["1: _nodes"]),
        ("from library._impl import x", ["1: _impl"]),
        ("self._own = 1\nother._own", []),
        ("os._exit(0)\nself.__dict__", []),
    ],
)
def test_the_search_finds_what_it_should(source: str, found: list[str]) -> None:
    assert private_names(source, defined_names(source)) == found
