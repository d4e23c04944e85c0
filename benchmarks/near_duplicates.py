"""Share of near-duplicates that are found, by the way they were made, and false alarms: by signature, by features, by either.

    python benchmarks/near_duplicates.py DIR [DIR ...] [textile]
    python benchmarks/near_duplicates.py --random 30000

Makes near-duplicates of some images of each folder (saved again, scaled, cropped, rotated, mirrored, ...) and compares them
with their originals by signature, and by the cosine of the default backbone's last features. Pairs of the folder's own images
are listed, because most are true duplicates: look at them. Results go to benchmarks/results/near_duplicates.json. `--random`
times the comparison of so many signatures of noise.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from PIL import Image, ImageOps

from benchmarks.common import RESULTS, image_folder, set_name, spread, write_results
from transferapp.backbones.feature_store import CENTER, view_pixels
from transferapp.backbones.registry import DEFAULT_BACKBONE
from transferapp.config import make_config
from transferapp.data.near_duplicates import (
    MIN_COSINE,
    THUMBNAIL_SIDE,
    near_duplicates,
    read_signatures,
    signature,
    similar_rows,
    too_uniform,
)
from transferapp.recipes.features import Featurized, featurize
from transferapp.system.progress import Silent

IMAGES = 60
BATCH = 16
LISTED = 20


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
    return cropped(image.rotate(degrees, Image.Resampling.BICUBIC), 0.02 * abs(degrees))


def cut_at(image: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    """Remove a share of the length at each side."""
    width, height = image.size
    return image.crop((int(left * width), int(top * height), int(width - right * width), int(height - bottom * height)))


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
    "15 % off a corner": lambda image: cut_at(image, 0.15, 0, 0, 0.15),
    "15 % off one side": lambda image: cut_at(image, 0, 0, 0.15, 0),
    "cropped 25 %": lambda image: cropped(image, 0.25),
    "rotated 2 degrees": lambda image: rotated(image, 2),
    "rotated 5 degrees": lambda image: rotated(image, 5),
    "rotated -5 degrees": lambda image: rotated(image, -5),
    "with black corners": lambda image: image.rotate(5, Image.Resampling.BICUBIC),
    "rotated 8 degrees": lambda image: rotated(image, 8),
}


def by_signature(originals: list[Image.Image], copies: list[Image.Image]) -> np.ndarray:
    """Whether each duplicate is found: bool, shape (n,)."""
    signatures = [signature(image) for image in (*originals, *copies)]
    signed = [position for position, each in enumerate(signatures) if each]
    pairs = near_duplicates(read_signatures([signatures[position] for position in signed]))
    found = {(signed[left], signed[right]) for left, right in pairs}
    return np.array([(i, i + len(originals)) in found for i in range(len(originals))])


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
    records, trunk = seen.dataset.records, seen.trunk
    assert trunk is not None
    top = seen.rows[:, trunk.row_slices[trunk.top.index]]
    uniform = too_uniform(top, seen.dataset.labels)
    chosen = [records[i] for i in spread(len(records), IMAGES)]
    originals = [r.decode(256).image for r in chosen]
    own = features(seen, originals)
    recall = {}
    for name, make in COPIES.items():
        copies = [make(image) for image in originals]
        signed = by_signature(originals, copies)
        theirs = features(seen, copies)
        norms = np.linalg.norm(own, axis=1) * np.linalg.norm(theirs, axis=1)
        alike = (own * theirs).sum(axis=1) / norms >= MIN_COSINE if not uniform else np.zeros(len(own), dtype=bool)
        recall[name] = {
            "signature": float(signed.mean()),
            "features": float(alike.mean()),
            "either": float((signed | alike).mean()),
        }
    names = [record.name for record in records]
    clusters: dict[str, list[int]] = defaultdict(list)
    for position, record in enumerate(records):
        if record.cluster:
            clusters[record.cluster].append(position)
    pairs = [] if uniform else [(i, j) for i, j, _ in similar_rows(top)]
    clustered = {position for members in clusters.values() for position in members}
    seen_alike = {position for pair in pairs for position in pair}
    return {
        "num_images": len(records),
        "recall": recall,
        "own": {"signature": len(clustered), "features": len(seen_alike), "either": len(clustered | seen_alike)},
        "uniform": uniform,
        "clusters_by_signature": [[names[position] for position in members] for members in clusters.values()],
        "pairs_by_features": [[names[i], names[j]] for i, j in pairs],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", metavar="DIR", help="folders, or the word textile")
    parser.add_argument("--random", type=int, default=0, metavar="COUNT", help="signatures of noise to compare")
    arguments = parser.parse_args()
    if arguments.random:
        noise = np.random.default_rng(0).integers(0, 256, (arguments.random, THUMBNAIL_SIDE**2, 3), dtype=np.uint8)
        started = time.process_time()
        pairs = len(list(near_duplicates(noise)))
        print(f"{arguments.random:,} signatures, {pairs} pairs: {time.process_time() - started:.1f} core seconds")
    found = {set_name(name): measured(image_folder(name)) for name in arguments.folders}
    for name, document in found.items():
        own = document["own"]
        print(f"{name}: {document['num_images']} images{', too uniform for features' if document['uniform'] else ''}")
        print(f"  {'copy':<20} {'signature':>9} {'features':>9} {'either':>7}")
        for kind, share in document["recall"].items():
            print(f"  {kind:<20} {share['signature']:>9.2f} {share['features']:>9.2f} {share['either']:>7.2f}")
        print(f"  {'images of the set':<20} {own['signature']:>9} {own['features']:>9} {own['either']:>7}")
        for group in (*document["clusters_by_signature"], *document["pairs_by_features"])[:LISTED]:
            print(f"    {', '.join(group)}")
    if found:
        write_results(RESULTS / "near_duplicates.json", found)


if __name__ == "__main__":
    main()
