"""One model being served: its predictor, how far its loading is, and its replacement by a newer bundle.

Requests take the predictor from its slot once and keep it to their end, so a predictor put in its place later can never
mix two models in one answer. The old one lives until the last of its requests lets go of it, and no longer.
"""

from __future__ import annotations

import io
import logging
import math
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from PIL import Image

from service.metrics import Metrics
from service.problems import Refusal
from service.settings import Settings, available_cores
from transferapp.bundle.format import MANIFEST, NETWORK_FILES, read_bundle
from transferapp.bundle.predictor import Predictor
from transferapp.errors import BundleError, TransferAppError
from transferapp.images import ImageLimits

logger = logging.getLogger(__name__)

Signature = tuple[tuple[int, int, int], ...]
"""(inode, time of change in ns, bytes) of each file that matters: differs as soon as a bundle may have changed."""


class Phase(StrEnum):
    """Where a slot stands."""

    LOADING = "loading"
    WARMING = "warming"
    READY = "ready"
    FAILED = "failed"


_REASONS = {
    Phase.LOADING: "The model is being loaded",
    Phase.WARMING: "The model is doing its first predictions, which are slow",
    Phase.FAILED: "The model could not be loaded",
}


@dataclass(frozen=True)
class RefusedBundle:
    """A bundle that was offered and not taken.

    Attributes:
        at: When, in UTC.
        code: What was wrong with it, for programs.
        detail: The same for people, without the place of the bundle on this machine's disk.
    """

    at: datetime
    code: str
    detail: str


class ModelSlot:
    """Holds the predictor that requests for one model use.

    Attributes:
        name: What requests call it.
        path: The bundle's folder.
        phase: How far loading is. Once it is `READY` it stays so, whatever is offered later.
        error: Why the first loading failed, if it did.
        loaded: When the predictor being served was put in place, in UTC.
        refused: The last bundle offered, if it was refused; None again once a good one has come.
        signature: What the files looked like when they were last read, good or bad.
    """

    def __init__(self, name: str, path: Path, settings: Settings, metrics: Metrics) -> None:
        self.name = name
        self.path = path
        self._settings = settings
        self._metrics = metrics
        self._predictor: Predictor | None = None
        self.phase = Phase.LOADING
        self.error: Exception | None = None
        self.loaded: datetime | None = None
        self.refused: RefusedBundle | None = None
        self.signature: Signature | None = None

    @property
    def current(self) -> Predictor | None:
        """The predictor being served, if there is one."""
        return self._predictor

    def get(self) -> Predictor:
        """The predictor to use for one request.

        Raises:
            Refusal: There is none yet, or there was no good bundle so far.
        """
        predictor = self._predictor
        if predictor is not None:
            return predictor
        failed = self.phase is Phase.FAILED
        raise Refusal(
            _REASONS[self.phase],
            code="not_ready",
            hint="The service's log says why; a good bundle in its place mends it" if failed else None,
            headers=None if failed else {"Retry-After": "1"},
            members={"phase": self.phase.value},
        )

    def load(self, *, quiet: bool = False) -> bool:
        """Read the bundle, verify it, build its predictor, run it warm, and only then put it in the place of the old one.

        Blocks; never raises: the outcome is in `phase`, `error` and `refused`.

        Args:
            quiet: Whether a refusal is left to the caller to tell of.

        Returns:
            Whether a new predictor is being served.
        """
        self.signature = bundle_signature(self.path)
        try:
            predictor = self._build()
            self._advance(Phase.WARMING)
            self._warm(predictor)
        except Exception as error:  # whatever it was, it must end in a clear state and not in a thread nobody watches
            self._refuse(error, quiet)
            return False
        self._put(predictor)
        return True

    def _advance(self, phase: Phase) -> None:
        if self.phase is not Phase.READY:  # an old predictor goes on serving meanwhile
            self.phase = phase

    def _build(self) -> Predictor:
        return Predictor.load(
            self.path,
            precision=self._settings.precision,
            streams=self._settings.workers,
            threads=available_cores(),
            limits=ImageLimits(max_pixels=self._settings.max_pixels),
        )

    def _warm(self, predictor: Predictor) -> None:
        """Take the whole path on every stream once, so that the first request pays for no plug-in and no allocation."""
        side = min(320, math.isqrt(predictor.limits.max_pixels))  # it must pass the limits as any other
        image = io.BytesIO()
        Image.new("RGB", (side, side), (127, 127, 127)).save(image, "JPEG")
        with ThreadPoolExecutor(self._settings.workers) as threads:
            for done in [threads.submit(predictor.predict, image.getvalue()) for _ in range(self._settings.workers)]:
                done.result()

    def _put(self, predictor: Predictor) -> None:
        old = self._predictor
        self._predictor = predictor  # one assignment: a request sees the old one or the new one
        self.phase, self.error, self.refused, self.loaded = Phase.READY, None, None, datetime.now(UTC)
        version = predictor.bundle.version
        self._metrics.model_loaded(self.name, version, predictor.engine.precision, swap=old is not None)
        logger.info("model_ready" if old is None else "model_swapped", extra={"model": self.name, "version": version})
        if old is not None:
            details = {"model": self.name, "version": old.bundle.version}
            weakref.finalize(old, logger.info, "model_drained", extra=details).atexit = False

    def _refuse(self, error: Exception, quiet: bool) -> None:
        foreseen = isinstance(error, TransferAppError)
        code = error.code if isinstance(error, TransferAppError) else "internal"
        detail = str(error) if foreseen else "It could not be loaded"
        shown = detail.replace(str(self.path), self.name).replace(str(self.path.absolute()), self.name)
        self.refused = RefusedBundle(datetime.now(UTC), code, shown)
        self._metrics.load_failures.labels(self.name).inc()
        if self._predictor is None:
            self.phase, self.error = Phase.FAILED, error
        if quiet:
            return
        logger.error(
            "bundle_refused",
            extra={"model": self.name, "code": code, "detail": detail, "still_serving": self._predictor is not None},
            exc_info=None if foreseen else error,
        )


def bundle_signature(path: Path) -> Signature | None:
    """What a bundle's files look like from outside; None where there is no manifest."""
    found = []
    for name in (MANIFEST, *NETWORK_FILES):
        try:
            status = (path / name).stat()
        except OSError:
            if name == MANIFEST:
                return None
            found.append((0, 0, 0))
        else:
            found.append((status.st_ino, status.st_mtime_ns, status.st_size))
    return tuple(found)


def find_bundles(path: Path) -> dict[str, Path]:
    """The bundles meant by `path`: itself, or every one in it, by the name that requests use.

    A bundle in a folder of bundles is called as its own folder is; one that is served alone, as its manifest says.

    Raises:
        BundleError: There is none, or the only one has no readable manifest.
    """
    if (path / MANIFEST).is_file() or not path.is_dir():
        return {read_bundle(path).name: path}
    found = {folder.name: folder for folder in bundles_in(path)}
    if not found:
        raise BundleError(
            f"There is no bundle in {path}",
            expected="a folder that `transferapp fit --out` wrote, or one that holds such folders",
            hint="Fit a model first, or set TRANSFERAPP_MODELS to where its bundle is",
        )
    return found


def bundles_in(path: Path) -> list[Path]:
    """The folders in `path` that hold a manifest, by name; hidden ones, where bundles are being written, left out."""
    try:
        folders = sorted(path.iterdir())
    except OSError:
        return []
    return [
        folder
        for folder in folders
        if not folder.name.startswith(".") and folder.name.isprintable() and (folder / MANIFEST).is_file()
    ]
