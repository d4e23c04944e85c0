"""The residual sums of a network, found from its graph, and stochastic depth in their place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import keras

from transferapp.backbones.keras_internals import graph_nodes, is_sum
from transferapp.training.layers import StochasticDepth

Sums = dict[Any, int]
"""From an operation that adds two tensors to the position of the branch among them."""


def residual_sums(network: keras.Model) -> Sums:
    """The sums of a shortcut and a branch that was computed from it, inputs first.

    Only such a branch can be left out with the signal still coming through. Where a block changes resolution or width, its
    shortcut is a computation too, and the block always stays.

    Args:
        network: Functional.
    """
    nodes = graph_nodes(network)
    uses = Counter(node.operation for node in nodes)
    before: dict[int, set[int]] = {}
    found: Sums = {}
    for node in nodes:
        inputs = [id(tensor) for tensor in node.input_tensors]
        if is_sum(node.operation) and uses[node.operation] == 1 and len(inputs) == 2:
            for branch, (own, other) in enumerate((inputs, inputs[::-1])):
                if other in before.get(own, set()):
                    found[node.operation] = branch
        behind = set(inputs).union(*(before.get(tensor, set()) for tensor in inputs))
        before.update((id(tensor), behind) for tensor in node.outputs)
    return found


def random_sums(
    network: keras.Model, layers: Sequence[StochasticDepth], training: bool | None
) -> dict[Any, Callable[..., Any]]:
    """What runs in the place of a network's residual sums.

    Args:
        network: Functional.
        layers: One for each of `residual_sums`, in that order; none to leave all sums as they are.
        training: The mode to run them in.
    """
    if not layers:
        return {}
    pairs = zip(residual_sums(network).items(), layers, strict=True)
    return {operation: _sum(layer, branch, training) for (operation, branch), layer in pairs}


def _sum(layer: StochasticDepth, branch: int, training: bool | None) -> Callable[..., Any]:
    def add(*arguments: Any, **_: Any) -> Any:
        tensors = (
            arguments if len(arguments) == 2 else arguments[0]
        )  # an operation takes two tensors, a layer a list of them
        return layer([tensors[1 - branch], tensors[branch]], training=training)

    return add
