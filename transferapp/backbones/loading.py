"""Backbones as Keras models with pretrained weights, from pixels 0-255 to a feature map or ImageNet logits."""

from __future__ import annotations

import contextlib
import re
import sys
import textwrap
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from transferapp.backbones.efficientnet_lite import assign_torch_weights, build_efficientnet_lite, read_state_dict
from transferapp.backbones.keras_internals import all_layers, give_weights
from transferapp.backbones.registry import EMBEDDED, BackboneSpec, keras_cache, weights_path
from transferapp.errors import UsageError, WeightsError

_IMAGENET_MEAN = (123.675, 116.28, 103.53)
_IMAGENET_STD = (58.395, 57.12, 57.375)
_CAFFE_BGR_MEAN = (103.939, 116.779, 123.68)


def load_backbone(
    spec: BackboneSpec,
    *,
    image_size: tuple[int, int] | None = None,
    weights: Path | None = None,
    pretrained: bool = True,
) -> keras.Model:
    """Build a backbone.

    Args:
        spec: The backbone.
        image_size: (height, width) of the input; None for the size of its training. A `.keras` file with a fixed size keeps
            its own.
        weights: A weight file that replaces the usual one.
        pretrained: False for random weights.

    Returns:
        A functional model from float32 pixels in [0, 255], shape (batch, height, width, 3). Embedded ones end in ImageNet
        logits, shape (batch, 1000); applications in their last feature map; a file in its own output.

    Raises:
        WeightsError: The weights are missing and cannot be downloaded, or do not fit.
        UsageError: The file is not a functional Keras model from one RGB image to one output.
    """
    size = image_size or spec.image_size
    if spec.source == "file":
        weights_path(spec, weights)
        return _load_file(Path(spec.weights), size)
    if spec.source == "application":
        return _load_application(spec, size, weights, pretrained)
    model = build_efficientnet_lite(spec.name, width=spec.width, depth=spec.depth, image_size=size)
    if pretrained:
        path = weights_path(spec, weights)
        assert path is not None
        if path.suffix == ".pth":
            assign_torch_weights(model, read_state_dict(path))
        else:
            _load_weights(model, path)
    return model


def _load_weights(model: keras.Model, path: Path) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # dozens of lines on each layer, before one exception that says the same
            model.load_weights(path)
    except Exception as error:  # Keras, h5py and zipfile raise almost anything for a bad file
        raise WeightsError(
            f"The weights in {path} do not fit {model.name} ({_reason(error)})",
            expected=f"weights of {model.name}, saved by Keras as .h5 or .weights.h5",
        ) from error


def _load_application(spec: BackboneSpec, size: tuple[int, int], weights: Path | None, pretrained: bool) -> keras.Model:
    build: Callable[..., keras.Model] = getattr(keras.applications, spec.function)

    def construct(source: str | None, include_top: bool = False) -> keras.Model:
        pixels = keras.Input((*size, 3), name="pixels")
        options = {"classifier_activation": None} if include_top else {}
        # Keras prints its download to stdout, which is for results, and warns that MobileNets are trained at few sizes.
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`input_shape` is undefined")
            model = build(include_top=include_top, weights=source, input_tensor=_scale(pixels, spec.scaling), **options)
        _number_within(model)
        return keras.Model(pixels, model.outputs[0], name=spec.name)

    if not pretrained:
        return construct(None)
    if weights is None:
        try:
            return construct("imagenet")
        except Exception as error:  # Keras raises bare Exception when a download fails, besides OSError
            raise WeightsError(
                f"The weights of {spec.name} could not be downloaded ({_reason(error)})",
                hint=f"Connect to the internet once (Keras then keeps them in {keras_cache()}), name a file with --weights, "
                f"or use an embedded backbone: {', '.join(EMBEDDED)}",
            ) from error
    weights_path(spec, weights)
    try:
        model = construct(None)
        _load_weights(model, weights)
    except WeightsError:
        model = construct(None, include_top=True)  # the file may have the ImageNet classifier
        _load_weights(model, weights)
    return model


