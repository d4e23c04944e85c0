"""Stages of a network, found from the layer graph of any functional Keras model, and the cut between two of them.

A tensor through which every path from input to output runs (an articulation point) is a place to cut: the part below becomes
the frozen trunk, the part above the trainable tail. Nearly every layer of a chain qualifies, so neighboring places are grouped
into *stages*, by two observations that hold across families:

- a change of the feature map's height or width begins a new stage;
- within one resolution, a residual or dense block *merges* branches; after that, the next layer that changes the number of
  channels without merging (the expansion of the next inverted bottleneck, the transition of a dense block) begins a new one.

A stage's cut is its last tensor. Stages that merge nothing are dropped, as preludes of the next, unless the network merges
nowhere (VGG), when every resolution counts. Importing this module imports no Keras.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transferapp.backbones.keras_internals import graph_nodes, is_functional
from transferapp.errors import UsageError

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class Stage:
    """A place to cut.

    Attributes:
        name: The layer whose output is cut: the name of a cut on the command line and in a bundle. `name#2` is the second
            place where a layer is used.
        index: 0 for the earliest stage.
        shape: (height, width, channels) of its feature map.
        is_top: Whether it is the last feature map, the usual input of a classifier.
    """

    name: str
    index: int
    shape: tuple[int, int, int]
    is_top: bool

    def describe(self) -> str:
        """Return the stage in a few words, for people."""
        height, width, channels = self.shape
        return f"{self.name} ({height}×{width}×{channels})"


@dataclass(frozen=True)
class Tap:
    """Statistics of a stage's feature map, over space, that a linear classifier reads.

    Attributes:
        stage: Name of the stage.
        deviation: Whether the standard deviation of each channel stands beside its mean.
    """

    stage: str
    deviation: bool = False

    def describe(self) -> str:
        """Return the tap in a few words, for people."""
        return self.stage if self.deviation else f"{self.stage} (mean)"


@dataclass(frozen=True)
class _Point:
    tensor: Any
    name: str
    merges: bool

    @property
    def spatial(self) -> tuple[int, int]:
        return self.tensor.shape[1], self.tensor.shape[2]

    @property
    def channels(self) -> int:
        return int(self.tensor.shape[3])


def _articulation_points(model: keras.Model) -> list[_Point]:
    """Return the feature maps that every path from the input to the output runs through, in order.

    Nodes are swept from input to output; where later nodes need exactly one tensor, it is such a point. The sweep ends where
    the map is pooled to one pixel: the rest is a classifier, even one of 1×1 convolutions.
    """
    import keras

    nodes = graph_nodes(model)
    last_use = {id(tensor): len(nodes) for tensor in model.outputs}
    for position, node in enumerate(nodes):
        for tensor in node.input_tensors:
            last_use[id(tensor)] = max(position, last_use.get(id(tensor), position))
    points: list[_Point] = []
    uses: Counter[str] = Counter()
    live: dict[int, tuple[Any, Any, int]] = {}
    for position, node in enumerate(nodes):
        name = node.operation.name
        uses[name] += 1
        live.update({id(t): (t, node, uses[name]) for t in node.output_tensors if id(t) in last_use})
        live = {key: value for key, value in live.items() if last_use[key] > position}
        if len(live) != 1:
            continue
        tensor, producer, use = next(iter(live.values()))
        if isinstance(producer.operation, keras.layers.GlobalAveragePooling2D | keras.layers.GlobalMaxPooling2D):
            break
        if len(tensor.shape) != 4 or isinstance(producer.operation, keras.layers.ZeroPadding2D):
            continue
        # A squeeze-and-excitation gate is 1×1 and is broadcast: it merges no second feature map.
        merges = len({id(t) for t in producer.input_tensors if tuple(t.shape[1:3]) == tuple(tensor.shape[1:3])}) > 1
        if not points or points[-1].tensor is not tensor:
            name = producer.operation.name
            points.append(_Point(tensor, name if use == 1 else f"{name}#{use}", merges))
    return points


def find_stages(model: keras.Model) -> tuple[Stage, ...]:
    """Return the stages of a functional model, earliest first.

    Args:
        model: One input of fixed shape (height, width, channels), one output, channels last.

    Raises:
        UsageError: The model is not of that kind or has no feature map to cut at.
    """
    if not is_functional(model) or len(model.inputs) != 1 or len(model.outputs) != 1:
        raise UsageError(
            f"{model.name} cannot be cut",
            expected="a functional Keras model with one input and one output",
            got=f"a {type(model).__name__}",
        )
    if len(model.inputs[0].shape) != 4 or None in model.inputs[0].shape[1:]:
        raise UsageError(
            f"{model.name} cannot be cut",
            expected="an input of fixed shape (height, width, 3)",
            got=f"{model.inputs[0].shape[1:]}",
        )
    points = _articulation_points(model)[1:]  # the first is the input itself
    if not points:
        raise UsageError(f"{model.name} has no feature map to cut at", expected="a convolutional network")
    groups = _group(points)
    merging = [group for group in groups if any(point.merges for point in group)]
    chosen = merging or _last_of_each_resolution(groups)
    if chosen[-1] is not groups[-1]:
        chosen = [*chosen, groups[-1]]
    stages = []
    for index, group in enumerate(chosen):
        tensor = group[-1].tensor
        stages.append(
            Stage(
                name=group[-1].name,
                index=index,
                shape=(int(tensor.shape[1]), int(tensor.shape[2]), int(tensor.shape[3])),
                is_top=index == len(chosen) - 1,
            )
        )
    return tuple(stages)


def _group(points: list[_Point]) -> list[list[_Point]]:
    groups: list[list[_Point]] = []
    merged = False
    for point in points:
        previous = groups[-1][-1] if groups else None
        opens = (
            previous is None
            or point.spatial != previous.spatial
            or (merged and not point.merges and point.channels != previous.channels)
        )
        if opens:
            groups.append([])
            merged = False
        groups[-1].append(point)
        merged = merged or point.merges
    return groups


def _last_of_each_resolution(groups: list[list[_Point]]) -> list[list[_Point]]:
    return [
        g
        for g, after in zip(groups, [*groups[1:], None], strict=True)
        if after is None or after[-1].spatial != g[-1].spatial
    ]


def stage_named(stages: tuple[Stage, ...], name: str) -> Stage:
    """Return the stage of that name (`top` always means the last).

    Raises:
        UsageError: There is none; the message lists the names.
    """
    for stage in stages:
        if stage.name == name or (name == "top" and stage.is_top):
            return stage
    raise UsageError(f"There is no stage {name!r}", expected=f"one of {', '.join(s.name for s in stages)}, or top")


def cut(model: keras.Model, stage: Stage) -> tuple[keras.Model, keras.Model]:
    """Split a model at a stage into two models that share its weights.

    Args:
        model: The model the stage was found in.
        stage: The stage to cut at.

    Returns:
        (trunk, tail): `trunk` maps the model's input to the stage's feature map of shape (batch, height, width, channels);
        `tail` maps that to the model's output, so ``tail(trunk(x))`` equals ``model(x)``.
    """
    import keras

    tensor = stage_tensor(model, stage)
    trunk = keras.Model(model.inputs[0], tensor, name=f"{model.name}_trunk")
    # The tail's layers are called again: ``keras.Model(tensor, output)`` fails where a layer is used on both sides of the cut.
    start = keras.Input(tensor.shape[1:], dtype=tensor.dtype, name="features")
    known = {id(tensor): start}
    for node in graph_nodes(model):
        if not node.is_input and all(id(t) in known for t in node.input_tensors):
            arguments, options = node.arguments.fill_in(known)
            called = node.operation(*arguments, **options)
            known.update(zip(map(id, node.outputs), keras.tree.flatten(called), strict=True))
    output = known[id(model.outputs[0])]
    if output is start:  # nothing above: Keras needs at least one layer in a model
        output = keras.layers.Identity(name="nothing_above")(start)
    return trunk, keras.Model(start, output, name=f"{model.name}_tail")


def stage_tensor(model: keras.Model, stage: Stage) -> Any:
    """Return the symbolic feature map of a stage.

    Raises:
        UsageError: The stage was found in another model.
    """
    for point in _articulation_points(model):
        if point.name == stage.name and tuple(point.tensor.shape[1:]) == stage.shape:
            return point.tensor
    raise UsageError(
        f"{model.name} cannot be cut at {stage.describe()}", expected="a stage that was found in this model"
    )


def pooled_taps(model: keras.Model, stages: tuple[Stage, ...]) -> keras.Model:
    """Return a model that computes the statistics of every stage's feature map, side by side, in one pass.

    Returns:
        A model from the same input to one tensor of shape (batch, row_size): the mean of each channel of each stage, earliest
        stage first; then, where the model ends in a classifier, the outputs of that; then the standard deviations, in the
        order of the means.
    """
    import keras

    maps = [stage_tensor(model, stage) for stage in stages]
    columns = [keras.layers.GlobalAveragePooling2D(name=f"tap_{i}")(tensor) for i, tensor in enumerate(maps)]
    if len(model.outputs[0].shape) == 2:
        columns.append(model.outputs[0])
    columns += [spatial_deviation(tensor, f"deviation_{i}") for i, tensor in enumerate(maps)]
    row = keras.layers.Concatenate(name="taps")(columns)
    return keras.Model(model.inputs[0], row, name=f"{model.name}_taps")


def spatial_deviation(tensor: Any, name: str) -> Any:
    """Return the standard deviation of each channel over space, shape (batch, channels), for maps of four axes."""
    import keras

    mean = keras.layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_mean")(tensor)
    centered = keras.layers.Subtract(name=f"{name}_centered")([tensor, mean])
    squares = keras.layers.Multiply(name=f"{name}_squares")([centered, centered])
    variance = keras.layers.GlobalAveragePooling2D(name=f"{name}_variance")(squares)
    return keras.ops.sqrt(variance)
