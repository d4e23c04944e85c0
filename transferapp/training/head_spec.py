"""Form of a head before it is built: pooling, hidden layers, and regularization. Imports no Keras."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transferapp.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from transferapp.training.probe import LinearProbe

POOLINGS = ("average", "max", "fractional_max")
ACTIVATIONS = ("relu", "leaky_relu", "elu", "tanh", "sigmoid", "maxout")
INITIALIZERS = ("he", "glorot")

STANDARDIZE, LOGITS, TEMPERATURE = "head_standardize", "head_logits", "head_temperature"
"""Names of a head's layers in a network: the first, whose inputs are the features, the last, and the one that divides its
logits."""

MAX_HIDDEN = 20
MAX_UNITS = 65_536


@dataclass(frozen=True)
class HeadSpec:
    """The form of a head. The default is linear on averaged features, which L-BFGS solves to its optimum.

    Attributes:
        pooling: From a feature map to a vector: one of `POOLINGS`. `fractional_max` takes the maximum over regions of two or
            three pixels per side, drawn anew in each step (Graham, 2014, arXiv:1412.6071), and then the average.
        hidden: Units of each hidden layer, the lowest first.
        activation: Activation of the hidden layers: one of `ACTIVATIONS`.
        initializer: One of `INITIALIZERS`, both normal: `he` (MSRA; He et al., 2015, arXiv:1502.01852) preserves the variance
            through ReLU and its relatives, `glorot` (Xavier; Glorot & Bengio, 2010) through tanh.
        batch_norm: Whether hidden layers normalize before their activation.
        dropout: Probability that an input of a dense layer is left out, in [0, 1); inverted dropout.
        dropconnect: Probability that a weight of a dense layer is left out, in [0, 1).
        l1: Penalty l1 · |kernel| of every dense layer, added to the mean loss in nats. As a part of the loss, as in the
            lecture, it brings weights near 0 but not exactly to 0.
        l2: Penalty l2 / 2 · ||kernel||², likewise. Both together are the elastic net.

    Raises:
        UsageError: A value is unknown or out of range.
    """

    pooling: str = "average"
    hidden: tuple[int, ...] = ()
    activation: str = "relu"
    initializer: str = "he"
    batch_norm: bool = False
    dropout: float = 0.0
    dropconnect: float = 0.0
    l1: float = 0.0
    l2: float = 0.0

    def __post_init__(self) -> None:
        for name, known in (("pooling", POOLINGS), ("activation", ACTIVATIONS), ("initializer", INITIALIZERS)):
            if getattr(self, name) not in known:
                raise UsageError(f"Unknown {name} {getattr(self, name)!r}", expected=f"one of {', '.join(known)}")
        if len(self.hidden) > MAX_HIDDEN or not all(
            isinstance(units, int) and 1 <= units <= MAX_UNITS for units in self.hidden
        ):
            raise UsageError(
                "The hidden layers are invalid",
                expected=f"at most {MAX_HIDDEN} numbers of units from 1 to {MAX_UNITS:,}, such as 256,128",
                got=",".join(map(str, self.hidden))[:200],
            )
        for name in ("dropout", "dropconnect"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(
                    f"{name} is out of range", expected="at least 0 and less than 1", got=f"{getattr(self, name):g}"
                )
        for name in ("l1", "l2"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"{name} is out of range", expected="a number from 0", got=f"{getattr(self, name):g}")

    def describe(self) -> str:
        """Return the head in a few words, for people: `256-128 relu units, dropout 0.5`."""
        units = "-".join(map(str, self.hidden))
        words = [f"{units} {self.activation.replace('_', ' ')} units" if self.hidden else "linear"]
        if self.pooling != "average":
            words[0] += f" on {self.pooling.replace('_', ' ')} pooling"
        words += ["batch normalization"] if self.batch_norm else []
        words += [
            f"{name} {getattr(self, name):g}" for name in ("dropout", "dropconnect", "l1", "l2") if getattr(self, name)
        ]
        return ", ".join(words)

    @property
    def linear(self) -> bool:
        """Whether there are no hidden layers: the loss is then convex in the weights."""
        return not self.hidden

    @property
    def solvable(self) -> bool:
        """Whether L-BFGS solves it: linear on averages, with nothing random and no penalty but L2."""
        return self.linear and self.pooling == "average" and not (self.dropout or self.dropconnect or self.l1)

    def to_json(self) -> dict[str, Any]:
        """Return a plain dictionary for JSON."""
        return {**dataclasses.asdict(self), "hidden": list(self.hidden)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> HeadSpec:
        """Return the spec of a dictionary from `to_json`; missing names have their defaults.

        Raises:
            UsageError: A name is unknown, or a value is.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(values) - set(names))
        if unknown:
            raise UsageError(f"A head has no {unknown[0]!r}", expected=f"any of {', '.join(names)}")
        return cls(**{**values, "hidden": tuple(values.get("hidden", ()))})


@dataclass(frozen=True, eq=False)
class Head:
    """A head with its numbers.

    Attributes:
        spec: Its form.
        mean, std: float32, shape (channels,): moments that pooled features are standardized by.
        num_classes: Size of the output.
        weights: In Keras' order: of each dense layer its kernel and bias, each followed by the variables of batch
            normalization. Empty for a new head, whose weights are not drawn yet.
    """

    spec: HeadSpec
    mean: np.ndarray
    std: np.ndarray
    num_classes: int
    weights: tuple[np.ndarray, ...] = ()

    @classmethod
    def of(cls, probe: LinearProbe, spec: HeadSpec | None = None) -> Head:
        """Return a linear classifier as a head.

        Args:
            probe: Solved.
            spec: Linear on averages, with the regularization of further training; None for none.
        """
        return cls(spec or HeadSpec(), probe.mean, probe.std, len(probe.bias), (probe.kernel, probe.bias))
