"""Build a backbone as a Keras model with its pretrained weights: pixels 0-255 in, feature map or ImageNet logits out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from transferapp.backbones.efficientnet_lite import assign_torch_weights, build_efficientnet_lite
from transferapp.backbones.registry import EMBEDDED, BackboneSpec, keras_cache, weights_path
from transferapp.backbones.torch_legacy import read_state_dict
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
        spec: Which one.
        image_size: (height, width) of the input; None for the size it was trained at. A `.keras` file keeps its own where
            that is fixed.
        weights: A weight file that takes the place of the usual one.
        pretrained: False leaves the weights random.

    Returns:
        A functional model from float32 pixels in [0, 255], shape (batch, height, width, 3). Embedded ones end in ImageNet
        logits, shape (batch, 1000); applications in their last feature map; a file in whatever it ends in.

    Raises:
        WeightsError: The weights are not here and cannot be downloaded, or do not fit.
        UsageError: The file is no functional Keras model.
    """
    size = image_size or spec.image_size
    if spec.source == "file":
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
        model.load_weights(path)
    except (ValueError, OSError, KeyError) as error:
        raise WeightsError(
            f"The weights in {path} do not fit {model.name} ({str(error).splitlines()[0]})",
            expected=f"weights of {model.name}, saved by Keras as .h5 or .weights.h5",
        ) from error


def _load_application(spec: BackboneSpec, size: tuple[int, int], weights: Path | None, pretrained: bool) -> keras.Model:
    build: Callable[..., keras.Model] = getattr(keras.applications, spec.function)

    def construct(source: str | None, include_top: bool = False) -> keras.Model:
        pixels = keras.Input((*size, 3), name="pixels")
        options = {"classifier_activation": None} if include_top else {}
        model = build(include_top=include_top, weights=source, input_tensor=_scale(pixels, spec.scaling), **options)
        return keras.Model(pixels, model.outputs[0], name=spec.name)

    if not pretrained:
        return construct(None)
    if weights is None:
        try:
            return construct("imagenet")
        except Exception as error:  # Keras raises bare Exception when a download fails, and any OSError on the way
            raise WeightsError(
                f"The weights of {spec.name} could not be downloaded ({str(error).splitlines()[0]})",
                hint=f"Connect to the internet once (Keras then keeps them in {keras_cache()}), name a file with --weights, "
                f"or use an embedded backbone: {', '.join(EMBEDDED)}",
            ) from error
    weights_path(spec, weights)
    try:
        model = construct(None)
        _load_weights(model, weights)
    except WeightsError:
        model = construct(None, include_top=True)  # the file may be the one with the ImageNet classifier
        _load_weights(model, weights)
    return model


def _scale(pixels: Any, scaling: str) -> Any:
    """Bring pixels 0-255 to the range that an application was trained with, as `keras.applications` documents it."""
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
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # whatever a foreign file makes Keras raise, it is not a usable model
        raise UsageError(
            f"{path} cannot be loaded as a Keras model ({str(error).splitlines()[0]})",
            expected="a functional model of built-in layers, saved as .keras (custom code is never run)",
        ) from error
    if isinstance(model, keras.Sequential):
        model = keras.Model(model.inputs[0], model.outputs[0], name=path.stem)
    if not hasattr(model, "inputs") or model.inputs is None or len(model.inputs) != 1:
        raise UsageError(f"{path} is not a functional model with one input")
    if None in model.inputs[0].shape[1:3]:
        fixed = keras.Input((*size, model.inputs[0].shape[3]), name="pixels")
        clone = keras.models.clone_model(model, input_tensors=fixed)
        clone.set_weights(model.get_weights())
        model = clone
    return model
