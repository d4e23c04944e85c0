"""Training on several devices under JAX: the figures of one device."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.fitted import environment
from transferapp.system import backend

ROOT = Path(__file__).parents[2]


def trained_on(devices: int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.several_devices", str(devices)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed")
@pytest.mark.parametrize("devices", [2, 3])  # of 10, 8 and 30 images, three devices can divide only the 30
def test_several_devices_come_to_the_figures_of_one(devices: int) -> None:
    one, several = trained_on(1), trained_on(devices)
    assert (one.pop("divided"), one.pop("devices")) == (False, 1)
    assert (several.pop("divided"), several.pop("devices")) == (True, devices)
    for name, expected in one.items():
        np.testing.assert_allclose(several[name], expected, rtol=1e-4, atol=1e-5, err_msg=name)


def test_tensorflow_divides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "configured_backend", lambda: "tensorflow")
    assert backend.divides_batches() is False
