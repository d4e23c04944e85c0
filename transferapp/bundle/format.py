"""Format of bundles: folders with a trained classifier, all that serving it needs, and the record of how it was made.

    models/dogs/
      bundle.json    manifest: classes, preprocessing, plan with reasons, config, data, metrics, checksums
      model.xml/.bin the whole network, pixels 0-255 to probabilities, for OpenVINO
      model.keras    the same network for Keras
      novelty.npz    features of training images, and how similar held-out images are to them
      history.csv    history of training
      split.csv      split of each image, by content
      report.html    report for people
      README.md      model card, in the form of model hubs

Writing is atomic: files go to a hidden folder beside the target, are flushed, and the two folders are exchanged in one step.
Reading verifies checksums and never runs code from the folder. `models/README.md` documents the format.
"""

from __future__ import annotations

import contextlib
import csv
import ctypes
import functools
import hashlib
import io
import json
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from transferapp.bundle.novelty import Novelty
from transferapp.data.names import printable, shortened
from transferapp.errors import BundleError, DataError, ResourceError, UsageError
from transferapp.images import SAMPLE_BITS
from transferapp.images.augment import PCAColor
from transferapp.images.views import GEOMETRIES, VIEW_COUNTS, Geometry
from transferapp.system.storage import disk_errors, sha256_file, sync_directory

FORMAT = "transferapp-bundle"
SCHEMA_VERSION = 1
MANIFEST = "bundle.json"
NETWORK_FILES = ("model.xml", "model.bin")
"""Files that a server needs besides the manifest."""
KERAS_FILE = "model.keras"
"""File of the Keras model, which serving does not need; absent from the first bundle of a fit."""
NOVELTY = "novelty.npz"
"""File of the novelty score; absent where there were too few held-out images, and from ensembles."""

MAX_MANIFEST_BYTES = 32 << 20
"""Size limit; the manifest of ten thousand classes has 3 MB."""

_DISK_NAME_BYTES = 255
MAX_NAME_BYTES = 240
"""Longest name of a bundle: of what disks allow, the hidden folders beside it need some."""

