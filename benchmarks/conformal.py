"""Coverage and size of prediction sets on held-out images, calibrated as in a fit, over many splits.

    python benchmarks/conformal.py DIR|textile [...] [--splits 20] [--coverage 0.9] [--images 600]

For each split a quarter of the images is held out. On the others the classifier that the plan asks for, a mixture of stages or
one stage, is cross-validated; the temperature and the threshold are fitted to out-of-fold logits, and the classifier is solved.
Held-out images are scored by their center crop and by ten crops, as a request is. `exact` breaks ties of scores at random,
which gives the coverage that the calibration promises also where the most probable class alone exceeds it; the served sets
never leave that class out. `threshold` are sets of all classes above a probability, for comparison (Sadinle et al., 2019).
Results go to benchmarks/results/conformal.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from scipy.special import softmax

from benchmarks.common import RESULTS, Split, image_folder, interval, set_name, splits, write_results
from transferapp.backbones.stages import Tap
from transferapp.backbones.trunk import Trunk
from transferapp.bundle.prediction_sets import in_set, masses_above
from transferapp.config import make_config
from transferapp.data.dataset import Dataset, Record
from transferapp.data.sources import open_source
from transferapp.evaluation.metrics import fit_temperature
from transferapp.evaluation.prediction_sets import conformal_rank, conformal_threshold
from transferapp.images import DATASET_LIMITS, decode_image
from transferapp.images.views import SHORT_SIDE, center_index, render_batch, short_side_to_decode, ten_crops
from transferapp.recipes.fit.measure import ProbedBackbone, backbone_loader, measure
from transferapp.system.progress import Silent
from transferapp.training.mixture import combine, mix
from transferapp.training.probe import cross_validate, cross_validation_folds, fit_probe


def crop_rows(trunk: Trunk, records: Sequence[Record]) -> np.ndarray:
    """Return the rows of ten crops of each image: float32, shape (n, 10, row_size)."""

    def rows(record: Record) -> np.ndarray:
        needed = short_side_to_decode(SHORT_SIDE, trunk.image_size)
        image = decode_image(record.path, limits=DATASET_LIMITS, min_short_side=needed).image
        return trunk.rows(render_batch(image, ten_crops(image.size, trunk.image_size), trunk.image_size))

    with ThreadPoolExecutor(2) as pool:
        return np.stack(list(pool.map(rows, records)))


def trial(
    backbone: ProbedBackbone, dataset: Dataset, crops: np.ndarray, split: Split, coverage: float
) -> dict[str, float]:
    """Return coverages and sizes of one split."""
    trunk, num_classes, labels, groups = backbone.trunk, len(dataset.class_names), dataset.labels, dataset.groups()
    train, test = split.train, split.held_out
    mixed = bool(backbone.plan.mixture)
    taps = [tap for tap, _ in backbone.members] if mixed else [Tap(backbone.cut.name)]
    centers = crops[:, center_index(10)]
    features = [trunk.features(centers, [tap])[train] for tap in taps]
    validations = [cross_validate(each, labels[train], num_classes, groups=groups[train]) for each in features]
    folds = cross_validation_folds(labels[train], 0, groups[train])
    logits, weights = validations[0].logits, np.ones(1)
    if mixed:
        mixture = mix([validation.logits for validation in validations], labels[train], folds)
        logits, weights = mixture.logits, mixture.weights
    used = np.flatnonzero(weights)
    probes = [fit_probe(features[i], labels[train], num_classes, validations[i].l2) for i in used]
    probe = combine(probes, weights[used].tolist())
    temperature = fit_temperature(logits, labels[train])
    held_out = softmax(logits / temperature, axis=1)
    threshold = conformal_threshold(held_out, labels[train], coverage)
    assert threshold is not None
    own = np.arange(len(test)), labels[test]

    def probabilities(rows: np.ndarray) -> np.ndarray:
        return np.asarray(softmax(probe.logits(trunk.features(rows, [taps[i] for i in used])) / temperature, axis=1))

    center = probabilities(centers[test])
    ten = np.mean([probabilities(crops[test][:, view]) for view in range(10)], axis=0)
    found = {"accuracy": float((center.argmax(axis=1) == labels[test]).mean()), "threshold": threshold}
    for name, scores in (("center", center), ("ten", ten)):
        sets = in_set(scores, threshold)
        found[f"{name}_coverage"] = float(sets[own].mean())
        found[f"{name}_size"] = float(sets.sum(axis=1).mean())
    found["exact_coverage"] = exact(held_out, labels[train], center, labels[test], coverage, split.seed)
    calibration = np.sort(1 - held_out[np.arange(len(train)), labels[train]])
    limit = calibration[conformal_rank(len(train), coverage) - 1]
    found["threshold_coverage"] = float((1 - center[own] <= limit).mean())
    found["threshold_size"] = float((1 - center <= limit).sum(axis=1).mean())
    return found


def exact(
    held_out: np.ndarray, labels: np.ndarray, scores: np.ndarray, true: np.ndarray, coverage: float, seed: int
) -> float:
    """Return the coverage of sets whose ties of scores are broken at random."""
    rng = np.random.default_rng(seed)
    calibration = masses_above(held_out)[np.arange(len(labels)), labels] + 1e-9 * rng.random(len(labels))
    asked = masses_above(scores)[np.arange(len(true)), true] + 1e-9 * rng.random(len(true))
    limit = np.sort(calibration)[conformal_rank(len(labels), coverage) - 1]
    return float((asked <= limit).mean())


def measured(data: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the means over the splits of one set, and the trials."""
    config = make_config({"data": str(image_folder(data)), "budget": "0"})
    source = open_source(config.data, options=config.source)
    with backbone_loader(config, source) as loader:
        measurement = measure(config, source, loader, Silent())
    backbone, dataset = measurement.chosen, measurement.dataset.spread(options.images)
    crops = crop_rows(backbone.trunk, dataset.records)
    trials = [
        trial(backbone, dataset, crops, split, options.coverage) for split in splits(dataset.labels, options.splits)
    ]
    means = {key: float(np.mean([one[key] for one in trials])) for key in trials[0]}
    half = {key: interval(np.array([one[key] for one in trials])) for key in ("center_coverage", "ten_coverage")}
    return {"images": len(dataset), **means, "half_intervals": half, "trials": trials}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", nargs="+", help="folders of images, or textile")
    parser.add_argument("--splits", type=int, default=20, help="(%(default)s)")
    parser.add_argument("--coverage", type=float, default=0.9, help="promised (%(default)s)")
    parser.add_argument("--images", type=int, default=600, help="images of each set at most (%(default)s)")
    options = parser.parse_args()
    document = {}
    for data in options.data:
        document[set_name(data)] = found = measured(data, options)
        shown = ", ".join(f"{key} {value:.3f}" for key, value in found.items() if isinstance(value, float))
        print(f"{set_name(data)}: {shown}", flush=True)
    write_results(RESULTS / "conformal.json", {"coverage": options.coverage, "sets": document})


if __name__ == "__main__":
    main()
