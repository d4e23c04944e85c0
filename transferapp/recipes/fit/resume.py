"""What an unfinished fit leaves beside its target, so that the same command goes on where it was killed.

A run folder, `.NAME.run` beside the bundle `NAME`, says for which data and settings it was begun and keeps what was decided
and trained so far. It is removed when the bundle is in place. Other data or other settings do not resume it: the difference
is shown instead, for silently mixing two runs would give a model that nobody asked for.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transferapp.config import FitConfig
from transferapp.errors import DataError
from transferapp.recipes.fit.measure import Measurement
from transferapp.system.backend import configured_backend
from transferapp.system.hardware import detect
from transferapp.system.storage import disk_errors, write_bytes
from transferapp.training.checkpoint import CheckpointStore

_STATE = "run.json"


class RunFolder:
    """The folder of one run.

    Args:
        target: The bundle that the run is for.
    """

    def __init__(self, target: Path) -> None:
        self.path = self._whole = target.parent / f".{target.name}.run"
        self._prefix = ""
        self._decisions: dict[str, Any] = {}
        self._identity: dict[str, Any] = {}

    def within(self, name: str) -> RunFolder:
        """A part of a run that has begun: what is decided and trained there is kept apart from the rest, under that name."""
        part = copy.copy(self)  # the decisions are the same object
        part.path, part._prefix = self.path / name, f"{self._prefix}{name}/"
        return part

    @property
    def unfinished(self) -> bool:
        """Whether there is something to go on with."""
        return (self._whole / _STATE).is_file()

    def discard(self) -> None:
        """Forget an unfinished run, or a finished one."""
        shutil.rmtree(self._whole, ignore_errors=True)

    def begin(self, identity: Mapping[str, Any]) -> bool:
        """Start a run, or go on with one that is the same.

        Args:
            identity: Everything that its outcome depends on, as JSON values: settings, data, versions.

        Returns:
            Whether an unfinished run goes on.

        Raises:
            DataError: There is an unfinished run with another identity; the message names each difference.
            ResourceError: The disk is full.
        """
        self._identity = json.loads(json.dumps(dict(identity)))
        try:
            state = json.loads((self._whole / _STATE).read_text(encoding="utf-8"))
            before, self._decisions = dict(state["identity"]), dict(state["decisions"])
        except (OSError, ValueError, KeyError, TypeError):
            self.discard()  # nothing there, or nothing that can be relied on
            self._decisions = {}
            self._save()  # what is computed before the first decision belongs to this run too
            return False
        differences = [
            f"{name} was {before.get(name)!r} and is {self._identity.get(name)!r}"
            for name in sorted({*before, *self._identity})
            if before.get(name) != self._identity.get(name)
        ]
        if differences:
            raise DataError(
                f"An unfinished run in {self.path} is not the one asked for: {'; '.join(differences)}",
                expected="the same data and settings, to go on with it",
                hint="Run the command as it was, or begin anew with --fresh",
                code="run_differs",
            )
        return True

    def decide(self, name: str, value: Any) -> Any:
        """What was decided under a name: `value` now, and from then on, after a kill too, what it was the first time."""
        key = self._prefix + name
        if key not in self._decisions:
            self._decisions[key] = json.loads(json.dumps(value))  # as a resumed run will find it
            self._save()
        return self._decisions[key]

    def decide_by(self, name: str, make: Callable[[], Any]) -> Any:
        """As `decide`, with a value that is only made where there is no decision yet."""
        return self.decide(name, None if self.decided(name) else make())

    def decided(self, name: str) -> bool:
        """Whether there is a decision under this name."""
        return self._prefix + name in self._decisions

    def checkpoints(self, name: str) -> CheckpointStore:
        """Where a part of the run keeps its state."""
        return CheckpointStore(self.path / name)

    def _save(self) -> None:
        with disk_errors(self._whole):
            self._whole.mkdir(parents=True, exist_ok=True)
        document = {"identity": self._identity, "decisions": self._decisions}
        write_bytes(self._whole / _STATE, json.dumps(document, indent=1).encode())


_PLACES = ("data", "out", "data_dir")
"""Settings that say where things are. The fingerprint of the data identifies the images."""


def run_identity(config: FitConfig, measurement: Measurement) -> dict[str, Any]:
    """Return everything that the result of training depends on, as JSON values."""
    settings = {name: value for name, value in config.to_json().items() if name not in _PLACES}
    return {
        **{name.replace("_", "-"): value for name, value in settings.items()},
        "data": measurement.dataset.fingerprint(),
        "chosen backbone": measurement.chosen.trunk.key,
        "chosen cut": measurement.chosen.cut.name,
        "hardware": _hardware(config),
    }


def _hardware(config: FitConfig) -> str:
    """Return the hardware and precision of training: each way to compute rounds differently."""
    hardware = detect(config.training_precision)
    return f"{hardware.kind}, {hardware.dtype_policy}, 1 x 1 {hardware.pointwise}, Keras on {configured_backend()}"
