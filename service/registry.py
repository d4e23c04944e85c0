"""Registry of the models being served: found at the start, checked for new bundles, looked up by name.

A bundle that is new or changed, by its files' inodes and times, is loaded once its files have been stable from one check to
the next. It is verified and makes its first predictions before it replaces the old one; a bad bundle is refused and the old
one continues. Bundles are loaded in one background thread; requests never wait for it.

A request takes its predictor once and uses it to its end, so no answer mixes two models. A replaced predictor lives until
its last request has ended.
"""

from __future__ import annotations

import asyncio
import io
import logging
import math
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from PIL import Image

from service.metrics import Metrics
from service.problems import RequestError
from service.schemas import ModelState, RefusedBundle
from service.settings import Settings
from transferapp.bundle.format import MANIFEST, NETWORK_FILES, read_bundle
from transferapp.bundle.predictor import Predictor
from transferapp.errors import BundleError, TransferAppError
from transferapp.images import ImageLimits

logger = logging.getLogger(__name__)

Signature = tuple[tuple[int, int, int], ...]
"""(inode, time of change in ns, bytes) of a bundle's files: differs as soon as the bundle may have changed."""


class Phase(StrEnum):
    """Phase of a model's first loading."""

    LOADING = "loading"
    WARMING = "warming"
    READY = "ready"
    FAILED = "failed"


_NOT_READY = {
    Phase.LOADING: "The model is being loaded",
    Phase.WARMING: "The model is making its first predictions, which are slow",
    Phase.FAILED: "The model could not be loaded",
}


def not_ready(phase: Phase, what: str | None = None) -> RequestError:
    """Return the error of a model that cannot answer yet, or ever."""
    failed = phase is Phase.FAILED
    return RequestError(
        what or _NOT_READY[phase],
        code="not_ready",
        hint="See the service's log; a good bundle in its place fixes it" if failed else None,
        headers=None if failed else {"Retry-After": "1"},
        members={"phase": phase.value},
    )


