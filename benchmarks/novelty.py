"""Novelty: how well the images of other sets, and of a class left out, are told from the held-out images of a set.

    python benchmarks/novelty.py DIR|textile [...] [--images 300]

Each set is measured and solved as in `transferapp fit --budget 0`. Its test images, which nothing was fitted to, stand against
the images of every other set, at most `--images` of each. For a class left out, its test images stand against those of the
other classes, with training images of the other classes alone. Results go to benchmarks/results/novelty.json.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from scipy.stats import rankdata

from benchmarks.common import RESULTS, image_folder, set_name, write_results
from transferapp.backbones.feature_store import CENTER
from transferapp.bundle.novelty import Novelty, is_known
from transferapp.config import make_config
from transferapp.data.dataset import Dataset
from transferapp.data.sources import open_source
from transferapp.evaluation.novelty import calibrate_novelty, images_kept
from transferapp.recipes.fit.candidate import Classifier
from transferapp.recipes.fit.measure import Measurement, backbone_loader, measure
from transferapp.recipes.fit.solve import choose_views, solve
from transferapp.system.progress import Silent


@dataclass(frozen=True, eq=False)
class Solved:
    """A set with its classifier."""

    measurement: Measurement
    classifier: Classifier

    def features(self, part: Dataset) -> np.ndarray:
        """Return the features that the head reads, of the center views of some images."""
        backbone = self.measurement.chosen
        rows = backbone.store.collect(part.records, [CENTER])[:, 0]
        return backbone.trunk.features(rows, self.classifier.taps)

    def novelty(self, known: Dataset) -> tuple[Novelty, np.ndarray]:
        """Return the score that training images calibrate, and the similarities of the test images."""
        features = self.features(known)
        known = known.spread(images_kept(features.shape[1]))
        novelty = calibrate_novelty(self.features(known), groups=known.groups())
        assert novelty is not None
        return novelty, novelty.similarity(self.features(self.measurement.dataset.part("test")))


def solved(data: str, stack: contextlib.ExitStack) -> Solved:
    """Measure and solve a set."""
    config = make_config({"data": str(image_folder(data)), "budget": "0"})
    source = open_source(config.data, options=config.source)
    loader = stack.enter_context(backbone_loader(config, source))
    measurement = measure(config, source, loader, Silent())
    candidate = solve(measurement, choose_views(measurement, config, Silent()), config, Silent())
    assert candidate.classifier is not None
    return Solved(measurement, candidate.classifier)


def auroc(known: np.ndarray, foreign: np.ndarray) -> float:
    """Return the probability that a known image is more similar than a foreign one; ties count half."""
    ranks = rankdata(np.concatenate([known, foreign]))[: len(known)]
    return float((ranks.sum() - len(known) * (len(known) + 1) / 2) / (len(known) * len(foreign)))


def foreign_figures(one: Solved, others: Mapping[str, Solved], images: int) -> dict[str, Any]:
    """Return the figures of a set against each of the others, and the share of its own test images that are refused."""
    dataset = one.measurement.dataset
    novelty, familiar = one.novelty(dataset.part("train", "val"))
    figures = {}
    for name, other in others.items():
        features = one.features(other.measurement.dataset.spread(images))
        refused = float(np.mean([not is_known(score) for score in novelty.score(features)]))
        figures[name] = {"auroc": auroc(familiar, novelty.similarity(features)), "refused": refused}
    own = novelty.score(one.features(dataset.part("test")))
    return {
        "images": len(dataset),
        "num_features": novelty.features.shape[1],
        "kilobytes": round(len(novelty.to_bytes()) / 1000),
        "auroc": float(np.mean([each["auroc"] for each in figures.values()])),
        "refused": float(np.mean([each["refused"] for each in figures.values()])),
        "own_refused": float(np.mean([not is_known(score) for score in own])),
        "against": figures,
    }


def left_out_figures(one: Solved) -> float | None:
    """Return the mean AUROC of the classes, each left out of the training images; None for two classes."""
    dataset, found = one.measurement.dataset, []
    labels = dataset.part("test").labels
    if len(dataset.class_names) < 3:
        return None
    known = dataset.part("train", "val")
    for label in np.unique(labels):
        rest = known.with_records([record for record in known.records if record.label != label])
        similarities = one.novelty(rest)[1]
        found.append(auroc(similarities[labels != label], similarities[labels == label]))
    return float(np.mean(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", nargs="+", help="folders of images, or textile; two or more")
    parser.add_argument("--images", type=int, default=300, help="foreign images of each set at most (%(default)s)")
    options = parser.parse_args()
    document: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        sets = {set_name(data): solved(data, stack) for data in options.data}
        for name, one in sets.items():
            others = {other: sets[other] for other in sets if other != name}
            figures = {**foreign_figures(one, others, options.images), "left_out_auroc": left_out_figures(one)}
            document[name] = figures
            left_out = figures["left_out_auroc"]
            print(
                f"{name}: AUROC {figures['auroc']:.3f}, {figures['refused']:.1%} of foreign images refused, "
                f"{figures['own_refused']:.1%} of its own; a class left out {'-' if left_out is None else f'{left_out:.3f}'}; "
                f"{figures['kilobytes']} KB",
                flush=True,
            )
    means = {
        key: float(np.mean([each[key] for each in document.values()])) for key in ("auroc", "refused", "own_refused")
    }
    classes = [each["left_out_auroc"] for each in document.values() if each["left_out_auroc"] is not None]
    means["left_out_auroc"] = float(np.mean(classes)) if classes else float("nan")
    print("mean: " + ", ".join(f"{key} {value:.3f}" for key, value in means.items()))
    write_results(RESULTS / "novelty.json", {"sets": document, "mean": means})


if __name__ == "__main__":
    main()
