"""Which embedded backbone is better, what cross-validation says of it, and what rules of choice make of that.

    python benchmarks/backbone_choice.py DIR|textile [...] [--images 100 200] [--seeds 10] [--limit 3000]

For each set, number of training images and seed, the mixture of stages of both backbones is solved on images drawn at random
and measured on all others. `rules` has the accuracy on these of what each rule would choose, averaged within and then over
sets, and the share of choices that fall on the cheaper backbone: `measured` by the measured accuracy, `default` by
`choose_backbone`, and the better one in truth, `oracle`. Results go to benchmarks/results/backbone_choice.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from benchmarks.common import RESULTS, image_folder, set_name, spread, write_results
from transferapp.backbones.feature_store import CENTER, FeatureStore
from transferapp.backbones.registry import EMBEDDED, backbone_spec
from transferapp.backbones.trunk import Trunk
from transferapp.config import make_config
from transferapp.data.audit import audit
from transferapp.data.dataset import Dataset
from transferapp.data.sources import open_source
from transferapp.policy.choose import cheaper_suffices, paired_gain
from transferapp.recipes.fit.measure import backbone_loader
from transferapp.system.threads import cpu_cores
from transferapp.training.mixture import Mixture, combine, mix
from transferapp.training.probe import cross_validate, cross_validation_folds, fit_probe

Trial = dict[str, Any]


def features(data: str, limit: int) -> tuple[Dataset, list[tuple[Trunk, np.ndarray]]]:
    """Return at most `limit` images, with the rows of each backbone."""
    config = make_config({"data": str(image_folder(data))})
    source = open_source(config.data)
    source = source.with_records([source.records[i] for i in spread(len(source), limit)])
    dataset = audit(source, workers=cpu_cores())
    found = []
    with backbone_loader(config, source) as loader:
        for name in EMBEDDED:
            trunk = loader.trunk(backbone_spec(name))
            rows = FeatureStore(trunk, workers=cpu_cores()).collect(dataset.records, [CENTER])[:, 0]
            found.append((trunk, rows))
    return dataset, found


def solved(
    trunk: Trunk, rows: np.ndarray, dataset: Dataset, train: np.ndarray, test: np.ndarray, seed: int
) -> tuple[Mixture, float]:
    """Return the mixture of a backbone on some images, and its accuracy on others."""
    labels, groups, num_classes = dataset.labels, dataset.groups()[train], len(dataset.class_names)
    taps = trunk.mixture_taps
    columns = [trunk.features(rows, [tap]) for tap in taps]
    found = [cross_validate(each[train], labels[train], num_classes, seed=seed, groups=groups) for each in columns]
    folds = cross_validation_folds(labels[train], seed, groups)
    mixture = mix([validation.logits for validation in found], labels[train], folds)
    probes = [
        fit_probe(each[train], labels[train], num_classes, validation.l2)
        for each, validation in zip(columns, found, strict=True)
    ]
    probe = combine(probes, mixture.weights.tolist())
    together = np.concatenate([each[test] for each in columns], axis=1)
    return mixture, float((probe.logits(together).argmax(axis=1) == labels[test]).mean())


def trial(dataset: Dataset, backbones: Sequence[tuple[Trunk, np.ndarray]], count: int, seed: int) -> Trial | None:
    """Measure both backbones on one draw; None where it lacks a class."""
    order = np.random.default_rng([seed, count]).permutation(len(dataset))
    train, test = order[:count], order[count:]
    if len(np.unique(dataset.labels[train])) < len(dataset.class_names):
        return None
    (cheap, cheap_accuracy), (dear, dear_accuracy) = (
        solved(trunk, rows, dataset, train, test, seed) for trunk, rows in backbones
    )
    gain, error = paired_gain(dear.correct, cheap.correct, dataset.groups()[train])
    accuracy, loss = [cheap_accuracy, dear_accuracy], [cheap.loss, dear.loss]
    return {"images": count, "seed": seed, "gain": gain, "error": error, "loss": loss, "accuracy": accuracy}


def default(one: Trial) -> int:
    """Choose as `choose_backbone` does."""
    return 0 if cheaper_suffices(one["gain"], one["error"], *one["loss"]) else 1


def measured(one: Trial) -> int:
    """Choose as it does where the measured gain is certain."""
    return 0 if cheaper_suffices(one["gain"], 0.0, *one["loss"]) else 1


RULES: dict[str, Callable[[Trial], int]] = {
    "cheaper": lambda _: 0,
    "dearer": lambda _: 1,
    "measured": measured,
    "default": default,
    "oracle": lambda one: int(one["accuracy"][1] > one["accuracy"][0]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="folders of images, or textile")
    parser.add_argument("--images", type=int, nargs="+", default=[100, 200], help="training images (%(default)s)")
    parser.add_argument("--seeds", type=int, default=10, help="draws (%(default)s)")
    parser.add_argument("--limit", type=int, default=3000, help="images of each set at most (%(default)s)")
    options = parser.parse_args()
    document: dict[str, Any] = {}
    for data in options.data:
        dataset, backbones = features(data, options.limit)
        counts = [count for count in options.images if count <= 0.7 * len(dataset)]
        drawn = [trial(dataset, backbones, count, seed) for count in counts for seed in range(options.seeds)]
        trials = [one for one in drawn if one is not None]
        gained = float(np.mean([one["accuracy"][1] - one["accuracy"][0] for one in trials]))
        error = float(np.mean([one["error"] for one in trials]))
        document[set_name(data)] = {"gain": gained, "error": error, "trials": trials}
        print(
            f"{set_name(data)}: the dearer gains {100 * gained:+.1f} points, measured to {100 * error:.1f}", flush=True
        )
    rules = {}
    for name, rule in RULES.items():
        chosen = [
            [(one["accuracy"][rule(one)], rule(one) == 0) for one in each["trials"]] for each in document.values()
        ]
        accuracy, share = np.mean([np.mean(each, axis=0) for each in chosen], axis=0)
        rules[name] = {"accuracy": float(accuracy), "cheaper": float(share)}
        print(f"{name}: accuracy {accuracy:.4f}, the cheaper one in {share:.0%}")
    write_results(RESULTS / "backbone_choice.json", {"rules": rules, "sets": document})


if __name__ == "__main__":
    main()
