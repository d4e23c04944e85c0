"""Update of a bundle by a few images: time beside a fit of all images, with and without cached features.

    python benchmarks/update.py DIR... [--images N] [--new N] [--rounds N]

Takes the images of class folders, holds NEW of them back, fits on the others, and then, in turns, runs `update` by those that
were held back, and `fit` on all of them with an empty cache. The wall and the processor time of each process are recorded.
Results go to benchmarks/results/update.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import RESULTS, write_results
from transferapp.data.sources import open_source

ROOT = Path(__file__).resolve().parents[1]


def copy_images(folders: Sequence[str], count: int, new: int, root: Path) -> int:
    """Copy images at random into `root/old` and, of each, the first into `root/more`; return the number of old ones."""
    images = [
        (dataset.class_names[record.label], record.path)
        for dataset in (open_source(folder) for folder in folders)
        for record in dataset.records
    ]
    random.Random(0).shuffle(images)
    for number, (label, path) in enumerate(images[: count + new]):
        target = root / ("more" if number < new else "old") / label / f"{number}-{path.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return len(images[: count + new]) - new


def run(words: Sequence[object], cache: Path) -> dict[str, float]:
    """Run a command and return its wall and processor seconds."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = {**os.environ, "TRANSFERAPP_CACHE": str(cache), "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-m", "transferapp", *map(str, words)]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - started
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": round(wall, 1), "processor": round(processor, 1)}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--new", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    seconds: dict[str, list[dict[str, float]]] = {"update": [], "fit": []}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        old = copy_images(arguments.folders, arguments.images, arguments.new, root)
        run(["fit", "--data", root / "old", "--out", root / "first", "--budget", 0], root / "cache")
        shutil.copytree(root / "old", root / "all")
        shutil.copytree(root / "more", root / "all", dirs_exist_ok=True)
        for number in range(arguments.rounds):
            bundle, cache = root / f"updated-{number}", root / f"cache-{number}"
            shutil.copytree(root / "first", bundle)
            shutil.copytree(root / "cache", cache)  # without the features of the new images
            seconds["update"].append(run(["update", bundle, "--data", root / "more"], cache))
            shutil.rmtree(cache)
            fresh = ["fit", "--data", root / "all", "--out", root / f"fitted-{number}", "--budget", 0]
            seconds["fit"].append(run(fresh, cache))
            shutil.rmtree(cache)
            print({name: times[-1] for name, times in seconds.items()}, flush=True)
    medians = {
        name: {key: statistics.median(each[key] for each in times) for key in ("wall", "processor")}
        for name, times in seconds.items()
    }
    ratio = {key: round(medians["update"][key] / medians["fit"][key], 2) for key in ("wall", "processor")}
    document = {"old_images": old, "new_images": arguments.new, "seconds": seconds, "medians": medians, "ratio": ratio}
    write_results(RESULTS / "update.json", document)
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
