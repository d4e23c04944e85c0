"""What a search costs and finds: `transferapp search` beside `transferapp fit`, and random trials beside as many of a grid.

    python benchmarks/search.py --data ../shared/data/dogs [--rounds 1] [--seeds 5] [--out benchmarks/results/search.json]

Two parts:

1. `fit` and `search` with 100 trials, one after the other in every round, each as a person runs it, in a process and with a
   cache of its own, so that both begin with nothing. Reported: wall seconds, processor seconds, their ratios, and the best
   validation accuracy of the search beside what full-batch L-BFGS reaches on the same images.
2. On the features of that search, for several seeds: the best validation accuracy and loss after as many random trials as
   trials of a grid, coarse and fine alike. Grids are the same for every seed, but the order of images is not.
"""

from __future__ import annotations

import argparse
import dataclasses
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

ROOT = Path(__file__).parents[1]
TRIALS = 100


def timed(command: str, data: Path, out: Path, cache: Path, *words: str) -> dict[str, Any]:
    """Run a command of its own and give its wall and processor seconds, and the manifest that it wrote."""
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
    """`fit` and `search` in turns, with fresh caches."""
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


def random_against_grid(data: Path, seeds: int, place: Path) -> dict[str, Any]:
    """The best of as many trials, drawn at random and on grids."""
    os.environ["TRANSFERAPP_CACHE"] = str(place / "cache-search-0")
    from transferapp.config import make_config
    from transferapp.data.sources import open_source
    from transferapp.recipes.fit.measure import backbone_loader, measure
    from transferapp.recipes.search.run import base_settings, gather, run
    from transferapp.recipes.search.settings import make_search
    from transferapp.recipes.search.study import Journal
    from transferapp.system.progress import Silent

    config = make_config({"data": str(data)})
    source = open_source(config.data, options=config.source, progress=Silent())
    with backbone_loader(config, source) as loader:
        problem = gather(measure(config, source, loader, Silent()), config, Silent())
    outcome: dict[str, Any] = {}
    for grid in (False, True):
        accuracies, losses, counts = [], [], []
        for seed in range(seeds):
            with Journal(place / f"{grid}-{seed}.journal") as journal:
                asked = make_search(trials=TRIALS, grid=grid)
                seeded = dataclasses.replace(problem, seed=seed)
                found = run(journal, asked, seeded, base_settings(config), {}, Silent(), lambda _line: None)
            accuracies.append(found.best.outcome.accuracy)
            losses.append(min(trial.outcome.loss for trial in found.trials))
            counts.append(len(found.trials))
        outcome["grid" if grid else "random"] = {
            "trials": counts[0],
            "best_accuracy": [round(value, 4) for value in accuracies],
            "mean_best_accuracy": round(statistics.mean(accuracies), 4),
            "mean_lowest_loss": round(statistics.mean(losses), 4),
        }
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/search.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        result = {
            "data": arguments.data.name,
            "cores": os.cpu_count(),
            "trials": TRIALS,
            **side_by_side(arguments.data.resolve(), arguments.rounds, place),
            "random_against_grid": random_against_grid(arguments.data.resolve(), arguments.seeds, place),
        }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in result.items() if key != "runs"}, indent=1))


if __name__ == "__main__":
    main()
