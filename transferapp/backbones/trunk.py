"""Trunks: a backbone tapped at every stage, or the part of it below a cut, on an inference engine.

One forward pass of a tapped backbone gives the features of every possible cut. Building it takes seconds (TensorFlow's import,
the graph, its conversion), so the converted network is cached, and the next run starts without TensorFlow. A cached network is
a folder that is renamed into place when it is complete, and its files are checked against their checksums when it is read: a
damaged network would not fail but give wrong features.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transferapp.backbones.engine import Engine, KerasEngine, OpenVINOEngine, convert, resolve_precision, save_converted
from transferapp.backbones.keras_internals import independent_copy
from transferapp.backbones.registry import BackboneSpec, weights_fingerprint
from transferapp.backbones.stages import Stage, Tap, find_stages, pooled_taps, stage_named, stage_tensor
from transferapp.errors import BundleError
from transferapp.system.cache import cache_directory
from transferapp.system.storage import disk_errors, sha256_file, write_bytes

if TYPE_CHECKING:
    import keras

_NETWORK = "taps.xml"
_SAVED = "taps.keras"
_FACTS = "stages.json"
_REVISION = 2
"""Increase this when the graph of a backbone or its taps changes: earlier converted networks and features are then invalid."""


class _LazyEngine:
    """A converted network in f32, which is compiled at the first use."""

    name = "openvino"
    precision = "f32"

    def __init__(self, network: Path) -> None:
        self._network = network
        self._lock = threading.Lock()
        self._engine: Engine | None = None

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        return self._compiled()(batch)

    def outputs(self, batch: np.ndarray) -> tuple[np.ndarray, ...]:
        return self._compiled().outputs(batch)

    def _compiled(self) -> Engine:
        with self._lock:
            if self._engine is None:
                self._engine = OpenVINOEngine(self._network, precision=self.precision)
            return self._engine

    def __reduce__(self) -> tuple[Any, ...]:
        return self._compiled().__reduce__()  # type: ignore[return-value]


@dataclass(frozen=True)
class _RunnableTrunk:
    """A network on an engine.

    Attributes:
        name: Name for people and for the cache.
        key: Cache key: equal keys mean equal features for equal pixels.
        image_size: (height, width) of its input.
        engine: Computes the rows.
    """

    name: str
    key: str
    image_size: tuple[int, int]
    engine: Engine

    def rows(self, batch: np.ndarray) -> np.ndarray:
        """Run a batch of pixels.

        Args:
            batch: uint8, shape (n, height, width, 3).

        Returns:
            float32, shape (n, row_size).
        """
        return self.engine(batch)


@dataclass(frozen=True)
class Trunk(_RunnableTrunk):
    """A tapped backbone, whose rows are those of `pooled_taps`.

    Attributes:
        stages: Its stages, earliest first.
        num_logits: Size of its ImageNet classifier's output, 0 where it has none.
        network: The `.xml` of its converted network in the cache, with the `.bin` beside it; None where it runs on Keras.
        saved: The same network as Keras saved it, of an embedded backbone; otherwise None.
    """

    stages: tuple[Stage, ...]
    num_logits: int
    network: Path | None = None
    saved: Path | None = None

    @property
    def top(self) -> Stage:
        return self.stages[-1]

    @property
    def mixture_taps(self) -> tuple[Tap, ...]:
        """Taps of a mixture of stages: every stage with its deviation, and the last one by its means alone."""
        return (*(Tap(stage.name, deviation=True) for stage in self.stages), Tap(self.top.name))

    @property
    def row_slices(self) -> list[slice]:
        """Columns of each stage's means, and then of the logits, in a row."""
        widths = [stage.shape[2] for stage in self.stages] + ([self.num_logits] if self.num_logits else [])
        ends = np.cumsum(widths)
        return [slice(int(end) - width, int(end)) for end, width in zip(ends, widths, strict=True)]

    @property
    def deviation_slices(self) -> list[slice]:
        """Columns of each stage's standard deviations in a row."""
        start = self.row_slices[-1].stop
        ends = start + np.cumsum([stage.shape[2] for stage in self.stages])
        return [slice(int(end) - stage.shape[2], int(end)) for end, stage in zip(ends, self.stages, strict=True)]

    def parts(self, taps: Sequence[Tap]) -> list[int]:
        """Return the positions of some taps' statistics, in their order, among the parts that a row is joined of.

        These are the means of each stage, the logits where there are any, and the deviations of each stage.
        """
        found = []
        for tap in taps:
            index = stage_named(self.stages, tap.stage).index
            found.append(index)
            if tap.deviation:
                found.append(len(self.row_slices) + index)
        return found

    def features(self, rows: np.ndarray, taps: Sequence[Tap]) -> np.ndarray:
        """Return the columns of some taps, in their order, from rows of shape (..., row_size)."""
        slices = (*self.row_slices, *self.deviation_slices)
        columns = [rows[..., slices[part]] for part in self.parts(taps)]
        return columns[0] if len(columns) == 1 else np.concatenate(columns, axis=-1)

    @property
    def row_size(self) -> int:
        """Numbers per view."""
        return int(self.deviation_slices[-1].stop)

    def in_f32(self) -> Trunk:
        """Return the same trunk in f32; where this one is not, its network is compiled once rows are asked for."""
        if self.engine.precision != "bf16" or self.network is None:
            return self
        stem = self.key.removesuffix(self.engine.precision)
        return replace(self, key=f"{stem}f32", engine=_LazyEngine(self.network))


