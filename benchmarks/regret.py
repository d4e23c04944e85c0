"""Regret of the default command: the accuracy that the best candidate would have had, less its own.

    python benchmarks/regret.py DIR|textile [...] [--images 120 300] [--seeds 3] [--budget 0] [--tuning-budget 4m]

For every set, number of training images and seed, a fifth of each class is held out for testing. The default command and every
candidate are trained on the same images: a linear classifier on each stage of each backbone, a mixture of stages of each
backbone and of both together, and fine-tuning at three cuts (`--tune last`, `most` and `all`, each with `--rule-only`).

The best of many candidates on the same test images looks better than it is. So the test images are halved: the candidate that
is best on one half is measured on the other, and both ways are averaged. Figures go to benchmarks/results/regret.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from benchmarks.common import RESULTS, image_folder, interval, read_results, set_name, write_results
from transferapp.backbones.registry import EMBEDDED
from transferapp.backbones.stages import Tap
from transferapp.bundle.predictor import Predictor
from transferapp.config import make_config
from transferapp.recipes.features import Featurized, featurize
from transferapp.system.progress import Silent
from transferapp.training.mixture import combine, mix
from transferapp.training.probe import LinearProbe, cross_validate, cross_validation_folds, fit_probe

CUTS = ("last", "most", "all")
DEFAULT = "default"

Outcomes = dict[str, np.ndarray]
"""Whether each test image is classified right, by candidate: bool, shape (num_test,)."""


def class_files(data: Path) -> dict[str, list[Path]]:
    """Return the images of each class, of train and test folders together, in an order that depends on their names alone."""
    given = [data / part for part in ("train", "val", "test") if (data / part).is_dir()]
    found: dict[str, list[Path]] = {}
    for place in given or [data]:
        for folder in sorted(path for path in place.iterdir() if path.is_dir() and not path.name.startswith(".")):
            files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
            found.setdefault(folder.name, []).extend(sorted(files))
    return found


def link(classes: Mapping[str, Sequence[Path]], folder: Path, count: int, seed: int) -> None:
    """Link a fifth of each class into test/ and `count` of the other images, or all for 0, into train/."""
    rng = np.random.default_rng(seed)
    kept: dict[str, list[Path]] = {}
    for name, files in classes.items():
        order = [files[i] for i in rng.permutation(len(files))]
        held_out = max(1, len(order) // 5)
        kept[name] = order[held_out:]
        _link(order[:held_out], folder / "test" / name)
    total = sum(map(len, kept.values()))
    share = min(1.0, count / total) if count else 1.0
    for name, files in kept.items():
        _link(files[: max(2, round(share * len(files)))], folder / "train" / name)


def _link(files: Sequence[Path], folder: Path) -> None:
    folder.mkdir(parents=True)
    for index, file in enumerate(files):
        (folder / f"{index:06}{file.suffix}").symlink_to(file.resolve())


def fitted(folder: Path, seed: int, tests: Sequence[tuple[Path, str]], *words: str) -> tuple[np.ndarray, float, str]:
    """Run a fit; return whether it classifies each test image right, its seconds, and the kind of its head."""
    command = [sys.executable, "-m", "transferapp", "fit", "--data", str(folder / "images"), "--seed", str(seed)]
    command += ["--out", str(folder / "bundle"), "--fresh", "--json", *words]
    started = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(done.returncode)
    manifest = json.loads(done.stdout)
    predictor = Predictor.load(folder / "bundle")
    right = [predictor.predict(file, views=1, top_k=1).label == name for file, name in tests]
    kind = "mixture" if manifest["plan"]["mixture"] else manifest["head"]["kind"]
    return np.array(right), seconds, manifest["head"]["kind"] if manifest["head"]["kind"] != "linear" else kind


def solved(folder: Path, seed: int, tests: Sequence[tuple[Path, str]]) -> tuple[Outcomes, dict[str, float]]:
    """Return the outcomes and seconds of the linear classifiers: each stage, each mixture, and both backbones' mixture."""
    outcomes: Outcomes = {}
    seconds: dict[str, float] = {}
    members: list[tuple[str, Featurized, Tap]] = []
    for name in EMBEDDED:
        started = time.perf_counter()
        seen = featurize(make_config({"data": str(folder / "images"), "backbone": name, "seed": seed}), Silent())
        assert seen.trunk is not None
        seconds[name] = time.perf_counter() - started
        members += [(name, seen, tap) for tap in seen.trunk.mixture_taps]
    dataset = members[0][1].dataset
    position = {
        Path(record.path).name + record.path.parent.name: i
        for i, record in enumerate(dataset.records)
        if record.split == "test"
    }
    test = np.array([position[file.name + name] for file, name in tests])
    train = np.array([i for i, record in enumerate(dataset.records) if record.split != "test"])
    labels, num_classes, groups = dataset.labels, len(dataset.class_names), dataset.groups()[train]
    folds = cross_validation_folds(labels[train], seed, groups)
    logits, probes, features = [], [], []
    for name, seen, tap in members:
        assert seen.trunk is not None
        started = time.perf_counter()
        columns = seen.trunk.features(seen.rows, [tap])
        found = cross_validate(columns[train], labels[train], num_classes, seed=seed, groups=groups)
        probe = fit_probe(columns[train], labels[train], num_classes, found.l2)
        logits.append(found.logits)
        probes.append(probe)
        features.append(columns[test])
        key = f"{name} {tap.describe()}"
        outcomes[key] = probe.logits(columns[test]).argmax(axis=1) == labels[test]
        seconds[key] = seconds[name] + time.perf_counter() - started
    for title, used in [*((f"{name} mixture", [name]) for name in EMBEDDED), ("both mixture", list(EMBEDDED))]:
        own = [i for i, (name, _, _) in enumerate(members) if name in used]
        started = time.perf_counter()
        mixture = mix([logits[i] for i in own], labels[train], folds)
        combined: LinearProbe = combine([probes[i] for i in own], mixture.weights.tolist())
        together = np.concatenate([features[i] for i in own], axis=1)
        outcomes[title] = combined.logits(together).argmax(axis=1) == labels[test]
        seconds[title] = sum(seconds[name] for name in used) + time.perf_counter() - started
    return outcomes, {name: value for name, value in seconds.items() if name in outcomes}


