"""Numbers as text, and small charts as inline SVG.

Positions in a chart are percentages of its width, so that it fits any screen and its text keeps its size. Colors and strokes
come from classes in the style sheet, so light mode, dark mode and print share one drawing. `Markup.format` escapes text from
outside.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

UNITS_SHOWN = 400
"""Largest number of images that the unit chart draws as one square each; above it, each of 100 squares stands for 1 %."""

_COLUMNS = 25
_ROUNDING = 1e-9
_NEAR = 0.13
"""Share of the width within which two labels of an axis would overlap on a phone."""


def percent(share: float | None, digits: int = 1) -> str:
    """Format a share as a percentage; only 1 reads 100%, and only 0 reads 0%."""
    if share is None or not math.isfinite(share):
        return "–"
    least = 10.0**-digits
    if round(100 * share, digits) >= 100 and share < 1 - _ROUNDING:
        return f">{100 - least:.{digits}f}%"
    if round(100 * share, digits) <= 0 and share > _ROUNDING:
        return f"<{least:.{digits}f}%"
    return f"{100 * share:.{digits}f}%"


def span(interval: Sequence[float]) -> str:
    """Format an interval of shares: `89.0–96.8%`."""
    low, high = interval
    return f"{percent(low).removesuffix('%')}–{percent(high)}"


def decimal(value: Any, digits: int = 3) -> str:
    """Format an integer with thousands separators, or another number with some decimals; – for anything else."""
    if not _is_number(value):
        return "–"
    return (f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}").replace("-", "−")


def significant(value: Any, digits: int = 2) -> str:
    """Format a number with some significant digits: `1.2e-07`."""
    return f"{value:.{digits}g}" if _is_number(value) else "–"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def points(difference: float | None, *, signed: bool = True) -> str:
    """Format a difference of shares in percentage points."""
    if difference is None or not math.isfinite(difference):
        return "–"
    return (f"{100 * difference:+.1f}" if signed else f"{100 * difference:.1f}").replace("-", "−")


def unit_chart(right: int, total: int) -> Markup:
    """Draw a square for every image: filled if the classifier was right, a crossed box if it was wrong."""
    squares = total if total <= UNITS_SHOWN else 100
    filled = right if squares == total else math.floor(100 * right / total + 0.5)
    if right < total:
        filled = min(filled, squares - 1)  # a few mistakes among thousands stay visible
    marks = [_unit(index, index < filled) for index in range(squares)]
    box = f"0 0 {10 * min(squares, _COLUMNS) - 2} {10 * math.ceil(squares / _COLUMNS) - 2}"
    return _tag("svg", "units", *marks, role="img", viewBox=box, aria_label=f"{right} of {total} right")


def _unit(index: int, right: bool) -> Markup:
    x, y = 10 * (index % _COLUMNS), 10 * (index // _COLUMNS)
    if right:
        return _tag("rect", "hit", x=x, y=y, width=8, height=8, rx=1.5)
    return _tag("path", "miss", d=f"M{x + 0.5} {y + 0.5}h7v7h-7zm1.8 1.8l3.4 3.4m0-3.4l-3.4 3.4")


def bar(share: float) -> Markup:
    """Draw a bar over a share of its cell; it is hidden from screen readers, for the number stands beside it."""
    rail = _tag("rect", "rail", width="100%", height=10, rx=2)
    hit = _tag("rect", "hit", width=_percent(share), height=10, rx=2)
    return _tag("svg", "bar", rail, hit, aria_hidden="true", width="100%", height=10)


def interval_chart(share: float, interval: Sequence[float], guess: float) -> Markup:
    """Draw accuracy and its interval from 0 to 100 %, with a mark at the accuracy of always naming the most common class."""
    low, high = interval
    label = f"{100 * share:.1f}%, between {100 * low:.1f}% and {100 * high:.1f}%; guessing: {100 * guess:.1f}%"
    marks = [
        _tag("rect", "rail", y=26, width="100%", height=12, rx=3),
        _tag("rect", "band", x=_percent(low), y=26, width=_percent(high - low), height=12, rx=3),
        _upright("edge", share, 22, 42),
        _text(share, 16, f"{100 * share:.1f}%", "strong"),
        _upright("mark", guess, 22, 42),
        *(_text(at, 56, f"{100 * at:.0f}%", "small") for at in (0.0, 0.5, 1.0)),
    ]
    if abs(share - guess) > 2 * _NEAR:
        marks.append(_text(guess, 16, "guessing", "small"))
    return _figure(62, label, marks)


@dataclass(frozen=True)
class Scale:
    """An axis with a threshold that divides it into two named zones.

    Attributes:
        low: Left end of the axis.
        high: Right end of the axis.
        threshold: Border of the zones.
        threshold_label: Text below the threshold.
        zones: Names of the zones, left and right.
        ticks: (value, label), besides the threshold; a label is left out where it would touch the threshold's.
        logarithmic: Whether equal ratios are equal distances.
    """

    low: float
    high: float
    threshold: float
    threshold_label: str
    zones: tuple[str, str]
    ticks: tuple[tuple[float, str], ...]
    logarithmic: bool = False

    def position(self, value: float) -> float:
        """Return the position of a value from 0 to 1; values beyond the ends lie at the ends."""
        low, high, at = self.low, self.high, max(value, self.low)
        if self.logarithmic:
            low, high, at = math.log(low), math.log(high), math.log(at)
        return min(1.0, max(0.0, (at - low) / (high - low)))


def scale_chart(scale: Scale, value: float, label: str, zone_on: str) -> Markup:
    """Draw a value on a scale with one zone shaded, which need not be the one that the value lies in."""
    border, at = scale.position(scale.threshold), scale.position(value)
    pointer = _tag("path", "pointer", d="M-7 0h14l-7 11z")
    marks = [_text(at, 15, label, "strong"), _tag("svg", "", pointer, x=_percent(at), y=20, overflow="visible")]
    for start, end, zone in ((0.0, border, scale.zones[0]), (border, 1.0, scale.zones[1])):
        kind = "zone on" if zone == zone_on else "zone"
        marks.append(_tag("rect", kind, x=_percent(start), y=32, width=_percent(end - start), height=28))
        marks.append(_text((start + end) / 2, 51, zone, "strong" if zone == zone_on else "", anchor="middle"))
    marks.append(_upright("cutoff", border, 26, 66))
    marks.append(_text(border, 80, scale.threshold_label, "strong", anchor="middle"))
    for tick, text in scale.ticks:
        place = scale.position(tick)
        marks.append(_upright("tick", place, 60, 64))
        if abs(place - border) > _NEAR:
            marks.append(_text(place, 80, text, "small"))
    return _figure(86, f"{label}: {zone_on}; the threshold is {scale.threshold_label}", marks)


@dataclass(frozen=True)
class DotAxis:
    """A shared axis of dots in table cells: accuracies from `low` to `high`, both multiples of a tenth."""

    low: float
    high: float

    @classmethod
    def around(cls, values: Sequence[float]) -> DotAxis:
        """Return the smallest axis that shows every value and is at least a fifth long."""
        low = max(0.0, math.floor(10 * min(values, default=0.0) + 1e-9) / 10)
        high = min(1.0, math.ceil(10 * max(values, default=1.0) - 1e-9) / 10)
        low = min(low, round(high - 0.2, 1))
        return cls(max(0.0, low), max(high, 0.2))

    def position(self, value: float) -> float:
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))

    def ticks(self) -> Markup:
        """Draw the labels of the axis, for the head of a table column."""
        middle = round((self.low + self.high) / 2, 1)
        shown = [v for v in (self.low, middle, self.high) if v != middle or abs(self.position(v) - 0.5) < 0.01]
        texts = [
            _text(self.position(value), 11, f"{100 * value:.0f}%", "small optional" if value == middle else "small")
            for value in shown
        ]
        return _tag("svg", "plot", *texts, aria_hidden="true", width="100%", height=14)

    def dot(self, value: float, error: float, reference: float, emphasized: bool) -> Markup:
        """Draw a value with a whisker of `error` to both sides, and a line at `reference` that continues from row to row."""
        left, at, right = (_percent(self.position(each)) for each in (value - error, value, value + error))
        marks = [
            _upright("reference", self.position(reference), -9, 49),
            _tag("line", "whisker", x1=left, x2=right, y1=20, y2=20),
            _tag("circle", "dot on" if emphasized else "dot", cx=at, cy=20, r=6 if emphasized else 4),
        ]
        return _tag("svg", "plot", *marks, aria_hidden="true", width="100%", height=40)


@dataclass(frozen=True)
class Curve:
    """A line over the epochs of a run.

    Attributes:
        label: Name for people.
        kind: Class in the style sheet: `train`, `val` or `averaged`.
        values: One per epoch; None where there was none.
    """

    label: str
    kind: str
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class CurveAxis:
    """A shared vertical axis of several charts, from `low` to `high`; values beyond are drawn at the edge.

    Attributes:
        low: Lower end.
        high: Upper end.
        per_cent: Whether values are shares.
    """

    low: float
    high: float
    per_cent: bool = False

    @classmethod
    def of_shares(cls, values: Sequence[float]) -> CurveAxis:
        """Return the smallest axis of whole tenths that shows every share."""
        dots = DotAxis.around(values)
        return cls(dots.low, dots.high, per_cent=True)

    @classmethod
    def of_losses(cls, values: Sequence[float]) -> CurveAxis:
        """Return an axis from 0 to the largest loss, or to four times the median where a run has diverged."""
        usual = sorted(values)[len(values) // 2] if values else 1.0
        highest = min(max(values, default=1.0), 4 * usual) or 1.0
        step = 10.0 ** math.floor(math.log10(highest))
        return cls(0.0, next(step * m for m in (1, 1.5, 2, 3, 4, 5, 7.5, 10) if step * m >= highest * (1 - _ROUNDING)))

    def write(self, value: float) -> str:
        """Format a number on this axis."""
        return f"{100 * value:.0f}%" if self.per_cent else f"{value:.3g}"

    def down(self, value: float) -> float:
        """Return the vertical place of a number, in pixels; beyond the ends of the axis, that of the end."""
        share = min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))
        return round(_CURVES_BOTTOM - share * (_CURVES_BOTTOM - _CURVES_TOP), 1)

    def grid(self) -> list[Markup]:
        """Draw a line with its number at both ends and in the middle."""
        marks = []
        for value in (self.low, (self.low + self.high) / 2, self.high):
            at = self.down(value)
            marks.append(_tag("line", "grid", x1=_percent(_CURVES_LEFT), x2="100%", y1=at, y2=at))
            marks.append(_tag("text", "small", self.write(value), x=0, y=at + 4))
        return marks


_CURVES_TOP, _CURVES_BOTTOM = 10, 118
_CURVES_LEFT = 0.13
"""Share of the width left of the vertical axis, for its numbers."""


def curves_chart(title: str, curves: Sequence[Curve], axis: CurveAxis, best: int | None = None) -> Markup:
    """Draw lines over the epochs of a run.

    Args:
        title: Subject of the chart.
        curves: Curves of one length, at least one epoch.
        axis: Their vertical axis.
        best: Epoch that was selected, counted from 1; a line marks it.
    """
    epochs = max(len(curve.values) for curve in curves)

    def across(index: int) -> float:
        return _CURVES_LEFT + (1 - 2 * _CURVES_LEFT / 3 - _CURVES_LEFT) * (index / (epochs - 1) if epochs > 1 else 0.5)

    marks = axis.grid()
    if best is not None:
        marks.append(_upright("reference", across(best - 1), _CURVES_TOP, _CURVES_BOTTOM))
    for curve in curves:
        known = [(_percent(across(i)), axis.down(v)) if v is not None else None for i, v in enumerate(curve.values)]
        marks += [
            _tag("line", f"curve {curve.kind}", x1=start[0], y1=start[1], x2=end[0], y2=end[1])
            for start, end in itertools.pairwise(known)
            if start and end
        ]
        marks += [_tag("circle", f"point {curve.kind}", cx=at[0], cy=at[1], r=2.5) for at in known if at]
    labeled = {1, epochs}
    if best is not None and min(best - 1, epochs - best) > _NEAR * (epochs - 1):
        labeled.add(best)
    marks += [_text(across(epoch - 1), 136, str(epoch), "small", anchor="middle") for epoch in sorted(labeled)]
    ends = [(c.label, [v for v in c.values if v is not None]) for c in curves]
    summary = "; ".join(f"{label} from {axis.write(v[0])} to {axis.write(v[-1])}" for label, v in ends if v)
    return _figure(140, f"{title} over {epochs} epochs: {summary}", marks)


_FORECAST_RIGHT = 0.97
_WIDEST = 4
"""Images at the right end of a forecast's chart, as a multiple of those there are."""


