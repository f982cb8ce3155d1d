"""Small pictures for a page, as data inside it; the originals are never copied."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

import cv2
import numpy as np

from stillroom.forensics.face import Image
from stillroom.forensics.findings import UNSURE, Course
from stillroom.forensics.media_looks import ClipLook

__all__ = [
    "Preview",
    "draw_course",
    "draw_preview",
    "draw_timeline",
    "embed_picture",
    "make_preview",
]

_WIDTH = 420
_QUALITY = 82
_SHOWN = 320
_ROOM, _NAMES, _ROW, _MOST_ROWS = 800, 60, 24, 12

Box = tuple[int, int, int, int]


class Preview:
    """A reduced picture and the boxes of its faces in its own pixels."""

    def __init__(self, image: Image, boxes: Sequence[Box]) -> None:
        """Keep a picture, RGB (H, W, 3), and boxes (x, y, width, height)."""
        self.image, self.boxes = image, tuple(boxes)


def make_preview(image: Image, boxes: Sequence[Box]) -> Preview:
    """Return a reduced picture with its faces' boxes reduced alike."""
    share = min(_WIDTH / image.shape[1], _WIDTH / image.shape[0], 1.0)
    size = max(round(image.shape[1] * share), 1), max(round(image.shape[0] * share), 1)
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    placed = [
        (round(x * share), round(y * share), round(width * share), round(height * share))
        for x, y, width, height in boxes
    ]
    return Preview(np.asarray(small, dtype=np.uint8), placed)


def embed_picture(image: Image) -> str:
    """Return a picture as a data address for an ``img`` element."""
    wrote, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    if not wrote:
        raise ValueError("OpenCV did not encode the image")
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode("ascii")


def draw_preview(preview: Preview, caption: str = "") -> str:
    """Return the picture with a frame about each face, as inline SVG; ``caption`` below it."""
    height, width = preview.image.shape[:2]
    frames = "".join(
        f'<rect class="box" x="{x}" y="{y}" width="{w}" height="{h}" rx="4"/>'
        for x, y, w, h in preview.boxes
    )
    count = len(preview.boxes)
    return (
        f'<figure class="shown"><svg viewBox="0 0 {width} {height}" '
        f'style="width:{min(width, _SHOWN)}px;max-width:100%" '
        f'role="img" aria-label="the file, with {count} faces framed">'
        f'<image href="{embed_picture(preview.image)}" width="{width}" height="{height}"/>'
        f"{frames}</svg>{f'<figcaption>{escape(caption)}</figcaption>' if caption else ''}</figure>"
    )


def draw_timeline(look: ClipLook) -> str:
    """Return when which face is seen, as inline SVG: a row a face, a dot a frame looked at."""
    scan = look.scan
    if scan is None or not scan.tracks:
        return ""
    tracks = scan.tracks[:_MOST_ROWS]
    length = max(look.clip.duration, scan.times[-1], 1e-6)
    height = _ROW * len(tracks) + 26

    def x(time: float) -> float:
        return _NAMES + (_ROOM - _NAMES - 14) * time / length

    rows = []
    for at, track in enumerate(tracks):
        y = _ROW * at + 14
        first, last = track.sights[0].time, track.sights[-1].time
        dots = "".join(
            f'<circle class="dot" cx="{x(sight.time):.1f}" cy="{y}" r="3.5"/>'
            for sight in track.sights
        )
        rows.append(
            f'<text class="tick" x="0" y="{y + 4}">face {at + 1}</text>'
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


def draw_course(course: Course) -> str:
    """Return a face's chances over time as inline SVG, the span that says nothing shaded."""
    if not course.times:
        return ""
    first, last = course.times[0], course.times[-1]
    span = max(last - first, 1e-6)
    high, low, height = 8, 108, 132

    def place(time: float, chance: float) -> str:
        across = _NAMES + (_ROOM - _NAMES - 14) * (time - first) / span
        return f"{across:.1f},{low - (low - high) * chance:.1f}"

    points = [place(*pair) for pair in zip(course.times, course.chances, strict=True)]
    dots = "".join(
        f'<circle class="dot" cx="{x}" cy="{y}" r="3.5"/>'
        for x, y in (point.split(",") for point in points)
    )
    unsure = [low - (low - high) * edge for edge in UNSURE]
    feet = "".join(
        f'<text class="tick" x="{_NAMES + (_ROOM - _NAMES - 14) * part / 4:.1f}" y="{height - 6}" '
        f'text-anchor="middle">{first + span * part / 4:.1f} s</text>'
        for part in range(5)
    )
    return (
        f"<figure class=course><svg viewBox='0 0 {_ROOM} {height}' role=img "
        f"aria-label='chance over time, {course.subject}'>"
        f'<rect class="band" x="{_NAMES}" y="{unsure[1]:.1f}" width="{_ROOM - _NAMES - 14}" '
        f'height="{unsure[0] - unsure[1]:.1f}"/>'
        f'<text class="tick" x="0" y="{high + 4}">forged</text>'
        f'<text class="tick" x="0" y="{low + 4}">not</text>'
        f'<polyline class="line" points="{" ".join(points)}"/>{dots}{feet}</svg>'
        f"<figcaption class=quiet>{escape(course.detector)}, {course.subject}: the chance of "
        "each score by itself; within the band it says nothing either way</figcaption></figure>"
    )
