"""Imports point downward only, and TensorFlow is imported by one module.

The rows below are read by longest prefix: `transferapp.policy.plan` belongs to the row that names it, or else to the one that
names `transferapp.policy`. A module that no row names fails the test.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]

LAYERS: tuple[tuple[str, ...], ...] = (
    ("transferapp.errors",),
    ("transferapp.system",),
    ("transferapp.images",),
    ("transferapp.policy",),
    ("transferapp.data",),
    ("transferapp.backbones",),
    ("transferapp.training",),
    ("transferapp.bundle",),
    ("transferapp.evaluation",),
    ("transferapp.config",),
    ("transferapp.recipes",),
    ("service",),
    ("transferapp.cli",),
    ("transferapp.__main__",),
)
"""The rooms, ground floor first. A module may import from lower rooms and from its own; rooms that share a row import nothing
from each other."""

PACKAGE = "transferapp"
"""The package itself: its public names load lazily, so importing it imports nothing."""

SERVICE_MAY_USE = frozenset({"transferapp.bundle", "transferapp.errors", "transferapp.images", "transferapp.system"})
"""Rooms that the server is built from; none of them imports Keras."""

TENSORFLOW = frozenset({"tensorflow", "tf_keras"})
TENSORFLOW_ADAPTER = "transferapp.system.backend"

LIGHT = (
    "transferapp",
    "transferapp.cli.main",
    "transferapp.bundle.predictor",
    "transferapp.recipes.evaluate",
    "transferapp.recipes.fit.fit",
    "service.app",
)
"""Modules that must be imported without Keras: the command line, the whole path of a prediction, the service."""

HEAVY = ("tensorflow", "keras", "torch", "jax")


class Import(NamedTuple):
    """One import: which module, in which line."""

    target: str
    line: int


def source_modules() -> dict[str, Path]:
    """Every module of the product by its dotted name."""
    return {name_of(file): file for top in ("transferapp", "service") for file in sorted((ROOT / top).rglob("*.py"))}


def name_of(file: Path) -> str:
    """The dotted name of a source file below the root."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(source: str, name: str, known: frozenset[str], *, is_package: bool = False) -> list[Import]:
    """Every import in a module: at its top, in functions, and those for the type checker alone.

    The last two count as well: a module that must be named is knowledge of it, whenever it is imported.
    """
    found: list[Import] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.extend(Import(target, node.lineno) for target in _targets(node, name, known, is_package))
    return sorted(found, key=lambda item: item.line)


def _targets(node: ast.ImportFrom, name: str, known: frozenset[str], is_package: bool) -> Iterator[str]:
    base = node.module or ""
    if node.level:
        above = name.split(".")[: None if is_package and node.level == 1 else -(node.level - is_package)]
        base = ".".join([*above, base]).strip(".")
    for alias in node.names:  # `from package import module` is an import of the module
        inner = f"{base}.{alias.name}"
        yield inner if inner in known else base


def owner(module: str, layers: Sequence[Sequence[str]] = LAYERS) -> tuple[int, str] | None:
    """(layer, the name in it) that a module belongs to, by the longest prefix; None where no layer names it."""
    named = {name: depth for depth, names in enumerate(layers) for name in names}
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if (prefix := ".".join(parts[:length])) in named:
            return named[prefix], prefix
    return None


def upward(
    sources: Mapping[str, str], layers: Sequence[Sequence[str]] = LAYERS, packages: frozenset[str] = frozenset()
) -> list[str]:
    """What is wrong with the imports of these modules, a sentence each."""
    known = frozenset(sources)
    faults = []
    for name, source in sources.items():
        if name == PACKAGE:
            continue
        own = owner(name, layers)
        if own is None:
            faults.append(f"{name} has no layer: name it, or a package above it, in LAYERS of tests/test_imports.py")
            continue
        for target, line in imports_of(source, name, known, is_package=name in packages):
            theirs = owner(target, layers)
            if target in known and target != PACKAGE and theirs is None:
                faults.append(f"{name}:{line} imports {target}, which has no layer")
            elif theirs and theirs[1] != own[1] and theirs[0] >= own[0]:
                faults.append(f"{name}:{line} imports {target}, which stands {_where(theirs[0], own[0])} it")
    return faults


