"""HTML report of a check, with inline images, timelines, and the C2PA manifest tree.

Every text of a file is escaped, and nothing is fetched.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import cv2

from stillroom.forensics.check.check import LIMITS, FileCheckResult
from stillroom.forensics.check.media import ClipAnalysis, ImagePreview
from stillroom.forensics.inference.results import UNCERTAIN_RANGE, DetectorFinding, TrackFinding
from stillroom.forensics.labeling.image import select_lookup_label
from stillroom.forensics.media.face import Image
from stillroom.jobs import escape_line

__all__ = [
    "embed_image",
    "list_manifest_lines",
    "render_check_page",
    "render_manifest_tree",
    "render_page",
    "render_preview",
    "render_timeline",
    "render_track",
]

_MIN_CELL = 0.05
_MAX_FACES = 12


def render_check_page(
    results: Sequence[FileCheckResult], limits: Sequence[str] = LIMITS, passed_over: str = ""
) -> str:
    """Render the report of some checked files."""
    aside = f"<p class=quiet>{_escape(passed_over)}</p>" if passed_over else ""
    listed = "".join(f"<li>{escape(line)}</li>" for line in limits)
    sections = "\n".join(_render_file(result) for result in results)
    count = len(results)
    return render_page(
        f"What is known of {count} file{'' if count == 1 else 's'}",
        "<p>Evidence in order: what a file is signed to be, then this lab's watermark, then what "
        "detectors make of faces and sounds. It is never mixed into one number.</p>"
        f"<ul class=quiet>{listed}</ul>{aside}\n{sections}\n",
    )


def _render_file(result: FileCheckResult) -> str:
    rows = [("SHA-256", result.digest)] if result.digest else []
    if result.credentials is not None:
        rows += [_split(line) for line in result.credentials.lines()]
    rows += [("unsigned", claim.line()) for claim in result.claims]
    if result.trace is not None:
        rows.append(("watermark", result.trace.line()))
    if result.faces is not None:
        sizes = ", ".join(f"{box[2]} x {box[3]} pixels" for box in result.faces)
        rows.append(("faces", f"{len(result.faces)}" + (f" ({sizes})" if sizes else "")))
    if result.look is not None:
        rows += [_split(line) for line in result.look.lines()]
    rows += [("limits", line) for line in result.quality]
    rows += [("detector", finding.line()) for finding in result.findings]
    maps = "".join(
        _render_heatmap(finding)
        for finding in result.findings
        if isinstance(finding, DetectorFinding)
    )
    maps += "".join(
        render_track(finding) for finding in result.findings if isinstance(finding, TrackFinding)
    )
    listed = "".join(f"<dt>{_escape(name)}</dt><dd>{_escape(value)}</dd>" for name, value in rows)
    tree = ""
    if result.credentials is not None and result.credentials.manifests:
        store = dict(result.credentials.manifests)
        text = json.dumps(store, indent=1, ensure_ascii=False)
        full = "\n".join(_escape(line) for line in text.splitlines())
        tree = (
            f"<h3>What it was made from, as signed</h3>{render_manifest_tree(store)}"
            f"<details><summary>Credentials in full</summary><pre>{full}</pre></details>"
        )
    # The report contains images of the lab, too: label them next to their watermark.
    is_marked = result.trace is not None and result.trace.watermark
    label = (
        select_lookup_label(result.trace.row, result.trace.content)
        if result.trace is not None and is_marked
        else ""
    )
    shown = render_preview(result.preview, label) if result.preview is not None else ""
    look = f'<div class="look">{shown}<dl>{listed}</dl></div>' if rows else ""
    return (
        f"<section><h2>{_escape(str(result.path))}</h2>"
        f'<p class="verdict">{_escape(result.verdict)}</p>{look}{maps}'
        f"{_render_media(result.look, label)}{tree}"
        "</section>"
    )


def _render_heatmap(finding: DetectorFinding) -> str:
    """Render a finding's heatmap as a grid of squares over the face window."""
    count = len(finding.map)
    if not count:
        return ""
    cells = "".join(
        f'<rect x="{x}" y="{y}" width="1" height="1" fill-opacity="{value:.2f}"/>'
        for y, row in enumerate(finding.map)
        for x, value in enumerate(row)
        if value >= _MIN_CELL
    )
    return (
        f"<figure class=map><svg viewBox='0 0 {count} {count}' role=img "
        f"aria-label='where it indicates a forgery'>{cells}"
        f"<rect width='{count}' height='{count}' class=frame /></svg><figcaption class=quiet>"
        f"{escape(finding.detector)}: the places in the window about the face that moved the score "
        "most, if it indicates a forgery; no proof of where one is</figcaption></figure>"
    )


