"""Line charts as stand-alone SVG files, readable on light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

NUM_COLORS = 8
_STYLE = """
text{font:12px system-ui,sans-serif;fill:#333}.title{font-size:14px;font-weight:600}.small{font-size:11px;fill:#666}
.end{text-anchor:end}.middle{text-anchor:middle}.paper{fill:#fff}.grid{stroke:#e2e2e2}.contour{stroke:#d4d4d4;fill:none}
.line{fill:none;stroke-width:2}.dashed{stroke-dasharray:5 4}.c0{stroke:#1663a6}.c1{stroke:#c2410c}.c2{stroke:#15803d}
.c3{stroke:#9333ea}.c4{stroke:#b08900}.c5{stroke:#0e7490}.c6{stroke:#be185d}.c7{stroke:#6b7280}
@media (prefers-color-scheme:dark){text{fill:#ddd}.small{fill:#aaa}.paper{fill:#16181d}.grid{stroke:#33363d}
.contour{stroke:#3d4149}.c0{stroke:#6cb2f0}.c1{stroke:#f59062}.c2{stroke:#5cc98a}.c3{stroke:#c79bf7}.c4{stroke:#dfc04a}
.c5{stroke:#5fc7da}.c6{stroke:#f27bb0}.c7{stroke:#a2a9b4}}
"""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """A named line; `color` is an index below `NUM_COLORS`, and points that are not finite end it."""

    name: str
    points: Points
    color: int
    dashed: bool = False
    dots: bool = False


@dataclass(frozen=True)
class Axis:
    """An axis from `low` to `high` with labeled ticks; `logarithmic` places equal ratios at equal distances."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]] = ()
    label: str = ""
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """Position from 0 to 1; values beyond the ends lie at the ends."""
        value = min(max(value, self.low), self.high)
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Panel:
    """One chart in a figure: its place in pixels, the margins for title and ticks included."""

    title: str
    x: Axis
    y: Axis
    left: float
    top: float
    width: float
    height: float

    @property
    def _inner(self) -> tuple[float, float, float, float]:
        left = self.left + (44 if self.y.ticks else 10) + (16 if self.y.label else 0)
        bottom = self.top + self.height - (22 if self.x.ticks else 8) - (16 if self.x.label else 0)
        return left, self.top + 28, self.left + self.width - 14, bottom

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The pixel of a point."""
        left, top, right, bottom = self._inner
        return round(left + (right - left) * self.x.place(x), 1), round(bottom - (bottom - top) * self.y.place(y), 1)

    def path(self, points: Points, kind: str) -> Markup:
        """A line through points in the panel's coordinates."""
        finite = [point for point in points if all(map(math.isfinite, point))]
        text = " ".join(f"{x:g},{y:g}" for x, y in (self.at(*point) for point in finite))
        return Markup('<polyline class="{}" points="{}"/>').format(kind, text)

    def draw(self, lines: Sequence[Line], behind: Sequence[Markup] = ()) -> Markup:
        """The title, the axes, what lies `behind`, and the lines."""
        left, top, right, bottom = self._inner
        marks = [text(left, self.top + 17, self.title, "title")]
        for value, name in self.y.ticks:
            _, at = self.at(self.x.low, value)
            marks.append(Markup('<path class="grid" d="M{:g} {:g}H{:g}"/>').format(left, at, right))
            marks.append(text(left - 6, at + 4, name, "small end"))
        for value, name in self.x.ticks:
            at, _ = self.at(value, self.y.low)
            marks.append(Markup('<path class="grid" d="M{:g} {:g}v4"/>').format(at, bottom))
            marks.append(text(at, bottom + 17, name, "small middle"))
        if self.x.label:
            marks.append(text((left + right) / 2, self.top + self.height - 6, self.x.label, "small middle"))
        if self.y.label:
            place = f"rotate(-90 {self.left + 12:g} {(top + bottom) / 2:g})"
            label = text(self.left + 12, (top + bottom) / 2, self.y.label, "small middle")
            marks.append(Markup('<g transform="{}">{}</g>').format(place, label))
        marks += behind
        for line in lines:
            marks.append(self.path(line.points, f"line c{line.color}{' dashed' if line.dashed else ''}"))
            if line.dots:
                for point in line.points:
                    x, y = self.at(*point)
                    marks.append(
                        Markup('<circle class="line c{}" cx="{:g}" cy="{:g}" r="2"/>').format(line.color, x, y)
                    )
        return Markup("").join(marks)


def text(x: float, y: float, words: str, kind: str = "") -> Markup:
    """Words at a pixel."""
    return Markup('<text class="{}" x="{:g}" y="{:g}">{}</text>').format(kind, x, y, words)


def legend(lines: Sequence[Line], left: float, top: float) -> Markup:
    """The names of lines below each other, each beside a piece of it."""
    marks = []
    for row, line in enumerate(lines):
        y = top + 20 * row
        kind = f"line c{line.color}{' dashed' if line.dashed else ''}"
        marks.append(Markup('<path class="{}" d="M{:g} {:g}h22"/>').format(kind, left, y - 4))
        marks.append(text(left + 30, y, line.name))
    return Markup("").join(marks)


def write_svg(path: Path, size: tuple[int, int], description: str, marks: Sequence[Markup]) -> None:
    """Write a figure of (width, height) pixels; `description` is read to people who do not see it."""
    document = Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0} {1}" width="{0}" height="{1}" role="img" '
        'aria-label="{2}"><style>{3}</style><rect class="paper" width="{0}" height="{1}"/>{4}</svg>\n'
    ).format(*size, description, Markup(_STYLE), Markup("").join(marks))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document, encoding="utf-8")
