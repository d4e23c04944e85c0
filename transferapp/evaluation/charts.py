"""How figures look in the report: numbers as text, and small charts as inline SVG.

Positions in a chart are per cent of its width, so that it fits any screen and its type keeps its size. Colors and
strokes come from classes in the report's style sheet, so light, dark and print need no second drawing. Text from
outside is escaped by `Markup.format`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

UNITS_SHOWN = 400
"""Up to so many images, the unit chart draws one square each; beyond, a hundred squares stand for a per cent each."""

_COLUMNS = 25
_ROUNDING = 1e-9
_NEAR = 0.13
"""Share of the width within which two labels of an axis would touch on a phone."""


def percent(share: float | None, digits: int = 1) -> str:
    """A share as a percentage. What is not quite all never reads 100%, and what is not quite nothing never reads 0%."""
    if share is None or not math.isfinite(share):
        return "–"
    least = 10.0**-digits
    if round(100 * share, digits) >= 100 and share < 1 - _ROUNDING:
        return f">{100 - least:.{digits}f}%"
    if round(100 * share, digits) <= 0 and share > _ROUNDING:
        return f"<{least:.{digits}f}%"
    return f"{100 * share:.{digits}f}%"


def span(interval: Sequence[float]) -> str:
    """An interval of shares: `89.0–96.8%`."""
    low, high = interval
    return f"{percent(low).removesuffix('%')}–{percent(high)}"


def decimal(value: Any, digits: int = 3) -> str:
    """A number to read: a whole one with its thousands apart, another to so many decimals; – where there is none."""
    if not _is_number(value):
        return "–"
    return (f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}").replace("-", "−")


def significant(value: Any, digits: int = 2) -> str:
    """A number whose magnitude matters, to so many digits, as engineers write it: `1.2e-07`."""
    return f"{value:.{digits}g}" if _is_number(value) else "–"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def points(difference: float | None, *, signed: bool = True) -> str:
    """A difference of shares in percentage points."""
    if difference is None or not math.isfinite(difference):
        return "–"
    return (f"{100 * difference:+.1f}" if signed else f"{100 * difference:.1f}").replace("-", "−")


def unit_chart(right: int, total: int) -> Markup:
    """Every image as a square: filled if the classifier was right, an outlined cross if it was wrong."""
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
    """A bar from 0 to `share` of its cell; the figure stands beside it, so it is hidden from screen readers."""
    return Markup(
        '<svg class="bar" aria-hidden="true" width="100%" height="10">'
        '<rect class="rail" width="100%" height="10" rx="2"/><rect class="hit" width="{}" height="10" rx="2"/></svg>'
    ).format(_percent(share))


def interval_chart(share: float, interval: Sequence[float], guess: float) -> Markup:
    """Accuracy and its interval on 0 to 100 %, against what always naming the commonest class would reach."""
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
    """An axis with a threshold that divides it in two named zones.

    Attributes:
        low, high: Ends of the axis.
        threshold: Where the zones meet.
        threshold_label: What is written below it.
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
        """Where a value lies, from 0 to 1; values beyond the ends lie at the ends."""
        low, high, at = self.low, self.high, max(value, self.low)
        if self.logarithmic:
            low, high, at = math.log(low), math.log(high), math.log(at)
        return min(1.0, max(0.0, (at - low) / (high - low)))


def scale_chart(scale: Scale, value: float, label: str, verdict: str) -> Markup:
    """A value on a scale; the zone named by `verdict` is shaded, which need not be the one that the value lies in."""
    border, at = scale.position(scale.threshold), scale.position(value)
    marks = [_text(at, 15, label, "strong"), _pointer(at)]
    for start, end, zone in ((0.0, border, scale.zones[0]), (border, 1.0, scale.zones[1])):
        marks.append(
            Markup('<rect class="zone{}" x="{}" y="32" width="{}" height="28"/>').format(
                " on" if zone == verdict else "", _percent(start), _percent(end - start)
            )
        )
        marks.append(_text((start + end) / 2, 51, zone, "strong" if zone == verdict else "", anchor="middle"))
    marks.append(Markup('<line class="cutoff" x1="{0}" x2="{0}" y1="26" y2="66"/>').format(_percent(border)))
    marks.append(_text(border, 80, scale.threshold_label, "strong", anchor="middle"))
    for tick, text in scale.ticks:
        place = scale.position(tick)
        marks.append(Markup('<line class="tick" x1="{0}" x2="{0}" y1="60" y2="64"/>').format(_percent(place)))
        if abs(place - border) > _NEAR:
            marks.append(_text(place, 80, text, "small"))
    return _figure(86, f"{label}: {verdict}; the border is at {scale.threshold_label}", marks)


