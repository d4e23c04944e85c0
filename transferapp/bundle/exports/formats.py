"""Formats of exports: how each is written, and how it is run again to compare it with the bundle."""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transferapp.bundle.exports.networks import (
    Job,
    Opened,
    opened_int8,
    opened_litert,
    opened_onnx,
    opened_savedmodel,
    write_int8,
    write_litert,
    write_onnx,
    write_savedmodel,
)
from transferapp.bundle.exports.web_page import opened_page, write_page
from transferapp.bundle.format import NOVELTY, Bundle
from transferapp.bundle.novelty import NEIGHBORS, REFUSED
from transferapp.errors import ResourceError, UsageError
from transferapp.images.views import PADDING, REFERENCE_CROP, SHORT_SIDE

METADATA = "metadata.json"
"""File beside the network: class names, image size, geometry, and the comparison with the bundle."""

EXPORT = "transferapp-export"


@dataclass(frozen=True)
class Format:
    """A format of exports.

    Attributes:
        name: Name on the command line.
        file: File or folder of the network in the folder of the export.
        packages: Importable names that it needs beside those of the plain installation.
        write: Writes the network.
        opened: Context manager around the written network, called with its folder.
        quantized: Whether it computes with rounded weights and activations.
    """

    name: str
    file: str
    packages: tuple[str, ...]
    write: Callable[[Job], None]
    opened: Callable[[Path], contextlib.AbstractContextManager[Opened]]
    quantized: bool = False

    def check_packages(self) -> None:
        """Raise an error where a package that the format needs is not installed.

        Raises:
            ResourceError: One is missing.
        """
        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if missing:
            raise ResourceError(
                f"The format {self.name} needs packages that are not installed: {', '.join(missing)}",
                hint="pip install 'transferapp[export]'",
                code="missing_package",
            )


def find_format(name: str) -> Format:
    """Return a format by its name.

    Raises:
        UsageError: There is none of that name.
    """
    found = next((form for form in FORMATS if form.name == name), None)
    if found is None:
        raise UsageError(
            f"Unknown format {name!r}", expected=f"one of {', '.join(form.name for form in FORMATS)}", code="format"
        )
    return found


def preparation(bundle: Bundle) -> dict[str, Any]:
    """Return how an image becomes pixels of the network: the geometry of one crop."""
    box = {
        "crop": "the center, of the aspect of the input",
        "resize": "the whole image, scaled to the input in each direction",
        "pad": "the whole image, scaled to fit the input, in the middle of gray",
    }
    return {
        "orientation": "as the EXIF tag says",
        "sample_bits": bundle.sample_bits,
        "geometry": bundle.geometry,
        "crop": box[bundle.geometry],
        "crop_share": REFERENCE_CROP / SHORT_SIDE if bundle.geometry == "crop" else 1.0,
        "padding": PADDING if bundle.geometry == "pad" else None,
        "resample": "bicubic, antialiased",
        "image_size": list(bundle.image_size),
    }


def describe(bundle: Bundle, form: Format) -> dict[str, Any]:
    """Return what a program needs to know beside the network.

    Raises:
        BundleError: The novelty score of the bundle was altered.
    """
    height, width = bundle.image_size
    novelty = None if form.quantized else bundle.novelty()
    document = {
        "format": EXPORT,
        "kind": form.name,
        "file": form.file,
        "name": bundle.name,
        "bundle_version": bundle.version,
        "class_names": list(bundle.class_names),
        "input": {
            "name": "pixels",
            "dtype": "uint8",
            "shape": [None, height, width, 3],
            "color": "RGB, sRGB",
            "range": [0, 255],
        },
        "output": {"name": "probabilities", "dtype": "float32", "shape": [None, len(bundle.class_names)]},
        "preparation": preparation(bundle),
        "temperature": "applied",
    }
    if novelty is not None:
        document["novelty"] = {
            "file": NOVELTY,
            "output": "features",
            "num_features": novelty.features.shape[1],
            "neighbors": NEIGHBORS,
            "unknown_from": 1 - REFUSED,
        }
    return document


def write_metadata(metadata: Mapping[str, Any], folder: Path) -> None:
    """Write the description of an export beside its network."""
    text = json.dumps(metadata, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    (folder / METADATA).write_text(text, encoding="utf-8", errors="backslashreplace")


def is_export(folder: Path) -> bool:
    """Return whether a folder holds an export, so that another may replace it."""
    try:
        document = json.loads((folder / METADATA).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(document, dict) and document.get("format") == EXPORT


FORMATS = (
    Format("onnx", "model.onnx", ("tf2onnx", "onnx", "onnxruntime"), write_onnx, opened_onnx),
    Format("litert", "model.tflite", ("ai_edge_litert",), write_litert, opened_litert),
    Format("savedmodel", "model", (), write_savedmodel, opened_savedmodel),
    Format("html", "index.html", ("tf2onnx", "onnx", "playwright"), write_page, opened_page),
    Format("openvino-int8", "model.xml", ("nncf",), write_int8, opened_int8, quantized=True),
)
