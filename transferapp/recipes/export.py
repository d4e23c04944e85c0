"""Export: from a bundle to another format, in the order in which it happens.

bundle -> held-out images -> write to a staging folder -> run it -> compare with the bundle -> put in place, or refuse
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np

from transferapp.backbones.engine import BATCH_SIZE
from transferapp.bundle.exports.formats import Format, describe, find_format, is_export, write_metadata
from transferapp.bundle.exports.networks import Answers, Batch, Job
from transferapp.bundle.format import Bundle, put_in_place
from transferapp.bundle.novelty import is_known
from transferapp.bundle.predictor import Predictor
from transferapp.data.dataset import Dataset, Record
from transferapp.data.options import SourceOptions
from transferapp.data.sources import open_source, open_sources
from transferapp.errors import DataError, ImageError, TrainingError, UsageError
from transferapp.evaluation.parity import (
    EXPORT_MAX_DIFFERENCE,
    EXPORT_MIN_AGREEMENT,
    QUANTIZED_MAX_LOSS,
    ExportParity,
    compare_export,
)
from transferapp.recipes.bundle_data import sources_of
from transferapp.recipes.evaluate import with_labels_of
from transferapp.system.progress import Progress, Silent
from transferapp.system.storage import disk_errors, sha256_file
from transferapp.system.threads import cpu_cores, in_order

COMPARED_IMAGES = 200
"""Held-out images that an export is compared on, at most: one of them may get another label."""

CALIBRATION_IMAGES = 300
"""Training images that a quantized export is calibrated on, at most."""


@dataclass(frozen=True)
class ExportResult:
    """Result of `export`.

    Attributes:
        path: Folder of the export.
        file: Its network.
        num_bytes: Size of the folder.
        parity: Comparison with the bundle.
    """

    path: Path
    file: Path
    num_bytes: int
    parity: ExportParity


def export(
    path: Path,
    kind: str,
    out: Path | None = None,
    *,
    data: str | None = None,
    source: SourceOptions | None = None,
    runtime: Path | None = None,
    progress: Progress | None = None,
) -> ExportResult:
    """Export a bundle to another format, and keep the export only if it computes what the bundle does.

    Args:
        path: The bundle.
        kind: Name of the format; see `transferapp.bundle.exports.formats`.
        out: Folder to write; by default `exports/NAME-FORMAT`. An earlier export there is replaced.
        data: Images to compare on, as for `evaluate`; by default those of the fit. Training images are left out, and validation
            images where there are others.
        source: Columns and places that the user named for `data`.
        runtime: Of `html`: the package `onnxruntime-web` as npm packs it; by default npm fetches it.
        progress: Receives progress updates.

    Raises:
        UsageError: There is no such format, or `out` holds something else.
        BundleError: There is no usable bundle.
        DataError: There are no held-out images, or none to calibrate on.
        ResourceError: A package is missing, or the disk is full.
        TrainingError: The export computes something else than the bundle; nothing is left of it.
    """
    progress = progress or Silent()
    form = find_format(kind)
    form.check_packages()
    predictor = Predictor.load(path, precision="f32")
    bundle = predictor.bundle
    if runtime is not None and form.name != "html":
        raise UsageError("--runtime means nothing for this format", expected="--format html", got=form.name)
    target = out or Path("exports") / f"{bundle.path.resolve().name}-{form.name}"
    _check_target(target, form)
    held_out, trained = split_by_content(bundle, data, source, progress)
    if form.quantized and not len(trained):
        raise DataError(
            f"{held_out.origin} has no training images of the bundle, on which {form.name} is calibrated",
            hint="Name the images of the fit with --data",
        )
    with _staging(target) as staging:
        with progress.task(f"writing {form.name}", 0):
            crops = (batch.pixels for batch, _ in batches(predictor, trained.spread(CALIBRATION_IMAGES).records, 1))
            metadata = describe(bundle, form)
            form.write(Job(bundle, staging, metadata, crops, runtime))
        parity = compare(predictor, form, staging, held_out.spread(COMPARED_IMAGES), progress)
        if not parity.acceptable:
            raise _refused(form, parity)
        write_metadata({**metadata, "compared": {"data": PurePath(held_out.origin).name, **parity.to_json()}}, staging)
        put_in_place(staging, target)
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    return ExportResult(target, target / form.file, size, parity)


def split_by_content(
    bundle: Bundle, data: str | None, source: SourceOptions | None, progress: Progress
) -> tuple[Dataset, Dataset]:
    """Return the held-out and the training images among some data, by the SHA-256 of their bytes.

    Args:
        bundle: Knows its training images.
        data: The data; None for those of the fit.
        source: Columns and places that the user named for `data`.
        progress: Receives progress updates.

    Returns:
        Held-out images, at least one, and training images. Validation images are held out where there are no others: the linear
        classifier that ships is solved on them, too.

    Raises:
        DataError: The data are missing, or no image is held out.
    """
    hint = "Name labeled images that it was not trained on with --data"
    if data is None:
        dataset = open_sources(sources_of(bundle, hint), progress=progress)
    else:
        dataset = open_source(data, 1, source, progress=progress)
    dataset = with_labels_of(dataset, bundle.class_names)
    splits = bundle.splits()

    def known(record: Record) -> Record | None:
        try:
            return dataclasses.replace(record, sha256=sha256_file(record.path))
        except OSError:
            return None

    found = []
    with (
        progress.task(f"looking for held-out images among {len(dataset)}", len(dataset)) as advance,
        ThreadPoolExecutor(cpu_cores()) as pool,
    ):
        for index, record in enumerate(in_order(pool, known, dataset.records, 64)):
            found += [record] if record else []
            advance(index + 1)
    held_out = [record for record in found if splits.get(record.sha256) not in ("train", "val")]
    held_out = held_out or [record for record in found if splits.get(record.sha256) == "val"]
    trained = [record for record in found if splits.get(record.sha256) == "train"]
    if not held_out:
        raise DataError(f"The bundle was trained on every image of {dataset.origin}", hint=hint)
    return dataset.with_records(held_out), dataset.with_records(trained)


def batches(predictor: Predictor, records: Sequence[Record], size: int) -> Iterator[tuple[Batch, np.ndarray]]:
    """Yield center crops and labels of images, in batches; images that cannot be decoded are left out.

    Args:
        predictor: Decodes and crops.
        records: The images.
        size: Images in a batch.
    """

    def crop(record: Record) -> np.ndarray | None:
        try:
            pixels: np.ndarray = predictor.crops(predictor.decode(record.path, 1), 1)[0]
        except ImageError:
            return None
        return pixels

    with ThreadPoolExecutor(cpu_cores()) as pool:
        ready: list[tuple[Record, np.ndarray]] = []
        for record, pixels in zip(records, in_order(pool, crop, records, 2 * size + 2), strict=True):
            ready += [(record, pixels)] if pixels is not None else []
            if len(ready) == size or (ready and record is records[-1]):
                batch = Batch(np.stack([p for _, p in ready]), [r.path for r, _ in ready])
                yield batch, np.array([r.label for r, _ in ready])
                ready = []


def compare(predictor: Predictor, form: Format, folder: Path, images: Dataset, progress: Progress) -> ExportParity:
    """Run an export and its bundle on the same images.

    Raises:
        DataError: None of them can be decoded.
    """
    reference: list[Answers] = []
    given: list[Answers] = []
    from_files: list[Answers] = []
    labels: list[np.ndarray] = []
    with (
        progress.task(f"running {form.name} on {len(images)} held-out images", len(images)) as advance,
        form.opened(folder) as opened,
    ):
        for batch, expected in batches(predictor, images.records, BATCH_SIZE):
            reference.append(_answers(predictor, batch.pixels))
            given.append(opened.from_pixels(batch))
            from_files += [opened.from_files(batch)] if opened.from_files else []
            labels.append(expected)
            advance(sum(map(len, labels)))
    if not labels:
        raise DataError(f"No held-out image of {images.origin} can be decoded")

    def probabilities(answers: Sequence[Answers]) -> np.ndarray:
        return np.concatenate([answer.probabilities for answer in answers])

    return compare_export(
        probabilities(reference),
        probabilities(given),
        np.concatenate(labels),
        quantized=form.quantized,
        from_files=probabilities(from_files) if from_files else None,
        known_agreement=_known_agreement(predictor, reference, given),
    )


def _known_agreement(predictor: Predictor, reference: Sequence[Answers], given: Sequence[Answers]) -> float | None:
    """Return the share of images that both call known or both unknown; None where the export has no novelty.

    Scores that differ by one held-out image count as the same: a held-out image has its own similarity up to rounding.
    """
    pairs = [(a.novelty, b.novelty) for a, b in zip(reference, given, strict=True)]
    if predictor.novelty is None or pairs[0][1] is None:
        return None
    step = 1.01 / (len(predictor.novelty.held_out) + 1)
    scores = [(x, y) for a, b in pairs if a is not None and b is not None for x, y in zip(a, b, strict=True)]
    return float(np.mean([is_known(x) == is_known(y) or abs(x - y) <= step for x, y in scores]))


def _answers(predictor: Predictor, pixels: np.ndarray) -> Answers:
    """Return what the bundle says of center crops."""
    if predictor.novelty is None:
        return Answers(predictor.probabilities(pixels))
    probabilities, features = predictor.engine.outputs(pixels)
    return Answers(probabilities, predictor.novelty.score(features))


def _refused(form: Format, parity: ExportParity) -> TrainingError:
    wanted = f"the same label on {EXPORT_MIN_AGREEMENT:.1%}, probabilities within {EXPORT_MAX_DIFFERENCE:g}"
    if form.quantized:
        wanted = f"an accuracy of at least {parity.bundle_accuracy - QUANTIZED_MAX_LOSS:.3f}"
    further = "" if parity.file_agreement is None else f" (from files, the same label on {parity.file_agreement:.1%})"
    if parity.known_agreement is not None:
        further += f", both known or both unknown on {parity.known_agreement:.1%}"
    return TrainingError(
        f"The {form.name} export does not do what the bundle does on {parity.num_images} held-out images, and is not kept",
        expected=wanted,
        got=f"the same label on {parity.agreement:.1%}, probabilities within {parity.max_difference:.3g}{further}, "
        f"an accuracy of {parity.accuracy:.3f} against {parity.bundle_accuracy:.3f}",
        hint="Use another format",
        code="export_differs",
    )


def _check_target(target: Path, form: Format) -> None:
    """Raise an error for the name of a file, and for a place that an export must not replace."""
    suffix = Path(form.file).suffix
    if suffix and target.suffix == suffix:
        raise UsageError(
            "--out names a folder, in which the network and its metadata.json are written",
            got=str(target),
            hint=f"--out {target.with_suffix('')} writes {target.with_suffix('') / form.file}",
        )
    if not os.path.lexists(target) or is_export(target) or (target.is_dir() and not any(target.iterdir())):
        return
    raise UsageError(
        f"{target} exists and is not an export, so it is left alone", hint="Name another folder with --out"
    )


@contextlib.contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """Yield a hidden folder beside the target, which is deleted in the end."""
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = target.parent / f".{target.name}.part-{secrets.token_hex(4)}"
        staging.mkdir()
    try:
        with disk_errors(target):
            yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
