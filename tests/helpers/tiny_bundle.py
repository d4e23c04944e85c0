"""A bundle small enough for any test: its network sees colors, and is made without TensorFlow.

The network averages the image's color and compares it with one color a class, so that a test can paint an image
and know the label. It goes through the writers that a real fit uses, and so has their layout, manifest and checksums.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from transferapp.backbones.engine import import_openvino, save_converted
from transferapp.bundle.format import NOVELTY, write_manifest, writing
from transferapp.bundle.novelty import NEIGHBORS, Novelty
from transferapp.images.views import Geometry

SIZE = (224, 224)
GAIN = 20.0
"""Logits a unit of color: a pure color scores nearly 1, a mixture falls between."""


def color_network(class_count: int, *, size: tuple[int, int] = SIZE, broken: bool = False) -> Any:
    """An `openvino.Model`: uint8 pixels (-1, height, width, 3) to `class_count` probabilities, and to the mean color.

    Class i is the i-th of red, green, blue, and round again for more (those tie; the first wins).

    Args:
        class_count: Number of classes.
        size: (height, width) of the input.
        broken: Whether the answer is NaN for any image that is not gray, as damaged weights give.
    """
    openvino = import_openvino()
    from openvino import opset13 as ops

    pixels = ops.parameter([-1, *size, 3], np.uint8, name="pixels")
    color = ops.reduce_mean(ops.convert(pixels, "f32"), ops.constant(np.array([1, 2], np.int64)), keep_dims=False)
    weights = np.zeros((3, class_count), np.float32)
    weights[np.arange(class_count) % 3, np.arange(class_count)] = GAIN / 255
    logits = ops.matmul(color, ops.constant(weights), False, False)
    if broken:
        # 0/0 where the channels differ, 1 where they do not: the check at load time, on a gray image, must pass.
        first, last = ops.gather(color, np.int64(0), np.int64(1)), ops.gather(color, np.int64(2), np.int64(1))
        same = ops.convert(ops.less(ops.abs(ops.subtract(first, last)), np.float32(0.5)), "f32")
        logits = ops.add(logits, ops.unsqueeze(ops.subtract(ops.divide(same, same), np.float32(1)), np.int64(1)))
    return openvino.Model([ops.softmax(logits, 1), color], [pixels], "tiny")


def color_novelty() -> Novelty:
    """Return a score to which colors near red, green or blue, by a cosine of 0.9, are familiar and all others unknown."""
    return Novelty(np.eye(3, dtype=np.float16).repeat(NEIGHBORS, axis=0), np.linspace(0.9, 1, 19, dtype=np.float32))


def make_tiny_bundle(
    path: Path,
    class_names: Sequence[str] = ("red", "green", "blue"),
    *,
    broken: bool = False,
    report: str = "",
    sample_bits: int | None = None,
    calibrated: bool = False,
    geometry: Geometry = "crop",
) -> Path:
    """Write a bundle that tells colors apart.

    Args:
        path: The folder to make, or to replace if a bundle is there.
        class_names: Two or more; the first three are found in red, green and blue images.
        broken: Whether its network answers NaN for colored images.
        report: The HTML of its report; "" for none.
        sample_bits: Depth of the 16-bit samples that it was trained on.
        calibrated: Whether it has a novelty score and prediction sets.
        geometry: Way in which images become its input.

    Returns:
        `path`.
    """
    with writing(path) as staging:
        save_converted(color_network(len(class_names), broken=broken), staging / "model.xml")
        if report:
            (staging / "report.html").write_text(report, encoding="utf-8")
        if calibrated:
            (staging / NOVELTY).write_bytes(color_novelty().to_bytes())
        write_manifest(
            staging,
            {
                "name": path.name,
                "created": "2026-01-01T00:00:00+00:00",
                "class_names": list(class_names),
                "input": {
                    "image_size": list(SIZE),
                    "default_views": 10,
                    "sample_bits": sample_bits,
                    "geometry": geometry,
                },
                "precision": {"served": "f32"},
                "backbone": "color",
                "metrics": {"test": {"accuracy": 1.0}},
                "prediction_sets": {"coverage": 0.9, "threshold": 0.75} if calibrated else None,
            },
        )
    return path
