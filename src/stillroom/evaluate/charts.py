"""Inline SVG charts: confidence intervals, bars and line charts.

No scripts, fonts or outside references; every chart has a title for screen readers; colors come
from the page's style sheet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import compress
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from stillroom.evaluate.metrics.bootstrap import Metric

__all__ = ["LineChart", "Plot", "Series", "format_value", "render_line_chart", "render_plot"]


_WIDTH, _ROW, _LABELS, _VALUES, _TOP, _BOTTOM = 720, 30, 220, 168, 8, 30
_MAX_LABEL = 28
_EPSILON = 1e-12
_SI_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


_Float = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]


@dataclass(frozen=True, slots=True)
class Plot:
    """Chart of ``intervals`` (a dot within its interval) or ``bars`` (from zero) on one scale.

    ``lows`` and ``highs`` may be empty, or contain None for rows without an interval.
    """

    caption: str
    labels: tuple[str, ...]
    values: tuple[_Float, ...]
    lows: tuple[float | None, ...] = ()
    highs: tuple[float | None, ...] = ()
    unit: str = ""
    kind: Literal["intervals", "bars"] = "intervals"

    @classmethod
    def of(
        cls,
        caption: str,
        metrics: Sequence[Metric],
        *,
        labels: Sequence[str] = (),
        kind: Literal["intervals", "bars"] = "intervals",
    ) -> Plot:
        """Build a plot of metrics of one unit, labeled by their names or by ``labels``."""
        known = [metric.to_json() for metric in metrics]
        return cls(
            caption,
            tuple(labels) or tuple(metric.name for metric in metrics),
            tuple(metric.value for metric in metrics),
            tuple(metric["low"] for metric in known),
            tuple(metric["high"] for metric in known),
            metrics[0].unit if metrics else "",
            kind,
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "kind": self.kind,
            "caption": self.caption,
            "labels": list(self.labels),
            "values": [value if math.isfinite(value) else None for value in self.values],
            "lows": list(self.lows),
            "highs": list(self.highs),
            "unit": self.unit,
        }


def format_value(value: float | None, unit: str = "") -> str:
    """Format a number with three significant digits: ``1.23 GB``; a dash for None."""
    if value is None or not math.isfinite(value):
        return "–"
    digits, prefix = _split_prefix(value)
    return f"{_three_digits(digits)} {prefix}{unit}".rstrip()


def render_plot(plot: Plot) -> str:
    """Render the plot as a ``<figure>`` of inline SVG; empty if no row has a value."""
    rows = [
        (label, value, low, high)
        for label, value, low, high in zip(
            plot.labels,
            plot.values,
            _pad_range(plot.lows, plot),
            _pad_range(plot.highs, plot),
            strict=True,
        )
        if math.isfinite(value)
    ]
    if not rows:
        return ""
    ends = [end for _, value, low, high in rows for end in (value, low, high) if end is not None]
    low, high, step = _choose_scale(min(ends), max(ends), is_bars=plot.kind == "bars")
    height = _TOP + _ROW * len(rows) + _BOTTOM
    parts = [_render_axis(low, high, step, height - _BOTTOM, plot.unit)]
    for index, row in enumerate(rows):
        parts.append(_render_row(plot, row, _TOP + _ROW * index + _ROW / 2, (low, high)))
    spoken = "; ".join(f"{label}: {format_value(value, plot.unit)}" for label, value, _, _ in rows)
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="{escape(plot.caption)}. {escape(spoken)}">{"".join(parts)}</svg>'
        f"<figcaption>{escape(plot.caption)}</figcaption></figure>"
    )


def _pad_range(ends: tuple[float | None, ...], plot: Plot) -> tuple[float | None, ...]:
    return ends or (None,) * len(plot.labels)


def _choose_scale(low: float, high: float, *, is_bars: bool = False) -> tuple[float, float, float]:
    """Return ends and step of an axis with round ticks; bars start at zero, shares end at one."""
    if is_bars or 0 <= low <= high <= 1:
        low = min(low, 0.0)
    size = max(abs(low), abs(high))
    if high - low <= max(size * 1e-9, _EPSILON):  # too close for distinct ticks
        high = low + (size if size > _EPSILON else 1.0)
    rough = (high - low) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = power * next(nice for nice in (1, 2, 2.5, 5, 10) if nice * power >= rough * 0.999)
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step, step


def _x_position(value: float, scale: tuple[float, float]) -> float:
    span = _WIDTH - _LABELS - _VALUES
    return _LABELS + span * (value - scale[0]) / (scale[1] - scale[0])


def _render_axis(low: float, high: float, step: float, bottom: float, unit: str) -> str:
    """Return grid lines and tick labels; units are shown with the values, except bytes."""
    parts = []
    for tick in range(round((high - low) / step) + 1):
        value = low + tick * step
        x = _x_position(value, (low, high))
        digits, prefix = _split_prefix(0.0 if abs(value) < step / 1e6 else value)
        label = f"{digits:.4g} {prefix}{unit if unit in {'B', 'bytes'} else ''}".rstrip()
        parts.append(
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{bottom}"/>'
            f'<text class="tick" x="{x:.1f}" y="{bottom + 18}">{escape(label)}</text>'
        )
    return "".join(parts)


def _render_row(
    plot: Plot,
    row: tuple[str, float, float | None, float | None],
    y: float,
    scale: tuple[float, float],
) -> str:
    label, value, low, high = row
    shown = label if len(label) <= _MAX_LABEL else f"{label[: _MAX_LABEL - 1]}…"
    x = _x_position(value, scale)
    parts = [
        f'<text class="label" x="{_LABELS - 12}" y="{y + 4:.1f}">'
        f"<title>{escape(label)}</title>{escape(shown)}</text>",
        f'<text class="value" x="{_WIDTH - _VALUES + 12}" y="{y + 4:.1f}">'
        f"{escape(format_value(value, plot.unit))}</text>",
    ]
    if plot.kind == "bars":
        start = _x_position(max(scale[0], 0.0), scale)
        left, width = min(start, x), abs(x - start)
        parts.append(
            f'<rect class="bar" x="{left:.1f}" y="{y - 8:.1f}" width="{width:.1f}" height="16"/>'
        )
    if low is not None and high is not None:
        first, last = _x_position(low, scale), _x_position(high, scale)
        parts.append(
            f'<path class="whisker" d="M{first:.1f} {y:.1f}H{last:.1f}'
            f'M{first:.1f} {y - 5:.1f}v10M{last:.1f} {y - 5:.1f}v10"/>'
        )
    if plot.kind == "intervals":
        parts.append(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="5"/>')
    return "".join(parts)


def _split_prefix(value: float) -> tuple[float, str]:
    """Split a number into mantissa and decimal prefix: 1230.0 is (1.23, "k")."""
    for factor, prefix in _SI_PREFIXES:
        if abs(value) >= factor * 0.9995:
            return value / factor, prefix
    return value, ""


def _three_digits(value: float) -> str:
    """Format with three significant digits, trailing zeros kept; integers unchanged."""
    if value == round(value):
        return str(round(value))
    return f"{value:#.3g}".rstrip(".") if abs(value) >= 1e-4 else f"{value:.2e}"


_CHART_WIDTH, _CHART_HEIGHT = 720, 300
_CHART_LEFT, _CHART_RIGHT, _CHART_TOP, _CHART_BOTTOM = 64, 16, 12, 46
_SERIES_OFFSET = 3.0
_NUM_STYLES = 5  # strokes defined by the page's style
Point = tuple[float, float]
_Span = Annotated[Point, BeforeValidator(lambda span: span or (math.nan, math.nan))]


@dataclass(frozen=True, slots=True)
class Series:
    """One curve.

    Args:
        name: Name in the legend.
        points: (x, y), ascending by x.
        weights: Weight of each point, shown as the size of its dot; empty for equal dots.
        style: Number of the stroke, from 0; None uses the position among the series. The same
            entity should have the same stroke in all charts of a page.
        spans: The interval of each point, (low, high); empty draws none.

    Points and intervals that are not finite are not drawn.
    """

    name: str
    points: tuple[Point, ...]
    weights: tuple[float, ...] = ()
    style: int | None = None
    spans: tuple[_Span, ...] = ()

    def stroke(self, index: int) -> str:
        """Return the CSS class of the stroke at a position among the series."""
        return f"s{(index if self.style is None else self.style) % _NUM_STYLES}"

    def finite(self) -> Series:
        """Return the series without points that are not finite."""
        kept = [all(map(math.isfinite, point)) for point in self.points]
        return replace(
            self,
            points=tuple(compress(self.points, kept)),
            weights=tuple(compress(self.weights, kept)),
            spans=tuple(compress(self.spans, kept)),
        )


@dataclass(frozen=True, slots=True)
class LineChart:
    """Line chart of several series.

    Args:
        caption: Title as a sentence.
        x: Name of the horizontal axis.
        y: Name of the vertical axis.
        series: The curves; those without points are left out.
        diagonal: Draw the line x = y, with both axes from 0 to 1.
        is_log: Whether x is on a logarithmic scale; then it must be above 0.
    """

    caption: str
    x: str
    y: str
    series: tuple[Series, ...]
    diagonal: bool = False
    is_log: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values: only finite points, and null for an interval that is not."""
        return {
            "caption": self.caption,
            "x": self.x,
            "y": self.y,
            "diagonal": self.diagonal,
            "is_log": self.is_log,
            "series": [
                {
                    "name": series.name,
                    "points": [list(point) for point in series.points],
                    "weights": list(series.weights),
                    "style": series.style,
                    **(
                        {"spans": [_finite_or_none(span) for span in series.spans]}
                        if series.spans
                        else {}
                    ),
                }
                for series in (given.finite() for given in self.series)
            ],
        }


