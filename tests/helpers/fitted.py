"""Drawings that a pretrained network can tell apart, and a real fit on them that many tests look at.

The fit runs as a person would run it: `transferapp fit` in a process of its own, with a cache of its own. It happens once in
a test run, and only if a test asks for it; the processes among which pytest-xdist divides a run share it.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from PIL import Image, ImageDraw

ROOT = Path(__file__).parents[2]
BACKBONE = "efficientnet_lite0"
PER_CLASS = 14
FAINT = 80
"""Darkest ink of what shines through: less, and the classes cannot be told apart; more, and every score is 0 or 1."""


@dataclass
class Sheet:
    """Paper, chance and ink to draw with."""

    draw: ImageDraw.ImageDraw
    random: np.random.Generator
    size: int
    darkest: int = 60

    def between(self, low: float, high: float) -> float:
        """A length at random, as a share of the side."""
        return float(self.random.uniform(low, high)) * self.size

    def ink(self) -> tuple[int, ...]:
        """A color at random, up to 60 lighter than the darkest."""
        return tuple(self.random.integers(self.darkest, self.darkest + 60, 3).tolist())


def _rings(sheet: Sheet) -> None:
    x, y, step = sheet.between(0.1, 0.9), sheet.between(0.1, 0.9), sheet.between(0.09, 0.16)
    for radius in np.arange(1.2 * sheet.size, 0, -step):
        box = (x - radius, y - radius, x + radius, y + radius)
        sheet.draw.ellipse(box, outline=sheet.ink(), width=max(2, int(step / 3)))


def _stripes(sheet: Sheet) -> None:
    slope, step = sheet.between(-0.8, 0.8), sheet.between(0.09, 0.16)
    for x in np.arange(-sheet.size, 2 * sheet.size, step):
        sheet.draw.line((x, 0, x + slope, sheet.size), fill=sheet.ink(), width=max(2, int(step / 3)))


def _dots(sheet: Sheet) -> None:
    radius = sheet.between(0.03, 0.06)
    for x, y in sheet.random.uniform(0, sheet.size, (40, 2)):
        sheet.draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=sheet.ink())


DRAWINGS: dict[str, Callable[[Sheet], None]] = {"dots": _dots, "rings": _rings, "stripes": _stripes}


def drawing(name: str, seed: int) -> Image.Image:
    """An image of 96 to 160 pixels a side: dark ink on light paper, over a fainter drawing of any class.

    What shines through keeps the classes from being told apart with certainty, so that scores can differ at all. The same
    seed, the same image.
    """
    random = np.random.default_rng([seed, list(DRAWINGS).index(name)])
    size = int(random.integers(96, 161))
    image = Image.new("RGB", (size, size), tuple(random.integers(180, 256, 3).tolist()))
    sheet = Sheet(ImageDraw.Draw(image), random, size, darkest=FAINT)
    list(DRAWINGS.values())[int(random.integers(len(DRAWINGS)))](sheet)
    sheet.darkest = 60
    DRAWINGS[name](sheet)
    return image


def draw_folders(root: Path, *, per_class: int = PER_CLASS, seed: int = 0) -> Path:
    """Write class folders of drawings below `root`, which is made."""
    for name in DRAWINGS:
        (root / name).mkdir(parents=True)
        for index in range(per_class):
            drawing(name, 1000 * seed + index).save(root / name / f"{name}-{index:02}.png")
    return root


def environment(**changes: str) -> dict[str, str]:
    """The environment of a command in a test: none of this program's own settings, and a width that does not vary."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TRANSFERAPP_", "PYTHON"))}
    return {**kept, "COLUMNS": "80", "TRANSFERAPP_CACHE": str(workplace() / "cache"), **changes}


def command(*words: object) -> list[str]:
    """The words that start `transferapp`."""
    return [sys.executable, "-m", "transferapp", *map(str, words)]


def transferapp(*words: object, env: dict[str, str] | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; what it printed comes as text. `options` are those of `subprocess.run`."""
    defaults: dict[str, Any] = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "encoding": "utf-8",
        "errors": "surrogateescape",
        "timeout": 300,
        "cwd": ROOT,
    }
    return subprocess.run(command(*words), check=False, env=env or environment(), **{**defaults, **options})


@dataclass(frozen=True)
class Fitted:
    """A fit that was made.

    Attributes:
        bundle: Where its bundle is.
        images: What it was made from.
        stdout: What it printed: the card and the outcome.
        stderr: What it said on the way.
    """

    bundle: Path
    images: Path
    stdout: str
    stderr: str


_WORKPLACE = "TESTS_WORKPLACE"
"""The variable by which the processes of a run know its folder. The first one, which starts the others, makes it."""


@functools.cache
def workplace() -> Path:
    """A folder for this test run, deleted when it ends."""
    if _WORKPLACE not in os.environ:
        os.environ[_WORKPLACE] = tempfile.mkdtemp(prefix="transferapp-tests-")
        atexit.register(shutil.rmtree, os.environ[_WORKPLACE], ignore_errors=True)
    return Path(os.environ[_WORKPLACE])


@functools.cache
def images() -> Path:
    """The class folders."""
    folder = workplace() / "drawings"
    with FileLock(workplace() / "drawings.lock"):
        if not folder.exists():
            draw_folders(folder)
    return folder


@functools.cache
def fitted() -> Fitted:
    """The fit."""
    bundle, stdout, stderr = (workplace() / "models" / "drawings", workplace() / "stdout", workplace() / "stderr")
    with FileLock(workplace() / "fit.lock"):
        if not bundle.exists():
            done = transferapp("fit", "--data", images(), "--out", bundle, "--backbone", BACKBONE)
            assert done.returncode == 0, done.stderr
            stdout.write_text(done.stdout, encoding="utf-8", errors="surrogateescape")
            stderr.write_text(done.stderr, encoding="utf-8", errors="surrogateescape")
    return Fitted(bundle, images(), stdout.read_text(encoding="utf-8"), stderr.read_text(encoding="utf-8"))