_STAGING = ".part-"
_RETIRED = ".old-"


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose manifest has been read and checked.

    Attributes:
        path: Folder of the bundle.
        manifest: Parsed `bundle.json`.
    """

    path: Path
    manifest: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.manifest["name"])

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.manifest["class_names"])

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the network's input in pixels."""
        height, width = self.manifest["input"]["image_size"]
        return int(height), int(width)

    @property
    def sample_bits(self) -> int | None:
        """Depth of the 16-bit samples of its training images; None where they had none."""
        bits = self.manifest["input"].get("sample_bits")
        return None if bits is None else int(bits)

    @property
    def geometry(self) -> Geometry:
        """Way in which an image becomes the network's input: one of `GEOMETRIES`."""
        geometry: Geometry = self.manifest["input"].get("geometry", "crop")
        return geometry

    @property
    def color(self) -> PCAColor | None:
        """Principal components of the training images' colors; None without color augmentation.

        Raises:
            BundleError: The components in the manifest are invalid.
        """
        values = self.manifest.get("color")
        if values is None:
            return None
        try:
            return PCAColor.from_json(values)
        except (AttributeError, TypeError, ValueError) as error:
            raise BundleError(
                f"{self.path / MANIFEST} holds no color components where it should",
                hint="Copy the bundle again or fit again",
            ) from error

    def splits(self) -> dict[str, str]:
        """Return the split of every image of the fit by the SHA-256 of its bytes; empty where the bundle does not say.

        An image that is in several splits, as given ones can have it, counts as one of the first of train, val and test.

        Raises:
            BundleError: The table was altered.
        """
        if "split.csv" not in self.manifest["files"]:
            return {}
        splits: dict[str, str] = {}
        for row in self.split_rows():
            known = splits.setdefault(row["sha256"], row["split"])
            if split_rank(row["split"]) < split_rank(known):
                splits[row["sha256"]] = row["split"]
        return splits

    def split_rows(self) -> Iterator[dict[str, str]]:
        """Read `split.csv`, and return its rows one by one.

        Raises:
            BundleError: The table is missing or was altered.
        """
        return csv.DictReader(io.StringIO(self.read("split.csv").decode("utf-8")))

    @property
    def set_threshold(self) -> float | None:
        """Largest score of a class in a prediction set; None where the bundle promises no coverage."""
        sets = self.manifest.get("prediction_sets")
        return None if sets is None else float(sets["threshold"])

    @property
    def coverage(self) -> float | None:
        """Promised share of images whose prediction set has the right class; None where the bundle promises none."""
        sets = self.manifest.get("prediction_sets")
        return None if sets is None else float(sets["coverage"])

    def novelty(self) -> Novelty | None:
        """Read the novelty score; None where the bundle has none.

        Raises:
            BundleError: Its file is missing, was altered, or is not one.
        """
        if NOVELTY not in self.manifest["files"]:
            return None
        try:
            return Novelty.from_bytes(self.read(NOVELTY))
        except ValueError as error:
            raise BundleError(
                f"{self.path / NOVELTY} does not hold a novelty score ({error})",
                hint="Copy the bundle again or fit again",
            ) from error

    @functools.cached_property
    def version(self) -> str:
        """Twelve hex digits that identify all that an answer depends on: weights, classes, preprocessing and calibration."""
        files = self.manifest["files"]
        parts = {name: files[name]["sha256"] for name in (*NETWORK_FILES, NOVELTY) if name in files}
        calibrated = [self.manifest["class_names"], self.manifest["input"], self.set_threshold]
        identity = json.dumps([parts, *calibrated], sort_keys=True)
        return hashlib.sha256(identity.encode()).hexdigest()[:12]

    def file(self, name: str) -> Path:
        """Return the path of a file after verifying its checksum.

        Raises:
            BundleError: The file is missing or was altered.
        """
        path, checksum = self._entry(name)
        if sha256_file(path) != checksum:
            raise _altered(path)
        return path

    def read(self, name: str) -> bytes:
        """Return the bytes of a file after verifying their checksum; later changes of the file do not affect them.

        Raises:
            BundleError: The file is missing or was altered.
        """
        path, checksum = self._entry(name)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise BundleError(f"{path} cannot be read ({error.strerror or error})") from error
        if hashlib.sha256(data).hexdigest() != checksum:
            raise _altered(path)
        return data

    def _entry(self, name: str) -> tuple[Path, str]:
        entry = self.manifest["files"].get(name)
        path = self.path / name
        if entry is None and name == KERAS_FILE:  # the first bundle of a fit, which another one should have replaced
            raise BundleError(
                f"{self.path} has no {name} yet", hint="Run its fit to the end: give the same command again"
            )
        if entry is None or not path.is_file():
            raise BundleError(f"{self.path} has no {name}", hint="The folder is incomplete: copy it again or fit again")
        return path, entry["sha256"]


def split_rank(split: str) -> int:
    """Return the rank of a split: an image that is in several counts as one of the split of the lowest rank."""
    return {"train": 0, "val": 1, "test": 2}.get(split, 3)


def _altered(path: Path) -> BundleError:
    return BundleError(
        f"{path} is not the file that was written (its checksum differs)",
        hint="The file was altered or damaged: copy the bundle again or fit again",
        code="checksum_mismatch",
    )


def read_bundle(path: Path) -> Bundle:
    """Open a bundle: read and check its manifest.

    Raises:
        BundleError: The bundle is missing, damaged, or written by a newer version.
    """
    _recover(path)
    manifest_path = path / MANIFEST
    if not path.is_dir():
        raise BundleError(f"No bundle was found at {path}", expected="a folder that `transferapp fit --out` wrote")
    if not manifest_path.is_file():  # reading a pipe of that name would block forever
        raise BundleError(
            f"{path} is not a bundle: it has no {MANIFEST}", expected="a folder that `transferapp fit --out` wrote"
        )
    try:
        with manifest_path.open("rb") as stream:
            data = stream.read(MAX_MANIFEST_BYTES + 1)
        if len(data) > MAX_MANIFEST_BYTES:
            raise BundleError(f"{manifest_path} is too large", expected=f"at most {MAX_MANIFEST_BYTES:,} bytes")
        manifest = json.loads(data)
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(
            f"{manifest_path} cannot be read ({error})", hint="Copy the bundle again or fit again"
        ) from error
    _check_manifest(manifest, manifest_path)
    return Bundle(path, manifest)


