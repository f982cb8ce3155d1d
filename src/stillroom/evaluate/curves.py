"""Curves as inline SVG: several series over one axis, told apart by stroke, marker and word.

No script and no outside references, as in ``plots``; colors are the page's. Knows numbers, not what
is measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from stillroom.evaluate.plots import choose_scale, format_value

__all__ = ["Curves", "Series", "draw_curves"]

_WIDTH, _HEIGHT = 720, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 12, 46
_ASIDE = 3.0
_STYLES = 5  # strokes that the page's style knows

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Series:
    """One curve.

    Args:
        name: In the key.
        points: (x, y), rising by x.
        weights: What each point stands on; larger dots where it is more. Empty draws them alike.
        style: Which stroke, from 0; None takes the place among the series. The same thing should
            have the same one on every picture of a page.
        spans: The interval of each point, (low, high); empty draws none.
    """

    name: str
    points: tuple[Point, ...]
    weights: tuple[float, ...] = ()
    style: int | None = None
    spans: tuple[Point, ...] = ()

    def stroke(self, at: int) -> str:
        """Return the class of its stroke, given its place among the series."""
        return f"s{(at if self.style is None else self.style) % _STYLES}"


@dataclass(frozen=True, slots=True)
class Curves:
    """Series over one axis.

    Args:
        caption: What is shown, in a sentence.
        x: Name of the axis across.
        y: Name of the axis upwards.
        series: What is drawn; one without points is left out.
        diagonal: Draw where y equals x, and both axes from 0 to 1.
        is_log: Whether x grows by factors; then it is above 0.
    """

    caption: str
    x: str
    y: str
    series: tuple[Series, ...]
    diagonal: bool = False
    is_log: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "caption": self.caption,
            "x": self.x,
            "y": self.y,
            "diagonal": self.diagonal,
            "is_log": self.is_log,
            "series": [
                {
                    "name": one.name,
                    "points": [list(point) for point in one.points],
                    "weights": list(one.weights),
                    "style": one.style,
                    **({"spans": [list(span) for span in one.spans]} if one.spans else {}),
                }
                for one in self.series
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Curves:
        """Read what ``to_json`` wrote."""
        series = tuple(
            Series(
                one["name"],
                tuple((float(x), float(y)) for x, y in one["points"]),
                tuple(map(float, one["weights"])),
                one["style"],
                tuple((float(low), float(high)) for low, high in one.get("spans", ())),
            )
            for one in data["series"]
        )
        return cls(data["caption"], data["x"], data["y"], series, data["diagonal"], data["is_log"])


@dataclass(frozen=True, slots=True)
class _Frame:
    """Where a point lies on the picture."""

    x: tuple[float, float]
    y: tuple[float, float]
    is_log: bool

    def place(self, point: Point) -> Point:
        across = (self._along(point[0]) - self._along(self.x[0])) / max(
            self._along(self.x[1]) - self._along(self.x[0]), 1e-12
        )
        up = (point[1] - self.y[0]) / (self.y[1] - self.y[0])
        wide, high = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
        return _LEFT + across * wide, _TOP + (1 - up) * high

    def _along(self, x: float) -> float:
        return math.log(x) if self.is_log else x


def draw_curves(curves: Curves) -> str:
    """Return the curves as a ``<figure>``; empty where no series has a point."""
    shown = [one for one in curves.series if one.points]
    if not shown:
        return ""
    xs = [x for one in shown for x, _ in one.points]
    ys = [y for one in shown for _, y in one.points]
    ys += [end for one in shown for span in one.spans for end in span]
    if curves.diagonal:
        low, high, step = 0.0, 1.0, 0.2
        frame = _Frame((0.0, 1.0), (0.0, 1.0), is_log=False)
    else:
        low, high, step = choose_scale(min(*ys, 0.0), max(ys))
        frame = _Frame((min(xs), max(xs)), (low, high), curves.is_log)
    ticks = [low + at * step for at in range(round((high - low) / step) + 1)]
    parts = [_draw_axes(curves, frame, ticks)]
    if curves.diagonal:
        start, end = frame.place((0.0, 0.0)), frame.place((1.0, 1.0))
        parts.append(f'<path class="even" d="{_path([start, end])}"/>')
    parts += [_draw_series(one, frame, at) for at, one in enumerate(shown)]
    spoken = "; ".join(
        f"{one.name} from {format_value(one.points[0][1])} to {format_value(one.points[-1][1])}"
        for one in shown
    )
    keys = "".join(
        f'<li><svg class="key" viewBox="0 0 36 12" aria-hidden="true">'
        f'<path class="line {one.stroke(at)}" d="M0 6H36"/></svg>{escape(one.name)}</li>'
        for at, one in enumerate(shown)
    )
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(curves.caption)}. {escape(spoken)}">{"".join(parts)}</svg>'
        f'<ul class="keys">{keys}</ul><figcaption>{escape(curves.caption)}</figcaption></figure>'
    )


def _draw_axes(curves: Curves, frame: _Frame, ticks: Sequence[float]) -> str:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = []
    for value in ticks:
        y = frame.place((frame.x[0], value))[1]
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="label tick" x="{_LEFT - 8}" y="{y + 4:.1f}">'
            f"{escape(f'{value:.4g}')}</text>"
        )
    for value in _x_ticks(curves, frame):
        x = frame.place((value, frame.y[0]))[0]
        parts.append(
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{bottom}"/>'
            f'<text class="tick" x="{x:.1f}" y="{bottom + 17}">{escape(f"{value:.4g}")}</text>'
        )
    middle = (_LEFT + right) / 2
    parts.append(
        f'<text class="tick" x="{middle:.0f}" y="{_HEIGHT - 6}">{escape(curves.x)}</text>'
        f'<text class="tick" transform="translate(14 {(_TOP + bottom) / 2:.0f}) rotate(-90)">'
        f"{escape(curves.y)}</text>"
    )
    return "".join(parts)


def _x_ticks(curves: Curves, frame: _Frame) -> list[float]:
    low, high = frame.x
    if curves.diagonal:
        return [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    if curves.is_log:
        found = [2.0**at for at in range(math.ceil(math.log2(low)), int(math.log2(high)) + 1)]
        return found[:: max(-(-len(found) // 8), 1)]
    start, end, step = choose_scale(low, high)
    count = round((end - start) / step) + 1
    return [x for x in (start + at * step for at in range(count)) if low <= x <= high]


def _draw_series(one: Series, frame: _Frame, at: int) -> str:
    places = [frame.place(point) for point in one.points]
    most = max(one.weights, default=0.0)
    dots = ""
    if len(places) <= 40:
        sizes = [
            2.0 + 4.0 * math.sqrt(weight / most) if most else 2.5
            for weight in (one.weights or (0.0,) * len(places))
        ]
        dots = "".join(
            f'<circle class="{one.stroke(at)}" cx="{x:.1f}" cy="{y:.1f}" r="{size:.1f}"/>'
            for (x, y), size in zip(places, sizes, strict=True)
        )
    spans = "".join(
        f'<path class="span {one.stroke(at)}" d="{_path(ends)}"/>' for ends in _ends(one, frame, at)
    )
    return f'{spans}<path class="line {one.stroke(at)}" d="{_path(places)}"/>{dots}'


def _ends(one: Series, frame: _Frame, at: int) -> list[list[Point]]:
    """Return both ends of each point's interval on the picture, a little aside for each series."""
    aside = (at - 1) * _ASIDE
    found = []
    for (x, _), (low, high) in zip(one.points, one.spans, strict=False):
        ends = [frame.place((x, low)), frame.place((x, high))]
        found.append([(across + aside, up) for across, up in ends])
    return found


def _path(places: Sequence[Point]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
