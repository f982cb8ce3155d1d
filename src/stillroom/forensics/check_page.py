"""The page of a check: one HTML file with everything inline, to be kept beside the files.

Every text of a file is escaped and nothing is fetched: a file may not speak through its report.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape

from stillroom.forensics.checking import LIMITS, Checked
from stillroom.forensics.findings import Course, Finding
from stillroom.forensics.manifest_tree import draw_manifest_tree
from stillroom.forensics.marking import label_traced
from stillroom.forensics.media_looks import ClipLook
from stillroom.forensics.page import frame_page
from stillroom.forensics.previews import draw_course, draw_preview, draw_timeline, embed_picture

__all__ = ["draw_check_page"]

_SHOWN = 0.05
_MOST_FACES = 12


def draw_check_page(found: Sequence[Checked], limits: Sequence[str] = LIMITS) -> str:
    """Return the page of some checked files, above it what no finding says."""
    listed = "".join(f"<li>{escape(line)}</li>" for line in limits)
    sections = "\n".join(_draw(one) for one in found)
    count = len(found)
    return frame_page(
        f"What is known of {count} file{'' if count == 1 else 's'}",
        "<p>Evidence in order: what a file is signed to be, then this lab's watermark, then what "
        "detectors make of faces and sounds. It is never mixed into one number.</p>"
        f"<ul class=quiet>{listed}</ul>\n{sections}\n",
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
    if one.look is not None:
        rows += [_split(line) for line in one.look.lines()]
    rows += [("limits", line) for line in one.quality]
    rows += [("detector", finding.line()) for finding in one.findings]
    maps = "".join(_draw_map(finding) for finding in one.findings if isinstance(finding, Finding))
    maps += "".join(draw_course(finding) for finding in one.findings if isinstance(finding, Course))
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(said)}</dd>" for name, said in rows)
    tree = ""
    if one.credentials is not None and one.credentials.manifests:
        store = dict(one.credentials.manifests)
        text = json.dumps(store, indent=1, ensure_ascii=False)
        tree = (
            f"<h3>What it was made from, as signed</h3>{draw_manifest_tree(store)}"
            f"<details><summary>Credentials in full</summary><pre>{escape(text)}</pre></details>"
        )
    # A picture of the lab's leaves through this page, too: it says what it is, beside its mark.
    is_marked = one.trace is not None and one.trace.watermark
    label = label_traced(one.trace.row) if one.trace is not None and is_marked else ""
    shown = draw_preview(one.preview, label) if one.preview is not None else ""
    look = f'<div class="look">{shown}<dl>{listed}</dl></div>' if rows else ""
    return (
        f"<section><h2>{escape(str(one.path))}</h2>"
        f'<p class="verdict">{escape(one.verdict)}</p>{look}{maps}{_draw_look(one.look)}{tree}'
        "</section>"
    )


def _draw_map(finding: Finding) -> str:
    """Return a finding's map as a grid of squares, over the outline of a face's window."""
    count = len(finding.map)
    if not count:
        return ""
    cells = "".join(
        f'<rect x="{x}" y="{y}" width="1" height="1" fill-opacity="{value:.2f}"/>'
        for y, row in enumerate(finding.map)
        for x, value in enumerate(row)
        if value >= _SHOWN
    )
    return (
        f"<figure class=map><svg viewBox='0 0 {count} {count}' role=img "
        f"aria-label='where it indicates a forgery'>{cells}"
        f"<rect width='{count}' height='{count}' class=frame /></svg><figcaption class=quiet>"
        f"{escape(finding.detector)}: the places in the window about the face that moved the score "
        "most, if it indicates a forgery; no proof of where one is</figcaption></figure>"
    )


def _draw_look(look: ClipLook | None) -> str:
    """Return frames over time, when which face is seen, and some pictures of each."""
    if look is None or look.scan is None:
        return ""
    scan = look.scan
    frames = "".join(
        f'<figure><img src="{embed_picture(image)}" alt="the frame at {time:.1f} seconds">'
        f"<figcaption>{time:.1f} s</figcaption></figure>"
        for time, image in scan.strip
    )
    parts = [f'<h3>Frames over time</h3><div class="strip">{frames}</div>']
    if scan.tracks:
        parts.append(f"<h3>Faces over time</h3>{draw_timeline(look)}")
    for number, track in enumerate(scan.tracks[:_MOST_FACES], start=1):
        crops = "".join(
            f'<img src="{embed_picture(crop)}" alt="face {number}">' for crop in track.crops
        )
        parts.append(
            f'<p class="quiet">face {number}, {escape(track.line())}</p>'
            f'<div class="faces">{crops}</div>'
        )
    if len(scan.tracks) > _MOST_FACES:
        parts.append(f'<p class="quiet">and {len(scan.tracks) - _MOST_FACES} more faces</p>')
    return "".join(parts)


def _split(line: str) -> tuple[str, str]:
    name, _, said = line.partition(": ")
    return (name, said) if said else ("credentials", line)