def _check_manifest(manifest: Any, path: Path) -> None:
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise BundleError(f"{path} does not describe a transferapp bundle")
    version = manifest.get("schema_version")
    if not isinstance(version, int) or not 1 <= version <= SCHEMA_VERSION:
        raise BundleError(
            f"{path} has schema version {version}",
            expected=f"1 to {SCHEMA_VERSION}",
            hint="Install the transferapp that wrote it (see `versions` in the file), or fit again",
        )
    class_names, files, shown = (manifest.get(field) for field in ("class_names", "files", "input"))
    precision = manifest.get("precision", {})
    well_formed = (
        isinstance(manifest.get("name"), str)
        and isinstance(class_names, list)
        and all(isinstance(name, str) for name in class_names)
        and len(set(class_names)) == len(class_names) >= 2
        and isinstance(files, dict)
        and all(isinstance(entry, dict) and isinstance(entry.get("sha256"), str) for entry in files.values())
        and all(name in files for name in NETWORK_FILES)
        and isinstance(shown, dict)
        and _is_size(shown.get("image_size"))
        and shown.get("geometry", "crop") in GEOMETRIES
        and shown.get("default_views", VIEW_COUNTS[0]) in VIEW_COUNTS
        and shown.get("sample_bits") in (None, *SAMPLE_BITS)
        and isinstance(precision, dict)
        and precision.get("served", "f32") in ("f32", "bf16")
        and _are_sets(manifest.get("prediction_sets"))
    )
    if not well_formed:
        raise BundleError(f"{path} is incomplete", hint="Copy the bundle again or fit again")
    assert isinstance(files, dict)
    if any(Path(name).name != name or name in {"", ".", ".."} for name in files):
        raise BundleError(f"{path} names files outside its own folder", code="unsafe_bundle")


def _are_sets(sets: Any) -> bool:
    """Return whether these are prediction sets with a coverage and a threshold, or none."""
    if sets is None:
        return True
    numbers = [sets.get(name) for name in ("coverage", "threshold")] if isinstance(sets, dict) else [None]
    return all(isinstance(number, int | float) and 0 <= number <= 1 for number in numbers)


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(n, int) and 8 <= n <= 4096 for n in value)


@contextlib.contextmanager
def writing(target: Path) -> Iterator[Path]:
    """Yield a staging folder; when the block succeeds, put it in the place of `target` in one step.

    The block must call `write_manifest` last. If it raises, or the process is killed at any moment, `target` stays unchanged.
    The block holds the lock of `only_writer`.

    Raises:
        DataError: Another process is writing to `target`.
        ResourceError: The disk is full or not writable.
        BundleError: `target` exists and is not a bundle.
    """
    check_target(target)
    with only_writer(target), disk_errors(target):
        target = Path(os.path.realpath(target))  # a link is followed, not replaced
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target)
        staging = _beside(target, _STAGING, secrets.token_hex(4))
        try:
            staging.mkdir()
            yield staging
            assert (staging / MANIFEST).is_file(), "write_manifest comes last"
            for file in staging.iterdir():
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
            sync_directory(staging)
            put_in_place(staging, target)
        finally:
            try:
                shutil.rmtree(staging, ignore_errors=True)
            except BaseException:  # Ctrl-C during the removal raises once
                shutil.rmtree(staging, ignore_errors=True)
                raise


@contextlib.contextmanager
def only_writer(target: Path) -> Iterator[None]:
    """Hold the lock of a target, so that only one thread of one process writes to it.

    The lock is reentrant: a fit holds it from its start, and again while it writes.

    Raises:
        DataError: Another process or thread holds the lock.
        ResourceError: The lock file cannot be created.
    """
    with disk_errors(target):
        place = Path(os.path.realpath(target))  # one lock for all links to the same place
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(place.with_name(f".{place.name}.lock"), is_singleton=True)
        try:
            lock.acquire(blocking=False)
        except Timeout as error:
            if not Path(lock.lock_file).exists():  # files cannot be created there, as in /proc
                raise ResourceError(
                    f"Could not write to {place.parent}", hint="Name another folder with --out"
                ) from error
            raise DataError(
                f"Another command is writing to {target} right now",
                hint="Wait for it, or name another folder with --out",
            ) from error
    try:
        yield
    finally:
        lock.release()


