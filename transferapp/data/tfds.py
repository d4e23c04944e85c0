"""Datasets of tensorflow-datasets: `tfds:NAME[/CONFIG][:VERSION]`, from a data directory that is there or by download.

The encoded images are written to the cache once, so that everything else works on files. tensorflow-datasets is imported here
alone, and only for such a dataset.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import logging
import os
import socket
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transferapp.data.dataset import SPLITS, Dataset, Ignored, Record, Split
from transferapp.data.names import class_name, printable, split_named
from transferapp.errors import DataError
from transferapp.system.cache import cached_folder
from transferapp.system.progress import Progress
from transferapp.system.storage import disk_errors

PREFIX = "tfds:"

_REVISION = 1
"""Raise this when what is written to the cache changes."""

_NOISY = ("absl", "urllib3", "tensorflow", "tensorflow_datasets")


def read_tfds(data: str, data_dir: str, min_classes: int, progress: Progress) -> Dataset:
    """Read a dataset of tensorflow-datasets; download and prepare it first if necessary.

    Classes are in the order of the dataset. Its splits are kept; splits other than train, validation and test are listed and
    left out.

    Args:
        data: `tfds:NAME[/CONFIG][:VERSION]`.
        data_dir: Folder of prepared datasets; empty for `TFDS_DATA_DIR` or the default of tensorflow-datasets.
        min_classes: Smallest number of classes.
        progress: Receives progress updates.

    Raises:
        DataError: The dataset is unknown, cannot be downloaded, or does not consist of images with one label each.
        ResourceError: The disk is full.
    """
    name = data.removeprefix(PREFIX)
    if not name:
        raise DataError("tfds: names no dataset", expected="tfds:NAME, tfds:NAME/CONFIG or tfds:NAME:VERSION")
    with _quiet():
        with progress.task(f"looking for {name}", 0):
            builder = _builder(name, data_dir)
        if not builder.info.splits:
            with progress.task(f"downloading and preparing {name}", 0):
                _prepare(builder, name)
        image, label = _features(builder, name)
        splits = {split: split_named(split) for split in builder.info.splits}
        if not any(splits.values()):
            splits, unknown = dict.fromkeys(splits), []
        else:
            unknown = [split for split, meaning in splits.items() if meaning is None]
        used = [split for split in splits if split not in unknown]
        total = sum(builder.info.splits[split].num_examples for split in used)

        def write(folder: Path) -> dict[str, int]:
            with progress.task(f"unpacking {total} images of {name}", total) as advance:
                return _write(builder, folder, used, image, label, advance)

        kept = cached_folder(_key(builder), write)
    ignored = [Ignored(split, "unknown_split", "is none of train, validation and test") for split in unknown]
    for split, count in kept.note.items():
        ignored.append(Ignored(split, "no_label", f"has {count} images without a label"))
    return _dataset(data, kept.folder, splits, builder.info.features[label].names, ignored, min_classes)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the libraries' messages about retries and devices; failures are raised as exceptions."""
    loggers = [logging.getLogger(name) for name in _NOISY]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _builder(name: str, data_dir: str) -> Any:
    import tensorflow_datasets

    tensorflow_datasets.disable_progress_bar()
    try:
        return tensorflow_datasets.builder(name, data_dir=data_dir or None)
    except tensorflow_datasets.core.registered.DatasetNotFoundError as error:
        known = tensorflow_datasets.list_builders(with_community_datasets=False)
        similar = difflib.get_close_matches(name.partition("/")[0].partition(":")[0], known, 3)
        raise DataError(
            f"tensorflow-datasets knows no dataset {name!r}, and none was prepared in {_place(data_dir)}",
            hint=f"Names like it: {', '.join(similar)}" if similar else "Name its folder with --data-dir",
        ) from error
    except Exception as error:  # its own checks are assertions
        raise DataError(f"The dataset {name!r} cannot be opened ({_first_line(error)})") from error


def _prepare(builder: Any, name: str) -> None:
    place = printable(str(builder.data_path))
    hint = (
        "Prepare it where there is internet (tfds build, or this command), copy that data directory here, "
        "and name it with --data-dir or TFDS_DATA_DIR"
    )
    if _offline(builder):
        raise DataError(
            f"{name} is not prepared in {place}, and it cannot be downloaded: there is no connection to its servers",
            hint=hint,
        )
    try:
        builder.download_and_prepare()
    except Exception as error:  # anything: networks, checksums, manual downloads, missing packages, disks
        raise DataError(
            f"{name} is not prepared in {place}, and it could not be downloaded or prepared ({_first_line(error)})",
            hint=hint,
        ) from error


def _offline(builder: Any) -> bool:
    """Return whether the servers of a dataset are unreachable: none of their names can be resolved.

    Checked first because downloads retry for minutes. False if there is a proxy or if something was downloaded already.
    """
    hosts = {urllib.parse.urlsplit(url).hostname for url in getattr(builder, "url_infos", None) or ()} - {None}
    downloads = Path(str(builder.data_path)).parents[0]
    with contextlib.suppress(AttributeError):
        downloads = Path(str(builder.data_dir_root))
    if not hosts or urllib.request.getproxies() or any((downloads / "downloads").glob("*.*")):
        return False
    for host in hosts:
        with contextlib.suppress(OSError):
            socket.getaddrinfo(host, 443)
            return False
    return True