def _where(theirs: int, own: int) -> str:
    return "beside" if theirs == own else "above"


def test_imports_point_downward_only() -> None:
    files = source_modules()
    packages = frozenset(name for name, file in files.items() if file.name == "__init__.py")
    faults = upward({name: file.read_text(encoding="utf-8") for name, file in files.items()}, packages=packages)
    assert not faults, "\n".join(faults)


def test_every_layer_is_named_once_and_nested_names_stand_apart() -> None:
    names = [name for layer in LAYERS for name in layer]
    assert len(names) == len(set(names))


def test_the_service_knows_the_predictor_and_little_else() -> None:
    files = source_modules()
    known = frozenset(files)
    used = {
        target
        for name, file in files.items()
        if name.split(".")[0] == "service"
        for target, _ in imports_of(file.read_text(encoding="utf-8"), name, known)
        if target.split(".")[0] == "transferapp"
    }
    strangers = {target for target in used if owner(target, (tuple(SERVICE_MAY_USE),)) is None}
    assert not strangers, f"service imports {sorted(strangers)}"


def test_tensorflow_is_imported_in_one_adapter_only() -> None:
    files = source_modules()
    faults = [
        f"{name}:{line} imports {target}"
        for name, file in files.items()
        for target, line in imports_of(file.read_text(encoding="utf-8"), name, frozenset(files))
        if target.split(".")[0] in TENSORFLOW and owner(name, ((TENSORFLOW_ADAPTER,),)) is None
    ]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("module", LIGHT)
def test_what_must_start_fast_imports_no_framework(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# The checker itself


SMALL = (("app.low",), ("app.left", "app.right"), ("app.high", "app.low.special"))


@pytest.mark.parametrize(
    ("name", "source", "said"),
    [
        ("app.high", "from app.low import x\nimport app.left", None),
        ("app.left", "import app.high", "app.left:1 imports app.high, which stands above it"),
        ("app.left", "from app import right", "app.left:1 imports app.right, which stands beside it"),
        ("app.left.inner", "from app.left.other import x\nfrom app.low import y", None),
        ("app.left.inner", "from . import other\nfrom .. import low", None),
        ("app.left.inner", "from ..high import x", "app.left.inner:1 imports app.high, which stands above it"),
        ("app.low", "def f():\n    import app.high", "app.low:2 imports app.high, which stands above it"),
        (
            "app.low",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from app.left import T",
            "app.low:3 imports app.left, which stands above it",
        ),
        ("app.low.special", "import app.left", None),
        ("app.low.plain", "import app.left", "app.low.plain:1 imports app.left, which stands above it"),
        ("app.low.plain", "import app.low.special", "app.low.plain:1 imports app.low.special, which stands above it"),
        ("app.newcomer", "", "app.newcomer has no layer: name it, or a package above it, in LAYERS"),
        ("app.high", "import app.newcomer", "app.high:1 imports app.newcomer, which has no layer"),
        ("app.high", "import os.path, numpy as np", None),
    ],
)
def test_the_checker_sees_what_it_should(name: str, source: str, said: str | None) -> None:
    modules = ("app.low", "app.left", "app.left.other", "app.right", "app.high", "app.low.special", "app.newcomer")
    sources = {**dict.fromkeys(modules, ""), name: source}
    if name != "app.newcomer" and "newcomer" not in source:
        del sources["app.newcomer"]
    faults = [fault for fault in upward(sources, SMALL) if not fault.startswith("app.newcomer") or name in fault[:12]]
    if said is None:
        assert faults == []
    else:
        (fault,) = faults
        assert fault.startswith(said)
