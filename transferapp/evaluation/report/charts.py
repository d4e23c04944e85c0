"""Numbers as text, and small charts as inline SVG.

Positions in a chart are percentages of its width, so that it fits any screen and its text keeps its size. Colors and strokes
come from classes in the style sheet, so light mode, dark mode and print share one drawing. `Markup.format` escapes text from
outside.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
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
    rows = math.ceil(squares / _COLUMNS)
    return Markup('<svg class="units" role="img" viewBox="0 0 {} {}" aria-label="{} of {} right">{}</svg>').format(
        10 * min(squares, _COLUMNS) - 2, 10 * rows - 2, right, total, Markup("").join(marks)
    )


def _unit(index: int, right: bool) -> Markup:
    x, y = 10 * (index % _COLUMNS), 10 * (index // _COLUMNS)
    if right:
        return Markup('<rect class="hit" x="{}" y="{}" width="8" height="8" rx="1.5"/>').format(x, y)
    return Markup('<path class="miss" d="M{} {}h7v7h-7zm1.8 1.8l3.4 3.4m0-3.4l-3.4 3.4"/>').format(x + 0.5, y + 0.5)


def bar(share: float) -> Markup:
    """Draw a bar over a share of its cell; it is hidden from screen readers, for the number stands beside it."""
    return Markup(
        '<svg class="bar" aria-hidden="true" width="100%" height="10">'
        '<rect class="rail" width="100%" height="10" rx="2"/><rect class="hit" width="{}" height="10" rx="2"/></svg>'
    ).format(_percent(share))


def interval_chart(share: float, interval: Sequence[float], guess: float) -> Markup:
    """Draw accuracy and its interval from 0 to 100 %, with a mark at the accuracy of always naming the most common class."""
    low, high = interval
    label = Markup("{:.1f}%, between {:.1f}% and {:.1f}%; guessing: {:.1f}%").format(
        100 * share, 100 * low, 100 * high, 100 * guess
    )
    marks = [
        Markup('<rect class="rail" y="26" width="100%" height="12" rx="3"/>'),
        Markup('<rect class="band" x="{}" y="26" width="{}" height="12" rx="3"/>').format(
            _percent(low), _percent(high - low)
        ),
        Markup('<line class="edge" x1="{0}" x2="{0}" y1="22" y2="42"/>').format(_percent(share)),
        _text(share, 16, f"{100 * share:.1f}%", "strong"),
        Markup('<line class="mark" x1="{0}" x2="{0}" y1="22" y2="42"/>').format(_percent(guess)),
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
    marks = [_text(at, 15, label, "strong"), _pointer(at)]
    for start, end, zone in ((0.0, border, scale.zones[0]), (border, 1.0, scale.zones[1])):
        marks.append(
            Markup('<rect class="zone{}" x="{}" y="32" width="{}" height="28"/>').format(
                " on" if zone == zone_on else "", _percent(start), _percent(end - start)
            )
        )
        marks.append(_text((start + end) / 2, 51, zone, "strong" if zone == zone_on else "", anchor="middle"))
    marks.append(Markup('<line class="cutoff" x1="{0}" x2="{0}" y1="26" y2="66"/>').format(_percent(border)))
    marks.append(_text(border, 80, scale.threshold_label, "strong", anchor="middle"))
    for tick, text in scale.ticks:
        place = scale.position(tick)
        marks.append(Markup('<line class="tick" x1="{0}" x2="{0}" y1="60" y2="64"/>').format(_percent(place)))
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
        return Markup('<svg class="plot" aria-hidden="true" width="100%" height="14">{}</svg>').format(
            Markup("").join(texts)
        )

    def dot(self, value: float, error: float, reference: float, emphasized: bool) -> Markup:
        """Draw a value with a whisker of `error` to both sides, and a line at `reference` that continues from row to row."""
        marks = [
            Markup('<line class="reference" x1="{0}" x2="{0}" y1="-9" y2="49"/>').format(
                _percent(self.position(reference))
            ),
            Markup('<line class="whisker" x1="{}" x2="{}" y1="20" y2="20"/>').format(
                _percent(self.position(value - error)), _percent(self.position(value + error))
            ),
            Markup('<circle class="{}" cx="{}" cy="20" r="{}"/>').format(
                "dot on" if emphasized else "dot", _percent(self.position(value)), 6 if emphasized else 4
            ),
        ]
        return Markup('<svg class="plot" aria-hidden="true" width="100%" height="40">{}</svg>').format(
            Markup("").join(marks)
        )


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

    def down(value: float) -> float:
        share = min(1.0, max(0.0, (value - axis.low) / (axis.high - axis.low)))
        return round(_CURVES_BOTTOM - share * (_CURVES_BOTTOM - _CURVES_TOP), 1)

    marks = []
    for value in (axis.low, (axis.low + axis.high) / 2, axis.high):
        marks.append(
            Markup('<line class="grid" x1="{}" x2="100%" y1="{y}" y2="{y}"/>').format(
                _percent(_CURVES_LEFT), y=down(value)
            )
        )
        marks.append(Markup('<text class="small" x="0" y="{}">{}</text>').format(down(value) + 4, axis.write(value)))
    if best is not None:
        marks.append(
            Markup('<line class="reference" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>').format(
                _percent(across(best - 1)), _CURVES_TOP, _CURVES_BOTTOM
            )
        )
    for curve in curves:
        known = [(across(i), down(v)) if v is not None else None for i, v in enumerate(curve.values)]
        marks += [
            Markup('<line class="curve {}" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(
                curve.kind, _percent(start[0]), start[1], _percent(end[0]), end[1]
            )
            for start, end in itertools.pairwise(known)
            if start and end
        ]
        marks += [
            Markup('<circle class="point {}" cx="{}" cy="{}" r="2.5"/>').format(
                curve.kind, _percent(point[0]), point[1]
            )
            for point in known
            if point
        ]
    shown = {1, epochs}
    if best is not None and min(best - 1, epochs - best) > _NEAR * (epochs - 1):
        shown.add(best)
    for epoch in sorted(shown):
        x = _percent(across(epoch - 1))
        marks.append(Markup('<text class="small" x="{}" y="136" text-anchor="middle">{}</text>').format(x, epoch))
    ends = [(c.label, [v for v in c.values if v is not None]) for c in curves]
    said = "; ".join(f"{label} from {axis.write(v[0])} to {axis.write(v[-1])}" for label, v in ends if v)
    return _figure(140, f"{title} over {epochs} epochs: {said}", marks)


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
        line = Markup('<line class="grid" x1="{}" x2="100%" y1="{y}" y2="{y}"/>')
        marks.append(line.format(_percent(_TRIALS_LEFT), y=y(tick)))
        marks.append(Markup('<text class="small" x="0" y="{}">{:.0e}</text>').format(y(tick) + 4, tick))
    for tick in across.ticks():
        number = Markup('<text class="small" x="{}" y="206" text-anchor="middle">{:.0e}</text>')
        marks.append(number.format(x(tick), tick))
    for rate, strength, accuracy in sorted(trials, key=lambda trial: trial[2]):
        opacity = min(1.0, max(_FAINTEST, 1 - (best[2] - accuracy) / _FADED))
        point = Markup('<circle class="point val" cx="{}" cy="{}" r="4" fill-opacity="{:.2f}"/>')
        marks.append(point.format(x(rate), y(strength), opacity))
    marks.append(Markup('<circle class="curve val" cx="{}" cy="{}" r="8"/>').format(x(best[0]), y(best[1])))
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
    return Markup('<svg class="chart" role="img" width="100%" height="{}" aria-label="{}">{}</svg>').format(
        height, label, Markup("").join(marks)
    )


def _pointer(at: float) -> Markup:
    return Markup('<svg x="{}" y="20" overflow="visible"><path class="pointer" d="M-7 0h14l-7 11z"/></svg>').format(
        _percent(at)
    )


def _text(at: float, y: int, text: str, kind: str, anchor: str = "") -> Markup:
    """Draw text at a position; near the ends it is anchored so that it stays inside."""
    side = anchor or ("start" if at < _NEAR else "end" if at > 1 - _NEAR else "middle")
    x = {"start": max(0.0, at - 0.02), "end": min(1.0, at + 0.02), "middle": at}[side]
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format(kind, _percent(x), y, side, text)


def _percent(share: float) -> str:
    return f"{100 * min(1.0, max(0.0, share)):.2f}%"