def _render_media(look: ClipAnalysis | None, label: str) -> str:
    """Render frames over time, face tracks over time, and some crops of each face."""
    if look is None or look.scan is None:
        return ""
    scan = look.scan
    frames = "".join(
        f'<figure><img src="{embed_image(image)}" alt="the frame at {time:.1f} seconds">'
        f"<figcaption>{time:.1f} s</figcaption></figure>"
        for time, image in scan.strip
    )
    label_html = f'<p class="quiet">{escape(label)}</p>' if label else ""
    parts = [f'<h3>Frames over time</h3>{label_html}<div class="strip">{frames}</div>']
    if scan.tracks:
        parts.append(f"<h3>Faces over time</h3>{render_timeline(look)}")
    for number, track in enumerate(scan.tracks[:_MAX_FACES], start=1):
        crops = "".join(
            f'<img src="{embed_image(crop)}" alt="face {number}">' for crop in track.crops
        )
        parts.append(
            f'<p class="quiet">face {number}, {escape(track.line())}</p>'
            f'<div class="faces">{crops}</div>'
        )
    if len(scan.tracks) > _MAX_FACES:
        parts.append(f'<p class="quiet">and {len(scan.tracks) - _MAX_FACES} more faces</p>')
    return "".join(parts)


def _escape(text: str) -> str:
    """Escape a text for the page, including line breaks and direction controls."""
    return escape(escape_line(text))


def _split(line: str) -> tuple[str, str]:
    name, _, value = line.partition(": ")
    return (name, value) if value else ("credentials", line)


_CONTENT_SECURITY_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

_STYLE = Path(__file__).with_suffix(".css")