def _features(builder: Any, name: str) -> tuple[str, str]:
    """Return the names of the image and of its label: the supervised keys, or the only ones."""
    from tensorflow_datasets import features

    table = builder.info.features
    found = {
        kind: [
            key
            for key, feature in (table.items() if hasattr(table, "items") else ())
            if isinstance(feature, kind) and not isinstance(feature, features.LabeledImage)
        ]
        for kind in (features.Image, features.ClassLabel)
    }
    images, labels = found[features.Image], found[features.ClassLabel]
    supervised: Any = builder.info.supervised_keys or ()
    if len(supervised) == 2 and supervised[0] in images and supervised[1] in labels:
        return supervised[0], supervised[1]
    if len(images) != 1 or len(labels) != 1:
        raise DataError(
            f"{name} is not a set of images with one label each",
            expected="one Image and one ClassLabel among its features",
            got=f"{', '.join(sorted(map(str, table))) if hasattr(table, 'items') else type(table).__name__}",
        )
    return images[0], labels[0]


def _key(builder: Any) -> str:
    """Return the cache key: a hash of the name and place of the data, and of the size and time of each file."""
    place = str(builder.data_path)
    digest = hashlib.sha256(f"{builder.info.full_name} {place}".encode("utf-8", "surrogateescape"))
    with contextlib.suppress(OSError):
        for entry in sorted(os.scandir(place), key=lambda entry: entry.name):
            status = entry.stat()
            digest.update(f"{entry.name} {status.st_size} {status.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return f"tfds-{_REVISION}-{digest.hexdigest()[:32]}"


def _write(builder: Any, folder: Path, splits: list[str], image: str, label: str, advance: Any) -> dict[str, int]:
    """Write each image to SPLIT/LABEL/NUMBER; return the number of images without a label by split."""
    import tensorflow_datasets

    wanted = tensorflow_datasets.decode.PartialDecoding(
        {image: True, label: True}, decoders={image: tensorflow_datasets.decode.SkipDecoding()}
    )
    reading = tensorflow_datasets.ReadConfig(try_autocache=False)  # each image is read once
    unlabeled: Counter[str] = Counter()
    done = 0
    for split in splits:
        try:
            examples = tensorflow_datasets.as_numpy(
                builder.as_dataset(split=split, decoders=wanted, shuffle_files=False, read_config=reading)
            )
            for number, example in enumerate(examples):
                done += 1
                advance(done)
                if int(example[label]) < 0:
                    unlabeled[split] += 1
                    continue
                content = bytes(example[image])
                suffix = ".png" if content.startswith(b"\x89PNG") else ".jpg" if content[:2] == b"\xff\xd8" else ""
                target = os.path.join(folder, split, f"{int(example[label]):06}")
                with disk_errors(folder):
                    os.makedirs(target, exist_ok=True)
                    with open(os.path.join(target, f"{number:09}{suffix}"), "wb") as stream:
                        stream.write(content)
        except Exception as error:  # TensorFlow's own exceptions: a shard that is damaged or gone
            if hasattr(error, "exit_code"):
                raise
            raise DataError(
                f"{builder.info.full_name} in {printable(str(builder.data_path))} cannot be read ({_first_line(error)})",
                hint="Delete that folder and prepare it again",
            ) from error
    return dict(unlabeled)


def _dataset(
    data: str,
    folder: Path,
    splits: dict[str, Split | None],
    names: list[str],
    ignored: list[Ignored],
    min_classes: int,
) -> Dataset:
    """Return the dataset of what was written to the cache."""
    found: dict[int, list[str]] = {}
    for split in sorted(os.listdir(folder)):
        for label in sorted(os.listdir(os.path.join(folder, split))):
            found.setdefault(int(label), []).append(split)
    used = {splits[split] for placed in found.values() for split in placed}
    given = tuple(split for split in SPLITS if split in used)
    if given == ("train",):
        given = ()  # a train folder alone is not a split
    class_names = [class_name(names[label]) for label in sorted(found)]
    if len(class_names) < min_classes:
        got = ", ".join(map(repr, class_names)) or "none"
        raise DataError(f"{data} has too few classes", expected="at least two that have images", got=got)
    records = tuple(
        Record(
            os.path.join(folder, split, f"{label:06}", file),
            f"{split}/{class_names[index]}/{file}",
            index,
            splits[split] if given else None,
        )
        for index, label in enumerate(sorted(found))
        for split in found[label]
        for file in sorted(os.listdir(os.path.join(folder, split, f"{label:06}")))
    )
    return Dataset(data, tuple(class_names), records, tuple(ignored), given)


def _place(data_dir: str) -> str:
    return printable(data_dir or os.environ.get("TFDS_DATA_DIR") or "tensorflow-datasets' own folder")


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return printable(f"{type(error).__name__}: {lines[0]}"[:240] if lines else type(error).__name__)
