"""The trunk below a cut: from pixels to the feature map that a tail trains on.

The same kind of thing as `trunk.Trunk`, which taps every stage at once, but it stops at the cut and gives the feature map
whole, not pooled. Its rows are large (44 KB a view for Lite0 cut after block 10, in half precision) and so are kept as float16.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from transferapp.backbones.copies import independent_copy
from transferapp.backbones.engine import Engine, KerasEngine, OpenVINOEngine, convert, resolve_precision
from transferapp.backbones.stages import Stage, stage_tensor

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class CutTrunk:
    """A backbone up to a cut, ready to run.

    Attributes:
        name: Of the backbone and the cut, for people and for the cache.
        key: Names the numbers that come out, as of `Trunk`.
        image_size: (height, width) of its input.
        shape: (height, width, channels) of the feature map.
        engine: What runs it.
    """

    name: str
    key: str
    image_size: tuple[int, int]
    shape: tuple[int, int, int]
    engine: Engine

    @property
    def row_size(self) -> int:
        """Numbers a view."""
        height, width, channels = self.shape
        return height * width * channels

    def rows(self, batch: np.ndarray) -> np.ndarray:
        """Feature maps of a batch, each flattened.

        Args:
            batch: uint8, shape (n, height, width, 3).

        Returns:
            float32, shape (n, row_size).
        """
        return self.engine(batch)


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
    """Make the trunk below a cut.

    Args:
        backbone: With its pretrained weights; they are copied here and now, so that training may change them afterwards.
        stage: The cut: its feature map is what comes out.
        key: The key of the backbone's tapped trunk, which names weights, size and precision.
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
    return CutTrunk(f"{backbone.name}-{stage.name}", digest, image_size, stage.shape, runner)
