"""Loader of backbones: builds and caches Keras models and trunks, in the background where asked to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from transferapp.backbones.engine import resolve_engine
from transferapp.backbones.registry import BackboneSpec
from transferapp.backbones.trunk import Trunk, load_trunk
from transferapp.errors import UsageError
from transferapp.policy.size import InputSize, choose_input_size
from transferapp.system.backend import divides_batches
from transferapp.system.threads import cpu_cores

if TYPE_CHECKING:
    import keras

_T = TypeVar("_T")


class BackboneLoader:
    """Builds each backbone and each trunk once, in one background thread.

    One thread, because Keras' graph building is not thread-safe. Use the loader as a context manager: leaving the context
    cancels what is queued and does not wait for what is running.

    Args:
        sampled_sizes: (width, height) in pixels of a sample of the images, which the input size is chosen by. Empty for the
            backbones' own sizes.
        image_size: Side of the input in pixels, as the user asks for it; 0 for the rule's choice.
        weights: Weight files that replace the usual ones, by backbone name.
        engine: `auto`, `openvino` or `keras`.
        precision: Precision of OpenVINO: `auto`, `f32` or `bf16`.
        streams: Threads that will call a trunk's engine at once; 0 for one per core.

    Example:

        with BackboneLoader(peek_sizes(dataset)) as loader:
            loader.start(spec)
            ...  # reading images
            features = loader.trunk(spec).rows(batch)
    """

    def __init__(
        self,
        sampled_sizes: Sequence[tuple[int, int]] = (),
        *,
        image_size: int = 0,
        weights: Mapping[str, Path] | None = None,
        engine: str = "auto",
        precision: str = "auto",
        streams: int = 0,
    ) -> None:
        self._sampled_sizes, self._image_size = tuple(sampled_sizes), image_size
        self._weights = dict(weights or {})
        self._engine, self._precision, self._streams = engine, precision, streams or cpu_cores()
        self._models: dict[str, keras.Model] = {}
        self._trunks: dict[str, Future[Trunk]] = {}
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, "backbones")

    def __enter__(self) -> Self:
        divides_batches()
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def input_size(self, spec: BackboneSpec) -> InputSize:
        """Return the input size of a backbone, with the reason for it.

        The sampled images do not decide over a `.keras` file: its own size may be the only one that it takes.
        """
        sizes = () if spec.source == "file" else self._sampled_sizes
        return choose_input_size(sizes, spec.image_size, self._image_size)

    def model(self, spec: BackboneSpec) -> keras.Model:
        """Return the Keras model of a backbone, the same object for every caller in any thread.

        Raises:
            UsageError: A `.keras` file has a fixed input of another size than asked for.
            WeightsError: The weights are missing or do not fit.
        """
        with self._lock:
            if spec.name not in self._models:
                self._models[spec.name] = self._build_model(spec)
            return self._models[spec.name]

    def start(self, spec: BackboneSpec) -> None:
        """Begin to build a trunk in the background, unless that was done before."""
        if spec.name not in self._trunks:
            self._trunks[spec.name] = self._thread.submit(self._build_trunk, spec)

    def trunk(self, spec: BackboneSpec) -> Trunk:
        """Return the trunk of a backbone, waiting until it is built. Raises the errors of `model`."""
        self.start(spec)
        return self._trunks[spec.name].result()

    def submit(self, function: Callable[..., _T], *arguments: Any) -> Future[_T]:
        """Run a function in the background thread, after what is queued already."""
        return self._thread.submit(function, *arguments)

    def _build_model(self, spec: BackboneSpec) -> keras.Model:
        from transferapp.backbones.loading import load_backbone

        divides_batches()
        size = self.input_size(spec).image_size
        model = load_backbone(spec, image_size=size, weights=self._weights.get(spec.name))
        height, width = model.inputs[0].shape[1:3]
        if (height, width) != size:
            raise UsageError(
                f"{spec.name} takes images of one size only",
                expected=f"--image-size {height}, or none",
                got=f"{size[0]}",
            )
        return model

    def _build_trunk(self, spec: BackboneSpec) -> Trunk:
        return load_trunk(
            spec,
            lambda: self.model(spec),
            image_size=self.input_size(spec).image_size,
            weights=self._weights.get(spec.name),
            engine=resolve_engine(self._engine),
            precision=self._precision,
            streams=self._streams,
        )
