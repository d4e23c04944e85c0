"""Audit: decode and hash every image once, and leave out what cannot be used."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from transferapp.data.dataset import Dataset, Ignored, Record
from transferapp.data.near_duplicates import signature
from transferapp.errors import DataError, ImageError
from transferapp.images import DATASET_LIMITS, ImageLimits, decode_image
from transferapp.system.threads import in_order

MAX_UNREADABLE_FRACTION = 0.05
"""Share of unreadable images from which a set is refused: then something is wrong with the folder and not with a few files.
One unreadable file is always allowed, because it would exceed this share in any folder of fewer than twenty."""

MIN_IMAGES_PER_CLASS = 2
"""Smallest class: one image to train on and one to check with."""

COLOR_IMAGES = 500
"""Number of images, approximately, whose pixels determine the color components of the set."""
COLOR_GRID = (16, 16)
"""Pixels of each of these images. A hundred thousand values determine a 3 x 3 matrix well enough."""

FEATURELESS = "featureless"
"""Note on an image of one color, or nearly."""

Progress = Callable[[int], None]


def audit(
    dataset: Dataset,
    *,
    limits: ImageLimits | None = None,
    min_short_side: int = 256,
    workers: int = 2,
    progress: Progress | None = None,
    min_per_class: int = MIN_IMAGES_PER_CLASS,
    refuse: bool = True,
) -> Dataset:
    """Decode and hash every image.

    Args:
        dataset: From a source.
        limits: Limits of the images; None for `DATASET_LIMITS`.
        min_short_side: Large JPEGs are decoded at a reduced size, not below this shorter side, which is much faster.
        workers: Number of threads.
        progress: Called with the number of images done so far.
        min_per_class: Usable images that every class must have.
        refuse: Whether an unusable set is an error; if not, call `check_usable` later.

    Returns:
        The usable images with `sha256`, `size`, `signature` and the like; the others are in `ignored` with reasons.

    Raises:
        DataError: Too many images are unreadable, or a class is left with too few.
    """
    limits = limits or DATASET_LIMITS
    step = max(1, len(dataset) // COLOR_IMAGES)

    def check(record: Record) -> Record | Ignored:
        try:
            if not stat.S_ISREG(record.path.stat().st_mode):  # reading a pipe or a device may never end
                return Ignored(record.name, "unreadable", "is not a file")
            data = record.path.read_bytes()
            decoded = decode_image(data, limits=limits, min_short_side=min_short_side)
        except ImageError as error:
            return Ignored(record.name, error.code, str(error))
        except OSError as error:
            return Ignored(record.name, "unreadable", error.strerror or str(error))
        digest = hashlib.sha256(data).hexdigest()
        colors = b""
        if int(digest[:8], 16) % step == 0:  # by content, so that the sample does not depend on the kind of source
            colors = decoded.image.resize(COLOR_GRID, Image.Resampling.NEAREST).tobytes()
        image_signature = signature(decoded.image)
        notes = tuple(note for note in decoded.notes if note != "single_color")  # which `FEATURELESS` includes
        return dataclasses.replace(
            record,
            sha256=digest,
            size=decoded.original_size,
            colors=colors,
            form=decoded.format,
            notes=notes if image_signature else (*notes, FEATURELESS),
            signature=image_signature,
        )

    kept: list[Record] = []
    refused: list[Ignored] = []
    with ThreadPoolExecutor(workers) as pool:
        for done, outcome in enumerate(in_order(pool, check, dataset.records, 8 * workers), start=1):
            if isinstance(outcome, Record):
                kept.append(outcome)
            else:
                refused.append(outcome)
            if progress is not None:
                progress(done)
    audited = dataclasses.replace(dataset, records=tuple(kept), ignored=(*dataset.ignored, *refused))
    if refuse:
        check_usable(dataset, audited, min_per_class)
    return audited


def peek_sizes(dataset: Dataset, count: int = 24) -> tuple[tuple[int, int], ...]:
    """Return (width, height) of a few images, evenly spread over the set; unreadable ones are skipped."""
    sizes = []
    step = max(1, len(dataset) // count)
    for record in dataset.records[::step]:
        with contextlib.suppress(ImageError, OSError):
            if stat.S_ISREG(record.path.stat().st_mode):
                sizes.append(decode_image(record.path, limits=DATASET_LIMITS, min_short_side=1).original_size)
    return tuple(sizes)


def check_usable(before: Dataset, after: Dataset, min_per_class: int = MIN_IMAGES_PER_CLASS) -> None:
    """Refuse a set with too many unreadable images or too small classes.

    Args:
        before: From a source.
        after: The same after its audit.
        min_per_class: Usable images that every class must have.

    Raises:
        DataError: Too many images are unreadable, or a class is left with too few.
    """
    missing = [item for item in before.ignored if item.code == "missing_file"]
    refused = [*missing, *after.ignored[len(before.ignored) :]]
    total = len(before) + len(missing)
    if len(refused) > MAX_UNREADABLE_FRACTION * total and len(refused) > 1:
        shown = "; ".join(f"{item.name} ({item.code})" for item in refused[:5])
        raise DataError(
            f"{len(refused)} of {total} images in {before.origin} cannot be read: {shown}"
            + ("; ..." if len(refused) > 5 else ""),
            expected=f"at most {MAX_UNREADABLE_FRACTION:.0%} unreadable",
            hint="Remove or replace these files, or point --data at the right folder",
        )
    for name, count in zip(after.class_names, after.counts(), strict=True):
        if count < min_per_class:
            raise DataError(
                f"Class {name!r} in {before.origin} has {count} usable image{'' if count == 1 else 's'}",
                expected=f"at least {min_per_class} in every class",
                hint=f"Add images to {name!r} or remove the folder",
            )
