"""The bundle: a folder that holds a trained classifier, everything needed to serve it, and how it came to be.

    models/dogs/
      bundle.json    what it is: classes, preprocessing, plan with reasons, config, data, metrics, checksums
      model.xml/.bin the whole network, pixels 0-255 to probabilities, for OpenVINO
      model.keras    the same network for Keras
      history.csv    how training went
      split.csv      which image (by content) was used for what
      report.html    all of it for people

Writing is all or nothing: files go to a hidden folder beside the target, are flushed, and the two folders change places in
one step. Reading verifies checksums and never runs code from the folder. `models/README.md` documents the format.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
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

from transferapp.errors import BundleError, DataError, ResourceError
from transferapp.images.augment import PCAColor
from transferapp.images.views import VIEW_COUNTS
from transferapp.system.storage import disk_errors, sha256_file, sync_directory

FORMAT = "transferapp-bundle"
SCHEMA_VERSION = 1
MANIFEST = "bundle.json"
NETWORK_FILES = ("model.xml", "model.bin")
"""What a server needs besides the manifest."""

MAX_MANIFEST_BYTES = 32 << 20
"""A manifest of ten thousand classes, each with its metrics, has 3 MB."""

_STAGING = ".part-"
_RETIRED = ".old-"


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose manifest has been read and checked.

    Attributes:
        path: The folder.
        manifest: `bundle.json` as parsed.
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
    def color(self) -> PCAColor | None:
        """The principal components of its training images' colors; None where it was trained without.

        Raises:
            BundleError: What is written there is none.
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

    @property
    def version(self) -> str:
        """Twelve hex digits that name the content: the same weights, classes and preprocessing give the same version."""
        parts = {name: self.manifest["files"][name]["sha256"] for name in NETWORK_FILES}
        identity = json.dumps([parts, self.manifest["class_names"], self.manifest["input"]], sort_keys=True)
        return hashlib.sha256(identity.encode()).hexdigest()[:12]

    def file(self, name: str) -> Path:
        """The path of one of the bundle's files, after its checksum has been verified.

        Raises:
            BundleError: It is missing, or its bytes are not those that were written.
        """
        path, checksum = self._entry(name)
        if sha256_file(path) != checksum:
            raise _altered(path)
        return path

    def read(self, name: str) -> bytes:
        """One of the bundle's files as bytes whose checksum has been verified: these very bytes.

        What is read so cannot change any more, whatever is copied over the file afterwards.

        Raises:
            BundleError: It is missing, or its bytes are not those that were written.
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
        if entry is None or not path.is_file():
            raise BundleError(f"{self.path} has no {name}", hint="The folder is incomplete: copy it again or fit again")
        return path, entry["sha256"]


def _altered(path: Path) -> BundleError:
    return BundleError(
        f"{path} is not the file that was written (its checksum differs)",
        hint="The file was altered or damaged: copy the bundle again or fit again",
        code="checksum_mismatch",
    )


def read_bundle(path: Path) -> Bundle:
    """Open a bundle: read its manifest and check that it is one that this version understands.

    Raises:
        BundleError: There is no bundle, it is damaged, or a newer version wrote it.
    """
    _recover(path)
    manifest_path = path / MANIFEST
    if not path.is_dir():
        raise BundleError(f"There is no bundle at {path}", expected="a folder that `transferapp fit --out` wrote")
    if not manifest_path.is_file():  # a pipe by that name, too: reading one would wait for ever
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
        and shown.get("default_views", VIEW_COUNTS[0]) in VIEW_COUNTS
        and isinstance(precision, dict)
        and precision.get("served", "f32") in ("f32", "bf16")
    )
    if not well_formed:
        raise BundleError(f"{path} is incomplete", hint="Copy the bundle again or fit again")
    assert isinstance(files, dict)
    if any(Path(name).name != name or name in {"", ".", ".."} for name in files):
        raise BundleError(f"{path} names files outside its own folder", code="unsafe_bundle")


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(n, int) and 8 <= n <= 4096 for n in value)


@contextlib.contextmanager
def writing(target: Path) -> Iterator[Path]:
    """Give a staging folder; when the block ends well, put it in the place of `target` in one step.

    The block must call `write_manifest` last. If it raises, or the process is killed at any moment, what was at `target`
    stays as it was. The block holds the lock of `only_writer`.

    Raises:
        DataError: Another process is writing to `target`.
        ResourceError: The disk is full or not writable.
        BundleError: Something that is not a bundle is at `target`: it is not overwritten.
    """
    check_target(target)
    with only_writer(target), disk_errors(target):
        target = target.resolve()  # a link is followed, not replaced
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
            _swap(staging, target)
        finally:
            try:
                shutil.rmtree(staging, ignore_errors=True)
            except BaseException:  # Ctrl-C while this was going on, which comes as an exception, and once
                shutil.rmtree(staging, ignore_errors=True)
                raise


@contextlib.contextmanager
def only_writer(target: Path) -> Iterator[None]:
    """Hold the lock of a bundle's place: one process, and one thread of it, writes there at a time.

    A thread that holds the lock may take it again: a fit holds it from its start, and once more while it writes.

    Raises:
        DataError: Someone else holds the lock.
        ResourceError: No lock can be made there.
    """
    with disk_errors(target):
        place = target.resolve()  # one lock, whatever links lead there
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(place.with_name(f".{place.name}.lock"), is_singleton=True)
        try:
            lock.acquire(blocking=False)
        except Timeout as error:
            if not Path(lock.lock_file).exists():  # no file can be made there, as in /proc
                raise ResourceError(
                    f"Could not write to {place.parent}", hint="Name another folder with --out"
                ) from error
            raise DataError(
                f"Another fit, search or ensemble is writing to {target} right now",
                hint="Wait for it, or name another folder with --out",
            ) from error
    try:
        yield
    finally:
        lock.release()


def check_target(target: Path) -> None:
    """Refuse a target that holds something else than a bundle, before hours of work are spent on it.

    Raises:
        BundleError: It does. An empty folder is welcome, and so is a bundle whose manifest is damaged.
    """
    _recover(target)
    if target.exists() and not _may_replace(target):
        raise BundleError(
            f"{target} exists and is not a bundle, so it is left alone", hint="Name another folder with --out"
        )


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
    """Add checksums of every file in the staging folder to `manifest` and write it as `bundle.json`."""
    files = {
        file.name: {"sha256": sha256_file(file), "bytes": file.stat().st_size} for file in sorted(staging.iterdir())
    }
    document = {"format": FORMAT, "schema_version": SCHEMA_VERSION, **manifest, "files": files}
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    # File names that are no Unicode come as lone surrogates; what replaces them here is how JSON escapes those.
    (staging / MANIFEST).write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def _swap(staging: Path, target: Path) -> None:
    if not target.exists():
        staging.rename(target)
    elif not _exchange(staging, target):
        _replace_in_two_steps(staging, target)
    sync_directory(target.parent)


def _replace_in_two_steps(staging: Path, target: Path) -> None:
    """Where folders cannot be exchanged, the target is absent for an instant; `_recover` mends a kill just then."""
    retired = _beside(target, _RETIRED, secrets.token_hex(4))
    while True:
        target.rename(retired)
        try:
            staging.rename(target)
        except OSError:
            if target.exists():  # a reader took the instant for a kill and put the old one back
                continue
            retired.rename(target)
            raise
        break
    shutil.rmtree(retired, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Let two folders change places in one step (Linux 3.15 and later); False where the system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    at_cwd, exchange = -100, 2
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    return renameat2 is not None and renameat2(at_cwd, os.fsencode(first), at_cwd, os.fsencode(second), exchange) == 0


def _beside(target: Path, kind: str, tag: str) -> Path:
    """A hidden folder next to the target, on the same file system, so that renaming is one step."""
    return target.parent / f".{target.name}{kind}{tag}"


def _leftovers(target: Path, kind: str) -> list[Path]:
    """Hidden folders of a kind that killed writers have left beside the target."""
    prefix = f".{target.name}{kind}"
    return sorted(
        path
        for path in target.parent.iterdir()
        if path.name.startswith(prefix) and path.name.removeprefix(prefix).isalnum()
    )


def _sweep(target: Path) -> None:
    """Remove what killed writers have left beside the target."""
    for leftover in (*_leftovers(target, _STAGING), *_leftovers(target, _RETIRED)):
        shutil.rmtree(leftover, ignore_errors=True)


def _recover(target: Path) -> None:
    """Put back a bundle whose replacement was cut off between its two renames."""
    if target.exists() or not target.parent.is_dir():
        return
    with contextlib.suppress(OSError):
        for retired in _leftovers(target, _RETIRED):
            if (retired / MANIFEST).is_file():
                retired.rename(target)
                return
