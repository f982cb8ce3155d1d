"""Figures of an inspection as inline SVG: maps of layers by modules, and lines.

They take colors and fonts from the page of a report. Knows numbers and labels, not what they mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Line", "draw_lines", "draw_map"]

_WIDTH, _LEFT, _RIGHT = 720, 92, 12
_ROW, _HEAD = 22, 112
_HEIGHT, _TOP, _BOTTOM, _LEGEND = 260, 12, 42, 22
_AGREE, _FIGHT = "#1f8a78", "#c2452d"
_COLORS = ("#c2701f", "#1f8a78", "#5b6fc4", "#b0457e", "#7d8a1f", "#6b6b6b")
_STRONGEST = 0.8
_WIDEST_CELL = 76


@dataclass(frozen=True, slots=True)
class Line:
    """A named line; ``lows`` and ``highs`` draw a band, where given."""

    name: str
    values: tuple[float, ...]
    lows: tuple[float, ...] = ()
    highs: tuple[float, ...] = ()
    is_dashed: bool = False


def draw_map(
    caption: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float]],
    *,
    is_fight: bool = False,
) -> str:
    """Return a map of numbers: green above zero, red below; the strongest shade is the largest.

    Args:
        caption: What it shows.
        rows: Labels from top to bottom.
        columns: Labels from left to right.
        values: One a cell; not-a-number leaves it empty.
        is_fight: Draw what is above zero in red.
    """
    finite = [abs(value) for row in values for value in row if math.isfinite(value)]
    top = max(finite, default=0.0)
    cell = min(_WIDEST_CELL, (_WIDTH - _LEFT - _RIGHT) / max(len(columns), 1))
    height = _HEAD + _ROW * len(rows) + 8
    parts = []
    for at, column in enumerate(columns):
        x, y = _LEFT + cell * (at + 0.5), _HEAD - 8
        parts.append(
            f'<text x="{x:.1f}" y="{y}" transform="rotate(-32 {x:.1f} {y})">'
            f"{escape(_cut(column, 24))}</text>"
        )
    for down, row in enumerate(rows):
        y = _HEAD + _ROW * down
        parts.append(
            f'<text class="label" x="{_LEFT - 8}" y="{y + 15}"><title>{escape(row)}</title>'
            f"{escape(_cut(row, 12))}</text>"
        )
        for across, value in enumerate(values[down]):
            if math.isfinite(value):
                where = f"{row}, {columns[across]}: {value:.4f}"
                parts.append(
                    _draw_cell(_LEFT + cell * across, y, cell, value, top, is_fight, where)
                )
    note = f"{caption} The strongest shade is {top:.3f}."
    return _figure(height, note, "".join(parts))


def draw_lines(
    caption: str,
    positions: Sequence[float],
    lines: Sequence[Line],
    *,
    axis: str,
    is_share: bool = False,
    from_zero: bool = False,
) -> str:
    """Return lines over common positions, with a legend; empty where no value is finite.

    Args:
        caption: What it shows.
        positions: Of the values, rising.
        lines: One value a position; not-a-number leaves a gap.
        axis: What the positions are.
        is_share: Write the values as percent.
        from_zero: Begin the vertical axis at zero.
    """
    ends = [
        value
        for line in lines
        for value in (*line.values, *line.lows, *line.highs)
        if math.isfinite(value)
    ]
    if not ends or not positions:
        return ""
    low, high, step = _choose_scale(0.0 if from_zero else min(ends), max(ends))
    right = _WIDTH - _RIGHT

    def x_of(value: float) -> float:
        span = (positions[-1] - positions[0]) or 1.0
        return _LEFT + (right - _LEFT) * (value - positions[0]) / span

    def y_of(value: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - value) / (high - low)

    parts = []
    for tick in range(round((high - low) / step) + 1):
        value = low + tick * step
        label = f"{value:.4g}" if not is_share else f"{100 * value:.4g} %"
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y_of(value):.1f}" '
            f'y2="{y_of(value):.1f}"/><text class="label tick" style="text-anchor:end" '
            f'x="{_LEFT - 8}" y="{y_of(value) + 4:.1f}">{escape(label)}</text>'
        )
    every = max(1, math.ceil(len(positions) / 12))
    parts += [
        f'<text class="tick" x="{x_of(position):.1f}" y="{_HEIGHT - _BOTTOM + 18}">'
        f"{position:g}</text>"
        for position in positions[::every]
    ]
    middle = (_LEFT + right) / 2
    parts.append(f'<text class="tick" x="{middle:.1f}" y="{_HEIGHT - 6}">{escape(axis)}</text>')
    for number, line in enumerate(lines):
        color = _COLORS[number % len(_COLORS)]
        points = [
            (x_of(position), value) for position, value in zip(positions, line.values, strict=True)
        ]
        parts.append(_draw_line(line, points, y_of, color))
        parts.append(_draw_legend(number, line, color))
    rows = math.ceil(len(lines) / 2)
    return _figure(_HEIGHT + _LEGEND * rows, caption, "".join(parts))


def _draw_line(
    line: Line,
    points: Sequence[tuple[float, float]],
    y_of: Callable[[float], float],
    color: str,
) -> str:
    parts = []
    if line.lows and all(map(math.isfinite, (*line.lows, *line.highs))):
        upper = [f"{x:.1f} {y_of(v):.1f}" for (x, _), v in zip(points, line.highs, strict=True)]
        lower = [f"{x:.1f} {y_of(v):.1f}" for (x, _), v in zip(points, line.lows, strict=True)]
        parts.append(
            f'<path d="M{"L".join([*upper, *reversed(lower)])}Z" '
            f'style="fill:{color};fill-opacity:.16"/>'
        )
    drawn = [f"{x:.1f} {y_of(value):.1f}" for x, value in points if math.isfinite(value)]
    dash = ";stroke-dasharray:5 4" if line.is_dashed else ""
    width = 1.5 if line.is_dashed else 2.2
    parts.append(
        f'<path d="M{"L".join(drawn)}" '
        f'style="fill:none;stroke:{color};stroke-width:{width}{dash}"/>'
    )
    if not line.is_dashed:
        parts += [
            f'<circle cx="{spot.split()[0]}" cy="{spot.split()[1]}" r="2.8" style="fill:{color}"/>'
            for spot in drawn
        ]
    return "".join(parts)


def _draw_legend(number: int, line: Line, color: str) -> str:
    column, row = number % 2, number // 2
    x, y = _LEFT + column * 300, _HEIGHT + _LEGEND * row + 12
    return (
        f'<rect x="{x}" y="{y - 9}" width="12" height="12" rx="3" style="fill:{color}"/>'
        f'<text x="{x + 18}" y="{y + 1}"><title>{escape(line.name)}</title>'
        f"{escape(_cut(line.name, 40))}</text>"
    )


def _draw_cell(
    x: float, y: float, width: float, value: float, top: float, is_fight: bool, where: str
) -> str:
    shade = _STRONGEST * abs(value) / top if top > 0 else 0.0
    color = _FIGHT if (value < 0) != is_fight else _AGREE
    shown = f"{value:.2f}".replace("0.", ".", 1) if width >= 34 else ""
    return (
        f'<g><title>{escape(where)}</title><rect x="{x + 1:.1f}" y="{y + 1}" rx="3" '
        f'width="{width - 2:.1f}" height="{_ROW - 2}" '
        f'style="fill:{color};fill-opacity:{max(shade, 0.03):.3f}"/>'
        f'<text class="tick" style="fill:var(--ink)" x="{x + width / 2:.1f}" y="{y + 15}">'
        f"{escape(shown)}</text></g>"
    )


def _figure(height: float, caption: str, inside: str) -> str:
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH} {height:g}" role="img" '
        f'aria-label="{escape(caption)}">{inside}</svg>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _choose_scale(low: float, high: float) -> tuple[float, float, float]:
    """Return ends and step of an axis with round ticks."""
    if high - low <= max(abs(high), abs(low)) * 1e-9:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = power * next(nice for nice in (1, 2, 2.5, 5, 10) if nice * power >= rough * 0.999)
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step, step


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
