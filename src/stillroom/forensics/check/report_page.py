"""HTML report of a check, with inline images, timelines, and the C2PA manifest tree.

Every text of a file is escaped, and nothing is fetched.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import cv2

from stillroom.evaluate.report import open_templates
from stillroom.forensics.check.check import LIMITS, FileCheckResult
from stillroom.forensics.check.media import ClipAnalysis
from stillroom.forensics.inference.results import UNCERTAIN_RANGE, DetectorFinding, TrackFinding
from stillroom.forensics.labeling.image import select_lookup_label
from stillroom.forensics.media.face_types import Image
from stillroom.jobs import escape_line

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["list_manifest_lines", "render_check_page"]

_MAX_FACES = 12
_MAX_DEPTH = 12
_JPEG_QUALITY = 82
_WIDTH, _LEFT, _ROW = 800, 60, 24  # of plots, in pixels
_ACROSS = _WIDTH - _LEFT - 14
_LOW, _HIGH = 108, 8  # heights of the chances 0 and 1


def render_check_page(
    results: Sequence[FileCheckResult], limits: Sequence[str] = LIMITS, passed_over: str = ""
) -> str:
    """Render the report of some checked files."""
    count = len(results)
    template = _open_templates().get_template("check.html")
    return template.render(
        title=f"What is known of {count} file{'' if count == 1 else 's'}",
        limits=limits,
        passed_over=passed_over,
        files=[_describe_file(result) for result in results],
        most_faces=_MAX_FACES,
    )


@cache
def _open_templates() -> Environment:
    environment = open_templates("stillroom.forensics.check")
    environment.filters |= {
        "data_url": _embed_image,
        "line": escape_line,  # line breaks and direction controls
        "tenth": "{:.1f}".format,
    }
    return environment


def _describe_file(result: FileCheckResult) -> dict[str, Any]:
    """Return what the template shows of a file."""
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
    store = dict(result.credentials.manifests) if result.credentials is not None else {}
    # The report contains images of the lab, too: label them next to their watermark.
    is_marked = result.trace is not None and result.trace.watermark
    return {
        "path": str(result.path),
        "verdict": result.verdict,
        "rows": rows,
        "preview": result.preview,
        "label": select_lookup_label(result.trace.row, result.trace.content)
        if result.trace is not None and is_marked
        else "",
        "maps": [
            finding
            for finding in result.findings
            if isinstance(finding, DetectorFinding) and finding.map
        ],
        "courses": [
            (finding, _lay_course(finding))
            for finding in result.findings
            if isinstance(finding, TrackFinding) and finding.times
        ],
        "scan": result.look.scan if result.look is not None else None,
        "timeline": _lay_timeline(result.look) if result.look is not None else {},
        "store": json.dumps(store, indent=1, ensure_ascii=False) if store else "",
        "lines": list_manifest_lines(store),
    }


def _split(line: str) -> tuple[str, str]:
    name, _, value = line.partition(": ")
    return (name, value) if value else ("credentials", line)


def _embed_image(image: Image) -> str:
    """Return an image as a data URL for an ``img`` element."""
    wrote, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    if not wrote:
        raise ValueError("OpenCV did not encode the image")
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode("ascii")


def _lay_timeline(look: ClipAnalysis) -> dict[str, Any]:
    """Return where a plot has its dots: one row per face, one dot per sampled frame."""
    scan = look.scan
    if scan is None or not scan.tracks:
        return {}
    tracks = scan.tracks[:_MAX_FACES]
    length = max(look.clip.duration, scan.times[-1], 1e-6)
    return {
        "width": _WIDTH,
        "height": _ROW * len(tracks) + 26,
        "row": _ROW,
        "rows": [
            [_LEFT + _ACROSS * sight.time / length for sight in track.sights] for track in tracks
        ],
        "feet": [(_LEFT + _ACROSS * part / 4, length * part / 4) for part in range(5)],
    }


def _lay_course(finding: TrackFinding) -> dict[str, Any]:
    """Return where a plot has its dots, the chances over time, and the inconclusive range."""
    first, last = finding.times[0], finding.times[-1]
    span = max(last - first, 1e-6)
    unsure = [_LOW - (_LOW - _HIGH) * edge for edge in UNCERTAIN_RANGE]
    return {
        "width": _WIDTH,
        "height": 132,
        "left": _LEFT,
        "across": _ACROSS,
        "band": (unsure[1], unsure[0] - unsure[1]),
        "points": [
            (_LEFT + _ACROSS * (time - first) / span, _LOW - (_LOW - _HIGH) * chance)
            for time, chance in zip(finding.times, finding.chances, strict=True)
        ],
        "feet": [(_LEFT + _ACROSS * part / 4, first + span * part / 4) for part in range(5)],
    }


def list_manifest_lines(store: Mapping[str, Any]) -> list[tuple[int, str]]:
    """Return the manifest tree as lines with their depth, the active manifest first."""
    lines: list[tuple[int, str]] = []
    manifests = store.get("manifests", {})
    _walk(manifests, str(store.get("active_manifest", "")), 0, lines, set())
    return lines


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
