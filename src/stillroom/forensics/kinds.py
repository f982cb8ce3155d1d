"""What a file is, by how it begins: a name can be anything, and is asked only where that is open.

A picture that is named ``.dat`` is a picture. The name decides between what one container may hold
(a film or a recording in MP4, a photograph or a raw one in TIFF), and of files whose beginning says
nothing: so a damaged file is still told as what it was meant to be. Four letters are no
beginning: a text may hold them. Where a mark is letters alone, what follows has to be no text, and
formats that are texts are known by their first elements.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stillroom.forensics.clips import CLIPS
from stillroom.forensics.pictures import PICTURES
from stillroom.forensics.waves import SOUNDS

__all__ = ["MIME_TYPES", "Kind", "identify", "kind_by_name", "kind_of"]

Sense = Literal["picture", "clip", "sound", "other"]
"""How it is looked at; what is other may carry credentials, and is not decoded."""

MIME_TYPES = {
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".jpe": "image/jpeg",
    ".jfif": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
    ".dng": "image/x-adobe-dng",
    ".arw": "image/x-sony-arw",
    ".nef": "image/x-nikon-nef",
    ".gif": "image/gif",
    ".heic": "image/heic",
    ".heif": "image/heif",
    ".avif": "image/avif",
    ".jxl": "image/jxl",
    ".svg": "image/svg+xml",
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".mov": "video/quicktime",
    ".avi": "video/avi",
    ".m4a": "audio/mp4",
    ".wav": "audio/wav",
    ".mp3": "audio/mpeg",
    ".flac": "audio/flac",
    ".pdf": "application/pdf",
    ".ttf": "font/ttf",
    ".otf": "font/otf",
}
"""Of files that carry content credentials, by their endings."""

_HEAD = 4096
_BEGINS = (
    (b"\xff\xd8\xff", ".jpg"),
    (b"\x89PNG\r\n\x1a\n", ".png"),
    (b"GIF8", ".gif"),
    (b"RIFF....WEBP", ".webp"),
    (b"RIFF....WAVE", ".wav"),
    (b"RIFF....AVI ", ".avi"),
    (b"(?:II[*+]\\x00|MM\\x00[*+])", ".tif"),
    (b"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\\x00\\x00\\x00", ".bmp"),
    (b"P[4-6]\\s(?:#[^\n]*\n|\\s)*\\d+\\s+\\d+\\s", ".ppm"),
    (b"P[1-3]\\s(?:#[^\n]*\n|\\s)*\\d+\\s+\\d+\\s(?:#[^\n]*(?:\n|\\Z)|[\\d\\s])*\\Z", ".pgm"),
    (b"....ftyp(?:avif|avis)", ".avif"),
    (b"....ftyp(?:hei[cxms]|hev[cxms]|mif1|msf1)", ".heic"),
    (b"....ftypqt  ", ".mov"),
    (b"....ftypM4[AB] ", ".m4a"),
    (b"....ftyp", ".mp4"),
    (b"....(?:moov|mdat|wide)", ".mov"),
    (b"\\x1aE\xdf\xa3", ".mkv"),
    (b"FLV\x01", ".flv"),
    (b"0&\xb2u\x8ef\xcf\x11", ".wmv"),
    (b"ID3[\x02-\x04]", ".mp3"),
    (b"\xff[\xf2\xf3\xfa\xfb]", ".mp3"),
    (b"\xff[\xf0\xf1\xf8\xf9]", ".aac"),
    (b"fLaC", ".flac"),
    (b"OggS", ".ogg"),
    (b"FORM....AIF[FC]", ".aiff"),
    (b"#!AMR", ".amr"),
    (b"(?:\xff\x0a|\\x00\\x00\\x00\x0cJXL )", ".jxl"),
    (b"\\x00\\x00\\x00\x0cjP  ", ".jp2"),
    (b"OTTO\\x00", ".otf"),
    (b"\\x00\x01\\x00\\x00\\x00[\x01-\x60].{6}[A-Za-z0-9/ ]{4}", ".ttf"),
    (b"(?:\xef\xbb\xbf)?\\s*%PDF-\\d\\.\\d\\s*[\r\n].*?\\d\\s\\d+\\sobj\\b", ".pdf"),
    (
        b"(?:\xef\xbb\xbf)?(?:\\s|<\\?(?:(?!\\?>).)*\\?>|<!--(?:(?!-->).)*-->"
        b"|<!DOCTYPE\\s+svg[^>[]*(?:\\[[^]]*\\]\\s*)?>)*<(?:svg:)?svg\\b",
        ".svg",
    ),
)
_MARKS = tuple((re.compile(begins, re.S), ending) for begins, ending in _BEGINS)
_OF_TEXT = frozenset([".pdf", ".pgm", ".svg"])
_TEXT = re.compile(rb"[^\x00-\x06\x0e-\x19\x1c-\x1f\x7f]*\Z")
"""Bytes that a text can hold, of any encoding by bytes: no control characters but of lines."""
_EITHER = {
    ".tif": frozenset([".tiff", ".dng", ".arw", ".nef"]),
    ".jpg": frozenset([".jpeg", ".jpe", ".jfif"]),
    ".ppm": frozenset([".pgm", ".pbm", ".pnm"]),
    ".pgm": frozenset([".ppm", ".pbm", ".pnm"]),
    ".heic": frozenset([".heif", ".avif"]),  # "mif1" begins both
    ".mp4": frozenset([".m4v", ".m4a", ".mov", ".3gp"]),
    ".m4a": frozenset([".mp4"]),
    ".mov": frozenset([".mp4", ".m4v", ".m4a"]),
    ".mkv": frozenset([".webm"]),
    ".wmv": frozenset([".wma"]),
    ".ogg": frozenset([".oga", ".opus"]),
    ".aiff": frozenset([".aif"]),
    ".mp3": frozenset([".aac", ".flac"]),  # tags of MP3 are put before others, too
    ".aac": frozenset([".mp3"]),
}
"""Of what begins like one ending, the others that begin so, too."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a file is: the ending that it should have, how it is looked at, and its media type.

    ``mime`` is empty where it cannot carry credentials; ``note`` says where its name is wrong.
    """

    ending: str
    sense: Sense
    mime: str = ""
    note: str = ""


def identify(path: Path) -> Kind | None:
    """Return what a file is by its first bytes, None where they say nothing.

    Raises:
        OSError: If it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
    suffix = path.suffix.lower()
    for mark, begins in _MARKS:
        met = mark.match(head)
        if met and (suffix == begins or suffix in _EITHER.get(begins, ())):
            return _of_ending(suffix)
        if met and _is_sure(met.group(), begins, head):
            return _misnamed(suffix, begins)
    return None


