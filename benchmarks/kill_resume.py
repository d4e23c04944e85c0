"""Metrics of fits that are killed at random moments and resumed, against those of an undisturbed fit.

    python benchmarks/kill_resume.py [--kills 20] [--backbone NAME] [--seed 0] [--json]

Generates images, and a small network as backbone unless one is named, and fits once undisturbed. Then for every kill it starts
the same fit with an empty cache, kills it (SIGKILL, with all its threads) at a moment drawn evenly from the duration of the
first one, checks that no half-written bundle is left, and runs the command again to its end. The fit fine-tunes twice: a tail
on cached activations, and the whole network on new views. Exits with 1 if any ends otherwise than the undisturbed one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from transferapp.cli.terminal import quiet_libraries

ROOT = Path(__file__).parents[1]
TOLERANCE = 1e-6
CLASSES = ("across", "down", "rings")
SIDE = 32
_TIMES = {"seconds", "milliseconds"}
"""Keys in which two runs may differ."""


@dataclass(frozen=True)
class Kill:
    """One kill and its outcome.

    Attributes:
        after: Seconds from the start of the fit.
        found: The checkpoints and the bundle that it left, in words.
        difference: Largest difference of a figure from the undisturbed fit; None if figures are missing.
        same_network: Whether the exported weights are equal bit for bit.
        problem: The failure; empty if there was none.
    """

    after: float
    found: str
    difference: float | None
    same_network: bool
    problem: str = ""

    @property
    def good(self) -> bool:
        return not self.problem and self.difference is not None and self.difference <= TOLERANCE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="number of fits to kill (%(default)s)")
    parser.add_argument("--backbone", help="a backbone by name; default: a small network made here")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of each candidate (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seeds the moments (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        outcome = run(Path(scratch), options.kills, options.backbone, options.epochs, options.seed, not options.json)
    good = sum(kill.good for kill in outcome)
    if options.json:
        print(json.dumps([{**asdict(kill), "good": kill.good} for kill in outcome], indent=2))
    else:
        print(
            f"{good} of {len(outcome)} killed fits ended with the figures of the undisturbed one, within {TOLERANCE:g}."
        )
    sys.exit(good < len(outcome))


def run(folder: Path, kills: int, backbone: str | None, epochs: int, seed: int, talk: bool = False) -> list[Kill]:
    """Fit undisturbed, then kill and resume.

    Args:
        folder: An empty folder for everything that is written.
        kills: Number of fits to kill.
        backbone: A name; None for a small network made here.
        epochs: Epochs of each candidate.
        seed: Seeds the moments.
        talk: Whether to print a line for each kill.
    """
    images = generate(folder / "images")
    words = [
        *("fit", "--data", str(images), "--backbone", backbone or str(small_network(folder / "small.keras"))),
        *("--size", "large", "--similarity", "different", "--rule-only", "--budget", "1h", "--epochs", str(epochs)),
        *("--batch-size", "16", "--val-fraction", "0.3", "--image-size", str(SIDE), "--learning-rate", "find"),
    ]
    # Converts the networks, with which all other fits start.
    fit(words, folder / "first" / "bundle", folder / "cache").wait()
    networks = folder / "cache" / "networks"
    started = time.monotonic()
    shutil.rmtree(folder / "cache" / "features")
    undisturbed = folder / "undisturbed" / "bundle"
    if fit(words, undisturbed, folder / "cache").wait() != 0:
        raise SystemExit("The undisturbed fit failed; run with --debug in its command to see why.")
    seconds = time.monotonic() - started
    if talk:
        print(f"The undisturbed fit took {seconds:.1f} s.", flush=True)
    rng = random.Random(seed)
    outcome = []
    for number in range(kills):
        place = folder / f"kill{number}"
        shutil.copytree(networks, place / "cache" / "networks")
        kill = killed(words, place, undisturbed, rng.uniform(0.0, seconds))
        outcome.append(kill)
        if talk:
            said = kill.problem or f"largest difference {kill.difference:.2g}"
            same = ", the same network" if kill.same_network else ""
            print(f"{number + 1:>3}: killed after {kill.after:5.1f} s ({kill.found}): {said}{same}", flush=True)
        shutil.rmtree(place)
    return outcome


def killed(words: list[str], place: Path, undisturbed: Path, after: float) -> Kill:
    """Start a fit, kill it, run it again, and compare."""
    bundle = place / "models" / "bundle"
    process = fit(words, bundle, place / "cache")
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    found = left_behind(bundle)
    if bundle.exists() and not (bundle / "bundle.json").is_file():
        return Kill(after, found, None, False, "left half a bundle")
    again = fit(words, bundle, place / "cache", stderr=subprocess.PIPE)
    _, said = again.communicate()
    if again.returncode != 0:
        return Kill(after, found, None, False, f"the second run failed: {said.decode(errors='replace').strip()[-300:]}")
    ours, theirs = figures(bundle), figures(undisturbed)
    if ours.keys() != theirs.keys():
        return Kill(after, found, None, False, f"other figures: {sorted(ours.keys() ^ theirs.keys())[:3]}")
    difference = max(abs(ours[name] - theirs[name]) for name in ours)
    same = (bundle / "model.bin").read_bytes() == (undisturbed / "model.bin").read_bytes()
    litter = [path.name for path in bundle.parent.iterdir() if path.name not in ("bundle", ".bundle.lock")]
    return Kill(after, found, difference, same, f"left litter: {litter}" if litter else "")


def fit(words: list[str], out: Path, cache: Path, **options: Any) -> subprocess.Popen[bytes]:
    """Start the command."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRANSFERAPP_")}
    environment |= {"TRANSFERAPP_CACHE": str(cache), "TF_CPP_MIN_LOG_LEVEL": "3"}
    streams: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **options}
    command = [sys.executable, "-m", "transferapp", *words, "--out", str(out)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, **streams)


