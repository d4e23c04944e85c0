"""The trials of a search as a chart: learning rate across, regularization upwards, the better the darker."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

_TOP, _BOTTOM = 12, 188
_LEFT, _RIGHT = 0.14, 0.97
_FAINTEST = 0.12
_SPREAD = 0.1
"""Accuracy below the best at which a point is as faint as it gets."""

Point = tuple[float, float, float]
"""Learning rate, L2 strength, accuracy."""


def search_chart(points: Sequence[Point], best: Point) -> Markup:
    """A point a trial, on logarithmic axes; the best has a ring.

    Args:
        points: Of all trials; those without regularization lie at the bottom.
        best: The one that ships.
    """
    rates, strengths = ([point[axis] for point in points if point[axis] > 0] for axis in (0, 1))
    if not rates:
        return Markup("")
    across, down = _Axis(rates), _Axis(strengths or [1e-3, 1.0])
    marks = []
    for tick in down.ticks():
        y = round(_BOTTOM - down.position(tick) * (_BOTTOM - _TOP), 1)
        marks.append(Markup('<line class="grid" x1="{}" x2="100%" y1="{y}" y2="{y}"/>').format(_percent(_LEFT), y=y))
        marks.append(Markup('<text class="small" x="0" y="{}">{:.0e}</text>').format(y + 4, tick))
    for tick in across.ticks():
        x = _percent(_LEFT + across.position(tick) * (_RIGHT - _LEFT))
        marks.append(
            Markup('<text class="small" x="{}" y="{}" text-anchor="middle">{:.0e}</text>').format(x, 206, tick)
        )
    for point in sorted(points, key=lambda point: point[2]):
        rate, strength, accuracy = point
        opacity = max(_FAINTEST, 1 - (best[2] - accuracy) / _SPREAD)
        x = _percent(_LEFT + across.position(rate) * (_RIGHT - _LEFT))
        y = round(_BOTTOM - down.position(strength) * (_BOTTOM - _TOP), 1)
        marks.append(
            Markup('<circle class="point val" cx="{}" cy="{}" r="4" fill-opacity="{:.2f}"/>').format(
                x, y, min(1.0, opacity)
            )
        )
    x = _percent(_LEFT + across.position(best[0]) * (_RIGHT - _LEFT))
    y = round(_BOTTOM - down.position(best[1]) * (_BOTTOM - _TOP), 1)
    marks.append(Markup('<circle class="curve val" cx="{}" cy="{}" r="8"/>').format(x, y))
    label = Markup("{} trials; the best at learning rate {:.2e}, regularization {:.2e}").format(
        len(points), best[0], best[1]
    )
    return Markup('<svg class="chart" role="img" width="100%" height="212" aria-label="{}">{}</svg>').format(
        label, Markup("").join(marks)
    )


class _Axis:
    """A logarithmic axis of whole decades around some numbers."""

    def __init__(self, values: Sequence[float]) -> None:
        self._low = math.floor(math.log10(min(values)) + 1e-9)
        self._high = max(math.ceil(math.log10(max(values)) - 1e-9), self._low + 1)

    def position(self, value: float) -> float:
        """From 0 to 1; what is 0 or less lies at 0."""
        if value <= 0:
            return 0.0
        return min(1.0, max(0.0, (math.log10(value) - self._low) / (self._high - self._low)))

    def ticks(self) -> list[float]:
        """Powers of ten, five or so."""
        step = max(1, (self._high - self._low) // 4)
        return [10.0**exponent for exponent in range(self._low, self._high + 1, step)]


def _percent(share: float) -> str:
    return f"{100 * min(1.0, max(0.0, share)):.2f}%"
