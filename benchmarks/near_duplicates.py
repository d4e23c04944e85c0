"""Share of duplicates that the audit finds, by the way they were made, and its false alarms.

    python benchmarks/near_duplicates.py DIR [DIR ...]

Makes duplicates of some images of each folder (saved again, scaled, cropped, rotated, mirrored, ...) and compares them with
their originals as the audit does: by signature, and by the cosine of the default backbone's last features. False alarms are
pairs of the folder's own images; look at them, for most are duplicates. Results go to
benchmarks/results/near_duplicates.json.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from PIL import Image, ImageOps

from benchmarks.common import RESULTS, spread, write_results
from transferapp.backbones.feature_store import CENTER, view_pixels
from transferapp.backbones.registry import DEFAULT_BACKBONE
from transferapp.config import make_config
from transferapp.data.near_duplicates import MIN_COSINE, near_duplicates, read_signatures, signature, similar_rows
from transferapp.recipes.features import Featurized, featurize
from transferapp.system.progress import Silent

IMAGES = 60
BATCH = 16


def saved(image: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream).convert("RGB")


def cropped(image: Image.Image, share: float) -> Image.Image:
    """Remove a share of the length of each side, half at either end."""
    across, down = int(image.width * share / 2), int(image.height * share / 2)
    return image.crop((across, down, image.width - across, image.height - down))


def rotated(image: Image.Image, degrees: float) -> Image.Image:
    """Rotate, and crop off the empty corners."""
    return cropped(image.rotate(degrees, Image.Resampling.BICUBIC), 0.02 * degrees)


def smaller(image: Image.Image, factor: float) -> Image.Image:
    return image.resize((max(17, int(image.width * factor)), max(17, int(image.height * factor))))


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG, quality 40": lambda image: saved(image, 40),
    "half the size": lambda image: smaller(image, 0.5),
    "a quarter": lambda image: smaller(image, 0.25),
    "mirrored": ImageOps.mirror,
    "a quarter brighter": lambda image: image.point(lambda value: min(255, int(1.25 * value))),
    "CMYK": lambda image: image.convert("CMYK").convert("RGB"),
    "black and white": lambda image: image.convert("L").convert("RGB"),
    "cropped 4 %": lambda image: cropped(image, 0.04),
    "cropped 8 %": lambda image: cropped(image, 0.08),
    "cropped 15 %": lambda image: cropped(image, 0.15),
    "rotated 2 degrees": lambda image: rotated(image, 2),
    "rotated 5 degrees": lambda image: rotated(image, 5),
}


def by_signature(originals: list[Image.Image], copies: list[Image.Image]) -> list[bool]:
    """Whether each duplicate is found, compared with its own original alone."""
    found = []
    for pair in zip(originals, copies, strict=True):
        signatures = [signature(image) for image in pair]
        found.append(all(signatures) and bool(list(near_duplicates(read_signatures(signatures)))))
    return found


def features(seen: Featurized, images: list[Image.Image]) -> np.ndarray:
    """Features of the last stage for the center views."""
    trunk = seen.trunk
    assert trunk is not None
    columns = trunk.row_slices[trunk.top.index]
    views = [view_pixels(image, CENTER, "", trunk.image_size) for image in images]
    batches = [np.stack(views[start : start + BATCH]) for start in range(0, len(views), BATCH)]
    return np.concatenate([trunk.rows(batch)[:, columns] for batch in batches])


def measured(folder: Path) -> dict[str, Any]:
    """Recall by kind of duplicate, and the pairs found in the folder as it is."""
    seen = featurize(make_config({"data": str(folder), "backbone": DEFAULT_BACKBONE}), Silent())
    records = seen.dataset.records
    chosen = [records[i] for i in spread(len(records), IMAGES)]
    originals = [r.decode(256).image for r in chosen]
    own = features(seen, originals)
    recall = {}
    for name, make in COPIES.items():
        copies = [make(image) for image in originals]
        signed = np.array(by_signature(originals, copies))
        theirs = features(seen, copies)
        norms = np.linalg.norm(own, axis=1) * np.linalg.norm(theirs, axis=1)
        alike = (own * theirs).sum(axis=1) / norms >= MIN_COSINE
        recall[name] = {
            "signature": float(signed.mean()),
            "features": float(alike.mean()),
            "either": float((signed | alike).mean()),
        }
    trunk = seen.trunk
    assert trunk is not None
    groups = seen.dataset.groups()
    pairs = similar_rows(seen.rows[:, trunk.row_slices[trunk.top.index]])
    return {
        "num_images": len(records),
        "recall": recall,
        "clusters_by_signature": len({record.cluster for record in records} - {""}),
        "further_pairs_by_features": sum(bool(groups[i] != groups[j]) for i, j, _ in pairs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR")
    found = {folder.name: measured(folder) for folder in parser.parse_args().folders}
    for name, document in found.items():
        print(
            f"{name}: {document['num_images']} images, {document['clusters_by_signature']} groups of duplicates by signature, "
            f"{document['further_pairs_by_features']} further pairs by features"
        )
        print(f"  {'copy':<20} {'signature':>9} {'features':>9} {'either':>7}")
        for kind, share in document["recall"].items():
            print(f"  {kind:<20} {share['signature']:>9.2f} {share['features']:>9.2f} {share['either']:>7.2f}")
    write_results(RESULTS / "near_duplicates.json", found)


if __name__ == "__main__":
    main()
