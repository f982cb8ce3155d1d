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
from stillroom.jobs import plain_line

__all__ = ["draw_check_page"]

_SHOWN = 0.05
_MOST_FACES = 12


def draw_check_page(
    found: Sequence[Checked], limits: Sequence[str] = LIMITS, passed_over: str = ""
) -> str:
    """Return the page of some checked files.

    Args:
        found: What is known of each.
        limits: What no finding says, which stands above.
        passed_over: What of folders was not looked at, in a line.
    """
    aside = f"<p class=quiet>{_plain(passed_over)}</p>" if passed_over else ""
    listed = "".join(f"<li>{escape(line)}</li>" for line in limits)
    sections = "\n".join(_draw(one) for one in found)
    count = len(found)
    return frame_page(
        f"What is known of {count} file{'' if count == 1 else 's'}",
        "<p>Evidence in order: what a file is signed to be, then this lab's watermark, then what "
        "detectors make of faces and sounds. It is never mixed into one number.</p>"
        f"<ul class=quiet>{listed}</ul>{aside}\n{sections}\n",
    )


def _draw(one: Checked) -> str:
    rows = [("SHA-256", one.digest)] if one.digest else []
    if one.credentials is not None:
        rows += [_split(line) for line in one.credentials.lines()]
    rows += [("unsigned", claim.line()) for claim in one.claims]
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
    listed = "".join(f"<dt>{_plain(name)}</dt><dd>{_plain(said)}</dd>" for name, said in rows)
    tree = ""
    if one.credentials is not None and one.credentials.manifests:
        store = dict(one.credentials.manifests)
        text = json.dumps(store, indent=1, ensure_ascii=False)
        full = "\n".join(_plain(line) for line in text.splitlines())
        tree = (
            f"<h3>What it was made from, as signed</h3>{draw_manifest_tree(store)}"
            f"<details><summary>Credentials in full</summary><pre>{full}</pre></details>"
        )
    # A picture of the lab's leaves through this page, too: it says what it is, beside its mark.
    is_marked = one.trace is not None and one.trace.watermark
    label = (
        label_traced(one.trace.row, one.trace.content)
        if one.trace is not None and is_marked
        else ""
    )
    shown = draw_preview(one.preview, label) if one.preview is not None else ""
    look = f'<div class="look">{shown}<dl>{listed}</dl></div>' if rows else ""
    return (
        f"<section><h2>{_plain(str(one.path))}</h2>"
        f'<p class="verdict">{_plain(one.verdict)}</p>{look}{maps}'
        f"{_draw_look(one.look, label)}{tree}"
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


def _draw_look(look: ClipLook | None, label: str) -> str:
    """Return frames over time, when which face is seen, and some pictures of each.

    Args:
        look: What was seen, None of what is no clip.
        label: What is true of the pictures, where the lab marked them.
    """
    if look is None or look.scan is None:
        return ""
    scan = look.scan
    frames = "".join(
        f'<figure><img src="{embed_picture(image)}" alt="the frame at {time:.1f} seconds">'
        f"<figcaption>{time:.1f} s</figcaption></figure>"
        for time, image in scan.strip
    )
    said = f'<p class="quiet">{escape(label)}</p>' if label else ""
    parts = [f'<h3>Frames over time</h3>{said}<div class="strip">{frames}</div>']
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


def _plain(text: str) -> str:
    """Return a text for the page; what turns lines or their direction round is written out."""
    return escape(plain_line(text))


def _split(line: str) -> tuple[str, str]:
    name, _, said = line.partition(": ")
    return (name, said) if said else ("credentials", line)
