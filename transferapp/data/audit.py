"""Audit of a dataset: every image decoded and hashed, unusable ones left out, and the findings as numbers and names."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import re
import stat
import statistics
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any, Literal

from PIL import Image

from transferapp.data.dataset import Dataset, Ignored, Record, Split
from transferapp.data.names import FORMAT_SUFFIXES, IMAGE_SUFFIXES, holds_images_only, natural_order
from transferapp.data.near_duplicates import signature
from transferapp.errors import DataError, ImageError
from transferapp.images import DATASET_LIMITS, NOTES, SAMPLE_BITS, ImageLimits, decode_image
from transferapp.policy.reasons import Reason
from transferapp.system.cluster import parallel

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
DARK = "dark_16_bit"
"""Note on an image of 16-bit samples that does not reach a sixteenth of the set's depth."""

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

    def check(record: Record) -> tuple[Record | Ignored, int | None]:
        """Return the audited image, and the peak of its samples where they have 16 bits."""
        try:
            if not stat.S_ISREG(record.path.stat().st_mode):  # reading a pipe or a device may never end
                return Ignored(record.name, "unreadable", "is not a file"), None
            data = record.path.read_bytes()
            bits = record.sample_bits or max(SAMPLE_BITS)
            decoded = decode_image(data, limits=limits, min_short_side=min_short_side, sample_bits=bits)
        except ImageError as error:
            return Ignored(record.name, error.code, str(error)), None
        except OSError as error:
            return Ignored(record.name, "unreadable", error.strerror or str(error)), None
        digest = hashlib.sha256(data).hexdigest()
        colors = b""
        if int(digest[:8], 16) % step == 0:  # by content, so that the sample does not depend on the kind of source
            colors = decoded.image.resize(COLOR_GRID, Image.Resampling.NEAREST).tobytes()
        image_signature = signature(decoded.image)
        notes = tuple(note for note in decoded.notes if note != "single_color")  # which `FEATURELESS` includes
        if decoded.peak is not None and decoded.peak < 1 << (bits - 4):
            notes = (*notes, DARK)
        audited = dataclasses.replace(
            record,
            sha256=digest,
            size=decoded.original_size,
            colors=colors,
            form=decoded.format,
            notes=notes if image_signature else (*notes, FEATURELESS),
            signature=image_signature,
            sample_bits=0 if decoded.peak is None else bits,
        )
        return audited, decoded.peak

    check_all = partial(parallel, check, threads=workers, ahead=8, group=32)
    peaks: list[int] = []
    kept: list[Record] = []
    refused: list[Ignored] = []
    for done, (outcome, peak) in enumerate(check_all(dataset.records), start=1):
        if isinstance(outcome, Record):
            kept.append(outcome)
        else:
            refused.append(outcome)
        if peak is not None:
            peaks.append(peak)
        if progress is not None:
            progress(done)
    if (bits := sample_depth(peaks)) < max(SAMPLE_BITS):  # at the full range they were nearly black
        deep = [position for position, record in enumerate(kept) if record.sample_bits]
        again = (dataclasses.replace(kept[position], sample_bits=bits) for position in deep)
        for position, (outcome, _) in zip(deep, check_all(again), strict=True):
            if isinstance(outcome, Ignored):  # it was readable a moment ago
                raise DataError(
                    f"{outcome.name} has changed since it was first read", hint="Run the same command again"
                )
            kept[position] = outcome
    audited = dataclasses.replace(dataset, records=tuple(kept), ignored=(*dataset.ignored, *refused))
    if refuse:
        check_usable(dataset, audited, min_per_class)
    return audited


def sample_depth(peaks: Sequence[int]) -> int:
    """Return the depth of a set's 16-bit samples: one of `SAMPLE_BITS`, the smallest that holds them all.

    One depth for the whole set, so that brightness still compares between images. Where a single image uses the full range,
    all of them keep it.

    Args:
        peaks: The largest sample of each image that has 16-bit samples, 0 to 65535.
    """
    highest = max(peaks, default=0)
    fitting = [bits for bits in SAMPLE_BITS if highest < 1 << bits]
    return fitting[0] if highest else max(SAMPLE_BITS)


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
    small = [(name, n) for name, n in zip(after.class_names, after.counts(), strict=True) if n < min_per_class]
    if small:
        name, count = small[0]
        others = f", and so have {len(small) - 1:,} of the other classes too few" if len(small) > 1 else ""
        raise DataError(
            f"Class {name!r} in {before.origin} has {count} usable image{'' if count == 1 else 's'}{others}",
            expected=f"at least {min_per_class} in every class",
            hint=f"Add images to {name!r} or leave the class out"
            + ("; if the labels are not the classes, name their column with --label-column" if others else ""),
        )