def _is_sure(mark: bytes, ending: str, head: bytes) -> bool:
    """Return whether a mark cannot be the first words of a text."""
    is_text = mark.isascii() and _TEXT.match(mark) is not None
    return not is_text or ending in _OF_TEXT or _TEXT.match(head) is None


def _misnamed(suffix: str, begins: str) -> Kind:
    found = _of_ending(begins)
    named = f"named {suffix}" if suffix else "named without an ending"
    return Kind(found.ending, found.sense, found.mime, f"{named}, and by its content {begins}")


def kind_by_name(path: Path) -> Kind | None:
    """Return what a file is by its name alone; None if that is of no medium."""
    suffix = path.suffix.lower()
    is_known = suffix in PICTURES | CLIPS | SOUNDS | set(MIME_TYPES)
    return _of_ending(suffix) if is_known else None


def kind_of(path: Path) -> Kind | None:
    """Return what a file is by its first bytes, else by its name; None if it is no medium.

    Raises:
        OSError: If it cannot be read.
    """
    found = identify(path) if path.is_file() else None
    return found or kind_by_name(path)


def _of_ending(ending: str) -> Kind:
    sense: Sense = "other"
    for name, endings in (("picture", PICTURES), ("clip", CLIPS), ("sound", SOUNDS)):
        if ending in endings:
            sense = name  # type: ignore[assignment]  # one of the three
    return Kind(ending, sense, MIME_TYPES.get(ending, ""))
