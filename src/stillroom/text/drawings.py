"""Charts and diagrams of office files: the words and numbers that are drawn.

Knows the XML of DrawingML by duck type, so that no library's list of chart kinds decides what is
read. Knows nothing of where a drawing stands.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Any

from stillroom.text.assembly import render_table
from stillroom.text.office import text_of

__all__ = ["chart_text", "diagram_text", "read_drawings"]

_C = "{http://schemas.openxmlformats.org/drawingml/2006/chart}"
_D = "{http://schemas.openxmlformats.org/drawingml/2006/diagram}"
_A = "{http://schemas.openxmlformats.org/drawingml/2006/main}"
_R = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}"
_MOST_POINTS = 10_000
_FIRST_DAY = datetime.datetime(1899, 12, 30)  # day 0 of spreadsheets, which know no time zone


def chart_text(chart: Any) -> str:
    """Return a chart's title and its values as a table, whatever kind of chart it is.

    The first column are the categories (or the x of points), then one a series; series of several
    plots stand side by side.

    Args:
        chart: The root element of the chart's part.
    """
    names, columns, categories = [], [], dict[int, str]()
    for series in chart.iter(f"{_C}ser"):
        values = _points(_first(series, "val", "yVal"))
        if values:
            names.append(" ".join(_points(_first(series, "tx")).values()))
            columns.append({at: _number(value) for at, value in values.items()})
            for at, name in _points(_first(series, "cat", "xVal")).items():
                categories.setdefault(at, _number(name))
    title = _first(next(chart.iter(f"{_C}chart"), chart), "title")
    places = sorted({at for one in (categories, *columns) for at in one})
    rows = [["", *names]] if any(names) else [["", *("value" for _ in columns)]]
    rows += [[categories.get(at, ""), *(one.get(at, "") for one in columns)] for at in places]
    heading = " ".join(text_of(title).split()) if title is not None else ""
    table = render_table(rows) if columns else ""
    return "\n\n".join(part for part in (heading, table) if part)


def diagram_text(data: Any) -> str:
    """Return the words of a SmartArt diagram as a list, in the order in which they were typed.

    Args:
        data: The root element of the diagram's data part.
    """
    lines = []
    for point in data.iter(f"{_D}pt"):
        paragraphs = [" ".join(text_of(one).split()) for one in point.iter(f"{_A}p")]
        text = " ".join(one for one in paragraphs if one)
        if text and point.get("type", "node") in {"node", "asst"}:
            lines.append(f"- {text}")
    return "\n".join(lines)


def read_drawings(element: Any, part: Any) -> Iterator[tuple[str, Any]]:
    """Yield the text of each chart and diagram that an element shows, with the part it is of.

    Args:
        element: An element of the document; its drawings name their parts by relationship.
        part: The part of the package that the element belongs to.
    """
    from lxml import etree

    parser = etree.XMLParser(resolve_entities=False, no_network=True, huge_tree=False)
    for tag, attribute, read in (
        (f"{_C}chart", f"{_R}id", chart_text),
        (f"{_D}relIds", f"{_R}dm", diagram_text),
    ):
        for one in element.iter(tag):
            target = part.rels.get(one.get(attribute, ""))
            if target is None or target.is_external:
                continue
            text = read(etree.fromstring(target.target_part.blob, parser))
            if text:
                yield text, target.target_part


def _first(element: Any, *names: str) -> Any:
    """Return the first child of one of these names, or None."""
    return next((one for name in names if (one := element.find(f"{_C}{name}")) is not None), None)


def _points(element: Any) -> dict[int, str]:
    """Return the cached points of a series' part by place; literal values stand at 0."""
    if element is None:
        return {}
    found: dict[int, str] = {}
    form = "".join(one.text or "" for one in element.iter(f"{_C}formatCode")).lower()
    is_date = "d" in form and "m" in form and "y" in form
    for point in element.iter(f"{_C}pt"):
        place = point.get("idx", "")
        text = "".join(one.text or "" for one in point.iter(f"{_C}v")).strip()
        text = _date(text) if is_date else text
        if place.isdecimal() and text and len(found) < _MOST_POINTS:
            at = int(place)
            found[at] = (
                f"{text} {found[at]}" if at in found else text
            )  # the inner level comes first
    if not found:
        text = " ".join(one.text or "" for one in element.iter(f"{_C}v")).strip()
        found = {0: text} if text else {}
    return found


def _date(value: str) -> str:
    """Return the day that a spreadsheet's number of days stands for; else the value as it is."""
    try:
        return (_FIRST_DAY + datetime.timedelta(days=float(value))).date().isoformat()
    except (ValueError, OverflowError):
        return value


def _number(value: str) -> str:
    """Return a value as a person would write it: charts keep 8.2 as 8.1999999999999993."""
    try:
        number = float(value)
    except ValueError:
        return value
    short = f"{number:.15g}"
    return value if "e" in short or "n" in short else short