def _number_within(model: keras.Model) -> None:
    """Number the unnamed layers within the model, as if it were the first one built.

    Keras counts them over the whole process: the same layer would be `add_2` or, after another model, `add_18`, and a stage
    found in one session could not be named in the next.
    """
    nameless = defaultdict(list)
    for operation in model.operations:
        base, number = re.fullmatch(r"(.*?)(?:_(\d+))?", operation.name, re.DOTALL).groups()  # type: ignore[union-attr]
        if base.replace("_", "") == type(operation).__name__.lower():
            nameless[base].append((int(number or 0), operation))
    for base, operations in nameless.items():
        for count, (_, operation) in enumerate(sorted(operations, key=lambda pair: pair[0])):
            operation.name = f"{base}_{count}" if count else base


def _scale(pixels: Any, scaling: str) -> Any:
    """Scale pixels 0-255 to the range that an application was trained with, as `keras.applications` documents it."""
    rescaling = keras.layers.Rescaling
    if scaling == "tf":
        return rescaling(1 / 127.5, offset=-1.0, name="scale_pixels")(pixels)
    if scaling == "torch":
        factors = [1 / s for s in _IMAGENET_STD]
        offsets = [-m / s for m, s in zip(_IMAGENET_MEAN, _IMAGENET_STD, strict=True)]
        return rescaling(factors, offset=offsets, name="scale_pixels")(pixels)
    if scaling == "caffe":
        bgr = keras.ops.flip(pixels, axis=-1)
        return rescaling(1.0, offset=[-m for m in _CAFFE_BGR_MEAN], name="scale_pixels")(bgr)
    return pixels


def _load_file(path: Path, size: tuple[int, int]) -> keras.Model:
    expected = "a functional model of built-in layers, from one RGB image to one output, saved as .keras"
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises almost anything for a foreign file
        raise UsageError(
            f"{path} cannot be loaded as a Keras model ({_reason(error)})",
            expected=f"{expected} (custom code is never run)",
        ) from error
    inputs, outputs = _ends(model)
    if len(inputs) != 1 or len(outputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].shape[3] != 3:
        shapes = [f"{[tuple(tensor.shape) for tensor in tensors] or 'unknown'}" for tensors in (inputs, outputs)]
        raise UsageError(
            f"{path} cannot be a backbone",
            expected=expected,
            got=f"a {type(model).__name__} with inputs {shapes[0]} and outputs {shapes[1]}",
        )
    if isinstance(model, keras.Sequential):
        model = keras.Model(inputs[0], outputs[0], name=path.stem)
    model = _in_float32(model)
    inputs, _ = _ends(model)
    batch, *fixed, _ = inputs[0].shape
    if batch is not None or None in fixed:
        pixels = keras.Input((*(have or wanted for have, wanted in zip(fixed, size, strict=True)), 3), name="pixels")
        clone = keras.models.clone_model(model, input_tensors=pixels)
        give_weights(clone, model.get_weights())
        model = clone
    return model


def _in_float32(model: keras.Model) -> keras.Model:
    """Return a model that computes in float32, whatever the mixed-precision policy under which it was saved.

    Engines choose the precision of their own, and OpenVINO does not convert a network of several.
    """
    if all(layer.dtype_policy.name == "float32" for layer in all_layers(model)):
        return model

    def plain(config: Any) -> Any:
        if isinstance(config, list | tuple):
            return type(config)(map(plain, config))
        if not isinstance(config, dict):
            return config
        if config.get("class_name") in ("DTypePolicy", "FloatDTypePolicy"):
            return "float32"
        return {key: plain(value) for key, value in config.items()}

    made = type(model).from_config(plain(model.get_config()))
    give_weights(made, [v if v.dtype.kind in "biu" else np.asarray(v, np.float32) for v in model.get_weights()])
    return made


def _ends(model: Any) -> tuple[list[Any], list[Any]]:
    """Return inputs and outputs, empty where the model has none."""
    try:
        return list(model.inputs or ()), list(model.outputs or ())
    except (AttributeError, ValueError):  # of a Sequential that was never built
        return [], []


def _reason(error: Exception) -> str:
    """Return the essential sentence of one of Keras' long messages."""
    text = str(error).strip() or type(error).__name__
    return textwrap.shorten(text.rpartition("Exception encountered: ")[2].splitlines()[0], 200, placeholder=" …")
