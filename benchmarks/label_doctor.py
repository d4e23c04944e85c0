"""Share of wrong labels that the doctor ranks in the first tenth of its list.

    python benchmarks/label_doctor.py DIR [--share 0.05] [--seeds 5]

Changes the labels of a share of the images, each to another class at random, and runs the label doctor on them, as
`transferapp doctor` does. Every other label counts as right. Results go to benchmarks/results/label_doctor.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from benchmarks.common import RESULTS, write_results
from transferapp.backbones.registry import DEFAULT_BACKBONE
from transferapp.config import make_config
from transferapp.recipes.features import Featurized, featurize
from transferapp.recipes.label_doctor import judge_labels
from transferapp.system.progress import Silent


def flipped(seen: Featurized, share: float, seed: int) -> tuple[Featurized, set[int]]:
    """Change a share of the labels; return the images and the positions of the changed ones."""
    rng = np.random.default_rng(seed)
    dataset = seen.dataset
    chosen = rng.choice(len(dataset), round(share * len(dataset)), replace=False)
    records = list(dataset.records)
    num_classes = len(dataset.class_names)
    for position in chosen.tolist():
        record = records[position]
        label = int((record.label + rng.integers(1, num_classes)) % num_classes)
        records[position] = dataclasses.replace(record, label=label)
    return dataclasses.replace(seen, dataset=dataset.with_records(records)), set(chosen.tolist())


def trial(seen: Featurized, share: float, seed: int) -> dict[str, Any]:
    """Change labels with one seed and count those that are found."""
    changed, wrong = flipped(seen, share, seed)
    diagnosis = judge_labels(changed, None, seed, Silent())
    order = diagnosis.errors.order
    first = set(order[: round(0.1 * len(order))].tolist())
    suspected = set(np.flatnonzero(diagnosis.errors.suspected).tolist())
    return {
        "seed": seed,
        "stage": diagnosis.stage,
        "flipped": len(wrong),
        "found_in_first_tenth": len(wrong & first) / len(wrong),
        "suspected": len(suspected),
        "precision_of_suspicion": len(wrong & suspected) / max(len(suspected), 1),
        "recall_of_suspicion": len(wrong & suspected) / len(wrong),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR")
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--backbone", default=DEFAULT_BACKBONE)
    options = parser.parse_args()
    document: dict[str, Any] = {}
    print(
        f"{'data':<12} {'seed':>4} {'flipped':>7} {'in first tenth':>14} {'suspected':>9} {'precision':>9} {'recall':>7}"
    )
    for folder in options.folders:
        seen = featurize(make_config({"data": str(folder), "backbone": options.backbone}), Silent())
        trials = [trial(seen, options.share, seed) for seed in range(options.seeds)]
        for t in trials:
            print(
                f"{folder.name:<12} {t['seed']:>4} {t['flipped']:>7} {t['found_in_first_tenth']:>14.3f} "
                f"{t['suspected']:>9} {t['precision_of_suspicion']:>9.3f} {t['recall_of_suspicion']:>7.3f}"
            )
        mean = statistics.mean(t["found_in_first_tenth"] for t in trials)
        print(f"{folder.name:<12} mean: {mean:.3f} of the wrong labels within the first tenth of the list")
        document[folder.name] = {"backbone": options.backbone, "share": options.share, "mean": mean, "trials": trials}
    write_results(RESULTS / "label_doctor.json", document)


if __name__ == "__main__":
    main()
