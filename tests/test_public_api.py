"""Public names of the package: what they are, and when they are imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

import transferapp

NAMES = {
    "fit",
    "plan",
    "evaluate",
    "search",
    "ensemble",
    "export",
    "audit",
    "update",
    "Predictor",
    "FitConfig",
    "make_config",
    "TransferAppError",
}


def test_the_public_names_are_these_and_each_is_callable() -> None:
    assert set(transferapp.__all__) == NAMES
    assert set(dir(transferapp)) >= NAMES
    for name in NAMES:
        value = getattr(transferapp, name)
        assert callable(value)
        assert value.__name__ == name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        _ = transferapp.fitt  # type: ignore[attr-defined]
    with pytest.raises(ImportError):
        exec("from transferapp import fitt")


@pytest.mark.parametrize("code", ["import transferapp", "from transferapp import TransferAppError"])
def test_importing_the_package_imports_only_itself(code: str) -> None:
    count = f"import sys; before = set(sys.modules); {code}; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", count], capture_output=True, text=True, check=True)
    found = [name for name in done.stdout.split() if name.partition(".")[0] not in sys.stdlib_module_names]
    assert set(found) <= {"transferapp", "transferapp.errors"}
