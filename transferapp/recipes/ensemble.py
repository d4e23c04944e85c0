"""Ensembles: several bundles whose probabilities are averaged, as one bundle.

The members become one network, which is served like any other. They must have the same classes. Their inputs may differ in
size: the ensemble takes the largest and scales it down for the members with smaller ones.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transferapp.backbones.engine import convert, save_converted
from transferapp.bundle.format import KERAS_FILE, Bundle, check_target, read_bundle, split_rank, write_manifest, writing
from transferapp.errors import BundleError, UsageError
from transferapp.evaluation.parity import Parity
from transferapp.evaluation.report.model_card import model_card
from transferapp.recipes.fit.export import served_precision
from transferapp.recipes.fit.report import library_versions
from transferapp.system.storage import disk_errors

if TYPE_CHECKING:
    import keras

PARITY_IMAGES = 16


@dataclass(frozen=True)
class EnsembleResult:
    """Result of `ensemble`: the folder of the bundle and its manifest."""

    path: Path
    manifest: dict[str, Any]


def ensemble(paths: Sequence[Path], out: Path, *, precision: str = "auto") -> EnsembleResult:
    """Write a bundle that averages others.

    Args:
        paths: Two or more bundles with the same classes.
        out: The bundle to write; may not be one of them.
        precision: For OpenVINO: `f32`, `bf16` or `auto`.

    Raises:
        UsageError: Fewer than two bundles, or `out` is one of them.
        BundleError: A bundle is damaged, their classes differ, or `out` holds something else.
        TrainingError: The exported network does not do what the Keras models do.
    """
    if len(paths) < 2:
        raise UsageError("An ensemble needs at least two bundles", got=f"{len(paths)}")
    if os.path.realpath(out) in map(os.path.realpath, paths):
        raise UsageError(f"{out} is one of the members", hint="Name another folder with --out")
    check_target(out)
    bundles = [read_bundle(path) for path in paths]
    first = bundles[0]
    for bundle in bundles[1:]:
        if sorted(bundle.class_names) != sorted(first.class_names):
            raise BundleError(
                f"{bundle.path} and {first.path} do not know the same classes",
                expected=", ".join(first.class_names[:10]),
                got=", ".join(bundle.class_names[:10]),
                code="classes_differ",
            )
        if bundle.geometry != first.geometry:
            raise BundleError(
                f"{bundle.path} and {first.path} turn images into pixels in different ways",
                expected=f"geometry {first.geometry}",
                got=f"geometry {bundle.geometry}",
                hint=f"Fit one of them again with --geometry {first.geometry}",
                code="inputs_differ",
            )
    depths = sorted({bundle.sample_bits for bundle in bundles if bundle.sample_bits})
    if len(depths) > 1:
        raise BundleError(
            "The members read 16-bit images at different depths",
            expected="bundles that were trained on the same images",
            got=" and ".join(f"{depth} bits" for depth in depths),
            code="inputs_differ",
        )
    size = max((bundle.image_size for bundle in bundles), key=lambda hw: hw[0] * hw[1])
    network = average_network(bundles, size)
    converted = convert(network)
    parity, served = _parity(network, converted, size, precision)
    largest = next(bundle for bundle in bundles if bundle.image_size == size)
    manifest = {
        "name": out.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "class_names": list(first.class_names),
        "input": {**largest.manifest["input"], "sample_bits": depths[0] if depths else None},
        "members": [{"name": bundle.name, "version": bundle.version} for bundle in bundles],
        "metrics": {"validation": None, "test": None},
        "parity": {name: figures.to_json() for name, figures in parity.items()},
        "precision": {"served": served},
        "versions": library_versions(),
    }
    with writing(out) as staging, disk_errors(out):
        network.save(staging / KERAS_FILE)
        save_converted(converted, staging / "model.xml")
        (staging / "split.csv").write_text(_merged_split(bundles), encoding="utf-8")
        (staging / "README.md").write_text(model_card(manifest), encoding="utf-8", newline="\n")
        write_manifest(staging, manifest)
    return EnsembleResult(out, manifest)


def average_network(bundles: Sequence[Bundle], image_size: tuple[int, int]) -> keras.Model:
    """Return one Keras model that averages the probabilities of bundles.

    Args:
        bundles: With the same classes; their order is that of the first.
        image_size: (height, width) of its input.

    Returns:
        A model from float32 pixels in [0, 255], shape (batch, height, width, 3), to probabilities.
    """
    import keras

    pixels = keras.Input((*image_size, 3), name="pixels")
    scores = []
    for index, bundle in enumerate(bundles):
        model = keras.saving.load_model(bundle.file(KERAS_FILE), compile=False, safe_mode=True)
        member = keras.Model(model.inputs[0], model.outputs[0], name=f"member_{index}")
        x = pixels
        if bundle.image_size != image_size:
            x = keras.layers.Resizing(*bundle.image_size, interpolation="bilinear", name=f"resize_{index}")(x)
        scores.append(member(x))
        if bundle.class_names != bundles[0].class_names:
            order = [bundle.class_names.index(name) for name in bundles[0].class_names]
            scores[-1] = keras.ops.take(scores[-1], order, axis=1)
    model = keras.Model(pixels, keras.layers.Average(name="probabilities")(scores), name="ensemble")
    model.trainable = False
    return model


def _parity(
    network: keras.Model, converted: Any, size: tuple[int, int], precision: str
) -> tuple[dict[str, Parity], str]:
    """Return the agreement of the two networks on smooth random images; the members were compared on real ones."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (PARITY_IMAGES, 8, 8, 3)).astype(np.float32)
    rows, columns = (np.arange(side) * 8 // side for side in size)
    pixels = coarse[:, rows][:, :, columns].astype(np.uint8)
    return served_precision(
        network,
        converted,
        pixels,
        precision,
        differs="The exported ensemble differs from its members",
        report="the names of the members' backbones",
    )


def _merged_split(bundles: Sequence[Bundle]) -> str:
    """Return the split of every image as CSV; a training image of any member counts as one of the ensemble."""
    merged: dict[str, dict[str, str]] = {}
    for bundle in bundles:
        if "split.csv" not in bundle.manifest["files"]:
            continue
        for row in bundle.split_rows():
            known = merged.setdefault(row["sha256"], row)
            if split_rank(row["split"]) < split_rank(known["split"]):
                merged[row["sha256"]] = row
    table = io.StringIO()
    writer = csv.DictWriter(
        table, ["sha256", "split", "class_name", "name"], extrasaction="ignore", lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(merged.values())
    return table.getvalue()
