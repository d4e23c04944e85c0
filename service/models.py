"""All models being served: found at the start, watched for new bundles, taken by name.

A bundle that appears, or takes the place of another, is noticed by its files' inodes and times; once they have held still
from one look to the next it is verified, warmed and swapped in (`model.ModelSlot.load`). One that is bad is refused and
reported while the old one goes on. Loading happens in one thread, one bundle after the other; requests never wait for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from service.metrics import Metrics
from service.model import ModelSlot, Phase, Signature, bundle_signature, bundles_in, find_bundles
from service.problems import Refusal
from service.settings import Settings
from transferapp.bundle.format import MANIFEST
from transferapp.bundle.predictor import Predictor
from transferapp.errors import BundleError

logger = logging.getLogger(__name__)


class Models:
    """The slots by name.

    Attributes:
        slots: By name, in their order; replaced as a whole, never changed, so that any thread may read it.
        default: The name of the model that answers where a request names none; None until it is known.
        draining: Whether the process has been told to stop.
        error: Why there is nothing to serve, if so.
        on_failure: Called, in the loading thread, when there is nothing to serve.
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
        """The model of that name, or the default one.

        Raises:
            Refusal: There is no such model, or nothing is known of any yet.
        """
        wanted = self.default if name is None else name
        slot = self.slots.get(wanted) if wanted is not None else None
        if slot is not None:
            return slot
        if not self._started:
            raise self._unready(Phase.LOADING, "The models are being looked for")
        if wanted is None:
            raise self._unready(Phase.FAILED, "There is no model to serve")
        shown = ", ".join(list(self.slots)[:20])
        raise Refusal(
            "There is no such model", code="model_not_found", expected=f"one of {shown}", got=repr(wanted[:100])
        )

    def get(self, name: str | None = None) -> Predictor:
        """The predictor of a model, to be kept for one request.

        Raises:
            Refusal: There is no such model, or it is not ready.
        """
        return self.slot(name).get()

    def check_ready(self) -> Predictor:
        """The default model's predictor, once every bundle that was there at the start has been taken or refused.

        Raises:
            Refusal: Not yet, or not any more.
        """
        if self.draining:
            raise Refusal("The service is stopping", code="not_ready", members={"phase": "draining"})
        predictor = self.get()
        for slot in self.slots.values():
            if slot.phase in (Phase.LOADING, Phase.WARMING):
                slot.get()  # says so
        return predictor

    def load(self) -> None:
        """Find the bundles and load them, the default one first. Blocks; never raises: the outcome is in `error`."""
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
            self.on_failure()  # ends the process, which says why itself
        else:
            logger.error("no_model", extra={"detail": str(error)})

    def look(self) -> None:
        """Look once for bundles that are new, changed or gone. Blocks while it loads them; never raises."""
        folder = self._settings.models
        if (folder / MANIFEST).is_file() or not folder.is_dir():
            places = {slot.name: slot.path for slot in self.slots.values()}
        else:
            places = {path.name: path for path in bundles_in(folder)}
        seen = {name: bundle_signature(path) for name, path in places.items()}
        for name, signature in seen.items():
            known = self.slots.get(name)
            fresh = signature is not None and (known is None or signature != known.signature)
            if fresh and self._seen.get(name) == signature:  # it has held still: nobody is copying it any more
                self._offer(name, places[name])
        for name in set(self.slots) - set(seen) - set(self._seen) - {self.default}:  # gone, at two looks
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
        """Load, then look again and again, in a thread beside the event loop. Ends by being cancelled."""
        await asyncio.to_thread(self.load)
        while self._settings.watch_seconds:
            await asyncio.sleep(self._settings.watch_seconds)
            await asyncio.to_thread(self._look_safely)

    def _look_safely(self) -> None:
        try:
            self.look()
        except Exception:  # the next look may go better, and a watcher that has died would not be missed
            logger.exception("watch_failed")

    @staticmethod
    def _unready(phase: Phase, what: str) -> Refusal:
        headers = None if phase is Phase.FAILED else {"Retry-After": "1"}
        return Refusal(what, code="not_ready", headers=headers, members={"phase": phase.value})
