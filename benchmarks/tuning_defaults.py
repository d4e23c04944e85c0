"""Are the defaults of fine-tuning the right ones? The same fit with one setting changed at a time.

Runs the real command, `transferapp fit --tune PART --rule-only`, once for every setting below, and prints what came of each on
the validation and test images. All share one split, one backbone and one cache, so that a setting is all that differs.

    python benchmarks/tuning_defaults.py --data DIR [--tune last-two] [--epochs 5] [--seeds 1] [--only rate scales]

The figures go to benchmarks/results/tuning_defaults-NAME.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
STUDIES: dict[str, dict[str, tuple[str, ...]]] = {
    "rate": {
        "as by default": (),
        "head 1e-3, backbone 1e-4": ("--learning-rate", "1e-3"),
        "head 1e-2, backbone 1e-3": ("--learning-rate", "1e-2"),
    },
    "scales": {"256 to 480": ("--scale-min", "256", "--scale-max", "480")},
    "averaging": {"none": ("--average", "0")},
    "schedule": {"constant": ("--schedule", "constant")},
    "decay": {"layer decay 0.7": ("--layer-decay", "0.7"), "weight decay 0.01": ("--weight-decay", "0.01")},
}
"""By what they are about: the options of each run beside those that all share."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="what `transferapp fit --data` takes")
    parser.add_argument("--tune", default="last-two", help="what is tuned (%(default)s)")
    parser.add_argument("--epochs", type=int, default=5, help="%(default)s")
    parser.add_argument(
        "--seeds", type=int, default=1, help="runs of each, with another split every time (%(default)s)"
    )
    parser.add_argument("--backbone", default="efficientnet_lite0", help="%(default)s")
    parser.add_argument("--only", nargs="+", choices=STUDIES, default=list(STUDIES), help="some of the studies")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder for the figures")
    options = parser.parse_args(arguments)
    if not options.data.exists():
        parser.error(f"there is no {options.data}")
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for study in options.only:
            for name, words in STUDIES[study].items():
                figures = [run(options, words, seed, Path(folder, "bundle")) for seed in range(options.seeds)]
                runs.append({"study": study, "setting": name, "options": list(words), **means(figures)})
                print(line(runs[-1]), flush=True)
    document = {
        "data": options.data.resolve().name,
        "backbone": options.backbone,
        "tune": options.tune,
        "epochs": options.epochs,
        "seeds": options.seeds,
        "runs": runs,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"tuning_defaults-{options.data.resolve().name}.json"
    path.write_text(json.dumps(document, indent=2) + "\n")


def run(options: argparse.Namespace, words: Sequence[str], seed: int, bundle: Path) -> dict[str, float]:
    """One fit: its figures, by name."""
    command = [sys.executable, "-m", "transferapp", "fit", "--data", str(options.data), "--out", str(bundle), "--json"]
    command += ["--tune", options.tune, "--rule-only", "--fresh", "--budget", "none", "--seed", str(seed)]
    command += ["--epochs", str(options.epochs), "--backbone", options.backbone, *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    return read_figures(json.loads(done.stdout))


def read_figures(manifest: Mapping[str, Any]) -> dict[str, float]:
    """What a manifest says of the solved classifier and of what was tuned from it."""
    solved = next(c for c in manifest["contenders"] if c["name"] == "solved classifier")
    tuned = next(c for c in manifest["contenders"] if c["chosen"])
    figures = {"solved": solved["accuracy"], "validation": tuned["accuracy"], "loss": tuned["loss"]}
    if manifest["metrics"]["test"]:
        figures["test"] = manifest["metrics"]["test"]["accuracy"]
    return {**figures, "last_train": tuned["history"][-1]["accuracy"]}


def means(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of every figure over the seeds."""
    return {name: statistics.fmean(each[name] for each in figures) for name in figures[0]}


def line(run: Mapping[str, Any]) -> str:
    test = f"  test {run['test']:.3f}" if "test" in run else ""
    return (
        f"{run['study']:<10} {run['setting']:<26} solved {run['solved']:.3f}  tuned {run['validation']:.3f}"
        f"  loss {run['loss']:.3f}  training {run['last_train']:.3f}{test}"
    )


if __name__ == "__main__":
    main()