def forecast_chart(forecast: Mapping[str, Any]) -> Markup:
    """Draw measured accuracies by the number of training images, on a logarithmic axis, with the law fitted to them.

    Args:
        forecast: `Forecast.to_json()`.
    """
    measured, curve = forecast["measured"], forecast["curve"]
    first, last = measured[0]["num_images"], curve[-1]["num_images"]
    axis = CurveAxis.of_shares([point[key] for point in (*measured, *curve) for key in ("low", "high")])

    def across(num_images: float) -> float:
        share = math.log(num_images / first) / math.log(last / first)
        return _CURVES_LEFT + share * (_FORECAST_RIGHT - _CURVES_LEFT)

    marks = axis.grid()
    now = last / _WIDEST
    marks.append(_upright("reference", across(now), _CURVES_TOP, _CURVES_BOTTOM))
    for key, kind in (("accuracy", "val"), ("low", "averaged"), ("high", "averaged")):
        places = [(_percent(across(point["num_images"])), axis.down(point[key])) for point in curve]
        marks += [
            _tag("line", f"curve {kind}", x1=start[0], y1=start[1], x2=end[0], y2=end[1])
            for start, end in itertools.pairwise(places)
        ]
    for point in measured:
        at = across(point["num_images"])
        marks.append(_upright("curve train", at, axis.down(point["high"]), axis.down(point["low"])))
        marks.append(_tag("circle", "point val", cx=_percent(at), cy=axis.down(point["accuracy"]), r=3))
    marks += [
        _text(across(num_images), 136, f"{num_images:,.0f}", "small", anchor="middle")
        for num_images in (first, now, 2 * now, last)
    ]
    doubled = forecast["doubled"]
    label = (
        f"Accuracy by training images: {axis.write(measured[-1]['accuracy'])} with {measured[-1]['num_images']:,.0f}, "
        f"{axis.write(doubled['accuracy'])} expected with {doubled['num_images']:,.0f}"
    )
    return _figure(140, label, marks)