TINY_SIDE = 32
"""Pixels of the shorter side below which an image is listed as tiny."""
ELONGATED = 4.0
"""Ratio of its sides from which an image is listed as elongated: a square crop shows little of it."""

CLUSTERS_LISTED = 100
MEMBERS_LISTED = 12
EXAMPLES_LISTED = 20

SENTENCES = {
    **NOTES,
    FEATURELESS: "the image is all of one color, or nearly",
    DARK: "samples of 16 bits that look nearly black beside those of the set's brightest image",
    "misnamed": "the file is something else than its name says; it was read as what it is",
    "tiny": f"the shorter side has fewer than {TINY_SIDE} pixels",
    "elongated": f"one side is at least {ELONGATED:g} times the other; a square crop shows little of it",
}
"""Oddities of images that are used all the same, by code."""

Kind = Literal["exact", "near", "group"]


@dataclass(frozen=True)
class Member:
    """One image of a cluster: its name, its class, and its given split, if there is one."""

    name: str
    label: str
    split: Split | None


@dataclass(frozen=True)
class Cluster:
    """Duplicates and near-duplicates of one image.

    Attributes:
        kind: `exact` if all have the same bytes, otherwise `near`.
        num_images: Number of images.
        num_labels: Number of classes. If there is more than one, a label is wrong or the classes overlap.
        num_splits: Number of given splits.
        members: The first images.
    """

    kind: Kind
    num_images: int
    num_labels: int
    num_splits: int
    members: tuple[Member, ...]


@dataclass(frozen=True)
class Oddity:
    """Unusual images that are used all the same: a code of `SENTENCES`, their number, and the names of the first."""

    code: str
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class SimilarPair:
    """Two images with similar features and different signatures, such as a heavier crop or a rotation.

    Attributes:
        first, second: The images.
        cosine: Cosine of their features.
    """

    first: Member
    second: Member
    cosine: float


@dataclass(frozen=True)
class Overlap:
    """Images of one split that are in other splits too.

    Attributes:
        split: The split.
        others: The other splits.
        num_images: Images in `split`.
        exact, near, group: Images of `split` with the same bytes in the others; with a near-duplicate; with their group.
    """

    split: Split
    others: tuple[Split, ...]
    num_images: int
    exact: int
    near: int
    group: int

    @property
    def total(self) -> int:
        return self.exact + self.near + self.group


