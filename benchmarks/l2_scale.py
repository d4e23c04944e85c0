"""Best L2 strength of the linear classifier, by the number of training images.

    python benchmarks/l2_scale.py DIR --held-out 4000 --images 1000 2000 4000 8000

Holds some images of a folder out, solves the classifier on the last stage of the default backbone on more and more of the
others, and prints the strength of the lowest held-out loss, the loss there, and the loss at the best strength of the fewest
images: as it is, and scaled by the number of images or its root. Results go to benchmarks/results/l2_scale.json.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from benchmarks.common import RESULTS, image_folder, read_results, set_name, write_results
from transferapp.backbones.registry import DEFAULT_BACKBONE
from transferapp.config import make_config
from transferapp.recipes.features import featurize
from transferapp.system.progress import Silent
from transferapp.training.probe import fit_probe, log_losses

STRENGTHS = 10.0 ** np.arange(0.5, -3.75, -0.25)
STEPS_PAST_BEST = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DIR", help="a folder, or the word textile")
    parser.add_argument("--held-out", type=int, default=4000)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 2000, 4000, 8000])
    arguments = parser.parse_args()
    seen = featurize(make_config({"data": str(image_folder(arguments.data)), "backbone": DEFAULT_BACKBONE}), Silent())
    assert seen.trunk is not None
    features, labels = seen.rows[:, seen.trunk.row_slices[seen.trunk.top.index]], seen.dataset.labels
    order = np.random.default_rng(0).permutation(len(labels))
    held_out, others = order[: arguments.held_out], order[arguments.held_out :]

    def loss(count: int, l2: float) -> float:
        chosen = others[:count]
        probe = fit_probe(features[chosen], labels[chosen], len(seen.dataset.class_names), l2)
        return float(log_losses(probe.logits(features[held_out]), labels[held_out]).mean())

    found: list[dict[str, float]] = []
    for count in arguments.images:
        losses: list[float] = []
        for l2 in STRENGTHS:
            losses.append(loss(count, float(l2)))
            if len(losses) - int(np.argmin(losses)) > STEPS_PAST_BEST:
                break
        best = float(STRENGTHS[int(np.argmin(losses))])
        first = found[0] if found else {"l2": best, "images": count}
        powers = {
            name: loss(count, first["l2"] * (first["images"] / count) ** power)
            for name, power in (("as it is", 0.0), ("by the root", 0.5), ("in proportion", 1.0))
        }
        found.append({"images": count, "l2": best, "loss": min(losses), **powers})
        shown = ", ".join(f"{name} {value:.3f}" for name, value in powers.items())
        print(f"{count:>6} images: best {best:.4f}, loss {min(losses):.3f}; {shown}", flush=True)
    path = RESULTS / "l2_scale.json"
    write_results(path, {**read_results(path), set_name(arguments.data): found})


if __name__ == "__main__":
    main()
