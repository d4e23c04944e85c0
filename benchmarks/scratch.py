"""Accuracy against epochs from pretrained and from random weights, on the same images.

    python benchmarks/scratch.py --data DIR [--epochs E] [--image-size S] [--limit N]

Runs the real commands, `transferapp fit --tune all --rule-only` and the same with `--scratch`, one after the other, and reads
the history out of their bundles. Both train the whole network on the same views with the same optimizer and schedule; they
differ in the weights that they start from, and random ones have no solved head to start from.

`--limit` takes so many of the images, the same share of every class and of train and test. Prints a table; the figures go to
benchmarks/results/scratch-NAME.json. `benchmarks/lecture.py --plots` draws them.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import RESULTS, write_results

STARTS = {"pretrained": ("--tune", "all"), "random": ("--scratch",)}
"""Options of `transferapp fit` for each set of initial weights."""


@dataclass(frozen=True)
class Curve:
    """Accuracies of one fit.

    Attributes:
        train, validation: After each epoch, for the better of raw and averaged weights.
        test: Accuracy of the bundle on its test images; None without test images.
        seconds: All epochs together, validation included.
    """

    train: tuple[float, ...]
    validation: tuple[float, ...]
    test: float | None
    seconds: float


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="class folders, alone or within train/ and test/")
    parser.add_argument("--epochs", type=int, default=3, help="passes over the images (%(default)s)")
    parser.add_argument("--image-size", type=int, default=64, help="side of the network's input (%(default)s)")
    parser.add_argument("--limit", type=int, default=200, help="images to use at most; 0 for all (%(default)s)")
    parser.add_argument("--backbone", default="efficientnet_lite0", help="%(default)s")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the figures")
    options = parser.parse_args(arguments)
    if not options.data.is_dir():
        parser.error(f"there is no folder {options.data}")
    name = options.data.resolve().name
    with tempfile.TemporaryDirectory() as scratch:
        images = options.data
        if options.limit:
            images = Path(scratch, name)
            link_part(options.data, images, options.limit)
        curves, num_classes = fits(images, options, Path(scratch, "models"))
    print_table(curves)
    document = {
        "data": name,
        "backbone": options.backbone,
        "image_size": options.image_size,
        "epochs": options.epochs,
        "limit": options.limit or None,
        "num_classes": num_classes,
        "starts": {start: asdict(curve) for start, curve in curves.items()},
        "epochs_to_match": epochs_to_match(curves["random"], curves["pretrained"]),
    }
    write_results(options.out / f"scratch-{name}.json", document)


def link_part(data: Path, folder: Path, limit: int) -> None:
    """Link `limit` of the images below `data` into the same folders below `folder`, evenly spread over each of them."""
    by_folder: dict[Path, list[Path]] = {}
    for path in sorted(path for path in data.rglob("*") if path.is_file() and not path.name.startswith(".")):
        by_folder.setdefault(path.parent, []).append(path)
    total = sum(map(len, by_folder.values()))
    for files in by_folder.values():
        count = min(len(files), max(2, round(limit * len(files) / total)))  # two: one to train on, one to judge by
        step = len(files) / count
        for index in range(count):
            source = files[int(index * step)]
            target = folder / source.relative_to(data)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(source.resolve())


def fits(images: Path, options: argparse.Namespace, models: Path) -> tuple[dict[str, Curve], int]:
    """Run both fits; return their curves by initial weights, and the number of classes."""
    curves, num_classes = {}, 0
    for start, words in STARTS.items():
        bundle = models / start
        command = [sys.executable, "-m", "transferapp", "fit", "--data", str(images), "--out", str(bundle), *words]
        command += ["--rule-only", "--budget", "none", "--backbone", options.backbone, "--json"]
        command += ["--epochs", str(options.epochs), "--image-size", str(options.image_size)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
        if done.returncode:
            raise SystemExit(done.returncode)
        manifest: dict[str, Any] = json.loads(done.stdout)
        num_classes = len(manifest["class_names"])
        curves[start] = read_curve((bundle / "history.csv").read_text(encoding="utf-8"), manifest)
    return curves, num_classes


def read_curve(history: str, manifest: Mapping[str, Any]) -> Curve:
    """Read the curve of a bundle.

    Args:
        history: Text of its history.csv, with a single fine-tuned candidate.
        manifest: Output of `transferapp fit --json`.
    """
    rows = list(csv.DictReader(history.splitlines()))
    if not rows or "epoch" not in rows[0]:
        raise SystemExit("Nothing was fine-tuned: there are too few images to keep some for validation.")
    test = manifest["metrics"]["test"]
    return Curve(
        train=tuple(float(row["accuracy"]) for row in rows),
        validation=tuple(max(float(row["val_accuracy"]), float(row["averaged_val_accuracy"] or 0)) for row in rows),
        test=test["accuracy"] if test else None,
        seconds=sum(float(row["seconds"]) for row in rows),
    )


def epochs_to_match(slow: Curve, fast: Curve) -> list[int | None]:
    """For each epoch of `fast`, the first epoch (from 1) in which `slow` reaches its best accuracy so far, or None."""
    best, found = 0.0, []
    for accuracy in fast.validation:
        best = max(best, accuracy)
        found.append(next((number for number, other in enumerate(slow.validation, 1) if other >= best), None))
    return found


def print_table(curves: Mapping[str, Curve]) -> None:
    pretrained, random = curves["pretrained"], curves["random"]
    matched = epochs_to_match(random, pretrained)
    print(f"{'epoch':>5} {'pretrained':>11} {'random':>7}   random weights reach what pretrained ones have reached")
    for index in range(max(len(pretrained.validation), len(random.validation))):
        shown = [f"{c.validation[index]:.3f}" if index < len(c.validation) else "" for c in (pretrained, random)]
        when = matched[index] if index < len(matched) else None
        said = f"in epoch {when}" if when else "never" if index < len(matched) else ""
        print(f"{index + 1:5} {shown[0]:>11} {shown[1]:>7}   {said}")
    tests = [f"{c.test:.3f}" if c.test is not None else "-" for c in (pretrained, random)]
    print(f"{'test':>5} {tests[0]:>11} {tests[1]:>7}")


if __name__ == "__main__":
    main()