Trial = tuple[float, float, float]
"""A trial of a search: learning rate, L2 strength, accuracy."""

_TRIALS_TOP, _TRIALS_BOTTOM = 12, 188
_TRIALS_LEFT, _TRIALS_RIGHT = 0.14, 0.97
_FAINTEST = 0.12
_FADED = 0.1
"""Accuracy below the best at which a point is faintest."""


def search_chart(trials: Sequence[Trial], best: Trial) -> Markup:
    """Draw a point for each trial of a search on logarithmic axes, darker for higher accuracy, with a ring around the best.

    Args:
        trials: All trials; those without regularization lie at the bottom.
        best: The trial that ships.
    """
    rates, strengths = ([trial[axis] for trial in trials if trial[axis] > 0] for axis in (0, 1))
    if not rates:
        return Markup("")
    across, up = _Decades.around(rates), _Decades.around(strengths or [1e-3, 1.0])

    def x(rate: float) -> str:
        return _percent(_TRIALS_LEFT + across.position(rate) * (_TRIALS_RIGHT - _TRIALS_LEFT))

    def y(strength: float) -> float:
        return round(_TRIALS_BOTTOM - up.position(strength) * (_TRIALS_BOTTOM - _TRIALS_TOP), 1)

    marks = []
    for tick in up.ticks():
        marks.append(_tag("line", "grid", x1=_percent(_TRIALS_LEFT), x2="100%", y1=y(tick), y2=y(tick)))
        marks.append(_tag("text", "small", f"{tick:.0e}", x=0, y=y(tick) + 4))
    marks += [_tag("text", "small", f"{tick:.0e}", x=x(tick), y=206, text_anchor="middle") for tick in across.ticks()]
    for rate, strength, accuracy in sorted(trials, key=lambda trial: trial[2]):
        opacity = min(1.0, max(_FAINTEST, 1 - (best[2] - accuracy) / _FADED))
        marks.append(_tag("circle", "point val", cx=x(rate), cy=y(strength), r=4, fill_opacity=f"{opacity:.2f}"))
    marks.append(_tag("circle", "curve val", cx=x(best[0]), cy=y(best[1]), r=8))
    label = f"{len(trials)} trials; the best at learning rate {best[0]:.2e}, regularization {best[1]:.2e}"
    return _figure(212, label, marks)


