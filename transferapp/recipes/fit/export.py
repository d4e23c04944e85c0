"""Export: from a candidate to the network that is served, checked against the Keras model on real images."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import softmax

from transferapp.backbones.composition import compose_classifier
from transferapp.backbones.engine import BATCH_SIZE, KerasEngine, OpenVINOEngine, convert, resolve_precision
from transferapp.backbones.feature_store import CENTER, TEN_CROPS, center_pixels
from transferapp.backbones.stages import Stage, stage_named
from transferapp.backbones.trunk import Trunk
from transferapp.data.dataset import Dataset, Record
from transferapp.errors import ResourceError, TrainingError
from transferapp.evaluation.parity import Parity, compare
from transferapp.evaluation.test_time_views import CropScorer, on_pixels
from transferapp.images.views import Geometry
from transferapp.policy.cuts import INPUT
from transferapp.recipes.fit.candidate import Classifier, head_function
from transferapp.recipes.fit.measure import ProbedBackbone
from transferapp.system.progress import Progress
from transferapp.system.storage import write_bytes
from transferapp.system.threads import cpu_cores, in_order
from transferapp.training.saved_classifier import compose_saved

if TYPE_CHECKING:
    import keras

PARITY_IMAGES = 16


@dataclass(frozen=True, eq=False)
class Exported:
    """A network in both forms that a bundle holds.

    Attributes:
        network: The Keras model; None where it was not built.
        converted: The same for OpenVINO, with the features that the head reads as its second output.
        parity: Agreement of the two on real images, by precision; empty without a Keras model.
        precision: The precision to serve in.
        archive: The Keras model as a file, where it was composed without Keras.
    """

    network: keras.Model | None
    converted: Any
    parity: dict[str, Parity]
    precision: str
    archive: bytes | None = None

    @property
    def num_features(self) -> int:
        """Number of features that the head reads."""
        return int(self.converted.output(1).partial_shape[1].get_length())


def export(
    classifier: Classifier, backbone: ProbedBackbone, network: keras.Model, name: str, dataset: Dataset, precision: str
) -> Exported:
    """Build the network of a classifier, convert it, and compare both forms on real images.

    Args:
        classifier: The weights.
        backbone: The backbone that it was trained on.
        network: The Keras model of the backbone with pretrained weights, which stays unchanged.
        name: Name of the model.
        dataset: Has the images to compare on: validation images where there are any.
        precision: The wanted precision: `f32`, `bf16` or `auto`.

    Raises:
        TrainingError: In f32 the two forms differ by more than rounding.
    """
    from transferapp.training.tail import with_features

    classifying = build_network(classifier, network, backbone.trunk.stages, name)
    of_trunk = composed(classifier, backbone)
    converted = of_trunk or convert(with_features(classifying))
    parity, served = served_precision(
        classifying,
        converted,
        _center_batch(_parity_records(dataset), backbone),
        precision,
        differs="The exported network differs from the trained one",
        report="the name of the backbone; --backbone efficientnet_lite0 is known to export well",
    )
    if of_trunk is not None:
        _remember(backbone.trunk, classifier, parity["f32"])
    return Exported(classifying, converted, parity, served)


def export_early(
    classifier: Classifier, backbone: ProbedBackbone, name: str, dataset: Dataset, precision: str
) -> Exported | None:
    """Compose the network of a linear classifier without Keras, and compare it with the classifier on the trunk's features.

    Of a backbone that was compared with Keras before, the Keras model is composed too. That comparison holds in f32, where only
    rounding differs; how far bf16 is from it depends on the classifier, and is measured anew.

    Args:
        classifier, backbone, name, dataset, precision: As of `export`.

    Returns:
        None where the network cannot be composed, or differs in the precision of the trunk.
    """
    network, trunk = composed(classifier, backbone), backbone.trunk
    if network is None:
        return None
    wanted, own = resolve_precision(precision), trunk.engine.precision
    records, predict = _parity_records(dataset), frozen_classifier(classifier)
    pixels = _center_batch(records, backbone)
    scores = {p: OpenVINOEngine(network, precision=p)(pixels) for p in dict.fromkeys([wanted, own])}
    # Features are cached in the trunk's own precision, and those of these images in f32 too.
    expected, exact = (
        predict(trunk.features(store.collect(records, [CENTER])[:, 0], classifier.taps))
        for store in (backbone.store, backbone.store.for_trunk(trunk.in_f32()))
    )
    if not compare(expected, scores[own], own).acceptable:
        return None
    rounded, before = compare(exact, scores[wanted], wanted), _remembered(trunk, classifier)
    served = wanted if rounded.acceptable else "f32"
    if before is None:
        return Exported(None, network, {}, served)
    parity = {"f32": before, wanted: before if wanted == "f32" else rounded}
    archive = compose_saved(trunk, classifier.taps, classifier.head, classifier.temperature, _identifier(name))
    return Exported(None, network, parity if archive else {}, served, archive)


_COMPARED = "compared.json"
"""File beside a cached network: how a classifier on it agreed with Keras in f32, and the last stage that this one read."""


def _remember(trunk: Trunk, classifier: Classifier, parity: Parity) -> None:
    """Record how a composed network agreed with its Keras model in f32."""
    if trunk.saved is None:
        return
    document = {"stage": _last_stage(trunk, classifier), "parity": parity.to_json()}
    with contextlib.suppress(ResourceError):  # the next fit compares again
        write_bytes(trunk.saved.with_name(_COMPARED), json.dumps(document).encode())


def _remembered(trunk: Trunk, classifier: Classifier) -> Parity | None:
    """Return the agreement in f32, if the network was compared up to the last stage that a classifier reads."""
    if trunk.saved is None:
        return None
    try:
        document = json.loads(trunk.saved.with_name(_COMPARED).read_bytes())
        found = Parity(**document["parity"])
        reached = document["stage"] >= _last_stage(trunk, classifier)
        return found if reached and found.precision == "f32" and found.acceptable else None
    except (OSError, ValueError, KeyError, TypeError):  # missing, or damaged in whatever way
        return None


def _last_stage(trunk: Trunk, classifier: Classifier) -> int:
    return max(stage_named(trunk.stages, tap.stage).index for tap in classifier.taps)


def composed(classifier: Classifier, backbone: ProbedBackbone) -> Any | None:
    """Return a linear classifier on a frozen backbone as a network for OpenVINO; None where it cannot be composed."""
    if not _linear(classifier):
        return None
    head = classifier.head
    kernel, bias = head.weights
    return compose_classifier(
        backbone.trunk,
        classifier.taps,
        mean=head.mean,
        std=head.std,
        kernel=kernel,
        bias=bias,
        temperature=classifier.temperature,
    )


def _linear(classifier: Classifier) -> bool:
    """Return whether this is a linear classifier on the cached features of a frozen backbone."""
    return classifier.frozen and classifier.pooled and classifier.head.spec.linear


def _parity_records(dataset: Dataset) -> tuple[Record, ...]:
    """Return a few images to compare networks on: validation images where there are any."""
    part = next(p for p in (dataset.part("val"), dataset.part("test"), dataset.part("train")) if len(p))
    return part.drawn(PARITY_IMAGES).records


def _center_batch(records: Sequence[Record], backbone: ProbedBackbone) -> np.ndarray:
    """Return the center views of images as one batch."""
    with ThreadPoolExecutor(cpu_cores()) as pool:
        return np.stack(
            list(pool.map(lambda each: center_pixels(each, backbone.trunk.image_size, backbone.geometry), records))
        )


def build_network(classifier: Classifier, network: keras.Model, stages: Sequence[Stage], name: str) -> keras.Model:
    """Return the whole classifier as a Keras model, from pixels 0-255 to probabilities.

    Args:
        classifier: The weights.
        network: The Keras model of the backbone with pretrained weights, which stays unchanged.
        stages: Its stages, earliest first.
        name: Name of the model; characters that Keras does not take are replaced.
    """
    from transferapp.training.heads import attach_head
    from transferapp.training.tail import attach_tails

    identifier = _identifier(name)
    if classifier.frozen:
        return attach_head(network, stages, classifier.taps, classifier.head, classifier.temperature, identifier)
    cut = None if classifier.cut == INPUT else stage_named(tuple(stages), classifier.cut)
    linear = build_network(classifier.linear, network, stages, name) if classifier.linear else None
    return attach_tails(
        network, stages, cut, classifier.head, classifier.tails, classifier.temperature, identifier, linear
    )


def _identifier(name: str) -> str:
    """Return a name as Keras takes it for a model."""
    return "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in name) or "classifier"


def served_precision(
    network: keras.Model, converted: Any, pixels: np.ndarray, precision: str, *, differs: str, report: str
) -> tuple[dict[str, Parity], str]:
    """Return the agreement of an exported network with the Keras model by precision, and the precision to serve in.

    That is the wanted one if it agrees, otherwise f32.

    Args:
        network: The Keras model.
        converted: The same for OpenVINO.
        pixels: Images to compare on: uint8, shape (n, height, width, 3).
        precision: The wanted one: `f32`, `bf16` or `auto`.
        differs: Beginning of the error message where they do not agree.
        report: Facts to report in that case, for the hint.

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


