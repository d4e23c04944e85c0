"""Saved Keras models of linear classifiers, composed without Keras.

A `.keras` file is a zip of `config.json`, with the layers and their settings, and `model.weights.h5`, with their variables
(https://keras.io/guides/serialization_and_saving). The tapped backbone is cached as such a file. To put a classifier on it
takes a tenth of a second; to import TensorFlow and build the network again, several.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import h5py
import numpy as np

from transferapp.backbones.stages import Tap
from transferapp.backbones.trunk import Trunk
from transferapp.training.head_spec import LOGITS, STANDARDIZE, TEMPERATURE, Head

_CONFIG, _METADATA, _WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
_TAPS, _OUTPUT = "taps", "probabilities"

_KINDS = {
    "BatchNormalization": "batch_normalization",
    "Conv2D": "conv2d",
    "Dense": "dense",
    "DepthwiseConv2D": "depthwise_conv2d",
}
"""The classes of layers with variables in embedded backbones and classifiers, as `model.weights.h5` names them."""

Layer = dict[str, Any]
"""Entry of a layer in `config.json`."""


def compose_saved(trunk: Trunk, taps: Sequence[Tap], head: Head, temperature: float, name: str) -> bytes | None:
    """Put a linear classifier on the saved taps of a trunk.

    Args:
        trunk: Of the backbone.
        taps: Statistics that the head reads.
        head: Linear.
        temperature: Divisor of the logits.
        name: Name of the model, as Keras takes it.

    Returns:
        A `.keras` file of the network that `heads.attach_head` builds; None where the trunk has no saved taps, or their
        file has variables that are not understood.
    """
    if trunk.saved is None:
        return None
    try:
        with zipfile.ZipFile(trunk.saved) as source:
            config, metadata = json.loads(source.read(_CONFIG)), source.read(_METADATA)
            weights = io.BytesIO(source.read(_WEIGHTS))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):  # removed or damaged since the trunk was loaded
        return None
    tapped: list[Layer] = config["config"]["layers"]
    layers = [*_needed(tapped, _tensors(tapped, trunk, taps)), *_classifier(tapped, trunk, taps, head, temperature)]
    variables = _weights(weights, tapped, layers, {LOGITS: head.weights})
    if variables is None:
        return None
    for layer in layers:
        if "trainable" in layer["config"]:
            layer["config"]["trainable"] = False
    config["config"] |= {"name": name, "layers": layers, "output_layers": [_OUTPUT, 0, 0], "trainable": False}
    config["build_config"] = {"input_shape": None}
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as target:
        target.writestr(_METADATA, metadata)
        target.writestr(_CONFIG, json.dumps(config))
        target.writestr(_WEIGHTS, variables)
    return stream.getvalue()


def _tensors(tapped: Sequence[Layer], trunk: Trunk, taps: Sequence[Tap]) -> list[Any]:
    """Return the tensors of some taps' statistics, as the configuration writes them: inputs of the layer that joins all."""
    joined = next(layer for layer in tapped if layer["name"] == _TAPS)
    columns = joined["inbound_nodes"][0]["args"][0]
    return [columns[part] for part in trunk.parts(taps)]


def _needed(tapped: Sequence[Layer], outputs: Sequence[Any]) -> list[Layer]:
    """Return the layers that some tensors depend on, in their order."""
    by_name = {layer["name"]: layer for layer in tapped}
    wanted: set[str] = set()
    waiting = [name for tensor in outputs for name in _origins(tensor)]
    while waiting:
        name = waiting.pop()
        if name not in wanted:
            wanted.add(name)
            waiting += _origins(by_name[name]["inbound_nodes"])
    return [layer for layer in tapped if layer["name"] in wanted]


def _origins(value: Any) -> Iterator[str]:
    """Yield the names of the layers whose outputs occur in a value of the configuration."""
    if isinstance(value, Mapping):
        if value.get("class_name") == "__keras_tensor__":
            yield value["config"]["keras_history"][0]
        else:
            for each in value.values():
                yield from _origins(each)
    elif isinstance(value, list):
        for each in value:
            yield from _origins(each)


def _classifier(
    tapped: Sequence[Layer], trunk: Trunk, taps: Sequence[Tap], head: Head, temperature: float
) -> list[Layer]:
    """Return the layers of a linear classifier on some taps."""
    tensors = _tensors(tapped, trunk, taps)
    layers, features = [], tensors[0]
    if len(tensors) > 1:
        layers.append(_layer("Concatenate", _TAPS, [tensors], axis=-1))
        features = _tensor(_TAPS, len(head.mean))
    moments = {"mean": head.mean.tolist(), "variance": np.square(head.std).tolist()}
    return [
        *layers,
        _layer("Normalization", STANDARDIZE, [features], axis=-1, **moments),
        _layer("Dense", LOGITS, [_tensor(STANDARDIZE, len(head.mean))], units=head.num_classes),
        _layer("Rescaling", TEMPERATURE, [_tensor(LOGITS, head.num_classes)], scale=1 / temperature, offset=0.0),
        _layer("Softmax", _OUTPUT, [_tensor(TEMPERATURE, head.num_classes)]),
    ]


def _layer(class_name: str, name: str, arguments: list[Any], **settings: Any) -> Layer:
    config = {"name": name, "trainable": False, "dtype": "float32", **settings}
    nodes = [{"args": arguments, "kwargs": {}}]
    return {
        "module": "keras.layers",
        "class_name": class_name,
        "config": config,
        "registered_name": None,
        "name": name,
        "inbound_nodes": nodes,
    }


def _tensor(name: str, width: int) -> dict[str, Any]:
    config = {"shape": [None, width], "dtype": "float32", "keras_history": [name, 0, 0]}
    return {"class_name": "__keras_tensor__", "config": config}


def _weights(
    source: io.BytesIO, tapped: Sequence[Layer], layers: Sequence[Layer], new: Mapping[str, Sequence[np.ndarray]]
) -> bytes | None:
    """Copy the variables of the layers that are kept, and write those of the new ones.

    Args:
        source: Variables of `tapped`.
        tapped: Layers of the tapped backbone.
        layers: Those of the composed network.
        new: Variables of its new layers, by name.

    Returns:
        None where the variables of `source` are not those of the layers that `_KINDS` names.
    """
    former = _groups(tapped)
    stream = io.BytesIO()
    with h5py.File(source, "r") as read, h5py.File(stream, "w") as written:
        if {f"layers/{name}" for name, layer in read["layers"].items() if len(layer["vars"])} != set(former.values()):
            return None
        for name, group in _groups(layers).items():
            if name in new:
                variables = written.create_group(f"{group}/vars")
                for index, array in enumerate(new[name]):
                    variables[str(index)] = array
            else:
                read.copy(read[former[name]], written, group)
    return stream.getvalue()


def _groups(layers: Sequence[Layer]) -> dict[str, str]:
    """Return where the variables of each layer are: Keras numbers the layers of a class in their order."""
    seen: Counter[str] = Counter()
    groups = {}
    for layer in layers:
        if kind := _KINDS.get(layer["class_name"]):
            groups[layer["name"]] = f"layers/{kind}" + (f"_{seen[kind]}" if seen[kind] else "")
            seen[kind] += 1
    return groups
