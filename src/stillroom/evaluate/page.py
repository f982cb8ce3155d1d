"""The page of a report: one HTML file with everything inline.

Knows the JSON of a report, and how it looks; nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from stillroom.evaluate.curves import Curves, draw_curves
from stillroom.evaluate.plots import Plot, draw_plot, format_value

__all__ = ["draw_page"]

_STYLE = """
:root{color-scheme:light dark;--page:#fbfaf7;--card:#fff;--ink:#23211d;--quiet:#66615a;
--line:#e3ded5;--accent:#8a4b14;--bar:#d9a066;--dot:#8a4b14;
--second:#1d6473;--third:#6b3f86}
@media(prefers-color-scheme:dark){:root{--page:#181715;--card:#211f1c;--ink:#ece7de;--quiet:#a49d92;
--line:#3a3631;--accent:#e8a45c;--bar:#8a5a2b;--dot:#f0b878;
--second:#6fc3d4;--third:#c39be0}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:860px;margin:0 auto;padding:40px 24px 64px}
h1{font-size:30px;line-height:1.2;margin:0 0 8px;letter-spacing:-.01em}
h2{font-size:20px;margin:0 0 8px}
p{margin:0 0 12px;max-width:68ch}
.quiet,figcaption,.note{color:var(--quiet);font-size:14px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(180px,1fr));gap:12px;margin:24px 0;
padding:0;list-style:none}
.tiles li,section{background:var(--card);border:1px solid var(--line);border-radius:10px}
.tiles li{padding:14px 16px;border-top:3px solid var(--accent)}
.tiles .name{display:block;font-size:13px;line-height:1.35;color:var(--quiet);
overflow-wrap:anywhere}
.tiles small{font-size:14px;font-weight:400;color:var(--quiet)}
.tiles b{display:block;font-size:26px;line-height:1.3;font-variant-numeric:tabular-nums}
section{padding:20px 24px;margin:20px 0;overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:14.5px;margin:12px 0 4px}
caption{text-align:left;color:var(--quiet);font-size:14px;padding-bottom:6px}
th,td{text-align:left;padding:7px 12px 7px 0;border-bottom:1px solid var(--line);vertical-align:top;
overflow-wrap:anywhere}
tr>:last-child{padding-right:0}
thead th{font-weight:600;color:var(--quiet);border-bottom-width:2px;white-space:nowrap}
tbody th{font-weight:500}
td.number,th.number{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
table.grid td,table.grid thead th.number{padding:7px 0 7px 8px;overflow-wrap:normal}
table.grid thead th{white-space:normal;padding-left:0}
table.grid tbody th{min-width:130px}
table.grid td .note{font-size:11.5px;white-space:nowrap}
figure{margin:14px 0 6px;overflow-x:auto}
svg{width:100%;height:auto;display:block}
figure>svg{min-width:560px}
svg text{font-size:13px;fill:var(--ink)}
svg .label{text-anchor:end}svg .tick{text-anchor:middle;fill:var(--quiet);font-size:12px}
svg .value{font-weight:600;font-variant-numeric:tabular-nums}
svg .grid{stroke:var(--line)}svg .bar{fill:var(--bar)}svg .dot{fill:var(--dot)}
svg .whisker{stroke:var(--accent);stroke-width:2;fill:none}
svg .tick.label{text-anchor:end}
svg .line{fill:none;stroke-width:2.2}svg .even{stroke:var(--quiet);stroke-dasharray:2 4}
svg .line.s0{stroke:var(--accent)}svg circle.s0{fill:var(--accent)}
svg .line.s1{stroke:var(--second);stroke-dasharray:9 4}svg circle.s1{fill:var(--second)}
svg .line.s2{stroke:var(--third);stroke-dasharray:2 3}svg circle.s2{fill:var(--third)}
svg .line.s3{stroke:var(--quiet);stroke-dasharray:12 4 2 4}svg circle.s3{fill:var(--quiet)}
svg .line.s4{stroke:var(--bar)}svg circle.s4{fill:var(--bar)}
svg .span{stroke-width:1.4;fill:none;stroke-opacity:.7}
svg .span.s0{stroke:var(--accent)}svg .span.s1{stroke:var(--second)}
svg .span.s2{stroke:var(--third)}svg .span.s3{stroke:var(--quiet)}svg .span.s4{stroke:var(--bar)}
.keys{list-style:none;display:flex;flex-wrap:wrap;gap:4px 18px;margin:2px 0 4px;padding:0;
font-size:14px}
.keys svg{display:inline-block;width:36px;height:12px;margin-right:6px;vertical-align:-1px}
footer{margin-top:32px}
@media(max-width:600px){th,td{overflow-wrap:break-word}section{padding:16px}}
@media print{body{background:#fff}section,.tiles li{break-inside:avoid}}
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def draw_page(report: Mapping[str, Any]) -> str:
    """Return the report as a page that needs nothing else and fetches nothing."""
    metrics = {metric["name"]: metric for metric in report["metrics"]}
    shown: set[str] = set()
    parts = []
    for section in report["sections"]:
        mine = [metrics[name] for name in section["metrics"] if name in metrics]
        in_grid = {name for row in (section.get("grid") or {}).get("rows", ()) for name in row[2]}
        shown |= {metric["name"] for metric in mine} | in_grid
        listed = [metric for metric in mine if metric["name"] not in in_grid]
        parts.append(_draw_section(section, listed, metrics))
    rest = [metric for name, metric in metrics.items() if name not in shown]
    if rest:
        parts.append(_draw_section({"title": "Further measurements"}, rest, metrics))
    title = escape(report["title"])
    summary = f"<p>{escape(report['summary'])}</p>" if report["summary"] else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{title}</title><style>{_STYLE}</style></head>\n<body><main>"
        f"<header><h1>{title}</h1>{summary}</header>\n"
        f"{_draw_tiles([metrics[name] for name in report['headlines'] if name in metrics])}"
        + "\n".join(parts)
        + '\n<footer class="quiet"><p>Intervals are 95 % bootstrap intervals (BCa) over the units '
        "counted in column n. A dash means that no interval can be given. The same numbers stand "
        "in the JSON file beside this page.</p></footer></main></body></html>\n"
    )


def _draw_tiles(metrics: list[Mapping[str, Any]]) -> str:
    if not metrics:
        return ""
    tiles = [
        f'<li><span class="name">{_breakable(metric["name"])}</span>'
        f"<b>{_small_unit(metric)}</b>"
        f'<span class="quiet">{escape(_say_interval(metric))}</span></li>'
        for metric in metrics
    ]
    return f'<ul class="tiles" aria-label="Headlines">{"".join(tiles)}</ul>\n'


def _draw_section(
    section: Mapping[str, Any],
    metrics: list[Mapping[str, Any]],
    known: Mapping[str, Mapping[str, Any]],
) -> str:
    parts = [f"<h2>{escape(section['title'])}</h2>"]
    parts += [f"<p>{escape(line)}</p>" for line in section.get("text", "").split("\n\n") if line]
    if section.get("plot"):
        parts.append(draw_plot(Plot.from_json(section["plot"])))
    parts += [draw_curves(Curves.from_json(one)) for one in section.get("curves", ())]
    if section.get("grid"):
        parts.append(_draw_grid(section["grid"], known))
    if metrics:
        parts.append(_draw_metrics(section["title"], metrics))
    if section.get("table"):
        parts.append(_draw_table(section["table"]))
    return f"<section>{''.join(parts)}</section>"


def _draw_metrics(title: str, metrics: list[Mapping[str, Any]]) -> str:
    rows = []
    for metric in metrics:
        note = f'<div class="note">{escape(metric["note"])}</div>' if metric.get("note") else ""
        rows.append(
            f'<tr><th scope="row">{_breakable(metric["name"])}{note}</th>'
            f'<td class="number">{escape(format_value(metric["value"], metric["unit"]))}</td>'
            f'<td class="number">{escape(_interval(metric))}</td>'
            f'<td class="number">{metric["n"]}</td></tr>'
        )
    return (
        f"<table><caption>Measurements: {escape(title)}</caption><thead><tr>"
        '<th scope="col">metric</th><th scope="col" class="number">value</th>'
        '<th scope="col" class="number">95 % interval</th><th scope="col" class="number">n</th>'
        f"</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _draw_grid(grid: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]) -> str:
    """Return metrics side by side: in each cell the value, below it its interval."""
    head = "".join(
        f'<th scope="col" class="number">{escape(str(column))}</th>' for column in grid["columns"]
    )
    body, notes = [], []
    for label, unit, names in grid["rows"]:
        cells = [known.get(name) for name in names]
        small = f'<div class="note">{escape(unit)}</div>' if unit else ""
        body.append(
            f'<tr><th scope="row">{escape(label)}{small}</th>'
            f"{''.join(_draw_cell(cell) for cell in cells)}"
            f'<td class="number">{_count(cells)}</td></tr>'
        )
        notes += [
            f"{label}: {cell['note']}"
            for cell in cells
            if cell and cell.get("note") and cell["low"] is None
        ]
    said = "".join(f"<div>{escape(note)}.</div>" for note in dict.fromkeys(notes))
    return (
        f'<table class="grid"><caption>{escape(grid["caption"])}</caption><thead><tr>'
        f'<th scope="col">measure</th>{head}<th scope="col" class="number">n</th></tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table>"
        + (f'<div class="note">{said}</div>' if said else "")
    )


def _draw_cell(metric: Mapping[str, Any] | None) -> str:
    if metric is None or metric["value"] is None:
        return '<td class="number quiet">–</td>'
    low, high = metric["low"], metric["high"]
    ends = "" if low is None or high is None else f"{format_value(low)} to {format_value(high)}"
    if low == high and ends and metric["n"] > 1:
        ends = "all equal"  # an interval without width would claim what nobody knows
    under = f'<div class="note">{escape(ends)}</div>' if ends else ""
    return f'<td class="number">{escape(format_value(metric["value"]))}{under}</td>'


def _count(cells: list[Mapping[str, Any] | None]) -> str:
    """Return how many units a row stands on, a range where its cells differ."""
    counts = sorted({int(cell["n"]) for cell in cells if cell})
    if not counts:
        return "–"
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _draw_table(table: Mapping[str, Any]) -> str:
    head = "".join(f'<th scope="col">{escape(str(column))}</th>' for column in table["columns"])
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>"
        for row in table["rows"]
    )
    return (
        f"<table><caption>{escape(table['caption'])}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def _say_interval(metric: Mapping[str, Any]) -> str:
    """Return a tile's interval, or why it has none."""
    if metric["low"] is None and metric["high"] is None and metric.get("note"):
        return str(metric["note"])
    return _interval(metric, "95 %: ")


def _interval(metric: Mapping[str, Any], before: str = "") -> str:
    low, high = metric["low"], metric["high"]
    if low is None or high is None:
        return "no interval" if before else "–"
    return f"{before}{format_value(low)} to {format_value(high, '' if before else metric['unit'])}"


def _small_unit(metric: Mapping[str, Any]) -> str:
    """Return a tile's value, escaped, a long unit in small letters."""
    unit = metric["unit"]
    if len(unit) < 3:  # GB and the like belong to their number
        return escape(format_value(metric["value"], unit))
    return f"{escape(format_value(metric['value']))} <small>{escape(unit)}</small>"


def _breakable(name: str) -> str:
    """Return a metric's name, escaped, that may break after its slashes and underscores."""
    return escape(name).replace("/", "/<wbr>").replace("_", "_<wbr>")
