"""Predict: from any number of image files to a table of answers, and to folders of sorted files.

paths -> images, lazily -> decoded and classified, one image a thread -> journal -> answers -> sorted files
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from transferapp.bundle.format import only_writer
from transferapp.bundle.predictor import Predictor
from transferapp.data.image_files import ImageFile, list_images
from transferapp.data.options import SourceOptions
from transferapp.data.remote import is_address, read_address
from transferapp.errors import ImageError, UsageError
from transferapp.recipes.answer_files import Answer, Journal, check_answer_file, write_answers
from transferapp.recipes.sorting import MANIFEST, Method, Sorter, check_sort_folder, place_of
from transferapp.system.cluster import parallel
from transferapp.system.progress import Progress, Silent
from transferapp.system.threads import cpu_cores, one_blas_thread

_WINDOW = 16
"""Images in hand for each thread, so that a slow one does not stop the others. They are not decoded while they wait."""

_TASK = 64
"""Images of one task on a cluster: with one crop half a second of work, so that giving out tasks does not limit a large one."""

_DIGITS = 6
"""Decimal places of scores and novelty."""


@dataclass(frozen=True)
class BatchSettings:
    """Settings of a batch prediction.

    Attributes:
        out: File of the answers: .csv, .jsonl or .parquet; None for none.
        sort_into: Folder that the files are sorted into; None for none.
        method: Whether sorted files are moved, copied or linked to.
        views: 1, 10 or 50 crops to average; None for the bundle's default.
        source: Column of paths of tables, and encoding.
    """

    out: Path | None = None
    sort_into: Path | None = None
    method: Method = "move"
    views: int | None = None
    source: SourceOptions = field(default_factory=SourceOptions)


@dataclass(frozen=True)
class BatchResult:
    """Outcome of a batch prediction.

    Attributes:
        num_images: Images that were answered, including those that cannot be read.
        labels: Images by label.
        doubts: Images among these that are `unknown` or `unsure`, as `place_of` tells them.
        errors: Images that cannot be read, by code.
        folders: Sorted files by folder; empty if nothing was sorted.
        num_resumed: Answers among them from a run that was killed.
        seconds: Time of this run.
    """

    num_images: int
    labels: dict[str, int]
    doubts: dict[str, int]
    errors: dict[str, int]
    folders: dict[str, int]
    num_resumed: int
    seconds: float

    @property
    def num_errors(self) -> int:
        return sum(self.errors.values())

    def to_json(self) -> dict[str, Any]:
        return vars(self)


def predict_images(
    bundle: Path, paths: Sequence[Path | str], settings: BatchSettings, progress: Progress | None = None
) -> BatchResult:
    """Classify images, write the answers to a file, and sort the files by their answers.

    A run that was killed goes on where it was when it is called again: the answers are those of a run that was not. Memory
    does not grow with the number of images.

    Args:
        bundle: The bundle.
        paths: Files, folders, tables and archives, or addresses, as for `list_images`.
        settings: Where the answers go, and how they are made.
        progress: Receives progress updates.

    Raises:
        BundleError: There is no usable bundle.
        DataError: There are no images, or an unfinished run of another bundle or other images is in the way.
        UsageError: A place for the answers or a number of views is invalid.
        ResourceError: The disk is full.
    """
    progress, started = progress or Silent(), time.perf_counter()
    out, into = settings.out, settings.sort_into
    if out is None and into is None:
        raise UsageError("Nothing is to be done with the answers", expected="a file, or a folder to sort into")
    if out is not None:
        check_answer_file(out)
    if into is not None and (addresses := [path for path in paths if isinstance(path, str)]):
        raise UsageError("--sort-into takes files of this machine only", got=addresses[0])
    predictor = Predictor.load(bundle, streams=cpu_cores())
    if into is not None:
        check_sort_folder(into, predictor.class_names)
    views = predictor.check_views(settings.views)
    identity = {
        "bundle": predictor.bundle.version,
        "views": views,
        "images": [str(path) for path in paths],
        "path-column": settings.source.path_column,
        "sort-into": str(into) if into else "",
    }
    with ExitStack() as stack:
        for target in filter(None, (out, into and into / MANIFEST)):
            stack.enter_context(only_writer(target))
        place = out.with_name(f"{out.name}.part") if out else (into or Path()) / ".answers.part"
        journal = stack.enter_context(Journal(place, identity))
        if journal.is_complete and into is not None and (into / MANIFEST).exists():  # not where that was undone
            num_resumed = sum(1 for _ in journal.answers())
            progress.note("Going on with the sorting that was interrupted; images that are new wait for another run")
        else:
            images = list_images(paths, settings.source, leave_out=into, progress=progress)
            num_resumed, images = journal.resume(images)
            if num_resumed:
                progress.note(f"Going on after {num_resumed:,} images that were answered before")
            _fill(journal, predictor, images, views, progress)
            if into is not None:
                journal.complete()
        if out is not None:
            with progress.task(f"writing {out.name}", 0):
                write_answers(journal.answers(), out)
        labels, doubts, errors = _counts(journal.answers())
        num_images = labels.total() + errors.total()
        sorter = None
        if into is not None:
            sorter = Sorter(into, predictor.class_names, settings.method)
            with progress.task(f"sorting {num_images} files", num_images) as advance:
                sorter.sort(journal.answers(), advance)
        journal.discard()
    return BatchResult(
        num_images,
        dict(labels.most_common()),
        dict(doubts.most_common()),
        dict(errors.most_common()),
        dict(sorter.counts.most_common()) if sorter else {},
        num_resumed,
        round(time.perf_counter() - started, 2),
    )


def answers(predictor: Predictor, images: Iterable[ImageFile], views: int) -> Iterator[Answer]:
    """Yield the answers to images, in their order, as they are made.

    Each thread decodes and classifies one image at a time, which uses the cores best (docs/benchmarks.md).

    Args:
        predictor: With a stream for each core.
        images: Taken as they are needed.
        views: 1, 10 or 50 crops to average.
    """
    work = partial(answer, predictor, views)
    return parallel(work, images, threads=cpu_cores(), ahead=_WINDOW, group=_TASK)


def answer(predictor: Predictor, views: int, image: ImageFile) -> Answer:
    """Return the answer to one image; for one that cannot be read, the code of the reason.

    Raises:
        ModelOutputError: The network's answer is not a number.
        ResourceError: There was not enough memory to decode it.
    """
    blank = Answer(image.name, error=image.error, location=image.location, unpacked=image.unpacked)
    if image.error:
        return blank
    try:
        source = read_address(image.location) if is_address(image.location) else Path(image.location)
        prediction = predictor.predict(source, views=views, top_k=1)
    except ImageError as error:
        return replace(blank, error=error.code)
    return replace(
        blank,
        label=prediction.label,
        score=round(prediction.scores[0].score, _DIGITS),
        novelty=None if prediction.novelty is None else round(prediction.novelty, _DIGITS),
        known=prediction.known,
        prediction_set=prediction.prediction_set,
    )


def _fill(journal: Journal, predictor: Predictor, images: Iterator[ImageFile], views: int, progress: Progress) -> None:
    """Answer the images and write the answers to the journal."""
    # The threads share the cores already; BLAS threads that wait for each other took a quarter of the time.
    with one_blas_thread(), progress.task("classifying images", 0) as advance:
        for count, each in enumerate(answers(predictor, images, views), start=1):
            journal.add(each)
            advance(count)


def _counts(given: Iterable[Answer]) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Return the number of images of each label, of those in doubt by the kind of doubt, and of each error."""
    labels, doubts, errors = Counter[str](), Counter[str](), Counter[str]()
    for each in given:
        if each.error:
            errors[each.error] += 1
            continue
        labels[each.label] += 1
        if doubt := place_of(each):
            doubts[doubt] += 1
    return labels, doubts, errors
