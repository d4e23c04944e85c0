"""Search space: searchable settings, their ranges, random draws, and narrower ranges around the best trials.

CS231n, "Training Neural Networks I": random search instead of a grid (Bergstra & Bengio, 2012), learning rates and strengths on
a logarithmic scale, coarse and then fine, and a warning where the best trial lies at the edge of a range.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from transferapp.errors import UsageError
from transferapp.training.head_spec import ACTIVATIONS, INITIALIZERS
from transferapp.training.optimizers import OPTIMIZERS

SCHEDULES = ("constant", "cosine", "linear", "step")
"""Schedules without cycles: a trial has only a few epochs."""

TRIALS = 100
MAX_TRIALS = 100_000

COARSE_SHARE = 0.4
"""Share of coarse trials unless --coarse says otherwise."""

DEFAULT_OVER = ("learning_rate=1e-6..1e-1", "l2=1e-5..1e1")

TOP_SHARE, MIN_TOP = 0.2, 3
"""Fine trials are drawn from the span of this share of the coarse trials, and of at least so many."""

MIN_WIDTH = 0.2
"""Smallest width of a fine range as a share of the coarse one: a few trials do not justify a narrower one."""

EDGE = 0.05
"""Distance from an end of a range, as a share of its width, within which the best trial counts as lying at the edge."""

WIDEN = 0.25
"""Share of its width by which a range is extended where the best trial lies at its edge."""

Value = float | int | str | bool | tuple[int, ...]


@dataclass(frozen=True)
class Setting:
    """A setting that can be searched.

    Attributes:
        kind: `float`, `int`, `choice`, `flag`, or `layers` for units of hidden layers.
        low, high: Limits of a number.
        log: Whether equal ratios are equal distances.
        choices: Valid values of a choice.
    """

    kind: str
    low: float = 0.0
    high: float = math.inf
    log: bool = False
    choices: tuple[str, ...] = ()


SETTINGS: dict[str, Setting] = {
    "learning_rate": Setting("float", 1e-10, 10.0, log=True),
    "l2": Setting("float", 0.0, 1e4, log=True),
    "l1": Setting("float", 0.0, 1e4, log=True),
    "weight_decay": Setting("float", 0.0, 1.0, log=True),
    "dropout": Setting("float", 0.0, 0.95),
    "dropconnect": Setting("float", 0.0, 0.95),
    "label_smoothing": Setting("float", 0.0, 0.95),
    "hidden": Setting("layers", 0, 65_536),
    "batch_size": Setting("int", 4, 4096),
    "activation": Setting("choice", choices=ACTIVATIONS),
    "initializer": Setting("choice", choices=INITIALIZERS),
    "batch_norm": Setting("flag"),
    "optimizer": Setting("choice", choices=tuple(name for name, spec in OPTIMIZERS.items() if spec.keras_class)),
    "schedule": Setting("choice", choices=SCHEDULES),
}
"""Every searchable setting of a head and its training."""


@dataclass(frozen=True)
class Dimension:
    """A setting with the range or the choices that are searched.

    Attributes:
        name: A key of `SETTINGS`.
        low, high: Ends of the range, both part of it.
        choices: Used instead of a range where not empty.
    """

    name: str
    low: float = 0.0
    high: float = 0.0
    choices: tuple[Value, ...] = ()

    @property
    def setting(self) -> Setting:
        return SETTINGS[self.name]

    def draw(self, rng: np.random.Generator) -> Value:
        """Draw a value: uniformly, or log-uniformly where the setting is logarithmic."""
        if self.choices:
            return self.choices[int(rng.integers(len(self.choices)))]
        value = min(max(self.value_at(rng.random()), self.low), self.high)
        if self.setting.kind == "layers":
            return (int(value),) if value else ()
        return int(value) if self.setting.kind == "int" else value

    def position(self, value: Value) -> float:
        """Return the place of a value in the range: 0 at its low end, 1 at its high end."""
        width = self._scaled(self.high) - self._scaled(self.low)
        return (self._scaled(as_number(value)) - self._scaled(self.low)) / width if width else 0.5

    def value_at(self, position: float) -> float:
        """Return the value at a position of the range; positions outside [0, 1] lie beyond its ends."""
        low, high = self._scaled(self.low), self._scaled(self.high)
        value = low + position * (high - low)
        value = 10.0**value if self.setting.log else value
        return round(value) if self.setting.kind in ("int", "layers") else value

    def between(self, low: float, high: float) -> Dimension:
        """Return the range between two positions, within the limits of the setting."""
        least, most = (min(max(self.value_at(at), self.setting.low), self.setting.high) for at in (low, high))
        return replace(self, low=self.low if self.setting.log and least <= 0 else least, high=most)

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.setting.log else value

    def written(self) -> str:
        """Return the dimension in the form of `--over`."""
        if self.choices:
            return f"{self.name}={','.join(written(choice) for choice in self.choices)}"
        return f"{self.name}={self.low:.3g}..{self.high:.3g}"


def written(value: Value) -> str:
    """Return a value in the form of `--over`: `256x128` for two hidden layers, `0` for none."""
    if isinstance(value, tuple):
        return "x".join(map(str, value)) or "0"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def as_number(value: Any) -> float:
    """Return a value of a range as a number; hidden layers in a range are a single layer or none."""
    return float(sum(value)) if isinstance(value, tuple) else float(value)


@dataclass(frozen=True)
class SearchSettings:
    """Settings of a search beside those of a fit; made by `make_search`, which checks them.

    Attributes:
        space: Searched dimensions.
        trials: Number of all trials.
        coarse: Number of coarse trials among them.
    """

    space: tuple[Dimension, ...]
    trials: int
    coarse: int

    def to_json(self) -> dict[str, Any]:
        """Return a plain dictionary for JSON."""
        return {
            "over": [dimension.written() for dimension in self.space],
            "trials": self.trials,
            "coarse": self.coarse,
        }


def make_search(over: Sequence[str] = (), *, trials: int = TRIALS, coarse: int | None = None) -> SearchSettings:
    """Check the settings of a search.

    Args:
        over: Items of the form `NAME=LOW..HIGH` or `NAME=a,b,c`.
        trials: Number of all trials.
        coarse: Number of coarse trials; None for two fifths of all.

    Raises:
        UsageError: A setting is unknown or out of range.
    """
    if not 1 <= trials <= MAX_TRIALS:
        raise UsageError("trials is out of range", expected=f"1 to {MAX_TRIALS:,}", got=str(trials))
    coarse = round(COARSE_SHARE * trials) if coarse is None else coarse
    if not 0 <= coarse <= trials:
        raise UsageError("coarse is out of range", expected=f"0 to {trials}, the number of all trials", got=str(coarse))
    return SearchSettings(parse_space(over), trials, coarse)


def parse_over(text: str) -> Dimension:
    """Parse `NAME=LOW..HIGH` or `NAME=a,b,c`.

    Raises:
        UsageError: The name is unknown, or a value is invalid.
    """
    name, equals, values = (part.strip() for part in text.partition("="))
    if not equals or not values:
        raise UsageError("--over is malformed", expected="NAME=LOW..HIGH or NAME=a,b,c", got=repr(text))
    name = name.replace("-", "_")
    if name not in SETTINGS:
        raise UsageError(f"Unknown setting {name!r} in --over", expected=f"one of {', '.join(SETTINGS)}")
    setting = SETTINGS[name]
    if ".." in values:
        return _range(name, setting, text, *values.split("..", 1))
    choices = tuple(_choice(name, setting, part.strip()) for part in values.split(","))
    if len(set(choices)) < len(choices):
        raise UsageError(f"--over {text} names a value twice", expected="different values")
    return Dimension(name, choices=choices)


def parse_space(over: Sequence[str]) -> tuple[Dimension, ...]:
    """Parse all dimensions; learning rate and L2 keep their default ranges where they are not named.

    Raises:
        UsageError: A name is given twice, or an item is invalid.
    """
    dimensions: dict[str, Dimension] = {dimension.name: dimension for dimension in map(parse_over, DEFAULT_OVER)}
    named: set[str] = set()
    for dimension in map(parse_over, over):
        if dimension.name in named:
            raise UsageError(f"--over names {dimension.name} twice", expected="each setting once")
        named.add(dimension.name)
        dimensions[dimension.name] = dimension
    return tuple(dimensions.values())


def _range(name: str, setting: Setting, text: str, first: str, last: str) -> Dimension:
    if setting.kind in ("choice", "flag"):
        raise UsageError(f"{name} has no range", expected=f"values, such as {name}={_examples(setting)}", got=text)
    low, high = _number(name, setting, first.strip()), _number(name, setting, last.strip())
    if setting.log and low <= 0:
        raise UsageError(
            f"The range of {name} begins at {first.strip()}, which has no logarithm",
            expected="a low end above 0",
            hint=f"To include 0, list values: {name}=0,1e-4,1e-2",
        )
    if not low < high:
        raise UsageError(
            f"The range of {name} is empty", expected="a low end below the high one", got=f"{first}..{last}"
        )
    return Dimension(name, low, high)


def _number(name: str, setting: Setting, text: str) -> float:
    whole = setting.kind in ("int", "layers")
    try:
        value = int(text) if whole else float(text)
    except ValueError:
        value = math.nan
    if not setting.low <= value <= setting.high:
        raise UsageError(
            f"{name} is out of range in --over",
            expected=f"{'a whole number' if whole else 'a number'} from {setting.low:g} to {setting.high:g}",
            got=repr(text),
        )
    return value


def _choice(name: str, setting: Setting, text: str) -> Value:
    if setting.kind == "layers":
        units = tuple(int(_number(name, setting, part)) for part in text.split("x"))
        if len(units) > 1 and 0 in units:
            raise UsageError("A hidden layer has no units in --over", expected="such as 256x128", got=repr(text))
        return tuple(n for n in units if n)
    if setting.kind == "flag":
        if text not in ("yes", "no"):
            raise UsageError(f"Unknown {name} {text!r} in --over", expected="yes or no")
        return text == "yes"
    if setting.kind == "choice":
        if text not in setting.choices:
            raise UsageError(f"Unknown {name} {text!r} in --over", expected=f"one of {', '.join(setting.choices)}")
        return text
    return _number(name, setting, text)


def _examples(setting: Setting) -> str:
    return "yes,no" if setting.kind == "flag" else ",".join(setting.choices[:2])


Params = Mapping[str, Any]
"""Values by setting; hidden layers as a tuple of units."""


@dataclass(frozen=True)
class Edge:
    """The best trial lies at the end of a range, so that better values may lie beyond it.

    Attributes:
        dimension: The range.
        value: Of the best trial.
        upper: Whether it lies at the high end.
    """

    dimension: Dimension
    value: float
    upper: bool

    @property
    def beyond(self) -> Dimension:
        """The range, extended beyond that end by half its width."""
        return self.dimension.between(0.0, 1.5) if self.upper else self.dimension.between(-0.5, 1.0)

    def sentence(self) -> str:
        """Return the finding in words."""
        where, end = ("high", self.dimension.high) if self.upper else ("low", self.dimension.low)
        return f"the best {self.dimension.name}, {self.value:.3g}, lies at the {where} end of its range ({end:.3g})"


def edges(space: Sequence[Dimension], best: Params) -> tuple[Edge, ...]:
    """Return the ranges at whose end the best trial lies, where the setting allows values beyond."""
    found = []
    for dimension in space:
        if dimension.choices:
            continue
        value = as_number(best[dimension.name])
        at, setting = dimension.position(value), dimension.setting
        if at <= EDGE and dimension.low > setting.low:
            found.append(Edge(dimension, value, upper=False))
        elif at >= 1 - EDGE and dimension.high < setting.high:
            found.append(Edge(dimension, value, upper=True))
    return tuple(found)


def narrow(space: Sequence[Dimension], ranked: Sequence[Params]) -> tuple[tuple[Dimension, ...], tuple[str, ...]]:
    """Narrow each range to the span of the best trials, extended where the best one lies at an end.

    Args:
        space: Ranges that the trials were drawn from.
        ranked: Their settings, best first; not empty.

    Returns:
        The narrower space, and a sentence on each dimension that changed.
    """
    top = ranked[: max(MIN_TOP, math.ceil(TOP_SHARE * len(ranked)))]
    at_edge = {edge.dimension.name: edge for edge in edges(space, top[0])}
    narrowed, notes = [], []
    for dimension in space:
        values = [params[dimension.name] for params in top]
        if dimension.choices:
            closer = replace(dimension, choices=tuple(choice for choice in dimension.choices if choice in values))
            if closer != dimension:
                notes.append(f"{closer.written()}: the choices of the best {len(top)} trials")
        else:
            edge = at_edge.get(dimension.name)
            closer = _closer(dimension, values, edge)
            extended = f"; {edge.sentence()}, so the range is extended" if edge else ""
            notes.append(f"{closer.written()}: the span of the best {len(top)} trials{extended}")
        narrowed.append(closer)
    return tuple(narrowed), tuple(notes)


def _closer(dimension: Dimension, values: Sequence[Value], edge: Edge | None) -> Dimension:
    positions = [dimension.position(value) for value in values]
    low = max(min(*positions, positions[0] - MIN_WIDTH / 2), 0.0)
    high = min(max(*positions, positions[0] + MIN_WIDTH / 2), 1.0)
    if edge is not None:
        low, high = (low, 1 + WIDEN) if edge.upper else (-WIDEN, high)
    return dimension.between(low, high)
