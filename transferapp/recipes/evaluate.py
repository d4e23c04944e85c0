"""Measure a bundle on labeled images, as it is served, and leave out what it was trained on."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from transferapp.bundle.format import Bundle
from transferapp.bundle.predictor import Predictor
from transferapp.data.audit import audit
from transferapp.data.dataset import Dataset, Record
from transferapp.data.near_duplicates import with_clusters
from transferapp.data.options import SourceOptions
from transferapp.data.sources import open_source
from transferapp.errors import DataError
from transferapp.evaluation.metrics import Metrics, measure
from transferapp.images import SAMPLE_BITS
from transferapp.system.progress import Progress, Silent
from transferapp.system.threads import cpu_cores, in_order


@dataclass(frozen=True)
class Evaluation:
    """Figures of a bundle on some images.

    Attributes:
        metrics: The figures.
        bundle: Name of the bundle.
        views: Crops averaged.
        split: Which part of the data: `test`, or `all` where they are not split.
        num_seen: Images among them that the bundle was trained on.
        seen_included: Whether those are part of the figures.
        num_ignored: Unreadable files left out.
    """

    metrics: Metrics
    bundle: str
    views: int
    split: str
    num_seen: int
    seen_included: bool
    num_ignored: int

    def to_json(self) -> dict[str, Any]:
        rest = {name: value for name, value in vars(self).items() if name != "metrics"}
        return {**self.metrics.to_json(), **rest}


def evaluate(
    path: Path,
    data: str,
    *,
    source: SourceOptions | None = None,
    views: int | None = None,
    include_seen: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a bundle on labeled images.

    Args:
        path: The bundle.
        data: Anything that a fit takes, with classes named as the bundle's. Of train, val and test splits, test alone is
            used.
        source: Columns and places that the user named.
        views: 1, 10 or 50; None for the bundle's default.
        include_seen: Count images that the bundle was trained on.
        progress: Receives progress updates.

    Raises:
        BundleError: There is no usable bundle.
        DataError: The images cannot be used, or the bundle does not have one of their classes.
    """
    progress = progress or Silent()
    workers = cpu_cores()
    predictor = Predictor.load(path, streams=workers)
    views = predictor.check_views(views)
    dataset = open_source(data, 1, source, progress=progress)
    split = "test" if "test" in dataset.given_splits else "all"
    if split == "test":
        dataset = dataset.part("test")
    dataset = with_labels_of(dataset, predictor.class_names)
    with progress.task(f"reading {len(dataset)} images", len(dataset)) as advance:
        dataset = with_clusters(audit(dataset, workers=workers, progress=advance, min_per_class=0))
    _compare_depths(dataset, predictor.bundle, progress)
    seen = {sha256 for sha256, part in predictor.bundle.splits().items() if part in ("train", "val")}
    unseen = [record for record in dataset.records if record.sha256 not in seen]
    num_seen = len(dataset) - len(unseen)
    keep_seen = include_seen or not unseen
    if not keep_seen:
        dataset = dataset.with_records(unseen)
    if not len(dataset):
        raise DataError(f"{data} has no usable images")

    def scores(record: Record) -> np.ndarray:
        return predictor.average(predictor.decode(record.path, views), views)

    probabilities = np.empty((len(dataset), len(predictor.class_names)), np.float32)
    with (
        progress.task(f"classifying {len(dataset)} images, {views} views each", len(dataset)) as advance,
        ThreadPoolExecutor(workers) as pool,
    ):
        for index, row in enumerate(in_order(pool, scores, dataset.records, 2 * workers)):
            probabilities[index] = row
            advance(index + 1)
    return Evaluation(
        metrics=measure(probabilities, dataset.labels, predictor.class_names, groups=dataset.groups()),
        bundle=predictor.bundle.name,
        views=views,
        split=split,
        num_seen=num_seen,
        seen_included=keep_seen and num_seen > 0,
        num_ignored=len(dataset.ignored),
    )


def _compare_depths(dataset: Dataset, bundle: Bundle, progress: Progress) -> None:
    """Say where 16-bit samples are of another depth than those of the training images."""
    depth, own = dataset.sample_bits, bundle.sample_bits or max(SAMPLE_BITS)
    if depth is None or depth == own:
        return
    outcome = "are clipped to white" if depth > own else "look too dark if they are from another detector"
    progress.note(
        f"The 16-bit files of {dataset.origin} hold samples of {depth} bits and {bundle.name} reads {own}: they {outcome}"
    )


def with_labels_of(dataset: Dataset, class_names: tuple[str, ...]) -> Dataset:
    """Return the dataset with the label numbers of a bundle.

    Raises:
        DataError: An image has a class that the bundle does not have.
    """
    present = {dataset.class_names[record.label] for record in dataset.records}
    unknown = sorted(present - set(class_names))
    if unknown:
        raise DataError(
            f"{dataset.origin} has a class that the bundle does not know: {unknown[0]!r}",
            expected=f"folders among {', '.join(class_names[:20])}{', ...' if len(class_names) > 20 else ''}",
        )
    position = {name: index for index, name in enumerate(class_names)}
    records = [dataclasses.replace(r, label=position[dataset.class_names[r.label]]) for r in dataset.records]
    return dataclasses.replace(dataset, class_names=class_names, records=tuple(records))