def check_target(target: Path, replaced_by: str = "") -> None:
    """Raise an error for a target that must not be overwritten, before any work is done.

    Args:
        target: Folder of the bundle.
        replaced_by: The data of the new bundle, if their name alone gave the target; then a bundle of other data stays.

    Raises:
        UsageError: The name is too long for the disk.
        BundleError: The target is a link to itself, or neither a bundle, possibly with a damaged manifest, nor an empty folder.
        DataError: The target is a bundle of other data.
    """
    for name, limit in ((target.name, MAX_NAME_BYTES), *((part, _DISK_NAME_BYTES) for part in target.parent.parts)):
        if (length := len(os.fsencode(name))) > limit:
            raise UsageError(
                f"The {'name' if name == target.name else 'path'} of the bundle is too long",
                expected=f"at most {limit} bytes",
                got=f"{length:,}, in {shortened(printable(name))}",
                hint="Name another folder with --out",
            )
    if os.path.islink(os.path.realpath(target)):  # noqa: PTH114 - `resolve` raises an error for such a link
        raise BundleError(f"{target} is a link that leads to itself", hint="Name another folder with --out")
    _recover(target)
    if target.exists() and not _may_replace(target):
        raise BundleError(
            f"{target} exists and is not a bundle, so it is left alone", hint="Name another folder with --out"
        )
    origin = _origin(target) if replaced_by else ""
    if origin and origin != replaced_by and os.path.realpath(origin) != os.path.realpath(replaced_by):
        raise DataError(
            f"{target} holds the bundle of other data, so it is left alone",
            expected=f"a bundle of {printable(replaced_by)}",
            got=f"one of {printable(origin)}",
            hint=f"Name a folder with --out; --out {target} replaces it",
        )


def _origin(target: Path) -> str:
    """Return the data of a bundle; empty if there is none, or if it does not say."""
    try:
        origin = json.loads((target / MANIFEST).read_text(encoding="utf-8"))["data"]["origin"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return ""
    return origin if isinstance(origin, str) else ""


def _may_replace(target: Path) -> bool:
    if not target.is_dir():
        return False
    try:
        manifest = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return not any(target.iterdir())
    except (OSError, ValueError, RecursionError):
        return all((target / name).is_file() for name in NETWORK_FILES)
    return isinstance(manifest, dict) and manifest.get("format") == FORMAT


def write_manifest(staging: Path, manifest: dict[str, Any]) -> None:
    """Add the checksums of all files in the staging folder to the manifest and write it as `bundle.json`."""
    files = {
        file.name: {"sha256": sha256_file(file), "bytes": file.stat().st_size} for file in sorted(staging.iterdir())
    }
    document = {"format": FORMAT, "schema_version": SCHEMA_VERSION, **manifest, "files": files}
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    # File names that are not Unicode contain lone surrogates, which are written as JSON escapes.
    (staging / MANIFEST).write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def put_in_place(staging: Path, target: Path) -> None:
    """Move a folder to `target` in one step. What was there is then at `staging`, or deleted."""
    if not target.exists():
        staging.rename(target)
    elif not _exchange(staging, target):
        _replace_in_two_steps(staging, target)
    sync_directory(target.parent)


def _replace_in_two_steps(staging: Path, target: Path) -> None:
    """Replace the target by two renames, between which it is absent; `_recover` repairs a kill at that moment."""
    retired = _beside(target, _RETIRED, secrets.token_hex(4))
    while True:
        target.rename(retired)
        try:
            staging.rename(target)
        except OSError:
            if target.exists():  # a reader has called `_recover` in between
                continue
            retired.rename(target)
            raise
        break
    shutil.rmtree(retired, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two folders in one step (Linux 3.15 and later); return False where the system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    at_cwd, exchange = -100, 2
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    return renameat2 is not None and renameat2(at_cwd, os.fsencode(first), at_cwd, os.fsencode(second), exchange) == 0


def _beside(target: Path, kind: str, tag: str) -> Path:
    """Return the path of a hidden folder beside the target, on the same file system."""
    return target.parent / f".{target.name}{kind}{tag}"


def _leftovers(target: Path, kind: str) -> list[Path]:
    """List the hidden folders of a kind that killed writers have left beside the target."""
    prefix = f".{target.name}{kind}"
    return sorted(
        path
        for path in target.parent.iterdir()
        if path.name.startswith(prefix) and path.name.removeprefix(prefix).isalnum()
    )


def _sweep(target: Path) -> None:
    """Remove the folders that killed writers have left beside the target."""
    for leftover in (*_leftovers(target, _STAGING), *_leftovers(target, _RETIRED)):
        shutil.rmtree(leftover, ignore_errors=True)


def _recover(target: Path) -> None:
    """Restore a bundle whose replacement was interrupted between its two renames."""
    if target.exists() or not target.parent.is_dir():
        return
    with contextlib.suppress(OSError):
        for retired in _leftovers(target, _RETIRED):
            if (retired / MANIFEST).is_file():
                retired.rename(target)
                return