def regret(outcomes: Outcomes, halves: np.ndarray) -> tuple[float, str]:
    """Return the accuracy that the best candidate has beyond the default, and its name on all test images.

    Args:
        outcomes: By candidate, the default among them.
        halves: bool, shape (num_test,): the first half. The best candidate of each half is measured on the other.
    """
    candidates = {name: right for name, right in outcomes.items() if name != DEFAULT}
    lost = []
    for half in (halves, ~halves):
        best = max(candidates, key=lambda name: candidates[name][half].mean())
        lost.append(float(candidates[best][~half].mean() - outcomes[DEFAULT][~half].mean()))
    return float(np.mean(lost)), max(candidates, key=lambda name: candidates[name].mean())


def trial(data: str, count: int, seed: int, budget: str, tuning_budget: str) -> dict[str, Any]:
    """Train everything on one split of a set."""
    classes = class_files(image_folder(data))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        link(classes, folder / "images", count, seed)
        tests = [(file, file.parent.name) for file in sorted((folder / "images" / "test").rglob("*.*"))]
        right, spent, kind = fitted(folder, seed, tests, "--budget", budget) if budget else fitted(folder, seed, tests)
        outcomes, seconds = solved(folder, seed, tests)
        outcomes[DEFAULT], seconds[DEFAULT] = right, spent
        for cut in CUTS:
            words = ["--tune", cut, "--rule-only", "--budget", tuning_budget]
            with contextlib.suppress(SystemExit):  # its budget is too short for it, as it has said
                outcomes[f"fine-tuned {cut}"], seconds[f"fine-tuned {cut}"], _ = fitted(folder, seed, tests, *words)
        num_train = sum(1 for _ in (folder / "images" / "train").rglob("*.*"))
    halves = np.random.default_rng(seed).permutation(len(tests)) < len(tests) // 2
    lost, best = regret(outcomes, halves)
    return {
        "num_train": num_train,
        "num_test": len(tests),
        "seed": seed,
        "chosen": kind,
        "regret": lost,
        "best": best,
        "accuracy": {each: float(values.mean()) for each, values in outcomes.items()},
        "seconds": {each: round(value, 1) for each, value in seconds.items()},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="folders of images, or textile")
    parser.add_argument("--images", type=int, nargs="+", default=[0], help="training images; 0 for all (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="splits (%(default)s)")
    parser.add_argument("--budget", default="", help="of the default command; its own choice if not given")
    parser.add_argument("--tuning-budget", default="none", help="of each fine-tuned candidate (%(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS / "regret.json", help="where the figures go")
    options = parser.parse_args(arguments)
    for data in options.data:
        if not image_folder(data).is_dir():
            parser.error(f"there is no folder {data}")
    document = read_results(options.out)
    every: list[float] = []
    for data in options.data:
        for count in options.images:
            trials = []
            for seed in range(options.seeds):
                trials.append(trial(data, count, seed, options.budget, options.tuning_budget))
                print(line(set_name(data), trials[-1]), flush=True)
            every += [one["regret"] for one in trials]
            document[f"{set_name(data)} {trials[0]['num_train']}"] = trials
            write_results(options.out, document)
    half = f" ± {100 * interval(np.array(every)):.1f}" if len(every) > 1 else ""
    print(f"mean regret {100 * float(np.mean(every)):+.1f}{half} points over {len(every)} trials")


def line(name: str, one: Mapping[str, Any]) -> str:
    """Return a trial in a line, for people."""
    accuracy, seconds = one["accuracy"], one["seconds"]
    return (
        f"{name}, {one['num_train']} images, seed {one['seed']}: default {accuracy[DEFAULT]:.3f} ({one['chosen']}, "
        f"{seconds[DEFAULT]:.0f} s), best {one['best']} {accuracy[one['best']]:.3f} ({seconds[one['best']]:.0f} s), "
        f"regret {100 * one['regret']:+.1f} points"
    )


if __name__ == "__main__":
    main()
