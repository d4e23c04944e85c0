"""Accuracy on 12-bit images in 16-bit files, scaled over 16 bits and over the depth that the audit finds.

    python benchmarks/sample_depth.py DIR [DIR ...]

Writes each folder in gray, as 8-bit PNG and as 12-bit samples in 16-bit PNG, and cross-validates the linear classifier on the
last stage of the default backbone. Results go to benchmarks/results/sample_depth.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from PIL import Image

from benchmarks.common import RESULTS, write_results
from transferapp.backbones.feature_store import CENTER, FeatureStore
from transferapp.backbones.registry import DEFAULT_BACKBONE
from transferapp.config import make_config
from transferapp.data.sources import open_source
from transferapp.images import SAMPLE_BITS
from transferapp.recipes.features import Featurized, featurize
from transferapp.system.progress import Silent
from transferapp.training.probe import cross_validate

SHORT_SIDE = 256


def write_gray(source: Path, target: Path, bits: int) -> Path:
    """Write the images of a source in gray with samples of `bits` bits, in class folders below `target`."""
    dataset = open_source(str(source))
    for number, record in enumerate(dataset.records):
        image = record.decode(SHORT_SIDE).image.convert("L")
        image.thumbnail((2 * SHORT_SIDE, 2 * SHORT_SIDE))
        samples = np.asarray(image)
        if bits > 8:
            samples = (samples.astype(np.uint32) * ((1 << bits) - 1) // 255).astype(np.uint16)
        folder = target / dataset.class_names[record.label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(samples).save(folder / f"{number}.png")
    return target


def accuracy(seen: Featurized, rows: np.ndarray) -> float:
    assert seen.trunk is not None
    top = rows[:, seen.trunk.row_slices[seen.trunk.top.index]]
    dataset = seen.dataset.in_order_of_content()  # the folds follow the order
    order = [seen.dataset.records.index(record) for record in dataset.records]
    found = cross_validate(top[order], dataset.labels, len(dataset.class_names), groups=dataset.groups())
    return float((found.logits.argmax(axis=1) == dataset.labels).mean())


def measured(folder: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as scratch:
        seen = {}
        for bits in (8, 12):
            written = write_gray(folder, Path(scratch) / str(bits), bits)
            seen[bits] = featurize(make_config({"data": str(written), "backbone": DEFAULT_BACKBONE}), Silent())
        trunk = seen[12].trunk
        assert trunk is not None
        records = [dataclasses.replace(record, sample_bits=max(SAMPLE_BITS)) for record in seen[12].dataset.records]
        full_range = FeatureStore(trunk).collect(records, [CENTER])[:, 0]
        return {
            "num_images": len(seen[8].dataset),
            "8 bits": accuracy(seen[8], seen[8].rows),
            "12 bits, over 16": accuracy(seen[12], full_range),
            "12 bits, over 12": accuracy(seen[12], seen[12].rows),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR")
    found = {folder.name: measured(folder) for folder in parser.parse_args().folders}
    for name, figures in found.items():
        print(f"{name}:", ", ".join(f"{key} {value:.3f}" for key, value in figures.items() if key != "num_images"))
    write_results(RESULTS / "sample_depth.json", found)


if __name__ == "__main__":
    main()
