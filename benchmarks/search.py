"""Cost and result of a search: `transferapp search` beside `transferapp fit`.

    python benchmarks/search.py --data DIR [--rounds 1]

`fit` and `search` with 100 trials run in turns, each in a process and with a cache of its own, so that both begin with nothing.
Reported: wall seconds, processor seconds, their ratios, and the best validation accuracy of the search beside the accuracy of
full-batch L-BFGS on the same images.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import RESULTS, write_results

ROOT = Path(__file__).parents[1]
TRIALS = 100


def timed(command: str, data: Path, out: Path, cache: Path, *words: str) -> dict[str, Any]:
    """Run a command in a process of its own; return its wall and processor seconds and the manifest that it wrote."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "transferapp", command, "--data", str(data), "--out", str(out), *words],
        env={**os.environ, "TRANSFERAPP_CACHE": str(cache), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    manifest = json.loads((out / "bundle.json").read_text(encoding="utf-8"))
    return {"wall": round(wall, 1), "cpu": round(cpu, 1), "seconds": manifest["seconds"], "manifest": manifest}


def side_by_side(data: Path, rounds: int, place: Path) -> dict[str, Any]:
    """Run `fit` and `search` in turns, with fresh caches."""
    runs: dict[str, list[dict[str, Any]]] = {"fit": [], "search": []}
    found: dict[str, Any] = {}
    for number in range(rounds):
        for command in runs if number % 2 == 0 else reversed(runs):
            words = ("--trials", str(TRIALS)) if command == "search" else ()
            run = timed(command, data, place / command, place / f"cache-{command}-{number}", *words)
            manifest = run.pop("manifest")
            runs[command].append(run)
            print(command, run, flush=True)
            if command == "search":
                best, optimum = manifest["search"]["best"], manifest["search"]["optimum"]
                found = {
                    "best": best,
                    "optimum": optimum,
                    "points_above_optimum": round(100 * (best["accuracy"] - optimum["accuracy"]), 2),
                    "test_accuracy": manifest["metrics"]["test"]["accuracy"] if manifest["metrics"]["test"] else None,
                }
    ratios = {
        kind: round(statistics.median(s[kind] / f[kind] for f, s in zip(runs["fit"], runs["search"], strict=True)), 2)
        for kind in ("wall", "cpu")
    }
    return {"runs": runs, "search_over_fit": ratios, "found": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "search.json", help="where the figures go")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        result = {
            "data": arguments.data.name,
            "cores": os.cpu_count(),
            "trials": TRIALS,
            **side_by_side(arguments.data.resolve(), arguments.rounds, place),
        }
    write_results(arguments.out, result)
    print(json.dumps({key: value for key, value in result.items() if key != "runs"}, indent=1))


if __name__ == "__main__":
    main()
