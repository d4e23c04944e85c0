"""The predictor being served, and how far its loading is.

Requests take the predictor from its slot once and keep it to their end, so a predictor put in its place later can never
mix two models in one answer.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from pathlib import Path

from PIL import Image

from service.problems import Refusal
from service.settings import Settings, available_cores
from transferapp.bundle import MANIFEST, read_bundle
from transferapp.errors import BundleError, TransferAppError
from transferapp.images import ImageLimits
from transferapp.predict import Predictor

logger = logging.getLogger(__name__)


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


class ModelSlot:
    """Holds the predictor that requests use.

    Attributes:
        phase: How far loading is.
        error: Why it failed, if it did.
        on_failure: Called, in the loading thread, when it fails: the process has nothing to serve then.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._predictor: Predictor | None = None
        self.phase = Phase.LOADING
        self.error: Exception | None = None
        self.on_failure: Callable[[], None] | None = None

    def get(self) -> Predictor:
        """The predictor to use for one request.

        Raises:
            Refusal: There is none yet, or there never will be.
        """
        if self._predictor is not None:
            return self._predictor
        failed = self.phase is Phase.FAILED
        raise Refusal(
            _REASONS[self.phase],
            code="not_ready",
            hint="The service's log says why; it must be started again" if failed else None,
            headers=None if failed else {"Retry-After": "1"},
            members={"phase": self.phase.value},
        )

    def load(self) -> None:
        """Read the bundle, build its predictor, run it warm. Blocks; never raises: the outcome is in `phase`."""
        try:
            predictor = self._build()
            self.phase = Phase.WARMING
            self._warm(predictor)
        except Exception as error:  # whatever it was, it must end in a clear state and not in a thread nobody watches
            self.error = error
            self.phase = Phase.FAILED
            if self.on_failure:
                self.on_failure()  # ends the process, which says why itself
            else:
                foreseen = isinstance(error, TransferAppError)
                logger.error("model_failed", extra={"detail": str(error)}, exc_info=not foreseen)
        else:
            self._predictor = predictor
            self.phase = Phase.READY
            bundle = predictor.bundle
            logger.info("model_ready", extra={"model": bundle.name, "version": bundle.version})

    def _build(self) -> Predictor:
        return Predictor(
            read_bundle(find_bundle(self._settings.bundle)),
            precision=self._settings.precision,
            streams=self._settings.workers,
            threads=available_cores(),
            limits=ImageLimits(max_pixels=self._settings.max_pixels),
        )

    def _warm(self, predictor: Predictor) -> None:
        """Take the whole path on every stream once, so that the first request pays for no plug-in and no allocation."""
        picture = io.BytesIO()
        Image.new("RGB", (320, 320), (127, 127, 127)).save(picture, "JPEG")
        with ThreadPoolExecutor(self._settings.workers) as threads:
            for done in [threads.submit(predictor.predict, picture.getvalue()) for _ in range(self._settings.workers)]:
                done.result()


def find_bundle(path: Path) -> Path:
    """The bundle meant by `path`: itself, or the only one in it.

    Raises:
        BundleError: There is none, or there are several.
    """
    if (path / MANIFEST).is_file() or not path.is_dir():
        return path
    found = sorted(child.parent for child in path.glob(f"[!.]*/{MANIFEST}"))
    if not found:
        raise BundleError(
            f"There is no bundle in {path}",
            expected="a folder that `transferapp fit --out` wrote, or one that holds such a folder",
            hint="Fit a model first, or set TRANSFERAPP_BUNDLE to where its bundle is",
        )
    if len(found) > 1:
        raise BundleError(
            f"There are {len(found)} bundles in {path}: {', '.join(folder.name for folder in found)}",
            expected="exactly one, or the path of one of them",
            hint=f"Name the one to serve, for example TRANSFERAPP_BUNDLE={found[0]}",
        )
    return found[0]
