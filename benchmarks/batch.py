"""Batch prediction: its rate against the bare engine in one run, and its time and memory for many files.

    python benchmarks/batch.py BUNDLE DIR [--images N] [--rounds N] [--seconds S]
    python benchmarks/batch.py BUNDLE --names N

With a folder of images: images per second of (1) the bare engine on ready-made crops, one caller per core, and (2) `predict
--out`, with listing, decoding, cropping, the journal and the file of answers, in turns; each with the bundle's own number of
crops. The processor time per image is compared too, which other programs on the machine disturb less. `--names` makes a tree of
N empty files, and measures in processes of their own the time and the peak memory of a tenth of them and of all. Results go to
benchmarks/results/batch.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import RESULTS, read_results, spread, write_results
from benchmarks.scale import make_tree, peak_megabytes
from transferapp.bundle.predictor import Predictor
from transferapp.data.image_files import list_images
from transferapp.recipes.predict import BatchSettings, predict_images
from transferapp.system.threads import cpu_cores


@dataclass(frozen=True)
class Speed:
    """Images per second, and the processor seconds of one image."""

    rate: float
    processor: float


class Clock:
    """Wall and processor time of this process since the clock was made."""

    def __init__(self) -> None:
        self._wall, self._processor = time.perf_counter(), time.process_time()

    def speed(self, images: int) -> Speed:
        """Return the speed at which so many images were done."""
        return Speed(images / (time.perf_counter() - self._wall), (time.process_time() - self._processor) / images)


class FirstTask:
    """Progress that records when the first image was asked for, which leaves out loading the bundle."""

    def __init__(self) -> None:
        self.clock: Clock | None = None

    def note(self, text: str) -> None:
        pass

    @contextlib.contextmanager
    def task(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        self.clock = self.clock or Clock()
        yield lambda _done: None


def bare_speed(predictor: Predictor, image: Path, seconds: float) -> Speed:
    """Return the speed of the engine alone, on the crops of one image."""
    views, workers = predictor.default_views, cpu_cores()
    crops = predictor.crops(predictor.decode(image), views)
    until = time.perf_counter() + seconds

    def work(_worker: int) -> int:
        runs = 0
        while time.perf_counter() < until:
            predictor.engine(crops)
            runs += 1
        return runs

    clock = Clock()
    with ThreadPoolExecutor(workers) as pool:
        return clock.speed(sum(pool.map(work, range(workers))))


def batch_speed(bundle: Path, images: list[Path], out: Path) -> Speed:
    """Return the speed of a batch prediction, from the first image to the finished file."""
    progress = FirstTask()
    result = predict_images(bundle, images, BatchSettings(out=out), progress)
    assert result.num_images == len(images)
    assert not result.num_errors
    assert progress.clock is not None
    return progress.clock.speed(len(images))


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure both in turns."""
    found = [Path(image.location) for image in list_images([arguments.folder])]
    images = [found[i] for i in spread(len(found), arguments.images)]
    predictor = Predictor.load(arguments.bundle, streams=cpu_cores())
    bare, batch = [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.rounds):
            bare.append(bare_speed(predictor, images[0], arguments.seconds))
            batch.append(batch_speed(arguments.bundle, images, Path(folder) / f"{number}.csv"))
            print(f"bare engine {bare[-1]}, predict --out {batch[-1]}", flush=True)
    median = statistics.median
    return {
        "images": len(images),
        "views": predictor.default_views,
        "cores": cpu_cores(),
        "images_per_second": {
            name: [round(each.rate, 2) for each in speeds]
            for name, speeds in (("bare engine", bare), ("predict --out", batch))
        },
        "ratio": round(median(b.rate / a.rate for a, b in zip(bare, batch, strict=True)), 3),
        "ratio_by_processor_time": round(
            median(a.processor / b.processor for a, b in zip(bare, batch, strict=True)), 3
        ),
    }


def many(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure the time and memory of a tenth of the files and of all of them."""
    figures = {}
    for count in (arguments.names // 10, arguments.names):
        with tempfile.TemporaryDirectory() as folder:
            tree = make_tree(Path(folder), count) / "tree"
            command = [sys.executable, __file__, str(arguments.bundle), str(tree), "--measure"]
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=dict(os.environ))
        figures[f"{count} files"] = json.loads(done.stdout.splitlines()[-1])
        print(count, figures[f"{count} files"], flush=True)
    return figures


def measure(arguments: argparse.Namespace) -> None:
    """Classify all files of a folder in this process, which must be a new one, because peak memory never falls."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        result = predict_images(arguments.bundle, [arguments.folder], BatchSettings(out=Path(folder) / "answers.csv"))
        seconds = time.perf_counter() - started
    microseconds = round(1e6 * seconds / result.num_images)
    print(json.dumps({"peak_mb": round(peak_megabytes(), 1), "microseconds_per_file": microseconds}))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--names", type=int, default=0)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments)
        return
    if not arguments.names and arguments.folder is None:
        parser.error("name a folder of images, or a number of files with --names")
    part = {"many": many(arguments)} if arguments.names else {"rate": compare(arguments)}
    write_results(RESULTS / "batch.json", {**read_results(RESULTS / "batch.json"), **part})
    print(json.dumps(part, indent=1))


if __name__ == "__main__":
    main()
