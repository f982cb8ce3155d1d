"""The page of a check: one HTML file with everything inline, to be kept beside the files.

Every text of a file is escaped and nothing is fetched: a file may not speak through its report.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from stillroom.forensics.checking import LIMITS, Checked

if TYPE_CHECKING:
    from stillroom.forensics.detecting import Finding

__all__ = ["draw_check_page"]

_SHOWN = 0.05

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE = """
:root{color-scheme:light dark;--page:#fbfaf7;--card:#fff;--ink:#23211d;--quiet:#66615a;
--line:#e3ded5;--accent:#8a4b14}
@media(prefers-color-scheme:dark){:root{--page:#181715;--card:#211f1c;--ink:#ece7de;--quiet:#a49d92;
--line:#3a3631;--accent:#e8a45c}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:860px;margin:0 auto;padding:40px 24px 64px}
h1{font-size:30px;margin:0 0 8px}h2{font-size:18px;margin:0 0 6px;overflow-wrap:anywhere}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:18px 22px;
margin:18px 0}
.verdict{font-weight:600;color:var(--accent)}.quiet{color:var(--quiet);font-size:14px}
dl{display:grid;grid-template-columns:max-content 1fr;gap:4px 18px;margin:10px 0}
dt{color:var(--quiet)}dd{margin:0;overflow-wrap:anywhere}
figure{margin:12px 0}svg{fill:var(--accent)}.frame{fill:none;stroke:var(--line);stroke-width:.15}
pre{overflow-x:auto;font-size:12.5px;max-height:420px}
"""


def draw_check_page(found: Sequence[Checked], limits: Sequence[str] = LIMITS) -> str:
    """Return the page of some checked files, above it what no finding says."""
    listed = "".join(f"<li>{escape(line)}</li>" for line in limits)
    sections = "\n".join(_draw(one) for one in found)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>What is known of {len(found)} files</title><style>{_STYLE}</style></head>"
        f"<body><main><h1>What is known of {len(found)} files</h1>"
        "<p>Evidence in order: what a file is signed to be, then this lab's watermark, then what "
        "detectors make of faces. It is never "
        f"mixed into one number.</p><ul class=quiet>{listed}</ul>\n{sections}\n"
        "</main></body></html>\n"
    )


def _draw(one: Checked) -> str:
    rows = [("SHA-256", one.digest)] if one.digest else []
    if one.credentials is not None:
        rows += [_split(line) for line in one.credentials.lines()]
    if one.trace is not None:
        rows.append(("watermark", one.trace.line()))
    if one.faces is not None:
        sizes = ", ".join(f"{box[2]} x {box[3]} pixels" for box in one.faces)
        rows.append(("faces", f"{len(one.faces)}" + (f" ({sizes})" if sizes else "")))
    rows += [("limits", line) for line in one.quality]
    rows += [("detector", finding.line()) for finding in one.findings]
    maps = "".join(_draw_map(finding) for finding in one.findings if finding.map)
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(said)}</dd>" for name, said in rows)
    tree = ""
    if one.credentials is not None and one.credentials.manifests:
        text = json.dumps(dict(one.credentials.manifests), indent=1, ensure_ascii=False)
        tree = (
            f"<details><summary>Credentials as signed</summary><pre>{escape(text)}</pre></details>"
        )
    return (
        f"<section><h2>{escape(str(one.path))}</h2>"
        f'<p class="verdict">{escape(one.verdict)}</p><dl>{listed}</dl>{maps}{tree}</section>'
    )


def _draw_map(finding: Finding) -> str:
    """Return a finding's map as a grid of squares, over the outline of a face's window."""
    count = len(finding.map)
    cells = "".join(
        f'<rect x="{x}" y="{y}" width="1" height="1" fill-opacity="{value:.2f}"/>'
        for y, row in enumerate(finding.map)
        for x, value in enumerate(row)
        if value >= _SHOWN
    )
    return (
        f"<figure><svg viewBox='0 0 {count} {count}' width=180 height=180 role=img "
        f"aria-label='where it indicates a forgery'>{cells}"
        f"<rect width='{count}' height='{count}' class=frame /></svg><figcaption class=quiet>"
        f"{escape(finding.detector)}: the places in the window about the face that moved the score "
        "most, if it indicates a forgery; no proof of where one is</figcaption></figure>"
    )


def _split(line: str) -> tuple[str, str]:
    name, _, said = line.partition(": ")
    return (name, said) if said else ("credentials", line)