@dataclass(frozen=True)
class _Decades:
    """A logarithmic axis from one power of ten to another."""

    low: int
    high: int

    @classmethod
    def around(cls, values: Sequence[float]) -> _Decades:
        low = math.floor(math.log10(min(values)) + _ROUNDING)
        return cls(low, max(math.ceil(math.log10(max(values)) - _ROUNDING), low + 1))

    def position(self, value: float) -> float:
        """Return the position of a value from 0 to 1; values of 0 or less lie at 0."""
        if value <= 0:
            return 0.0
        return min(1.0, max(0.0, (math.log10(value) - self.low) / (self.high - self.low)))

    def ticks(self) -> list[float]:
        """Return about five powers of ten."""
        step = max(1, (self.high - self.low) // 4)
        return [10.0**exponent for exponent in range(self.low, self.high + 1, step)]


def _figure(height: int, label: str, marks: Sequence[Markup]) -> Markup:
    return _tag("svg", "chart", *marks, role="img", width="100%", height=height, aria_label=label)


def _upright(kind: str, at: float, top: float, bottom: float) -> Markup:
    """Draw a vertical line."""
    return _tag("line", kind, x1=_percent(at), x2=_percent(at), y1=top, y2=bottom)


def _text(at: float, y: int, text: str, kind: str, anchor: str = "") -> Markup:
    """Draw text at a position; near the ends it is anchored so that it stays inside."""
    side = anchor or ("start" if at < _NEAR else "end" if at > 1 - _NEAR else "middle")
    x = {"start": max(0.0, at - 0.02), "end": min(1.0, at + 0.02), "middle": at}[side]
    return _tag("text", kind, text, x=_percent(x), y=y, text_anchor=side)


def _tag(name: str, kind: str, *content: str, **attributes: object) -> Markup:
    """Return an element of a class, with escaped text; `_` in the name of an attribute stands for `-`."""
    pairs = {"class": kind, **{key.replace("_", "-"): value for key, value in attributes.items()}}
    written = Markup("").join(Markup(' {}="{}"').format(key, value) for key, value in pairs.items() if value != "")
    inner = Markup("").join(content)
    return Markup("<{}{}>{}</{}>").format(name, written, inner, name)


def _percent(share: float) -> str:
    return f"{100 * min(1.0, max(0.0, share)):.2f}%"