class ModelSlot:
    """A model's name and the predictor that its requests use.

    Attributes:
        name: Name in requests.
        path: The bundle's folder.
        phase: Phase of loading. Once `READY` it stays so, whatever is offered later.
        error: Error of the first loading.
        predictor: The predictor being served; None if there is none yet.
        loaded: Time since when it is served, in UTC.
        refused: The last bundle offered, if it was refused.
        signature: Signature of the files when they were last read, whether good or bad.
    """

    def __init__(self, name: str, path: Path, settings: Settings, metrics: Metrics) -> None:
        self.name = name
        self.path = path
        self._settings = settings
        self._metrics = metrics
        self.phase = Phase.LOADING
        self.error: Exception | None = None
        self.predictor: Predictor | None = None
        self.loaded: datetime | None = None
        self.refused: RefusedBundle | None = None
        self.signature: Signature | None = None

    def get(self) -> Predictor:
        """Return the predictor for one request.

        Raises:
            RequestError: There is none yet, or there was no good bundle.
        """
        predictor = self.predictor
        if predictor is None:
            raise not_ready(self.phase)
        return predictor

    def state(self, *, default: bool) -> ModelState:
        """Return the model's entry in the list of models."""
        predictor = self.predictor
        return ModelState(
            name=self.name,
            default=default,
            phase=self.phase.value,
            version=predictor.bundle.version if predictor else None,
            loaded=self.loaded,
            classes=len(predictor.class_names) if predictor else None,
            refused=self.refused,
        )

    def load(self, *, quiet: bool = False) -> bool:
        """Read and verify the bundle, make first predictions, and only then replace the old predictor.

        Blocks and never raises: the outcome is in `phase`, `error` and `refused`.

        Args:
            quiet: Whether logging a refusal is left to the caller.

        Returns:
            Whether a new predictor is being served.
        """
        self.signature = bundle_signature(self.path)
        try:
            predictor = self._build()
            if self.phase is not Phase.READY:
                self.phase = Phase.WARMING
            self._warm(predictor)
        except Exception as error:  # the thread must survive any error, and its outcome must be visible
            self._refuse(error, quiet)
            return False
        self._replace(predictor)
        return True

    def _build(self) -> Predictor:
        return Predictor.load(
            self.path,
            precision=self._settings.precision,
            streams=self._settings.workers,
            threads=self._settings.threads,
            limits=ImageLimits(max_pixels=self._settings.max_pixels),
        )

    def _warm(self, predictor: Predictor) -> None:
        """Predict once on every stream, so that no request pays for loading plug-ins and allocating memory."""
        side = min(320, math.isqrt(predictor.limits.max_pixels))  # the image must pass the limits
        file = io.BytesIO()
        Image.new("RGB", (side, side), (127, 127, 127)).save(file, "JPEG")
        with ThreadPoolExecutor(self._settings.workers) as threads:
            list(threads.map(predictor.predict, [file.getvalue()] * self._settings.workers))

    def _replace(self, predictor: Predictor) -> None:
        old = self.predictor
        self.predictor = predictor  # one assignment: a request sees the old one or the new one
        self.phase, self.error, self.refused, self.loaded = Phase.READY, None, None, datetime.now(UTC)
        version = predictor.bundle.version
        self._metrics.model_loaded(self.name, version, predictor.engine.precision, swap=old is not None)
        logger.info("model_ready" if old is None else "model_swapped", extra={"model": self.name, "version": version})
        if old is not None:
            details = {"model": self.name, "version": old.bundle.version}
            weakref.finalize(old, logger.info, "model_drained", extra=details).atexit = False

    def _refuse(self, error: Exception, quiet: bool) -> None:
        known = error if isinstance(error, TransferAppError) else None
        code, detail = (known.code, str(known)) if known else ("internal", "It could not be loaded")
        public = detail.replace(str(self.path.absolute()), self.name).replace(str(self.path), self.name)
        self.refused = RefusedBundle(at=datetime.now(UTC), code=code, detail=public)
        self._metrics.load_failures.labels(self.name).inc()
        serving = self.predictor is not None
        if not serving:
            self.phase, self.error = Phase.FAILED, error
        if not quiet:
            details = {"model": self.name, "code": code, "detail": detail, "still_serving": serving}
            logger.error("bundle_refused", extra=details, exc_info=None if known else error)


