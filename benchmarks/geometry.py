"""Test accuracy with the center crop, whole images resized and whole images padded, and what `fit --geometry auto` chooses.

    python benchmarks/geometry.py SET [...] [--seeds 3] [--images 400] [--backbone NAME]

A SET is a folder, FOLDER@ASPECT, or FOLDER+ASPECT. `dogs@3` is the largest strip of each image that is three times as wide as
high. `trash+4` is a canvas four times as wide as high, with the image at its left or right end and a part of an image of the
folder `--filler` in the rest. For each seed a quarter of the images is held out; the classifier is a mixture of stages, as in a
fit, and its cross-validation on the other images chooses the geometry, whatever the aspect. Results go to
benchmarks/results/geometry.json.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from PIL import Image

from benchmarks.common import RESULTS, Split, read_images, read_results, set_name, splits, write_results
from transferapp.backbones.feature_store import CENTER, WITHOUT_COLOR, FeatureStore
from transferapp.backbones.loader import BackboneLoader
from transferapp.backbones.registry import backbone_spec
from transferapp.backbones.trunk import Trunk
from transferapp.data.dataset import Record
from transferapp.images import DATASET_LIMITS, decode_image
from transferapp.images.views import GEOMETRIES, Geometry
from transferapp.policy.geometry import elongated_share, geometries_to_try, judge_geometry
from transferapp.system.threads import cpu_cores
from transferapp.training.mixture import combine, mix
from transferapp.training.probe import cross_validate, cross_validation_folds, fit_probe, log_losses

SIDE = 256
"""Height of made images."""


def strip(image: Image.Image, aspect: float) -> Image.Image:
    """Return the largest box of an aspect (width over height) from the middle of an image."""
    width, height = min(image.width, aspect * image.height), min(image.height, image.width / aspect)
    left, top = (image.width - width) / 2, (image.height - height) / 2
    high = min(SIDE, round(height))
    return image.resize((round(aspect * high), high), Image.Resampling.BICUBIC, (left, top, left + width, top + height))


def at_an_end(image: Image.Image, other: Image.Image, aspect: float, right: bool) -> Image.Image:
    """Return an image at one end of a canvas of an aspect (width over height), and another in the rest of it."""
    width = round(SIDE * aspect)
    own = strip(image, 1.0).resize((SIDE, SIDE))
    canvas = strip(other, aspect - 1).resize((width - SIDE, SIDE))
    made = Image.new("RGB", (width, SIDE))
    made.paste(own, (width - SIDE if right else 0, 0))
    made.paste(canvas, (0 if right else SIDE, 0))
    return made


def made_folder(name: str, options: argparse.Namespace, root: Path) -> Path:
    """Return the folder of a set, written below `root` where it is made of another."""
    found = re.fullmatch(r"(.*)([@+])([\d.]+)", name)
    if found is None:
        return Path(name)
    base, kind, aspect = Path(found[1]), found[2], float(found[3])
    _, records, class_names = read_images(str(base), options.images)
    rng = np.random.default_rng(0)
    others = read_images(options.filler, options.images)[1] if kind == "+" else ()
    long = np.random.default_rng(1).random(len(records)) < options.share
    folder = root / f"{base.name}{kind}{aspect:g}"
    for index, record in enumerate(records):
        image = opened(record)
        if not long[index]:
            made = image
        elif kind == "@":
            made = strip(image, aspect)
        else:
            made = at_an_end(image, opened(others[rng.integers(len(others))]), aspect, bool(rng.random() < 0.5))
        place = folder / class_names[record.label]
        place.mkdir(parents=True, exist_ok=True)
        made.save(place / f"{index:05}.png")
    return folder


def opened(record: Record) -> Image.Image:
    return decode_image(record.path, limits=DATASET_LIMITS, min_short_side=SIDE).image


@dataclass(frozen=True, eq=False)
class Fitted:
    """Held-out losses and answers of the cross-validation, and figures on the test images."""

    losses: np.ndarray
    correct: np.ndarray
    test_accuracy: float
    test_loss: float


def fitted(trunk: Trunk, rows: np.ndarray, labels: np.ndarray, split: Split) -> Fitted:
    """Solve a mixture of stages on the training images of a split and measure it on the others."""
    num_classes, train, test = int(labels.max()) + 1, split.train, split.held_out
    taps = trunk.mixture_taps
    features = [trunk.features(rows, [tap]) for tap in taps]
    validations = [cross_validate(each[train], labels[train], num_classes, seed=split.seed) for each in features]
    folds = cross_validation_folds(labels[train], split.seed)
    mixture = mix([validation.logits for validation in validations], labels[train], folds)
    used = np.flatnonzero(mixture.weights)
    probes = [fit_probe(features[i][train], labels[train], num_classes, validations[i].l2) for i in used]
    combined = combine(probes, mixture.weights[used].tolist())
    logits = combined.logits(np.concatenate([features[i][test] for i in used], axis=1))
    return Fitted(
        log_losses(mixture.logits, labels[train]),
        mixture.logits.argmax(axis=1) == labels[train],
        float((logits.argmax(axis=1) == labels[test]).mean()),
        float(log_losses(logits, labels[test]).mean()),
    )


def measured(name: str, folder: Path, trunk: Trunk, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of a set in each geometry, by seed, and their means."""
    _, records, _ = read_images(str(folder), options.images)
    labels = np.array([record.label for record in records])
    elongated = elongated_share([record.size for record in records if record.size])
    rows = {
        geometry: FeatureStore(
            trunk, workers=cpu_cores(), random_views=replace(WITHOUT_COLOR, geometry=geometry)
        ).collect(records, [CENTER])[:, 0]
        for geometry in GEOMETRIES
    }
    trials: list[dict[str, Any]] = []
    for split in splits(labels, options.seeds):
        found: dict[Geometry, Fitted] = {g: fitted(trunk, rows[g], labels, split) for g in GEOMETRIES}
        held_out, correct = {g: f.losses for g, f in found.items()}, {g: f.correct for g, f in found.items()}
        finding = judge_geometry("auto", elongated, held_out, correct, np.arange(len(split.train)))
        tried = geometries_to_try("auto", elongated)
        trials.append(
            {
                "seed": split.seed,
                "accuracy": {g: f.test_accuracy for g, f in found.items()},
                "loss": {g: f.test_loss for g, f in found.items()},
                "saved": {each.geometry: each.saved for each in finding.tried[1:]},
                "error": {each.geometry: each.standard_error for each in finding.tried[1:]},
                "chosen": finding.geometry,
                "auto": finding.geometry if finding.geometry in tried else "crop",
            }
        )
    gain = {
        how: float(np.mean([t["accuracy"][t[how]] - t["accuracy"]["crop"] for t in trials]))
        for how in ("chosen", "auto")
    }
    means = {g: float(np.mean([t["accuracy"][g] for t in trials])) for g in GEOMETRIES}
    losses = {g: float(np.mean([t["loss"][g] for t in trials])) for g in GEOMETRIES}
    chosen = [t["chosen"] for t in trials]
    accuracies = ", ".join(f"{g} {means[g]:.3f} (loss {losses[g]:.3f})" for g in GEOMETRIES)
    print(
        f"{name}: {len(records)} images, {elongated:.0%} elongated; {accuracies}; chosen if tried: {' '.join(chosen)} "
        f"({100 * gain['chosen']:+.1f} points); auto {100 * gain['auto']:+.1f} points",
        flush=True,
    )
    return {
        "backbone": options.backbone,
        "images": len(records),
        "elongated": elongated,
        "accuracy": means,
        "loss": losses,
        "gain": gain,
        "trials": trials,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("sets", nargs="+", help="folders, FOLDER@ASPECT or FOLDER+ASPECT")
    parser.add_argument("--seeds", type=int, default=3, help="splits (%(default)s)")
    parser.add_argument("--images", type=int, default=400, help="images of each set at most (%(default)s)")
    parser.add_argument("--share", type=float, default=1.0, help="share of the images that are made long (%(default)s)")
    parser.add_argument("--filler", default="", help="folder of images for the rest of FOLDER+ASPECT")
    parser.add_argument("--backbone", default="efficientnet_lite0", help="(%(default)s)")
    options = parser.parse_args()
    document = read_results(RESULTS / "geometry.json")
    spec = backbone_spec(options.backbone)
    with BackboneLoader(((512, 512),)) as loader, tempfile.TemporaryDirectory() as root:
        trunk = loader.trunk(spec)
        for name in options.sets:
            share = f" of {options.share:.0%}" if options.share < 1 else ""
            key = f"{set_name(name)}{share}"
            document[key] = measured(key, made_folder(name, options, Path(root)), trunk, options)
            write_results(RESULTS / "geometry.json", document)


if __name__ == "__main__":
    main()
