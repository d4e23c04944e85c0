"""Forecast of the accuracy with twice the images, against the accuracy that they reach.

    python benchmarks/forecast.py DIR|textile [...] [--seeds 5] [--images 1200] [--backbone NAME]

For each seed a quarter of the images is held out for the test, and half of the others is hidden. The forecast of `fit` is made
from the visible half; then the same classifier is solved on the visible half and on both, and its gain on the test images is
the truth. `covered` is the share of trials whose true gain lies within the 95 % interval of the forecast, to which that of the
true gain, measured on few images, is added in quadrature; `covered_80` is the same for 80 % intervals, on the assumption that
errors are normal. Results go to benchmarks/results/forecast.json.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from benchmarks.common import RESULTS, Split, image_folder, set_name, splits, spread, write_results
from transferapp.config import make_config
from transferapp.evaluation.learning_curve import forecast
from transferapp.recipes.features import Featurized, featurize
from transferapp.recipes.fit.forecast import learning_curve
from transferapp.system.progress import Silent
from transferapp.training.mixture import combine, mix
from transferapp.training.probe import cross_validate, cross_validation_folds, fit_probe, stratified_folds


def trial(seen: Featurized, positions: np.ndarray, split: Split) -> dict[str, Any] | None:
    """Return the forecast and the truth of one split; None where there are too few errors for a forecast."""
    trunk, dataset = seen.trunk, seen.dataset.with_records([seen.dataset.records[i] for i in positions])
    assert trunk is not None
    labels, num_classes, rows = dataset.labels, len(dataset.class_names), seen.rows[positions]
    visible = split.train[stratified_folds(labels[split.train], 2, split.seed) == 0]
    sample = dataset.with_records([dataset.records[i] for i in visible])
    taps = trunk.mixture_taps
    validations = [
        cross_validate(trunk.features(rows[visible], [tap]), sample.labels, num_classes, groups=sample.groups())
        for tap in taps
    ]
    folds = cross_validation_folds(sample.labels, 0, sample.groups())
    mixture = mix([validation.logits for validation in validations], sample.labels, folds)
    members = [
        (tap, validation.l2, float(weight))
        for tap, validation, weight in zip(taps, validations, mixture.weights, strict=True)
        if weight
    ]
    sizes, correct, scored = learning_curve(trunk, rows[visible], sample, members, mixture.correct)
    found = forecast(
        sizes, correct, sample.labels[scored], sample.groups()[scored], sample.counts(), dataset.class_names
    )
    if found is None:
        return None

    def right(train: np.ndarray) -> np.ndarray:
        part = len(train) / len(visible)
        probes = [
            fit_probe(trunk.features(rows[train], [tap]), labels[train], num_classes, l2 / part)
            for tap, l2, _ in members
        ]
        probe = combine(probes, [weight for _, _, weight in members])
        test = trunk.features(rows[split.held_out], [tap for tap, _, _ in members])
        return np.asarray(probe.logits(test).argmax(axis=1) == labels[split.held_out])

    before, after = right(visible), right(split.train)
    difference = after.astype(float) - before
    error = float(difference.std(ddof=1)) / math.sqrt(len(difference))
    gain, low, high = found.gain
    true = float(difference.mean())
    return {
        "seed": split.seed,
        "visible": len(visible),
        "before": float(before.mean()),
        "after": float(after.mean()),
        "true_gain": true,
        "standard_error": error,
        "forecast": [gain, low, high],
        "covered": abs(true - gain) <= math.hypot((high - low) / 2, 1.96 * error),
        "covered_80": abs(true - gain) <= 1.2816 / 1.96 * math.hypot((high - low) / 2, 1.96 * error),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", nargs="+", help="folders of images, or textile")
    parser.add_argument("--seeds", type=int, default=5, help="splits (%(default)s)")
    parser.add_argument("--images", type=int, default=1200, help="images of each set at most (%(default)s)")
    parser.add_argument("--backbone", default="efficientnet_lite2", help="(%(default)s)")
    options = parser.parse_args()
    document: dict[str, Any] = {}
    for data in options.data:
        seen = featurize(make_config({"data": str(image_folder(data)), "backbone": options.backbone}), Silent())
        positions = spread(len(seen.dataset), options.images)
        found = [trial(seen, positions, split) for split in splits(seen.dataset.labels[positions], options.seeds)]
        trials = [one for one in found if one is not None]
        if not trials:
            print(f"{set_name(data)}: too few errors for a forecast")
            continue
        forecasts, truths = (np.array([one[key] for one in trials]) for key in ("forecast", "true_gain"))
        document[set_name(data)] = summary = {
            "true_gain": float(truths.mean()),
            "forecast_gain": float(forecasts[:, 0].mean()),
            "half_width": float((forecasts[:, 2] - forecasts[:, 1]).mean() / 2),
            "absolute_error": float(np.abs(forecasts[:, 0] - truths).mean()),
            "covered": float(np.mean([one["covered"] for one in trials])),
            "covered_80": float(np.mean([one["covered_80"] for one in trials])),
            "trials": trials,
        }
        figures = ", ".join(f"{key} {value:.3f}" for key, value in summary.items() if isinstance(value, float))
        print(f"{set_name(data)}: {figures}", flush=True)
    write_results(RESULTS / "forecast.json", document)


if __name__ == "__main__":
    main()