def predict_test(
    classifier: Classifier, backbone: ProbedBackbone, exported: Exported, test: Dataset, progress: Progress
) -> np.ndarray:
    """Return the probabilities of the center views of the test images: float32, shape (n, num_classes).

    On a frozen backbone they come from cached features; a fine-tuned network is run as it is served.
    """
    if not len(test):
        return np.empty((0, classifier.head.num_classes), np.float32)
    with progress.task(f"{backbone.spec.name}: {len(test)} test images", len(test)) as advance:
        if classifier.frozen and classifier.pooled:
            rows = backbone.store.collect(test.records, [CENTER], advance)[:, 0]
            return frozen_classifier(classifier)(backbone.trunk.features(rows, classifier.taps))
        return run_exported(exported, test.records, backbone.trunk.image_size, backbone.geometry, advance)[0]


def run_exported(
    exported: Exported,
    records: Sequence[Record],
    image_size: tuple[int, int],
    geometry: Geometry,
    advance: Callable[[int], None],
) -> tuple[np.ndarray, ...]:
    """Run the center views of images through an exported network as it is served.

    Args:
        exported: The network.
        records: Audited images.
        image_size: (height, width) of its input.
        geometry: Way in which images become its input.
        advance: Receives the number of images done so far.

    Returns:
        Each output of the network, float32, shape (n, ...).
    """
    workers = cpu_cores()
    engine = OpenVINOEngine(exported.converted, precision=exported.precision, streams=workers)

    def outputs(batch: Sequence[Record]) -> tuple[np.ndarray, ...]:
        return engine.outputs(np.stack([center_pixels(record, image_size, geometry) for record in batch]))

    batches = (records[i : i + BATCH_SIZE] for i in range(0, len(records), BATCH_SIZE))
    parts, done = [], 0
    with ThreadPoolExecutor(workers) as pool:
        for part in in_order(pool, outputs, batches, 2 * workers):
            parts.append(part)
            done += len(part[0])
            advance(done)
    if not parts:
        return tuple(
            np.empty((0, *(side.get_length() for side in list(output.partial_shape)[1:])), np.float32)
            for output in exported.converted.outputs
        )
    return tuple(np.concatenate(output) for output in zip(*parts, strict=True))