def _finite_or_none(span: Point) -> list[float] | None:
    return list(span) if all(map(math.isfinite, span)) else None


@dataclass(frozen=True, slots=True)
class _Frame:
    """Maps points to positions in the image."""

    x: tuple[float, float]
    y: tuple[float, float]
    is_log: bool

    def place(self, point: Point) -> Point:
        across = (self._along(point[0]) - self._along(self.x[0])) / max(
            self._along(self.x[1]) - self._along(self.x[0]), 1e-12
        )
        up = (point[1] - self.y[0]) / (self.y[1] - self.y[0])
        wide = _CHART_WIDTH - _CHART_LEFT - _CHART_RIGHT
        high = _CHART_HEIGHT - _CHART_TOP - _CHART_BOTTOM
        return _CHART_LEFT + across * wide, _CHART_TOP + (1 - up) * high

    def _along(self, x: float) -> float:
        return math.log(x) if self.is_log else x


def render_line_chart(curves: LineChart) -> str:
    """Render the chart as a ``<figure>``; empty if no series has a finite point."""
    shown = [series for series in (given.finite() for given in curves.series) if series.points]
    if not shown:
        return ""
    xs = [x for series in shown for x, _ in series.points]
    ys = [y for series in shown for _, y in series.points]
    ys += [e for series in shown for span in series.spans for e in _finite_or_none(span) or ()]
    if curves.diagonal:
        low, high, step = 0.0, 1.0, 0.2
        frame = _Frame((0.0, 1.0), (0.0, 1.0), is_log=False)
    else:
        low, high, step = _choose_scale(min(*ys, 0.0), max(ys))
        frame = _Frame((min(xs), max(xs)), (low, high), curves.is_log)
    ticks = [low + index * step for index in range(round((high - low) / step) + 1)]
    parts = [_render_chart_axes(curves, frame, ticks)]
    if curves.diagonal:
        start, end = frame.place((0.0, 0.0)), frame.place((1.0, 1.0))
        parts.append(f'<path class="even" d="{_svg_path([start, end])}"/>')
    parts += [_render_series(series, frame, index) for index, series in enumerate(shown)]
    spoken = "; ".join(
        f"{series.name} from {format_value(series.points[0][1])} "
        f"to {format_value(series.points[-1][1])}"
        for series in shown
    )
    keys = "".join(
        f'<li><svg class="key" viewBox="0 0 36 12" aria-hidden="true">'
        f'<path class="line {series.stroke(index)}" d="M0 6H36"/></svg>{escape(series.name)}</li>'
        for index, series in enumerate(shown)
    )
    return (
        f'<figure><svg viewBox="0 0 {_CHART_WIDTH} {_CHART_HEIGHT}" role="img" '
        f'aria-label="{escape(curves.caption)}. {escape(spoken)}">{"".join(parts)}</svg>'
        f'<ul class="keys">{keys}</ul><figcaption>{escape(curves.caption)}</figcaption></figure>'
    )


