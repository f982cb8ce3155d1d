"""Small plots as inline SVG: intervals and bars, drawn from numbers, colored by the page's style.

No script, no fonts, no outside references; every plot has a title for screen readers. Knows shapes
only, not what is measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

from stillroom.evaluate.metrics import Metric

__all__ = ["Plot", "choose_scale", "draw_plot", "format_value"]

_WIDTH, _ROW, _LABELS, _VALUES, _TOP, _BOTTOM = 720, 30, 220, 168, 8, 30
_SHORTEN = 28
_TINY = 1e-12
_SI = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True, slots=True)
class Plot:
    """Rows of one scale: ``intervals`` (a dot within its interval) or ``bars`` (from zero).

    ``lows`` and ``highs`` may be empty, or hold None where a row has no interval.
    """

    caption: str
    labels: tuple[str, ...]
    values: tuple[float, ...]
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
        """Return the plot of some metrics of one unit, under their own names or given labels."""
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

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Plot:
        """Read what ``to_json`` wrote."""
        return cls(
            data["caption"],
            tuple(data["labels"]),
            tuple(math.nan if value is None else value for value in data["values"]),
            tuple(data["lows"]),
            tuple(data["highs"]),
            data["unit"],
            data["kind"],
        )


def format_value(value: float | None, unit: str = "") -> str:
    """Return a number as people read it: three digits, ``1.23 GB``, a dash for none."""
    if value is None or not math.isfinite(value):
        return "–"
    digits, prefix = _scale(value)
    return f"{_plain(digits)} {prefix}{unit}".rstrip()


def draw_plot(plot: Plot) -> str:
    """Return the plot as a ``<figure>`` of inline SVG; empty when no row has a value."""
    rows = [
        (label, value, low, high)
        for label, value, low, high in zip(
            plot.labels,
            plot.values,
            _padded(plot.lows, plot),
            _padded(plot.highs, plot),
            strict=True,
        )
        if math.isfinite(value)
    ]
    if not rows:
        return ""
    ends = [end for _, value, low, high in rows for end in (value, low, high) if end is not None]
    low, high, step = choose_scale(min(ends), max(ends), is_bars=plot.kind == "bars")
    height = _TOP + _ROW * len(rows) + _BOTTOM
    parts = [_draw_axis(low, high, step, height - _BOTTOM, plot.unit)]
    for at, row in enumerate(rows):
        parts.append(_draw_row(plot, row, _TOP + _ROW * at + _ROW / 2, (low, high)))
    spoken = "; ".join(f"{label}: {format_value(value, plot.unit)}" for label, value, _, _ in rows)
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="{escape(plot.caption)}. {escape(spoken)}">{"".join(parts)}</svg>'
        f"<figcaption>{escape(plot.caption)}</figcaption></figure>"
    )


def _padded(ends: tuple[float | None, ...], plot: Plot) -> tuple[float | None, ...]:
    return ends or (None,) * len(plot.labels)


def choose_scale(low: float, high: float, *, is_bars: bool = False) -> tuple[float, float, float]:
    """Return ends and step of an axis with round ticks; bars begin at zero, shares end at one."""
    if is_bars or 0 <= low <= high <= 1:
        low = min(low, 0.0)
    size = max(abs(low), abs(high))
    if high - low <= max(size * 1e-9, _TINY):  # too near to tell apart by ticks
        high = low + (size if size > _TINY else 1.0)
    rough = (high - low) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = power * next(nice for nice in (1, 2, 2.5, 5, 10) if nice * power >= rough * 0.999)
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step, step


def _x(value: float, scale: tuple[float, float]) -> float:
    span = _WIDTH - _LABELS - _VALUES
    return _LABELS + span * (value - scale[0]) / (scale[1] - scale[0])


def _draw_axis(low: float, high: float, step: float, bottom: float, unit: str) -> str:
    """Return grid lines and tick labels; the unit stands with the values, bytes apart."""
    parts = []
    for tick in range(round((high - low) / step) + 1):
        value = low + tick * step
        x = _x(value, (low, high))
        digits, prefix = _scale(0.0 if abs(value) < step / 1e6 else value)
        label = f"{digits:.4g} {prefix}{unit if unit in {'B', 'bytes'} else ''}".rstrip()
        parts.append(
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{bottom}"/>'
            f'<text class="tick" x="{x:.1f}" y="{bottom + 18}">{escape(label)}</text>'
        )
    return "".join(parts)


def _draw_row(
    plot: Plot,
    row: tuple[str, float, float | None, float | None],
    y: float,
    scale: tuple[float, float],
) -> str:
    label, value, low, high = row
    shown = label if len(label) <= _SHORTEN else f"{label[: _SHORTEN - 1]}…"
    x = _x(value, scale)
    parts = [
        f'<text class="label" x="{_LABELS - 12}" y="{y + 4:.1f}">'
        f"<title>{escape(label)}</title>{escape(shown)}</text>",
        f'<text class="value" x="{_WIDTH - _VALUES + 12}" y="{y + 4:.1f}">'
        f"{escape(format_value(value, plot.unit))}</text>",
    ]
    if plot.kind == "bars":
        start = _x(max(scale[0], 0.0), scale)
        left, width = min(start, x), abs(x - start)
        parts.append(
            f'<rect class="bar" x="{left:.1f}" y="{y - 8:.1f}" width="{width:.1f}" height="16"/>'
        )
    if low is not None and high is not None:
        first, last = _x(low, scale), _x(high, scale)
        parts.append(
            f'<path class="whisker" d="M{first:.1f} {y:.1f}H{last:.1f}'
            f'M{first:.1f} {y - 5:.1f}v10M{last:.1f} {y - 5:.1f}v10"/>'
        )
    if plot.kind == "intervals":
        parts.append(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="5"/>')
    return "".join(parts)


def _scale(value: float) -> tuple[float, str]:
    """Return the number before a decimal prefix, and the prefix: 1230.0 is (1.23, "k")."""
    for factor, prefix in _SI:
        if abs(value) >= factor * 0.9995:
            return value / factor, prefix
    return value, ""


def _plain(value: float) -> str:
    """Return three significant digits, trailing zeros kept; whole numbers as they are."""
    if value == round(value):
        return str(round(value))
    return f"{value:#.3g}".rstrip(".") if abs(value) >= 1e-4 else f"{value:.2e}"