class ModelRegistry:
    """Models by name.

    Attributes:
        slots: Models by name, in order. Replaced as a whole and never changed, so that any thread may read it.
        default: Name of the model that answers requests without a model name; None until it is known.
        draining: Whether the process has been told to stop.
        error: Why there is no model to serve.
        on_failure: Called, in the loading thread, when there is no model to serve.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._seen: dict[str, Signature | None] = {}
        self._started = False
        self.slots: dict[str, ModelSlot] = {}
        self.default: str | None = None
        self.draining = False
        self.error: Exception | None = None
        self.on_failure: Callable[[], None] | None = None

    def slot(self, name: str | None = None) -> ModelSlot:
        """Return the model of that name, or the default one.

        Raises:
            RequestError: There is no such model, or the models have not been listed yet.
        """
        wanted = self.default if name is None else name
        if slot := self.slots.get(wanted or ""):
            return slot
        if not self._started:
            raise not_ready(Phase.LOADING, "The models are being listed")
        if wanted is None:
            raise not_ready(Phase.FAILED, "There is no model to serve")
        known = ", ".join(list(self.slots)[:20])
        raise RequestError(
            "There is no such model", code="model_not_found", expected=f"one of {known}", got=repr(wanted[:100])
        )

    def check_ready(self) -> Predictor:
        """Return the default model's predictor, once every bundle of the start is loaded or refused.

        Raises:
            RequestError: Not yet, or the service is stopping.
        """
        if self.draining:
            raise RequestError("The service is stopping", code="not_ready", members={"phase": "draining"})
        predictor = self.slot().get()
        for slot in self.slots.values():
            if slot.phase in (Phase.LOADING, Phase.WARMING):
                slot.get()  # raises
        return predictor

    def load(self) -> None:
        """Find the bundles and load them, the default one first. Blocks and never raises: the outcome is in `error`."""
        try:
            found = find_bundles(self._settings.models)
            default = self._settings.default_model or next(iter(found))
            if default not in found:
                raise BundleError(
                    f"There is no model {default!r} in {self._settings.models}", expected=f"one of {', '.join(found)}"
                )
        except Exception as error:
            self._fail(error)
            return
        if len(found) > 1 and self._settings.default_model is None:
            logger.warning("default_model_assumed", extra={"model": default, "models": list(found)})
        self.slots = {name: ModelSlot(name, path, self._settings, self._metrics) for name, path in found.items()}
        self.default = default
        self._started = True
        for name in sorted(found, key=lambda name: name != default):
            self.slots[name].load(quiet=name == default and self.on_failure is not None)
        if failure := self.slots[default].error:
            self._fail(failure)

    def _fail(self, error: Exception) -> None:
        self._started = True
        self.error = error
        if self.on_failure:
            self.on_failure()  # ends the process, which prints the error
        else:
            logger.error("no_model", extra={"detail": str(error)})

    def check(self) -> None:
        """Check once for bundles that are new, changed or removed. Blocks while it loads them."""
        folder = self._settings.models
        if _is_single(folder):
            paths = {slot.name: slot.path for slot in self.slots.values()}
        else:
            paths = {path.name: path for path in bundles_in(folder)}
        seen = {name: bundle_signature(path) for name, path in paths.items()}
        for name, signature in seen.items():
            known = self.slots.get(name)
            changed = signature is not None and (known is None or signature != known.signature)
            if changed and self._seen.get(name) == signature:  # stable since the last check: copying has ended
                self._offer(name, paths[name])
        for name in set(self.slots) - set(seen) - set(self._seen) - {self.default}:  # missing in two checks
            logger.info("model_removed", extra={"model": name})
            self._metrics.model_removed(name)
            self.slots = {known: slot for known, slot in self.slots.items() if known != name}
        self._seen = seen

    def _offer(self, name: str, path: Path) -> None:
        slot = self.slots.get(name) or ModelSlot(name, path, self._settings, self._metrics)
        taken = slot.load()
        if name not in self.slots:
            self.slots = dict(sorted({**self.slots, name: slot}.items()))
        if taken and name == self.default:
            self.error = None

    async def watch(self) -> None:
        """Load the bundles, then check for new ones regularly, in a background thread. Ends by being canceled."""
        await asyncio.to_thread(self.load)
        while self._settings.watch_seconds:
            await asyncio.sleep(self._settings.watch_seconds)
            try:
                await asyncio.to_thread(self.check)
            except Exception:  # the next check may succeed
                logger.exception("watch_failed")


def bundle_signature(path: Path) -> Signature | None:
    """Return the signature of a bundle's files; None without a manifest."""
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
    """Return the bundle at `path`, or every bundle in that folder, by the name in requests.

    A bundle in a folder of bundles has its folder's name; a single one has the name in its manifest.

    Raises:
        BundleError: There is none, or the single one has no readable manifest.
    """
    if _is_single(path):
        return {read_bundle(path).name: path}
    found = {folder.name: folder for folder in bundles_in(path)}
    if not found:
        raise BundleError(
            f"No bundle was found in {path}",
            expected="a folder that `transferapp fit --out` wrote, or one that holds such folders",
            hint="Fit a model first, or set TRANSFERAPP_MODELS to the folder of its bundle",
        )
    return found


def _is_single(path: Path) -> bool:
    return (path / MANIFEST).is_file() or not path.is_dir()


def bundles_in(path: Path) -> list[Path]:
    """Return the folders in `path` that hold a manifest, by name, without hidden ones, where bundles are being written."""
    try:
        folders = sorted(path.iterdir())
    except OSError:
        return []
    return [
        folder
        for folder in folders
        if not folder.name.startswith(".") and folder.name.isprintable() and (folder / MANIFEST).is_file()
    ]