@dataclass(frozen=True)
class DotAxis:
    """The shared axis of dots in table cells: accuracies from `low` to `high`, both multiples of a tenth."""

    low: float
    high: float

    @classmethod
    def around(cls, values: Sequence[float]) -> DotAxis:
        """The smallest axis that shows every value, but no shorter than a fifth."""
        low = max(0.0, math.floor(10 * min(values, default=0.0) + 1e-9) / 10)
        high = min(1.0, math.ceil(10 * max(values, default=1.0) - 1e-9) / 10)
        low = min(low, round(high - 0.2, 1))
        return cls(max(0.0, low), max(high, 0.2))

    def position(self, value: float) -> float:
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))

    def ticks(self) -> Markup:
        """The axis' labels, for the head of the table's column."""
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
        """A value with a whisker of `error` to both sides, and a line at `reference` that runs on from row to row."""
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
        label: For people.
        kind: Its class in the style sheet: `train`, `val` or `averaged`.
        values: One an epoch; None where there was none.
    """

    label: str
    kind: str
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class CurveAxis:
    """The shared vertical axis of several charts, from `low` to `high`; what lies beyond is drawn at the edge.

    Attributes:
        low, high: Its ends.
        per_cent: Whether values are shares.
    """

    low: float
    high: float
    per_cent: bool = False

    @classmethod
    def of_shares(cls, values: Sequence[float]) -> CurveAxis:
        """The smallest axis of whole tenths that shows every share."""
        dots = DotAxis.around(values)
        return cls(dots.low, dots.high, per_cent=True)

    @classmethod
    def of_losses(cls, values: Sequence[float]) -> CurveAxis:
        """From 0 to the largest loss, or so far that those of a run that blew up do not flatten all others."""
        usual = sorted(values)[len(values) // 2] if values else 1.0
        highest = min(max(values, default=1.0), 4 * usual) or 1.0
        step = 10.0 ** math.floor(math.log10(highest))
        return cls(0.0, next(step * m for m in (1, 1.5, 2, 3, 4, 5, 7.5, 10) if step * m >= highest * (1 - _ROUNDING)))

    def write(self, value: float) -> str:
        """A number on this axis as text."""
        return f"{100 * value:.0f}%" if self.per_cent else f"{value:.3g}"


_CURVES_TOP, _CURVES_BOTTOM = 10, 118
_CURVES_LEFT = 0.13
"""Share of the width that the numbers of the vertical axis stand in."""


def curves_chart(title: str, curves: Sequence[Curve], axis: CurveAxis, best: int | None = None) -> Markup:
    """Lines over the epochs of a run.

    Args:
        title: What is drawn.
        curves: Of one length, at least one epoch.
        axis: What they are drawn on.
        best: The epoch that was kept, counted from 1; marked by a line.
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


def _figure(height: int, label: str, marks: Sequence[Markup]) -> Markup:
    return Markup('<svg class="chart" role="img" width="100%" height="{}" aria-label="{}">{}</svg>').format(
        height, label, Markup("").join(marks)
    )


def _pointer(at: float) -> Markup:
    return Markup('<svg x="{}" y="20" overflow="visible"><path class="pointer" d="M-7 0h14l-7 11z"/></svg>').format(
        _percent(at)
    )


def _text(at: float, y: int, text: str, kind: str, anchor: str = "") -> Markup:
    """Text at a position; near the ends it is anchored so that it stays inside."""
    side = anchor or ("start" if at < _NEAR else "end" if at > 1 - _NEAR else "middle")
    x = {"start": max(0.0, at - 0.02), "end": min(1.0, at + 0.02), "middle": at}[side]
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format(kind, _percent(x), y, side, text)


def _percent(share: float) -> str:
    return f"{100 * min(1.0, max(0.0, share)):.2f}%"
