"""What is searched: settings by name, the range of each, how a range narrows around what was good, and the points of a grid.

CS231n, "Training Neural Networks I": random search and not a grid (Bergstra & Bengio, 2012), learning rates and strengths on a
logarithmic scale, coarse and then fine, and a warning where the best lies at the edge of a range. All of it is pure; the draws
themselves are Optuna's (`transferapp.recipes.search.study`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transferapp.errors import UsageError
from transferapp.training.head_spec import ACTIVATIONS, INITIALIZERS
from transferapp.training.optimizers import OPTIMIZERS

SCHEDULES = ("constant", "cosine", "linear", "step")
"""Those that know no cycles: a trial is over in a few epochs."""

DEFAULT_OVER = ("learning_rate=1e-6..1e-1", "l2=1e-5..1e1")

TOP_SHARE = 0.2
"""Of the coarse trials, the share whose span the fine ones are drawn from ..."""

MIN_TOP = 3
"""... but no fewer than so many."""

MIN_WIDTH = 0.2
"""A fine range is no narrower than this share of the coarse one: a few trials do not tell more."""

EDGE = 0.05
"""Within this share of a range's width from its end, the best counts as lying at the edge."""

WIDEN = 0.25
"""A range with the best at its edge goes on by this share of its width."""

Value = float | int | str | bool | tuple[int, ...]


@dataclass(frozen=True)
class Setting:
    """A setting that can be searched.

    Attributes:
        kind: `float`, `int`, `choice`, `flag`, or `layers` for units of hidden layers.
        low, high: What makes sense of a number.
        log: Whether equal ratios are equal distances.
        choices: What makes sense of a choice.
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
"""Every setting of a head and of its training that a search may vary."""


@dataclass(frozen=True)
class Dimension:
    """One setting and where it is searched: a range, or choices.

    Attributes:
        name: A key of `SETTINGS`.
        low, high: Ends of the range, both part of it.
        choices: Instead of a range, where not empty.
    """

    name: str
    low: float = 0.0
    high: float = 0.0
    choices: tuple[Value, ...] = ()

    @property
    def setting(self) -> Setting:
        return SETTINGS[self.name]

    @property
    def integer(self) -> bool:
        return self.setting.kind in ("int", "layers")

    def position(self, value: float) -> float:
        """Where a value lies in the range: 0 at its low end, 1 at its high end."""
        width = self._scaled(self.high) - self._scaled(self.low)
        return (self._scaled(value) - self._scaled(self.low)) / width if width else 0.5

    def value_at(self, position: float) -> float | int:
        """The value at a position of the range."""
        low, high = self._scaled(self.low), self._scaled(self.high)
        value = low + position * (high - low)
        value = 10.0**value if self.setting.log else value
        return round(value) if self.integer else value

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.setting.log else value

    def written(self) -> str:
        """As `--over` takes it."""
        if self.choices:
            return f"{self.name}={','.join(written(choice) for choice in self.choices)}"
        return f"{self.name}={self.low:.3g}..{self.high:.3g}"


def written(value: Value) -> str:
    """A value as a person writes it: `256x128` for two hidden layers, `0` for none."""
    if isinstance(value, tuple):
        return "x".join(map(str, value)) or "0"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def parse_over(text: str) -> Dimension:
    """A dimension from `NAME=LOW..HIGH` or `NAME=a,b,c`.

    Raises:
        UsageError: The name is unknown, or the values make no sense.
    """
    name, equals, values = (part.strip() for part in text.partition("="))
    if not equals or not values:
        raise UsageError("--over makes no sense", expected="NAME=LOW..HIGH or NAME=a,b,c", got=repr(text))
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
    """All dimensions of a search: those named, and learning rate and L2 as they are by default where they are not named.

    Raises:
        UsageError: A name comes twice, or one of them makes no sense.
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
            hint=f"To try none at all as well, name values: {name}=0,1e-4,1e-2",
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
    """The best lies at the end of a range: better ones may lie beyond.

    Attributes:
        name: The setting.
        value: Of the best trial.
        end: The end of the range, a number.
        upper: Whether it is the high end.
    """

    name: str
    value: float
    end: float
    upper: bool

    def sentence(self) -> str:
        where = "high" if self.upper else "low"
        return f"the best {self.name}, {self.value:.3g}, lies at the {where} end of its range ({self.end:.3g})"


def edges(space: Sequence[Dimension], best: Params) -> tuple[Edge, ...]:
    """Where the best lies at the end of a range that could go on."""
    found = []
    for dimension in space:
        if dimension.choices:
            continue
        value = _as_number(best[dimension.name])
        at, setting = dimension.position(value), dimension.setting
        if at <= EDGE and dimension.low > setting.low:
            found.append(Edge(dimension.name, value, dimension.low, upper=False))
        elif at >= 1 - EDGE and dimension.high < setting.high:
            found.append(Edge(dimension.name, value, dimension.high, upper=True))
    return tuple(found)


