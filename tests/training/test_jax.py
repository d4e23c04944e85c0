"""`KERAS_BACKEND=jax`: the same fit gives the figures and the bundle that it gives under TensorFlow."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.fitted import BACKBONE, environment, images, transferapp

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed"),
]

OPTIONS = ("--backbone", BACKBONE, "--image-size", 64, "--rule-only", "--budget", "none", "--epochs", 3, "--json")


def fit_under(backend: str, out: Path, *words: object) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """The manifest and the history of a fit."""
    changes = {"KERAS_BACKEND": backend, "TRANSFERAPP_CACHE": str(out.parent / "cache")}
    if "PYTHONPATH" in os.environ:  # where JAX may be
        changes["PYTHONPATH"] = os.environ["PYTHONPATH"]
    done = transferapp(
        "fit", "--data", images(), "--out", out, *OPTIONS, *words, env=environment(**changes), timeout=600
    )
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((out / "history.csv").read_text().splitlines()))
    return json.loads(done.stdout), [{k: float(v) for k, v in row.items() if k != "candidate"} for row in rows]


@pytest.mark.parametrize(
    "words",
    [("--tune", "last-two", "--engine", "keras"), ("--tune", "all")],
    ids=["last stages, Keras' engine", "whole network, OpenVINO"],
)
def test_a_fit_under_jax_comes_to_the_figures_of_tensorflow(tmp_path: Path, words: tuple[str, ...]) -> None:
    (first, expected), (second, history) = (
        fit_under(backend, tmp_path / backend, *words) for backend in ("tensorflow", "jax")
    )
    assert len(history) == len(expected) == 3
    for own, theirs in zip(history, expected, strict=True):
        assert own["learning_rate"] == pytest.approx(theirs["learning_rate"], rel=1e-5)
        for figure in ("loss", "val_loss", "averaged_val_loss"):
            assert own[figure] == pytest.approx(theirs[figure], rel=0.05, abs=0.02), figure
    one_image = {split: 1.5 / figures["num_images"] for split, figures in first["metrics"].items()}
    for split, figures in second["metrics"].items():
        assert figures["accuracy"] == pytest.approx(first["metrics"][split]["accuracy"], abs=one_image[split]), split
    assert second["parity"]["f32"]["max_difference"] < 1e-4
