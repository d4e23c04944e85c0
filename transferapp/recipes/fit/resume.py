"""State of an unfinished fit, so that the same command resumes it after a kill.

The run folder, `.NAME.run` beside the bundle `NAME`, records the data and settings that it was begun with, the decisions and
the checkpoints. It is removed when the bundle is complete. A fit with other data or settings does not resume it but shows the
difference, because mixing two runs would give a model that nobody asked for.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transferapp.config import FitConfig
from transferapp.recipes.fit.measure import Measurement
from transferapp.recipes.unfinished import require_same
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
        """Return a part of this run, with decisions and checkpoints of its own under a name."""
        part = copy.copy(self)  # the decisions are the same object
        part.path, part._prefix = self.path / name, f"{self._prefix}{name}/"
        return part

    @property
    def unfinished(self) -> bool:
        """Whether there is a run to resume."""
        return (self._whole / _STATE).is_file()

    def discard(self) -> None:
        """Remove the folder of the run."""
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
        require_same(
            f"An unfinished run in {self.path} is not the one asked for",
            before,
            self._identity,
            expected="the same data and settings, to go on with it",
            hint="Run the command as it was, or begin anew with --fresh",
        )
        return True

    def decide(self, name: str, value: Any) -> Any:
        """Return the decision of this name; the first call records `value`, also for a resumed run."""
        key = self._prefix + name
        if key not in self._decisions:
            self._decisions[key] = json.loads(json.dumps(value))  # as a resumed run will find it
            self._save()
        return self._decisions[key]

    def decide_by(self, name: str, make: Callable[[], Any]) -> Any:
        """Return the decision of this name, as `decide` does; `make` is called only for the first one."""
        return self.decide(name, None if self.decided(name) else make())

    def decided(self, name: str) -> bool:
        """Return whether there is a decision of this name."""
        return self._prefix + name in self._decisions

    def checkpoints(self, name: str) -> CheckpointStore:
        """Return the checkpoints of a part of the run."""
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
