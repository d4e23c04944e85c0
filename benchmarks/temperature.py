"""Loss on held-out images with temperatures fitted to plain and to smoothed labels, on few training images.

    python benchmarks/temperature.py DIR [DIR ...]

A linear classifier on the last stage of Lite0 is trained on 4, 8, 16 and 32 images of each class, four times, and measured on
all others (docs/decisions/0025-temperature.md).
"""

from __future__ import annotations

import argparse
import math

import numpy as np
from scipy.optimize import minimize_scalar

from transferapp.backbones.feature_store import CENTER, FeatureStore
from transferapp.backbones.registry import DEFAULT_BACKBONE, backbone_spec
from transferapp.config import FitConfig
from transferapp.data.sources import open_source
from transferapp.evaluation.metrics import fit_temperature
from transferapp.recipes.fit.measure import audit_and_split, backbone_loader
from transferapp.system.progress import Silent
from transferapp.training.probe import cross_validate, fit_probe, log_losses


def plain_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature of the least loss on the labels as they are."""

    def loss(log_temperature: float) -> float:
        return float(log_losses(logits / math.exp(log_temperature), labels).mean())

    return math.exp(float(minimize_scalar(loss, bounds=(math.log(0.2), math.log(5.0)), method="bounded").x))


def features_of(data: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the features of the last stage, float32 (n, channels), and the labels, int64 (n,)."""
    config, spec = FitConfig(data=data), backbone_spec(DEFAULT_BACKBONE)
    source = open_source(data)
    with backbone_loader(config, source) as loader:
        loader.start(spec)
        dataset, _ = audit_and_split(source, config, Silent())
        trunk = loader.trunk(spec)
        rows = FeatureStore(trunk).collect(dataset.records, [CENTER])[:, 0]
    return rows[:, trunk.row_slices[trunk.top.index]], dataset.labels


def main() -> None:
    """Print one line for each set and number of training images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="+")
    for data in parser.parse_args().data:
        features, labels = features_of(data)
        num_classes = int(labels.max()) + 1
        for per_class in (4, 8, 16, 32):
            found = []
            for seed in range(4):
                rng = np.random.default_rng(seed)
                shuffled = [rng.permutation(np.flatnonzero(labels == label)) for label in range(num_classes)]
                train = np.concatenate([positions[:per_class] for positions in shuffled])
                rest = np.setdiff1d(np.arange(len(labels)), train)
                if len(rest) < 40:
                    continue
                validation = cross_validate(features[train], labels[train], num_classes, seed=seed)
                probe = fit_probe(features[train], labels[train], num_classes, validation.l2)
                logits = probe.logits(features[rest])
                fits = [fit(validation.logits, labels[train]) for fit in (plain_temperature, fit_temperature)]
                losses = [log_losses(logits / temperature, labels[rest]).mean() for temperature in fits]
                found.append([float((logits.argmax(axis=1) == labels[rest]).mean()), *losses])
            if found:
                accuracy, plain, smoothed = np.mean(found, axis=0)
                images = per_class * num_classes
                print(
                    f"{data} {images:4} images: accuracy {accuracy:.3f}, loss {plain:.3f} plain, {smoothed:.3f} smoothed"
                )


if __name__ == "__main__":
    main()