def render_page(title: str, body: str) -> str:
    """Render a complete page; ``title`` is escaped here, ``body`` is HTML."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_CONTENT_SECURITY_POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE.read_text('utf-8')}</style></head>"
        f"<body><main><h1>{escape(title)}</h1>{body}</main></body></html>\n"
    )


_JPEG_QUALITY = 82
_DISPLAY_WIDTH = 320
_ROOM, _NAMES, _ROW, _MOST_ROWS = 800, 60, 24, 12


def embed_image(image: Image) -> str:
    """Return an image as a data URL for an ``img`` element."""
    wrote, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    if not wrote:
        raise ValueError("OpenCV did not encode the image")
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode("ascii")


def render_preview(preview: ImagePreview, caption: str = "") -> str:
    """Render an image with a frame around each face, as inline SVG; ``caption`` below it."""
    height, width = preview.image.shape[:2]
    frames = "".join(
        f'<rect class="box" x="{x}" y="{y}" width="{w}" height="{h}" rx="4"/>'
        for x, y, w, h in preview.boxes
    )
    count = len(preview.boxes)
    return (
        f'<figure class="shown"><svg viewBox="0 0 {width} {height}" '
        f'style="width:{min(width, _DISPLAY_WIDTH)}px;max-width:100%" '
        f'role="img" aria-label="the file, with {count} faces framed">'
        f'<image href="{embed_image(preview.image)}" width="{width}" height="{height}"/>'
        f"{frames}</svg>{f'<figcaption>{escape(caption)}</figcaption>' if caption else ''}</figure>"
    )


def render_timeline(look: ClipAnalysis) -> str:
    """Render face tracks as inline SVG: one row per face, one dot per sampled frame."""
    scan = look.scan
    if scan is None or not scan.tracks:
        return ""
    tracks = scan.tracks[:_MOST_ROWS]
    length = max(look.clip.duration, scan.times[-1], 1e-6)
    height = _ROW * len(tracks) + 26

    def x(time: float) -> float:
        return _NAMES + (_ROOM - _NAMES - 14) * time / length

    rows = []
    for index, track in enumerate(tracks):
        y = _ROW * index + 14
        first, last = track.sights[0].time, track.sights[-1].time
        dots = "".join(
            f'<circle class="dot" cx="{x(sight.time):.1f}" cy="{y}" r="3.5"/>'
            for sight in track.sights
        )
        rows.append(
            f'<text class="tick" x="0" y="{y + 4}">face {index + 1}</text>'
            f'<line class="line" x1="{x(first):.1f}" x2="{x(last):.1f}" y1="{y}" y2="{y}"/>{dots}'
        )
    feet = "".join(
        f'<text class="tick" x="{x(length * part / 4):.1f}" y="{height - 4}" '
        f'text-anchor="middle">{length * part / 4:.1f} s</text>'
        for part in range(5)
    )
    return (
        f'<svg viewBox="0 0 {_ROOM} {height}" role="img" aria-label="when each face is seen">'
        f"{''.join(rows)}{feet}</svg>"
    )


def render_track(finding: TrackFinding) -> str:
    """Render probabilities over time as inline SVG, with the inconclusive range shaded."""
    if not finding.times:
        return ""
    first, last = finding.times[0], finding.times[-1]
    span = max(last - first, 1e-6)
    high, low, height = 8, 108, 132

    def place(time: float, chance: float) -> str:
        across = _NAMES + (_ROOM - _NAMES - 14) * (time - first) / span
        return f"{across:.1f},{low - (low - high) * chance:.1f}"

    points = [place(*pair) for pair in zip(finding.times, finding.chances, strict=True)]
    dots = "".join(
        f'<circle class="dot" cx="{x}" cy="{y}" r="3.5"/>'
        for x, y in (point.split(",") for point in points)
    )
    unsure = [low - (low - high) * edge for edge in UNCERTAIN_RANGE]
    feet = "".join(
        f'<text class="tick" x="{_NAMES + (_ROOM - _NAMES - 14) * part / 4:.1f}" y="{height - 6}" '
        f'text-anchor="middle">{first + span * part / 4:.1f} s</text>'
        for part in range(5)
    )
    return (
        f"<figure class=course><svg viewBox='0 0 {_ROOM} {height}' role=img "
        f"aria-label='chance over time, {finding.subject}'>"
        f'<rect class="band" x="{_NAMES}" y="{unsure[1]:.1f}" width="{_ROOM - _NAMES - 14}" '
        f'height="{unsure[0] - unsure[1]:.1f}"/>'
        f'<text class="tick" x="0" y="{high + 4}">forged</text>'
        f'<text class="tick" x="0" y="{low + 4}">not</text>'
        f'<polyline class="line" points="{" ".join(points)}"/>{dots}{feet}</svg>'
        f"<figcaption class=quiet>{escape(finding.detector)}, {finding.subject}: the chance of "
        "each score by itself; within the band it says nothing either way</figcaption></figure>"
    )


_MAX_DEPTH = 12


def list_manifest_lines(store: Mapping[str, Any]) -> list[tuple[int, str]]:
    """Return the manifest tree as lines with their depth, the active manifest first."""
    lines: list[tuple[int, str]] = []
    manifests = store.get("manifests", {})
    _walk(manifests, str(store.get("active_manifest", "")), 0, lines, set())
    return lines


def render_manifest_tree(store: Mapping[str, Any]) -> str:
    """Render the manifest tree as nested HTML lists; every text of the file is escaped."""
    parts, depth = [], -1
    for level, line in list_manifest_lines(store):
        while depth < level:
            parts.append('<ul class="tree">')
            depth += 1
        while depth > level:
            parts.append("</ul>")
            depth -= 1
        parts.append(f"<li>{escape(escape_line(line))}</li>")
    return "".join(parts) + "</ul>" * (depth + 1)


def _walk(
    manifests: Mapping[str, Any],
    label: str,
    depth: int,
    lines: list[tuple[int, str]],
    seen: set[str],
) -> None:
    manifest = manifests.get(label)
    if not isinstance(manifest, Mapping) or label in seen or depth > _MAX_DEPTH:
        return
    seen.add(label)
    info = manifest.get("signature_info") or {}
    signer = info.get("issuer") or "nobody named"
    time = f", {info['time']}" if info.get("time") else ", no timestamp"
    lines.append((depth, f"{manifest.get('title') or 'untitled'}, signed by {signer}{time}"))
    for assertion in manifest.get("assertions", []):
        lines += [(depth + 1, text) for text in _describe_manifest(assertion)]
    for part in manifest.get("ingredients", []):
        text = f"{part.get('relationship', 'ingredient')}: {part.get('title') or 'untitled'}"
        inner = str(part.get("active_manifest", ""))
        lines.append((depth + 1, text if inner in manifests else f"{text}, without credentials"))
        _walk(manifests, inner, depth + 2, lines, seen)


def _describe_manifest(assertion: Mapping[str, Any]) -> list[str]:
    label, data = str(assertion.get("label", "")), assertion.get("data")
    if label.startswith("c2pa.actions") and isinstance(data, Mapping):
        return [_describe_action(action) for action in data.get("actions", [])]
    if label == "c2pa.soft-binding":
        return ["bound to a watermark"]
    if label.startswith("c2pa.hash"):
        return []
    if isinstance(data, Mapping):
        text = ", ".join(
            f"{key} {value}"
            for key, value in data.items()
            if isinstance(value, str | int | float) and not str(key).startswith("@")
        )
        return [f"{label}: {text[:300]}" if text else label]
    return [label]


def _describe_action(action: Mapping[str, Any]) -> str:
    kind = str(action.get("digitalSourceType", "")).rsplit("/", 1)[-1]
    parts = [str(action.get("action", "action")), kind, str(action.get("description") or "")]
    return ", ".join(part for part in parts if part)