@dataclass(frozen=True)
class Findings:
    """Findings of an audit.

    Attributes:
        num_images: Usable images.
        num_ignored: Files that were left out; the reasons are in `Dataset.ignored`.
        counts: Images by class.
        imbalance: Size of the largest class over that of the smallest.
        sizes: In pixels: `smallest` and `largest` by area, and the median width and height; None without images.
        forms: Images by format.
        odd: Oddities, most frequent first.
        exact_duplicates: Images whose bytes are there once more.
        near_duplicates: Further images that have a near-duplicate.
        conflicts: Clusters with more than one label.
        num_clusters: Number of clusters.
        clusters: The first clusters: with several labels first, then those across splits, then the largest.
        overlaps: Overlaps between the given splits.
        spellings: Names of classes that differ by case and blanks alone, together.
        sample_depth: What 16-bit samples are scaled by; None where no image has them, or they use the full range.
        nested: Names of the sub-folders that all classes share, and that may be the classes; empty if there are none.
        annotations: Classes with the names of images and of their masks or annotations, which are hardly classes.
        similar: The first pairs outside of clusters whose features are similar; None if features were not compared.
        num_similar: Number of such pairs.
        uniform: Whether the images are too uniform to be compared by features.
        kept_together: Images that a split keeps with others because a network sees them as similar.
        alike: Whether different images look too much alike to find crops and rotations by signature.
    """

    num_images: int
    num_ignored: int
    counts: dict[str, int]
    imbalance: float
    sizes: dict[str, list[int]] | None
    forms: dict[str, int]
    odd: tuple[Oddity, ...]
    exact_duplicates: int
    near_duplicates: int
    conflicts: int
    num_clusters: int
    clusters: tuple[Cluster, ...]
    overlaps: tuple[Overlap, ...]
    spellings: tuple[tuple[str, ...], ...] = ()
    annotations: tuple[str, ...] = ()
    nested: tuple[str, ...] = ()
    sample_depth: Reason | None = None
    similar: tuple[SimilarPair, ...] | None = None
    num_similar: int = 0
    uniform: bool = False
    kept_together: int = 0
    alike: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary of JSON values."""
        document = dataclasses.asdict(self)
        document["odd"] = [{**dataclasses.asdict(odd), "reason": SENTENCES[odd.code]} for odd in self.odd]
        return document


def summarize(dataset: Dataset) -> Findings:
    """Summarize an audit.

    Args:
        dataset: Audited, with clusters, and with its given splits, if any.
    """
    clusters = _clusters(dataset)
    contents = len({record.sha256 for record in dataset.records})
    distinct = len({record.cluster or record.sha256 for record in dataset.records})
    counts = dataset.counts()
    learned: list[tuple[Split, tuple[Split, ...]]] = [("val", ("train",)), ("test", ("train", "val"))]
    overlaps = [
        overlap_with(dataset, split, tuple(other for other in others if other in dataset.given_splits))
        for split, others in learned
        if split in dataset.given_splits
    ]
    return Findings(
        num_images=len(dataset),
        num_ignored=len(dataset.ignored),
        counts=dict(zip(dataset.class_names, counts, strict=True)),
        imbalance=max(counts) / max(min(counts), 1) if counts else 1.0,
        sizes=_sizes(dataset.records),
        forms=dict(Counter(record.form for record in dataset.records).most_common()),
        odd=_oddities(dataset.records),
        exact_duplicates=len(dataset) - contents,
        near_duplicates=contents - distinct,
        conflicts=sum(cluster.num_labels > 1 for cluster in clusters),
        num_clusters=len(clusters),
        clusters=tuple(clusters[:CLUSTERS_LISTED]),
        overlaps=tuple(each for each in overlaps if each.others),
        spellings=_spellings(dataset.class_names),
        annotations=_annotations(dataset.class_names),
        nested=_nested(dataset),
        sample_depth=_depth_reason(dataset),
        kept_together=sum(bool(record.similar) for record in dataset.records),
        alike=dataset.alike,
    )


def _depth_reason(dataset: Dataset) -> Reason | None:
    bits = dataset.sample_bits
    if bits is None or bits == max(SAMPLE_BITS):
        return None
    images, white = sum(record.sample_bits > 0 for record in dataset.records), (1 << bits) - 1
    text = f"The 16-bit files hold samples of {bits} bits or fewer, so {white:,} is white and not {65535:,}"
    text += "." if images == len(dataset) else f" ({images:,} of {len(dataset):,} images)."
    return Reason("data", text, {"sample_bits": bits, "white": white, "num_images": images})


def _spellings(class_names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    spelled: dict[str, list[str]] = defaultdict(list)
    for name in class_names:
        plain = re.sub(r"[\s_]+", " ", unicodedata.normalize("NFKC", name)).strip().casefold()
        spelled[plain].append(name)
    return tuple(tuple(names) for names in spelled.values() if len(names) > 1)


def _nested(dataset: Dataset) -> tuple[str, ...]:
    """Return the sub-folders of a class if every class has the same two or more, and no image outside of them."""
    inner: dict[int, set[str]] = defaultdict(set)
    for record in dataset.records:
        parts = record.name.split("/")
        if len(parts) < 3 or parts[0] != dataset.class_names[record.label]:
            return ()
        inner[record.label].add(parts[1])
    shared = set.intersection(*inner.values()) if inner else set()
    return tuple(natural_order(shared)) if len(shared) > 1 and all(names == shared for names in inner.values()) else ()


def _annotations(class_names: Sequence[str]) -> tuple[str, ...]:
    images = [name for name in class_names if holds_images_only(name)]
    others = [name for name in class_names if re.search(r"mask|annot|segment", name.lower())]
    return tuple(images + others) if images and others else ()


def with_similar_pairs(
    findings: Findings, dataset: Dataset, pairs: Sequence[tuple[int, int, float]] | None
) -> Findings:
    """Return the findings with pairs from `similar_rows`, without those of one cluster; None for a set that is too uniform."""
    if pairs is None:
        return dataclasses.replace(findings, uniform=True)
    groups = dataset.groups()
    beyond = [(i, j, cosine) for i, j, cosine in pairs if groups[i] != groups[j]]
    similar = tuple(
        SimilarPair(member(dataset, i), member(dataset, j), round(cosine, 4))
        for i, j, cosine in beyond[:CLUSTERS_LISTED]
    )
    return dataclasses.replace(findings, similar=similar, num_similar=len(beyond))


def member(dataset: Dataset, position: int) -> Member:
    """Return an image as the findings name it."""
    record = dataset.records[position]
    return Member(record.name, dataset.class_names[record.label], record.split)


def overlap_kinds(dataset: Dataset, split: Split, others: tuple[Split, ...]) -> list[Kind | None]:
    """Return for each image of a split whether it, a near-duplicate, or another of its group is in other splits."""
    groups = dataset.groups()
    learned = [
        (record, root) for record, root in zip(dataset.records, groups.tolist(), strict=True) if record.split in others
    ]
    contents = {record.sha256 for record, _ in learned}
    clusters = {record.cluster for record, _ in learned} - {""}
    roots = {root for _, root in learned}

    def kind(record: Record, root: int) -> Kind | None:
        if record.sha256 in contents:
            return "exact"
        if record.cluster in clusters:
            return "near"
        return "group" if root in roots else None

    return [
        kind(record, root)
        for record, root in zip(dataset.records, groups.tolist(), strict=True)
        if record.split == split
    ]


def overlap_with(dataset: Dataset, split: Split, others: tuple[Split, ...]) -> Overlap:
    """Count the images of a split that are in other splits too."""
    kinds = overlap_kinds(dataset, split, others)
    found = Counter(kinds)
    return Overlap(split, others, len(kinds), found["exact"], found["near"], found["group"])


def _clusters(dataset: Dataset) -> list[Cluster]:
    members: dict[str, list[Record]] = defaultdict(list)
    for record in dataset.records:
        if record.cluster:
            members[record.cluster].append(record)
    return sorted(
        (_cluster(dataset.class_names, records) for records in members.values()),
        key=lambda cluster: (cluster.num_labels == 1, cluster.num_splits <= 1, -cluster.num_images),
    )


def _cluster(class_names: Sequence[str], records: Sequence[Record]) -> Cluster:
    return Cluster(
        kind="exact" if len({record.sha256 for record in records}) == 1 else "near",
        num_images=len(records),
        num_labels=len({record.label for record in records}),
        num_splits=len({record.split for record in records} - {None}),
        members=tuple(
            Member(record.name, class_names[record.label], record.split) for record in records[:MEMBERS_LISTED]
        ),
    )


def _sizes(records: Sequence[Record]) -> dict[str, list[int]] | None:
    sizes: list[tuple[int, int]] = [record.size for record in records if record.size is not None]
    if not sizes:
        return None
    by_area = sorted(sizes, key=_area)
    return {
        "smallest": list(by_area[0]),
        "median": [int(statistics.median(size[axis] for size in sizes)) for axis in (0, 1)],
        "largest": list(by_area[-1]),
    }


def _area(size: tuple[int, int]) -> tuple[int, tuple[int, int]]:
    return size[0] * size[1], size


def _oddities(records: Sequence[Record]) -> tuple[Oddity, ...]:
    found: dict[str, list[str]] = defaultdict(list)
    for record in records:
        for code in (*record.notes, *_odd_shapes(record)):
            found[code].append(record.name)
    return tuple(
        Oddity(code, len(names), tuple(names[:EXAMPLES_LISTED]))
        for code, names in sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))
    )


def _odd_shapes(record: Record) -> list[str]:
    codes = []
    suffix = PurePosixPath(record.name).suffix.lower()
    if suffix in IMAGE_SUFFIXES - FORMAT_SUFFIXES.get(record.form, IMAGE_SUFFIXES):
        codes.append("misnamed")
    if record.size is not None:
        short, long = sorted(record.size)
        if short < TINY_SIDE:
            codes.append("tiny")
        if long >= ELONGATED * short:
            codes.append("elongated")
    return codes
