"""From a solved head to a network that can be served, checked against the Keras model on real images."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from transferapp.backbones.engine import BATCH_SIZE, KerasEngine, OpenVINOEngine, resolve_precision
from transferapp.backbones.feature_store import center_pixels
from transferapp.backbones.stages import stage_named
from transferapp.config import FitConfig
from transferapp.data.dataset import Dataset, Record
from transferapp.errors import TrainingError
from transferapp.evaluation.metrics import measure as measure_scores
from transferapp.evaluation.parity import Parity, compare
from transferapp.recipes.fit.measure import Candidate, Measurement
from transferapp.recipes.fit.solve import Solved
from transferapp.system.progress import Progress
from transferapp.system.threads import cpu_cores, in_order

if TYPE_CHECKING:
    import keras

    from transferapp.recipes.fit.fine_tune import BakeOff

PARITY_IMAGES = 16


def build_network(
    backbone: keras.Model, chosen: Candidate, solved: Solved, tuned: BakeOff | None, name: str
) -> keras.Model:
    """The whole classifier as a Keras model, pixels 0-255 to probabilities.

    Args:
        backbone: The chosen one, with the weights that the bake-off left in it.
        chosen: Has the stages and the cut.
        solved: The solved classifier.
        tuned: The bake-off, if there was one.
        name: The model's name.
    """
    from transferapp.training.heads import attach_head, attach_probe
    from transferapp.training.tail import attach_ensemble

    if tuned is not None and tuned.head is not None and tuned.temperature is not None:
        if tuned.members:
            cut = next((s for s in chosen.trunk.stages if s.name == tuned.winner.cut), None)
            return attach_ensemble(
                backbone, chosen.trunk.stages, cut, tuned.head, tuned.members, tuned.temperature, _identifier(name)
            )
        stage = stage_named(chosen.trunk.stages, tuned.stage)
        return attach_head(backbone, stage, tuned.head, tuned.temperature, _identifier(name))
    return attach_probe(backbone, chosen.cut, solved.probe, solved.temperature, _identifier(name))


def _identifier(name: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in name) or "classifier"


def check_parity(
    network: keras.Model, converted: Any, dataset: Dataset, chosen: Candidate, config: FitConfig
) -> tuple[dict[str, Parity], str]:
    """Compare the exported network with the Keras model on real images; returns the figures and the precision to serve.

    Raises:
        TrainingError: The export differs by more than rounding.
    """
    part = next(p for p in (dataset.part("val"), dataset.part("test"), dataset.part("train")) if len(p))
    records = part.spread(PARITY_IMAGES).records
    return served_precision(
        network,
        converted,
        np.stack([center_pixels(record, chosen.trunk.image_size) for record in records]),
        config.precision,
        differs="The exported network differs from the trained one",
        report="the name of the backbone; --backbone efficientnet_lite0 is known to export well",
    )


def served_precision(
    network: keras.Model, converted: Any, pixels: np.ndarray, precision: str, *, differs: str, report: str
) -> tuple[dict[str, Parity], str]:
    """How far an exported network is from the Keras model, and the precision to serve it in: what is wanted, if it agrees.

    Args:
        network: The Keras model.
        converted: The same for OpenVINO.
        pixels: Images to compare on: uint8, shape (n, height, width, 3).
        precision: What is wanted: `f32`, `bf16` or `auto`.
        differs: How an error begins that says they do not agree.
        report: What to report then.

    Returns:
        The figures by precision, and the name of one of them.

    Raises:
        TrainingError: In f32 they differ by more than rounding.
    """
    wanted = resolve_precision(precision)
    # Keras spends most of its time in tracing, on one core: OpenVINO has the other meanwhile.
    with ThreadPoolExecutor(1) as pool:
        keras_scores = pool.submit(KerasEngine(network), pixels)
        scores = {p: OpenVINOEngine(converted, precision=p)(pixels) for p in dict.fromkeys(["f32", wanted])}
        reference = keras_scores.result()
    parity = {name: compare(reference, given, name) for name, given in scores.items()}
    if not parity["f32"].acceptable:
        raise TrainingError(
            f"{differs} by {parity['f32'].max_difference:.3g} in a probability",
            expected="agreement to rounding",
            hint=f"Please report this with {report}",
        )
    return parity, wanted if parity[wanted].acceptable else "f32"


def measured_again(
    solved: Solved, tuned: BakeOff, converted: Any, precision: str, measurement: Measurement, progress: Progress
) -> Solved:
    """The figures of a tuned network: on the validation images those of the bake-off, on the test images its own, anew.

    Args:
        solved: The classifier that it started from.
        tuned: The bake-off that it won.
        converted: The whole network, for OpenVINO.
        precision: In which it is served.
        measurement: Has the images.
        progress: Who is told.
    """
    dataset, size = measurement.dataset, measurement.chosen.trunk.image_size
    test = dataset.part("test")
    assert tuned.temperature is not None
    metrics, probabilities = None, solved.test_probabilities
    if len(test):
        workers = cpu_cores()
        engine = OpenVINOEngine(converted, precision=precision, streams=workers)
        with (
            progress.task(f"{len(test)} test images", len(test)) as advance,
            ThreadPoolExecutor(workers) as pool,
        ):

            def scores(records: Sequence[Record]) -> np.ndarray:
                return engine(np.stack([center_pixels(record, size) for record in records]))

            batches = (test.records[i : i + BATCH_SIZE] for i in range(0, len(test), BATCH_SIZE))
            parts = []
            for part in in_order(pool, scores, batches, 2 * workers):
                parts.append(part)
                advance(sum(map(len, parts)))
        probabilities = np.concatenate(parts)
        metrics = measure_scores(probabilities, test.labels, dataset.class_names)
    return replace(
        solved,
        temperature=tuned.temperature,
        validation=tuned.validation,
        test=metrics,
        test_probabilities=probabilities,
    )
