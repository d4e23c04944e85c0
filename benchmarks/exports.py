"""Agreement, size and speed of the exports of bundles.

    python benchmarks/exports.py BUNDLE... [--formats onnx,litert] [--rounds 10]

Each bundle is exported to every format whose packages are installed, and compared on held-out images of its fit. Then the
exports, and OpenVINO in f32 and bf16, run on ten crops in turn, so that a noisy machine slows all of them alike; rates are
relative to f32. Results go to benchmarks/results/exports.json.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from benchmarks.common import RESULTS, read_results, write_results
from transferapp.backbones.engine import OpenVINOEngine, has_bfloat16
from transferapp.bundle.exports.formats import FORMATS, Format
from transferapp.bundle.exports.networks import Batch
from transferapp.bundle.format import read_bundle
from transferapp.errors import TransferAppError
from transferapp.recipes.export import export

CROPS = 10


def rates(functions: dict[str, Callable[[np.ndarray], object]], size: tuple[int, int], rounds: int) -> dict[str, float]:
    """Return the rate of each function on ten crops relative to the first one's: the median over interleaved rounds."""
    crops = np.random.default_rng(0).integers(0, 256, (CROPS, *size, 3), dtype=np.uint8)
    for function in functions.values():
        function(crops)  # the first call compiles
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            started = time.perf_counter()
            function(crops)
            seconds[name].append(time.perf_counter() - started)
    first = next(iter(seconds.values()))
    return {
        name: round(statistics.median(a / b for a, b in zip(first, each, strict=True)), 2)
        for name, each in seconds.items()
    }


def measure(path: Path, formats: list[Format], rounds: int) -> dict[str, Any]:
    """Export a bundle to some formats, and measure each; a refused one has its error."""
    bundle = read_bundle(path)
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        functions: dict[str, Callable[[np.ndarray], object]] = {
            f"openvino {precision}": OpenVINOEngine(path / "model.xml", precision=precision)
            for precision in ["f32", *(["bf16"] if has_bfloat16() else [])]
        }
        for form in formats:
            try:
                result = export(path, form.name, Path(name) / form.name)
            except TransferAppError as error:
                found[form.name] = {"error": str(error)}
                continue
            found[form.name] = {"megabytes": round(result.num_bytes / 1e6, 1), **result.parity.to_json()}
            opened = stack.enter_context(form.opened(result.path))
            functions[form.name] = lambda crops, run=opened.from_pixels: run(Batch(crops, []))  # type: ignore[misc]
        relative = rates(functions, bundle.image_size, rounds)
    return {"formats": found, "relative_rate": relative}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--formats", default=",".join(form.name for form in FORMATS))
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    formats = [form for form in FORMATS if form.name in arguments.formats.split(",")]
    document = read_results(RESULTS / "exports.json")
    for path in arguments.bundles:
        measured = document[path.name] = measure(path, formats, arguments.rounds)
        print(f"{path.name:<16} {'label':>7} {'probability':>12} {'accuracy':>15} {'MB':>6} {'rate':>6}")
        for name, rate in measured["relative_rate"].items():
            figures = measured["formats"].get(name)
            row = f"{'':>7} {'':>12} {'':>15} {'':>6}"
            if figures:
                accuracy = f"{figures['accuracy']:.3f} of {figures['bundle_accuracy']:.3f}"
                agreement = f"{figures['agreement']:7.1%} {figures['max_difference']:12.2g}"
                row = f"{agreement} {accuracy:>15} {figures['megabytes']:6.1f}"
            print(f"{name:<16} {row} {rate:6.2f}")
        for name, figures in measured["formats"].items():
            if "error" in figures:
                print(f"{name:<16} {figures['error']}")
    write_results(RESULTS / "exports.json", document)


if __name__ == "__main__":
    main()
