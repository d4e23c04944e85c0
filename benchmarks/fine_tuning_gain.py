"""Gain of fine-tuning over the solved linear classifier, by the number of training images.

    python benchmarks/fine_tuning_gain.py --data DIR --images 250 500 1000 2000 [--tune most] [--backbone efficientnet_lite0]

For every number of images the real command runs twice, `transferapp fit --tune none` and `--tune PART --rule-only`, on the
same training images, and both are measured on the same test images. The thresholds of `transferapp.policy.size` rest on it.

A folder without train and test folders gives every fifth image for testing. The figures are added to
benchmarks/results/fine_tuning_gain.json, one entry for each folder.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import RESULTS, read_results, write_results

TEST_EVERY = 5


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="class folders, alone or within train/ and test/")
    parser.add_argument("--name", help="name in the results; default: the folder's name")
    parser.add_argument(
        "--images", type=int, nargs="+", required=True, help="training and validation images; 0 for all"
    )
    parser.add_argument("--tune", default="most", help="%(default)s")
    parser.add_argument("--backbone", default="efficientnet_lite0", help="%(default)s")
    parser.add_argument("--epochs", type=int, default=8, help="%(default)s")
    parser.add_argument("--out", type=Path, default=RESULTS / "fine_tuning_gain.json", help="where the figures go")
    options = parser.parse_args(arguments)
    if not options.data.is_dir():
        parser.error(f"there is no folder {options.data}")
    rows = []
    for count in options.images:
        with tempfile.TemporaryDirectory() as folder:
            link_with_test(options.data, Path(folder, "images"), count)
            rows.append(compare(Path(folder), options))
        print(line(rows[-1]), flush=True)
    document = read_results(options.out)
    document[options.name or options.data.resolve().name] = rows
    write_results(options.out, document)


def link_with_test(data: Path, folder: Path, count: int) -> None:
    """Link all test images and `count` of the others, evenly spread over each class, into train/ and test/ folders."""
    given = (data / "train").is_dir() and (data / "test").is_dir()
    parts: dict[str, dict[str, list[Path]]] = {"train": {}, "test": {}}
    for place in [data / "train", data / "test"] if given else [data]:
        for class_folder in sorted(path for path in place.iterdir() if path.is_dir()):
            files = sorted(path for path in class_folder.rglob("*") if path.is_file() and not path.name.startswith("."))
            for index, file in enumerate(files):
                part = place.name if given else "test" if index % TEST_EVERY == 0 else "train"
                parts[part].setdefault(class_folder.name, []).append(file)
    total = sum(map(len, parts["train"].values()))
    for part, classes in parts.items():
        for name, files in classes.items():
            wanted = len(files)
            if part == "train" and count:
                wanted = min(wanted, max(2, round(count * wanted / total)))
            target = folder / part / name
            target.mkdir(parents=True)
            for index in range(wanted):
                source = files[index * len(files) // wanted]
                (target / f"{index:06}{source.suffix}").symlink_to(source.resolve())


def compare(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run both fits on the images in a folder."""
    solved = fit(folder, options, "--tune", "none")
    tuned = fit(folder, options, "--tune", options.tune, "--rule-only", "--epochs", str(options.epochs))
    test_solved, test_tuned = (manifest["metrics"]["test"]["accuracy"] for manifest in (solved, tuned))
    num_test = solved["metrics"]["test"]["num_images"]
    # Treats the two proportions as independent, which is no smaller than the paired variance.
    variance = sum(p * (1 - p) for p in (test_solved, test_tuned)) / num_test
    candidate = next(c for c in tuned["candidates"] if c["chosen"])
    return {
        "num_train": solved["plan"]["num_images"],
        "num_classes": solved["plan"]["num_classes"],
        "num_test": num_test,
        "divergence": solved["plan"]["divergence"],
        "quadrant": solved["plan"]["quadrant"],
        "solved": test_solved,
        "tuned": test_tuned,
        "gain": test_tuned - test_solved,
        "standard_error": math.sqrt(variance),
        "validation": {"solved": solved["metrics"]["validation"]["accuracy"], "tuned": candidate["accuracy"]},
        "seconds": {"solved": sum(solved["seconds"].values()), "tuned": sum(tuned["seconds"].values())},
        "findings": [finding["code"] for finding in candidate["findings"]],
    }


def fit(folder: Path, options: argparse.Namespace, *words: str) -> dict[str, Any]:
    """Run a fit and return its manifest."""
    command = [
        sys.executable,
        "-m",
        "transferapp",
        "fit",
        "--data",
        str(folder / "images"),
        "--json",
        "--budget",
        "none",
    ]
    command += ["--out", str(folder / "bundle"), "--backbone", options.backbone, *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    manifest: dict[str, Any] = json.loads(done.stdout)
    return manifest


def line(row: dict[str, Any]) -> str:
    gain = f"{100 * row['gain']:+.1f} ± {100 * row['standard_error']:.1f} points"
    seconds = row["seconds"]
    return (
        f"{row['num_train']:6,} training images, D {row['divergence']:.2f}, {row['quadrant']:<17} "
        f"solved {row['solved']:.3f}  tuned {row['tuned']:.3f}  {gain}  {seconds['solved']:.0f} s and {seconds['tuned']:.0f} s"
    )


if __name__ == "__main__":
    main()