def _render_chart_axes(curves: LineChart, frame: _Frame, ticks: Sequence[float]) -> str:
    bottom, right = _CHART_HEIGHT - _CHART_BOTTOM, _CHART_WIDTH - _CHART_RIGHT
    parts = []
    for value in ticks:
        y = frame.place((frame.x[0], value))[1]
        parts.append(
            f'<line class="grid" x1="{_CHART_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="label tick" x="{_CHART_LEFT - 8}" y="{y + 4:.1f}">'
            f"{escape(f'{value:.4g}')}</text>"
        )
    for value in _x_ticks(curves, frame):
        x = frame.place((value, frame.y[0]))[0]
        parts.append(
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_CHART_TOP}" y2="{bottom}"/>'
            f'<text class="tick" x="{x:.1f}" y="{bottom + 17}">{escape(f"{value:.4g}")}</text>'
        )
    middle = (_CHART_LEFT + right) / 2
    parts.append(
        f'<text class="tick" x="{middle:.0f}" y="{_CHART_HEIGHT - 6}">{escape(curves.x)}</text>'
        f'<text class="tick" transform="translate(14 {(_CHART_TOP + bottom) / 2:.0f}) rotate(-90)">'
        f"{escape(curves.y)}</text>"
    )
    return "".join(parts)


