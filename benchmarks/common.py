"""Pieces that several benchmarks share: images, splits, results and intervals."""

from __future__ import annotations

import importlib.util
import json
import math
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from transferapp.data.audit import audit
from transferapp.data.dataset import Record
from transferapp.data.sources import open_source
from transferapp.system.storage import write_bytes
from transferapp.system.threads import cpu_cores
from transferapp.training.probe import stratified_folds

RESULTS = Path(__file__).parent / "results"
TEXTILE = "textile"
"""Stands for the images of woven textile in the package conformal-clip-data, wherever a folder is asked for."""


@dataclass(frozen=True)
class Split:
    """Positions of the images to train on and of the held-out ones, for one seed."""

    train: np.ndarray
    held_out: np.ndarray
    seed: int


def splits(labels: np.ndarray, seeds: int) -> list[Split]:
    """Hold out a quarter of the images of every class, once for each seed."""
    folds = [stratified_folds(labels, 4, seed) for seed in range(seeds)]
    return [Split(np.flatnonzero(fold), np.flatnonzero(fold == 0), seed) for seed, fold in enumerate(folds)]


def image_folder(data: str) -> Path:
    """Return the folder of a data set; `textile` is found in its package, without importing it."""
    if data != TEXTILE:
        return Path(data)
    package = importlib.util.find_spec("conformal_clip_data")
    if package is None or package.origin is None:
        raise SystemExit("textile needs its images: pip install conformal-clip-data==0.1.4")
    return Path(package.origin).parent / "data" / "textile_images" / "simulated"


def set_name(data: str) -> str:
    """Return the name of a data set in the results."""
    return data if data == TEXTILE else Path(data).resolve().name


def spread(total: int, most: int) -> np.ndarray:
    """Positions of at most `most` of `total` images, evenly spread over their order."""
    return np.unique(np.linspace(0, total - 1, min(most, total)).round().astype(int))


def read_images(data: str, most: int) -> tuple[str, tuple[Record, ...], tuple[str, ...]]:
    """Return (name, audited images, class names) of a folder, at most `most` images of it."""
    dataset = open_source(str(image_folder(data)))
    chosen = [dataset.records[index] for index in spread(len(dataset), most)]
    dataset = audit(dataset.with_records(chosen), workers=cpu_cores())
    return set_name(data), dataset.records, dataset.class_names


def read_results(path: Path) -> dict[str, Any]:
    """Return the figures of an earlier run; empty if there are none."""
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return document


def write_results(path: Path, document: Mapping[str, Any]) -> None:
    """Write figures atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, (json.dumps(document, indent=1) + "\n").encode())


def interval(values: np.ndarray) -> float:
    """Half the width of the 95 % interval of a mean, by Student's t; at least two values."""
    error = float(values.std(ddof=1)) / math.sqrt(len(values))
    return float(student.ppf(0.975, len(values) - 1)) * error


def free_port() -> int:
    """Return a port of this machine that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