def narrow(space: Sequence[Dimension], ranked: Sequence[Params]) -> tuple[tuple[Dimension, ...], tuple[str, ...]]:
    """Where to look more closely: the span of the best trials, around the best one, and beyond an end that it lies at.

    Args:
        space: Where the trials were drawn from.
        ranked: Their settings, best first; not empty.

    Returns:
        The narrower space, and a sentence on each dimension.
    """
    top = ranked[: max(MIN_TOP, math.ceil(TOP_SHARE * len(ranked)))]
    at_edge = {edge.name: edge for edge in edges(space, top[0])}
    narrowed, notes = [], []
    for dimension in space:
        values = [params[dimension.name] for params in top]
        if dimension.choices:
            kept = tuple(choice for choice in dimension.choices if choice in values)
            narrowed.append(replace(dimension, choices=kept))
            if len(kept) < len(dimension.choices):
                notes.append(f"{narrowed[-1].written()}: what the best {len(top)} trials have")
            continue
        closer = _closer(dimension, [_as_number(value) for value in values], at_edge.get(dimension.name))
        narrowed.append(closer)
        edge = at_edge.get(dimension.name)
        beyond = f"; {edge.sentence()}, so it goes on beyond" if edge else ""
        notes.append(f"{closer.written()}: the span of the best {len(top)} trials{beyond}")
    return tuple(narrowed), tuple(notes)


def _closer(dimension: Dimension, values: Sequence[float], edge: Edge | None) -> Dimension:
    positions = [dimension.position(value) for value in values]
    low, high = min(positions), max(positions)
    low, high = min(low, positions[0] - MIN_WIDTH / 2), max(high, positions[0] + MIN_WIDTH / 2)
    floor, ceiling = (-WIDEN if edge and not edge.upper else 0.0), (1 + WIDEN if edge and edge.upper else 1.0)
    if edge is not None:
        low, high = (low, max(high, 1 + WIDEN)) if edge.upper else (min(low, -WIDEN), high)
    low, high = max(low, floor), min(high, ceiling)
    least, most = (max(dimension.setting.low, v) for v in (dimension.value_at(low), dimension.value_at(high)))
    if dimension.setting.log and not least > 0:
        least = dimension.low
    return replace(dimension, low=least, high=min(most, dimension.setting.high))


def grid(space: Sequence[Dimension], trials: int) -> tuple[dict[str, Any], ...]:
    """The points of the largest evenly spaced grid of at most `trials` points, the ends of ranges included.

    Raises:
        UsageError: Even two points a range are more than `trials`.
    """
    fixed = math.prod(len(dimension.choices) for dimension in space if dimension.choices)
    ranges = [dimension for dimension in space if not dimension.choices]
    levels = _levels(len(ranges), trials // fixed)
    if levels is None:
        raise UsageError(
            f"A grid over {len(space)} settings has at least {fixed * 2 ** len(ranges)} points",
            expected=f"no more than {trials}",
            hint="Search fewer settings, name fewer values, or leave out --grid: random search has no such limit",
        )
    counts = iter(levels)
    axes: list[list[Any]] = []
    for dimension in space:
        if dimension.choices:
            axes.append(list(dimension.choices))
            continue
        count = next(counts)
        values = [dimension.value_at(index / (count - 1)) for index in range(count)]
        axes.append(list(dict.fromkeys(as_value(dimension, value) for value in values)))
    names = [dimension.name for dimension in space]
    return tuple(dict(zip(names, point, strict=True)) for point in itertools.product(*axes))


def _levels(ranges: int, points: int) -> tuple[int, ...] | None:
    """Points along each range: as many as there may be in all, and among equals as even as can be; at least two each."""
    if ranges == 0:
        return () if points >= 1 else None
    even = int(points ** (1 / ranges) + 1e-9)
    if even < 2:
        return None
    near = range(max(2, even // 2), 2 * even + 1)
    fitting = (levels for levels in itertools.product(near, repeat=ranges) if math.prod(levels) <= points)
    if ranges > 4:
        return (even,) * ranges
    return max(fitting, key=lambda levels: (math.prod(levels), -max(levels)))


def _as_number(value: Any) -> float:
    """Hidden layers in a range are a single one."""
    return float(sum(value)) if isinstance(value, tuple) else float(value)


def as_value(dimension: Dimension, number: float | int) -> Value:
    """What a number from a dimension's range stands for: units of a hidden layer are a tuple, and 0 of them is none."""
    if dimension.setting.kind == "layers":
        return (int(number),) if number else ()
    return number