def _x_ticks(curves: LineChart, frame: _Frame) -> list[float]:
    low, high = frame.x
    if curves.diagonal:
        return [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    if curves.is_log:
        ticks = [2.0**index for index in range(math.ceil(math.log2(low)), int(math.log2(high)) + 1)]
        return ticks[:: max(-(-len(ticks) // 8), 1)]
    start, end, step = _choose_scale(low, high)
    count = round((end - start) / step) + 1
    return [x for x in (start + index * step for index in range(count)) if low <= x <= high]


def _render_series(series: Series, frame: _Frame, index: int) -> str:
    points = [frame.place(point) for point in series.points]
    most = max(series.weights, default=0.0)
    dots = ""
    if len(points) <= 40:
        sizes = [
            2.0 + 4.0 * math.sqrt(weight / most) if most else 2.5
            for weight in (series.weights or (0.0,) * len(points))
        ]
        dots = "".join(
            f'<circle class="{series.stroke(index)}" cx="{x:.1f}" cy="{y:.1f}" r="{size:.1f}"/>'
            for (x, y), size in zip(points, sizes, strict=True)
        )
    spans = "".join(
        f'<path class="span {series.stroke(index)}" d="{_svg_path(ends)}"/>'
        for ends in _interval_ends(series, frame, index)
    )
    return f'{spans}<path class="line {series.stroke(index)}" d="{_svg_path(points)}"/>{dots}'


def _interval_ends(series: Series, frame: _Frame, index: int) -> list[list[Point]]:
    """Return both ends of each interval in the image, shifted for each series."""
    aside = (index - 1) * _SERIES_OFFSET
    intervals = []
    for (x, _), (low, high) in zip(series.points, series.spans, strict=False):
        if _finite_or_none((low, high)) is None:
            continue
        ends = [frame.place((x, low)), frame.place((x, high))]
        intervals.append([(across + aside, up) for across, up in ends])
    return intervals


def _svg_path(points: Sequence[Point]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
