"""How values are written on pages: sizes, digests, moments and figures, as the terminal does."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime
from typing import Any

__all__ = ["FILTERS", "show_count", "show_digest", "show_figure", "show_moment", "show_size"]

_UNITS = ("B", "kB", "MB", "GB", "TB")
_SHOWN = 12


def show_size(size_bytes: float | None) -> str:
    """Return a size in units of a thousand."""
    if size_bytes is None:
        return "–"
    value, unit = float(size_bytes), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return (
        f"{value:.0f} {_UNITS[unit]}"
        if unit == 0 or value >= 100
        else f"{value:.3g} {_UNITS[unit]}"
    )


def show_digest(digest: str) -> str:
    """Return the first digits of a digest."""
    return digest[:_SHOWN]


def show_moment(moment: str) -> str:
    """Return the day and the minute of an ISO moment, in this machine's time."""
    try:
        return datetime.fromisoformat(moment).astimezone().strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return moment


def show_figure(value: Any) -> str:
    """Return a number in four digits, whole ones with their thousands."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "–" if value is None else str(value)
    if not math.isfinite(value):
        return str(value)
    is_whole = isinstance(value, int) or (value.is_integer() and abs(value) < 1e15)
    return f"{value:,.0f}" if is_whole else f"{value:,.4g}"


def show_count(count: int, word: str, plural: str = "") -> str:
    """Return a count with its word."""
    return f"{count:,} {word if count == 1 else plural or word + 's'}"


FILTERS: dict[str, Callable[..., Any]] = {
    "size": show_size,
    "digest": show_digest,
    "moment": show_moment,
    "figure": show_figure,
    "count_of": show_count,
}
