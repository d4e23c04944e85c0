"""The average of the linear classifier and a fine-tuned network, against each of them, on the test images.

    python benchmarks/blend.py DIR... [--seeds 2] [--budget auto]

Each fit is the default command's, up to the choice; a folder with test images of its own has the same ones for every seed.
`ships` is what the choice takes, by the validation images alone. Results are added to benchmarks/results/blend.json.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from benchmarks.common import RESULTS, image_folder, read_results, set_name, write_results
from transferapp.backbones.feature_store import center_pixels
from transferapp.config import make_config
from transferapp.data.sources import open_source
from transferapp.policy.choose import choose
from transferapp.recipes.fit.blend import blend
from transferapp.recipes.fit.candidate import Candidate
from transferapp.recipes.fit.export import build_network
from transferapp.recipes.fit.fine_tune import fine_tune
from transferapp.recipes.fit.measure import Measurement, backbone_loader, measure
from transferapp.recipes.fit.resume import RunFolder
from transferapp.recipes.fit.solve import choose_views, solve
from transferapp.system.progress import Silent


def trial(data: str, seed: int, budget: str, folder: Path) -> dict[str, Any] | None:
    """Return the accuracies of one split; None where nothing is fine-tuned on the chosen backbone."""
    config = make_config({"data": data, "seed": seed, "budget": budget, "out": str(folder / "bundle")})
    source, run, progress = open_source(data), RunFolder(folder / "bundle"), Silent()
    with backbone_loader(config, source) as loader:
        measurement = measure(config, source, loader, progress)
        views = choose_views(measurement, config, progress)
        solved = solve(measurement, views, config, progress)
        run.begin({})
        tuned = fine_tune(measurement, solved, views.views, config, loader, run, progress)
        val = measurement.dataset.part("val")
        found = blend(solved, tuned, val)
        if found is None:
            return None
        winner = choose((solved, *tuned), val.groups(), blend=found)
        network = loader.model(measurement.chosen.spec)
        named = {"linear": solved, "tuned": found.network, "average": found.average}
        ships = next((name for name, each in named.items() if each is winner), winner.name)
        return {
            "seed": seed,
            "training_images": len(measurement.dataset.part("train")),
            "test_images": len(measurement.dataset.part("test")),
            "validation": {name: each.accuracy for name, each in named.items()},
            "test": {name: test_accuracy(each, measurement, network) for name, each in named.items()},
            "ships": ships,
        }


def test_accuracy(candidate: Candidate, measurement: Measurement, network: Any) -> float:
    """Return the accuracy of a candidate's network on the center views of the test images."""
    backbone, test = measurement.chosen, measurement.dataset.part("test")
    assert candidate.classifier is not None
    model = build_network(candidate.classifier, network, backbone.trunk.stages, "blend")
    right = 0
    for start in range(0, len(test), 32):
        records = test.records[start : start + 32]
        pixels = np.stack([center_pixels(each, backbone.trunk.image_size, backbone.geometry) for each in records])
        found = model.predict_on_batch(pixels.astype(np.float32)).argmax(axis=1)
        right += int((found == test.labels[start : start + 32]).sum())
    return right / len(test)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--budget", default="auto")
    arguments = parser.parse_args()
    path = RESULTS / "blend.json"
    for data in arguments.folders:
        trials = []
        for seed in range(arguments.seeds):
            with tempfile.TemporaryDirectory() as name:
                found = trial(str(image_folder(data)), seed, arguments.budget, Path(name))
            if found is not None:
                trials.append(found)
                print(set_name(data), found, flush=True)
        write_results(path, {**read_results(path), set_name(data): trials})


if __name__ == "__main__":
    main()