def left_behind(bundle: Path) -> str:
    """Describe the files of a killed fit."""
    run_folder = bundle.parent / ".bundle.run"
    if bundle.exists():
        return "the bundle was done"
    if not run_folder.exists():
        return "nothing trained yet"
    newest = [max(int(p.stem[-6:]) for p in g) for g in ([*f.glob("*.npz")] for f in run_folder.iterdir()) if g]
    return f"epochs saved: {' and '.join(map(str, sorted(newest))) or 'none'}"


def figures(bundle: Path) -> dict[str, float]:
    """Every number of the metrics and of the candidates, by its place in the manifest."""
    manifest = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    return dict(_numbers({"metrics": manifest["metrics"], "candidates": manifest["candidates"]}, ""))


def _numbers(value: Any, name: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in _TIMES:
                yield from _numbers(inner, f"{name}/{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _numbers(inner, f"{name}/{index}")
    elif isinstance(value, int | float):
        yield name, float(value)


def generate(folder: Path, per_class: int = 30) -> Path:
    """Draw class folders of horizontal stripes, vertical stripes and rings, with noise."""
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            rng = np.random.default_rng([label, number])
            down, across = np.mgrid[0:SIDE, 0:SIDE]
            along = (down, across, np.hypot(down - SIDE / 2, across - SIDE / 2))[label]
            wave = np.sin(along * rng.uniform(0.9, 1.3) + rng.uniform(0, 6))[..., None]
            pixels = rng.uniform(90, 160, 3) + wave * rng.uniform(20, 60, 3) + rng.normal(0, 22, (SIDE, SIDE, 3))
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / name / f"{number:03}.png")
    return folder


def small_network(path: Path) -> Path:
    """Save a residual network of some thousand parameters and four stages as `path`."""
    with quiet_libraries():
        import keras

        keras.utils.set_random_seed(0)
        layers = keras.layers
        pixels = keras.Input((SIDE, SIDE, 3))
        x = layers.Rescaling(1 / 127.5, offset=-1.0)(pixels)
        for filters in (12, 16, 24):
            x = layers.Conv2D(filters, 3, 2, padding="same")(x)
            branch = layers.BatchNormalization()(layers.Conv2D(filters, 3, padding="same", use_bias=False)(x))
            x = layers.Add()([x, layers.ReLU()(branch)])
        keras.Model(pixels, layers.Conv2D(32, 1, activation="relu")(x), name="small").save(path)
    return path


if __name__ == "__main__":
    main()