def frozen_classifier(classifier: Classifier) -> Callable[[np.ndarray], np.ndarray]:
    """Return a classifier on a frozen backbone as a function from the features of its taps to probabilities, both float32."""
    logits = head_function(classifier.head)
    return lambda features: np.asarray(softmax(logits(features) / classifier.temperature, axis=1))


def score_crops(classifier: Classifier, backbone: ProbedBackbone) -> CropScorer:
    """Return a classifier on a frozen backbone as a function of images and crops.

    The features of ten crops are cached. Those of fifty, which only large sets ask for, would fill the disk.
    """
    predict, trunk = frozen_classifier(classifier), backbone.trunk
    on_crops = on_pixels(
        lambda crops: predict(trunk.features(trunk.rows(crops), classifier.taps)), trunk.image_size, backbone.geometry
    )

    def scores(records: Sequence[Record], views: int) -> np.ndarray:
        if views != len(TEN_CROPS):
            return on_crops(records, views)
        features = trunk.features(backbone.store.collect(records, TEN_CROPS), classifier.taps)
        return predict(features.reshape(len(records) * views, -1)).reshape(len(records), views, -1)

    return scores


def score_served(
    exported: Exported, backbone: ProbedBackbone, classifier: Classifier, held_out: Classifier | None
) -> CropScorer:
    """Return a function from images and crops to the probabilities of a network without knowledge of the validation images.

    Args:
        exported: The network.
        backbone: It was trained on.
        classifier: Its weights.
        held_out: The same, trained without the validation images; None where `classifier` was. Where both are given they differ
            in the linear classifier alone: its probabilities are exchanged.
    """
    engine = OpenVINOEngine(exported.converted, precision=exported.precision, streams=cpu_cores())
    served = on_pixels(engine, backbone.trunk.image_size, backbone.geometry)
    if classifier.linear is None or held_out is None or held_out.linear is None:
        return served
    seen, unseen = score_crops(classifier.linear, backbone), score_crops(held_out.linear, backbone)
    return lambda records, views: served(records, views) + (unseen(records, views) - seen(records, views)) / 2