@dataclass(frozen=True)
class CutTrunk(_RunnableTrunk):
    """A backbone up to a cut. A row is the feature map, flattened.

    Attributes:
        shape: (height, width, channels) of the feature map.
    """

    shape: tuple[int, int, int]

    @property
    def row_size(self) -> int:
        """Numbers per view."""
        return math.prod(self.shape)


def load_trunk(
    spec: BackboneSpec,
    build: Callable[[], Any],
    *,
    image_size: tuple[int, int],
    weights: Path | None = None,
    engine: str = "openvino",
    precision: str = "auto",
    streams: int = 1,
) -> Trunk:
    """Return a trunk, from the cache where it was converted before, otherwise from the Keras model.

    Args:
        spec: The backbone.
        build: Builds the Keras model; called only if it is needed.
        image_size: (height, width) of the input.
        weights: The user's weight file, if any.
        engine: `openvino` or `keras`.
        precision: For OpenVINO: `f32`, `bf16` or `auto`.
        streams: Threads that will call the engine at once.
    """
    if engine == "keras":
        return _keras_trunk(spec, build(), image_size)
    precision = resolve_precision(precision)
    fingerprint = weights_fingerprint(spec, weights)
    if fingerprint is None:  # not downloaded yet: building fetches it
        model = build()
        fingerprint = weights_fingerprint(spec, weights) or ""
    else:
        model = None
    identity = [spec.name, fingerprint, image_size, _REVISION, version("openvino"), version("keras")]
    stem = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    key, folder = f"{stem}-{precision}", cache_directory() / "networks" / f"{spec.name}-{stem}"
    keep = spec.source == "embedded"  # of networks that are known, parts can be put together without Keras
    files = (folder / _NETWORK, folder / _SAVED if keep else None)
    try:
        facts = _cached_facts(folder)
        if keep and _SAVED not in facts["sha256"]:
            raise ValueError(f"{_SAVED} is missing")
        compiled = OpenVINOEngine(folder / _NETWORK, precision=precision, streams=streams)
        return _assemble(spec.name, key, image_size, facts, compiled, *files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, BundleError):
        pass  # missing, or damaged in whatever way
    taps, facts = _tap(model or build())
    converted = convert(taps)
    _cache(folder, converted, facts, taps if keep else None)
    compiled = OpenVINOEngine(converted, precision=precision, streams=streams)
    return _assemble(spec.name, key, image_size, facts, compiled, *files)


