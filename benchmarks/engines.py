"""Crops per second of each engine at batch 1 and 10, side by side in one run.

    python benchmarks/engines.py [--backbone NAME] [--seconds S]

Candidates: `model.predict`, one compiled TensorFlow function, OpenVINO in f32, and in bf16 on CPUs that have it. Rounds are
interleaved, so that a noisy machine slows all of them alike. Results go to benchmarks/results/engines.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from benchmarks.common import RESULTS, write_results

ROUNDS = 5


def candidates(backbone: str) -> tuple[dict[str, Callable[[np.ndarray], object]], tuple[int, int]]:
    """Return functions from uint8 crops to features, by name, and the (height, width) of the crops."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    from transferapp.backbones.engine import OpenVINOEngine, convert, has_bfloat16
    from transferapp.backbones.loading import load_backbone
    from transferapp.backbones.registry import backbone_spec

    spec = backbone_spec(backbone)
    model = load_backbone(spec)
    compiled = tf.function(lambda pixels: model(pixels, training=False))
    converted = convert(model)
    functions: dict[str, Callable[[np.ndarray], object]] = {
        "model.predict": lambda crops: model.predict(crops.astype(np.float32), verbose=0),
        "tf.function": lambda crops: compiled(tf.constant(crops, tf.float32)).numpy(),
    }
    # bf16 is measured wherever it exists, not only where it is faster.
    for precision in ["f32", *(["bf16"] if has_bfloat16() else [])]:
        functions[f"openvino {precision}"] = OpenVINOEngine(converted, precision=precision)
    return functions, spec.image_size


def rate(function: Callable[[np.ndarray], object], crops: np.ndarray, seconds: float) -> float:
    """Measure crops per second."""
    runs, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        function(crops)
        runs += 1
    return runs * len(crops) / elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--seconds", type=float, default=1.0, help="per candidate, batch size and round")
    arguments = parser.parse_args()
    functions, (height, width) = candidates(arguments.backbone)
    crops = np.random.default_rng(0).integers(0, 256, (10, height, width, 3), dtype=np.uint8)
    rates: dict[str, dict[int, list[float]]] = {name: {1: [], 10: []} for name in functions}
    for name, function in functions.items():
        for size in rates[name]:
            function(crops[:size])  # the first call compiles
    for _ in range(ROUNDS):
        for name, function in functions.items():
            for size, seen in rates[name].items():
                seen.append(rate(function, crops[:size], arguments.seconds))
    table = {name: {size: statistics.median(seen) for size, seen in sizes.items()} for name, sizes in rates.items()}
    slowest = table["model.predict"]
    print(f"{'engine':<16} {'batch 1':>9} {'batch 10':>9}   crops per second (times model.predict)")
    for name, row in table.items():
        print(f"{name:<16} {row[1]:9.0f} {row[10]:9.0f}   {row[1] / slowest[1]:.1f}, {row[10] / slowest[10]:.1f}")
    document = {"backbone": arguments.backbone, "cores": os.cpu_count(), "crops_per_second": table}
    write_results(RESULTS / "engines.json", document)


if __name__ == "__main__":
    main()
