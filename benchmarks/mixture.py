"""Accuracy of a mixture of stages against the last stage and the best single stage, on held-out images.

    python benchmarks/mixture.py DIR|textile [...] [--seeds 3] [--images 1200] [--backbone NAME] [--both]

For each seed a quarter of the images is held out; L2 strengths and weights are chosen on the others by cross-validation, as in
a fit. With --both, a mixture of the stages of both embedded backbones is measured, and the cross-validated loss that it saves
against the better one. Results go to benchmarks/results/mixture.json, those of --both to mixture-both.json.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from benchmarks.common import RESULTS, Split, image_folder, interval, set_name, splits, spread, write_results
from transferapp.backbones.registry import EMBEDDED
from transferapp.config import make_config
from transferapp.policy.choose import CLEARLY_LOWER, paired_gain
from transferapp.recipes.features import Featurized, featurize
from transferapp.system.progress import Silent
from transferapp.training.mixture import combine, mix
from transferapp.training.probe import cross_validate, cross_validation_folds, fit_probe, log_losses


def trial(seen: Featurized, positions: np.ndarray, split: Split) -> dict[str, Any]:
    """Return the test accuracies of the last stage, the best stage and the mixture, and the mixture's cross-fitted figure."""
    trunk, dataset = seen.trunk, seen.dataset
    assert trunk is not None
    num_classes, labels = len(dataset.class_names), dataset.labels[positions]
    rows, groups = seen.rows[positions], dataset.groups()[positions]
    train, test = split.train, split.held_out
    taps = trunk.mixture_taps
    features = [trunk.features(rows, [tap]) for tap in taps]
    validations = [cross_validate(each[train], labels[train], num_classes, groups=groups[train]) for each in features]
    folds = cross_validation_folds(labels[train], 0, groups[train])
    mixture = mix([validation.logits for validation in validations], labels[train], folds)
    probes = [
        fit_probe(each[train], labels[train], num_classes, validation.l2)
        for each, validation in zip(features, validations, strict=True)
    ]
    used = np.flatnonzero(mixture.weights)
    combined = combine([probes[i] for i in used], mixture.weights[used].tolist())
    together = np.concatenate([features[i] for i in used], axis=1)

    def accuracy(logits: np.ndarray) -> float:
        return float((logits.argmax(axis=1) == labels[test]).mean())

    best = int(np.argmin([validation.loss for validation in validations]))
    return {
        "seed": split.seed,
        "last_stage": accuracy(probes[-1].logits(features[-1][test])),
        "best_stage": accuracy(probes[best].logits(features[best][test])),
        "mixture": accuracy(combined.logits(together[test])),
        "mixture_cross_fitted": mixture.accuracy,
        "weights": {tap.describe(): round(float(weight), 3) for tap, weight in zip(taps, mixture.weights, strict=True)},
    }


def measured(data: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the trials on one set and their means."""
    seen = featurize(make_config({"data": str(image_folder(data)), "backbone": options.backbone}), Silent())
    positions = spread(len(seen.dataset), options.images)
    labels = seen.dataset.labels[positions]
    trials = [trial(seen, positions, split) for split in splits(labels, options.seeds)]
    means = {name: float(np.mean([one[name] for one in trials])) for name in ("last_stage", "best_stage", "mixture")}
    gains = np.array([one["mixture"] - one["last_stage"] for one in trials])
    half = interval(gains) if len(gains) > 1 else None
    return {"images": len(positions), **means, "gain": float(gains.mean()), "half_interval": half, "trials": trials}


def both(data: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the trials of each backbone's mixture and of both together on one set."""
    configs = [make_config({"data": str(image_folder(data)), "backbone": name}) for name in EMBEDDED]
    seen = [featurize(config, Silent()) for config in configs]
    dataset = seen[0].dataset
    positions = spread(len(dataset), options.images)
    labels, groups, num_classes = dataset.labels[positions], dataset.groups()[positions], len(dataset.class_names)
    features, owners = [], []
    for owner, one in enumerate(seen):
        assert one.trunk is not None
        taps = one.trunk.mixture_taps
        features += [one.trunk.features(one.rows[positions], [tap]) for tap in taps]
        owners += [owner] * len(taps)
    trials: list[dict[str, Any]] = []
    for split in splits(labels, options.seeds):
        train, test = split.train, split.held_out
        folds = cross_validation_folds(labels[train], 0, groups[train])
        validations = [cross_validate(one[train], labels[train], num_classes, groups=groups[train]) for one in features]
        probes = [
            fit_probe(one[train], labels[train], num_classes, validation.l2)
            for one, validation in zip(features, validations, strict=True)
        ]
        mixtures, accuracy = {}, {}
        for name, own in {**{name: {i} for i, name in enumerate(EMBEDDED)}, "both": {0, 1}}.items():
            used = [i for i, owner in enumerate(owners) if owner in own]
            mixtures[name] = mix([validations[i].logits for i in used], labels[train], folds)
            combined = combine([probes[i] for i in used], mixtures[name].weights.tolist())
            logits = combined.logits(np.concatenate([features[i][test] for i in used], axis=1))
            accuracy[name] = float((logits.argmax(axis=1) == labels[test]).mean())
        better = min(EMBEDDED, key=lambda name: mixtures[name].loss)
        losses = {name: log_losses(mixtures[name].logits, labels[train]) for name in (better, "both")}
        saved, error = paired_gain(losses[better], losses["both"], groups[train])
        trials.append({"seed": split.seed, "better": better, **accuracy, "saved": saved, "standard_error": error})
    gains = np.array([one["both"] - one[one["better"]] for one in trials])
    half = interval(gains) if len(gains) > 1 else None
    clear = sum(one["saved"] > CLEARLY_LOWER * one["standard_error"] for one in trials)
    return {
        "images": len(positions),
        "gain": float(gains.mean()),
        "half_interval": half,
        "clear": clear,
        "trials": trials,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", nargs="+", help="folders of images, or textile")
    parser.add_argument("--seeds", type=int, default=3, help="splits (%(default)s)")
    parser.add_argument("--images", type=int, default=1200, help="images of each set at most (%(default)s)")
    parser.add_argument("--backbone", default="efficientnet_lite2", help="(%(default)s)")
    parser.add_argument("--both", action="store_true", help="measure both embedded backbones together")
    options = parser.parse_args()
    if options.both:
        joint = {}
        for data in options.data:
            joint[set_name(data)] = found = both(data, options)
            print(
                f"{set_name(data)}: both gain {100 * found['gain']:+.1f} points; clearly better in {found['clear']} of "
                f"{len(found['trials'])} splits",
                flush=True,
            )
        write_results(RESULTS / "mixture-both.json", joint)
        return
    document = {}
    for data in options.data:
        document[set_name(data)] = found = measured(data, options)
        figures = ", ".join(f"{name} {found[name]:.3f}" for name in ("last_stage", "best_stage", "mixture"))
        print(f"{set_name(data)}: {figures}; gain {100 * found['gain']:+.1f} points", flush=True)
    write_results(RESULTS / "mixture.json", document)


if __name__ == "__main__":
    main()