def _cached_facts(folder: Path) -> dict[str, Any]:
    """Return the stages of a cached network; raises OSError, ValueError or KeyError where it is missing or damaged."""
    facts: dict[str, Any] = json.loads((folder / _FACTS).read_text())
    for name, digest in facts["sha256"].items():
        if sha256_file(folder / name) != digest:
            raise ValueError(f"{name} is damaged")
    return facts


def _cache(folder: Path, converted: Any, facts: dict[str, Any], taps: Any | None) -> None:
    """Store a network, in place of a damaged one or of one that another process has stored meanwhile.

    Args:
        folder: Where to.
        converted: For OpenVINO.
        facts: Its stages.
        taps: The same for Keras, if that is to be kept.
    """
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=folder.parent, ignore_cleanup_errors=True) as name:
            made, former = Path(name) / "made", Path(name) / "former"
            made.mkdir()
            save_converted(converted, made / _NETWORK)
            if taps is not None:
                taps.save(made / _SAVED)
            digests = {file.name: sha256_file(file) for file in made.iterdir()}
            write_bytes(made / _FACTS, json.dumps({**facts, "sha256": digests}).encode())
            with contextlib.suppress(FileNotFoundError):
                folder.rename(former)
            with contextlib.suppress(OSError):  # another process was faster, and its network is the same
                made.rename(folder)


def _keras_trunk(spec: BackboneSpec, model: Any, image_size: tuple[int, int]) -> Trunk:
    taps, facts = _tap(model)
    digest = hashlib.sha256(json.dumps([spec.name, image_size, _REVISION]).encode())
    for array in model.get_weights():
        digest.update(np.ascontiguousarray(array).tobytes())
    engine = KerasEngine(independent_copy(taps))  # training may change the model, but not the key
    return _assemble(spec.name, f"{digest.hexdigest()[:16]}-keras-{engine.precision}", image_size, facts, engine)


def _tap(model: Any) -> tuple[Any, dict[str, Any]]:
    stages = find_stages(model)
    output = model.outputs[0].shape
    facts = {"stages": [asdict(stage) for stage in stages], "num_logits": output[1] if len(output) == 2 else 0}
    return pooled_taps(model, stages), facts


def _assemble(
    name: str,
    key: str,
    image_size: tuple[int, int],
    facts: dict[str, Any],
    engine: Engine,
    network: Path | None = None,
    saved: Path | None = None,
) -> Trunk:
    stages = tuple(Stage(**{**entry, "shape": tuple(entry["shape"])}) for entry in facts["stages"])
    return Trunk(name, key, image_size, engine, stages, int(facts["num_logits"]), network, saved)


def cut_trunk(
    backbone: keras.Model,
    stage: Stage,
    key: str,
    *,
    image_size: tuple[int, int],
    engine: str = "openvino",
    precision: str = "auto",
    streams: int = 1,
) -> CutTrunk:
    """Build the trunk below a cut: from pixels to the feature map that a tail trains on.

    The feature map is not pooled, and large: 44 KB per view for Lite0 cut after block 10, in half precision.

    Args:
        backbone: Its weights are copied now; later changes do not reach the trunk.
        stage: The cut.
        key: The key of the backbone's tapped trunk, which depends on weights, size and precision.
        image_size: (height, width) of the input.
        engine, precision, streams: As of `load_trunk`.
    """
    import keras

    flat = keras.layers.Flatten(name="flat")(stage_tensor(backbone, stage))
    model = keras.Model(backbone.inputs[0], flat)
    digest = hashlib.sha256(json.dumps([key, stage.name]).encode()).hexdigest()[:16]
    runner: Engine
    if engine == "keras":
        runner = KerasEngine(independent_copy(model))
    else:
        runner = OpenVINOEngine(convert(model), precision=resolve_precision(precision), streams=streams)
    return CutTrunk(f"{backbone.name}-{stage.name}", digest, image_size, runner, stage.shape)
