"""File type detection by signature, and listing of media files.

The content decides, not the name. The suffix decides only between the types that one container may
hold (video or audio in MP4, photograph or raw in TIFF), and for files whose first bytes identify
nothing, so that a damaged file keeps its intended type. A signature of letters only could be the
start of a text: then the bytes after it must not be text. Formats that are text are identified by
their first elements.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stillroom.forensics.media.audio import AUDIO_SUFFIXES
from stillroom.forensics.media.images import IMAGE_SUFFIXES
from stillroom.forensics.media.video import VIDEO_SUFFIXES
from stillroom.objects.disk import require_file

__all__ = [
    "MIME_TYPES",
    "FileListing",
    "FileType",
    "collect_files",
    "detect_file_type",
    "guess_file_type",
    "identify_bytes",
    "list_files",
    "read_folder_label",
]

Modality = Literal["picture", "clip", "sound", "other"]
"""Processing path; ``other`` may carry credentials, and is not decoded."""

_FOLDER_LABEL = re.compile(r"(?:[01]_)?(real|fake)", re.IGNORECASE)

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
"""Media types of files that carry content credentials, by suffix."""

_HEAD = 4096

_SIGNATURES = (
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

_SIGNATURE_PATTERNS = tuple((re.compile(begins, re.S), ending) for begins, ending in _SIGNATURES)
_TEXT_SUFFIXES = frozenset([".pdf", ".pgm", ".svg"])
_TEXT = re.compile(rb"[^\x00-\x06\x0e-\x19\x1c-\x1f\x7f]*\Z")
"""Bytes of a text in any byte encoding: no control characters except line breaks and tabs."""

_AMBIGUOUS_SUFFIXES = {
    ".tif": frozenset([".tiff", ".dng", ".arw", ".nef"]),
    ".jpg": frozenset([".jpeg", ".jpe", ".jfif"]),
    ".ppm": frozenset([".pgm", ".pbm", ".pnm"]),
    ".pgm": frozenset([".ppm", ".pbm", ".pnm"]),
    ".heic": frozenset([".heif", ".avif"]),  # both start with "mif1"
    ".mp4": frozenset([".m4v", ".m4a", ".mov", ".3gp"]),
    ".m4a": frozenset([".mp4"]),
    ".mov": frozenset([".mp4", ".m4v", ".m4a"]),
    ".mkv": frozenset([".webm"]),
    ".wmv": frozenset([".wma"]),
    ".ogg": frozenset([".oga", ".opus"]),
    ".aiff": frozenset([".aif"]),
    ".mp3": frozenset([".aac", ".flac"]),  # MP3 tags are put before other formats, too
    ".aac": frozenset([".mp3"]),
}
"""Other suffixes that share the signature of a suffix."""


@dataclass(frozen=True, slots=True)
class FileType:
    """Type of a file: its proper suffix, its modality, and its media type.

    ``mime`` is empty where it cannot carry credentials; ``note`` describes a wrong suffix.
    """

    ending: str
    sense: Modality
    mime: str = ""
    note: str = ""


def identify_bytes(path: Path) -> FileType | None:
    """Identify a file by its first bytes; None if they identify nothing.

    Raises:
        OSError: If it cannot be read.
    """
    with require_file(path).open("rb") as file:
        head = file.read(_HEAD)
    suffix = path.suffix.lower()
    for mark, begins in _SIGNATURE_PATTERNS:
        met = mark.match(head)
        if met and (suffix == begins or suffix in _AMBIGUOUS_SUFFIXES.get(begins, ())):
            return _of_ending(suffix)
        if met and _is_unambiguous(met.group(), begins, head):
            return _misnamed(suffix, begins)
    return None


def _is_unambiguous(mark: bytes, ending: str, head: bytes) -> bool:
    """Return whether a signature cannot be the start of a text."""
    is_text = mark.isascii() and _TEXT.match(mark) is not None
    return not is_text or ending in _TEXT_SUFFIXES or _TEXT.match(head) is None


def _misnamed(suffix: str, begins: str) -> FileType:
    file_type = _of_ending(begins)
    named = f"named {suffix}" if suffix else "named without an ending"
    return FileType(
        file_type.ending, file_type.sense, file_type.mime, f"{named}, and by its content {begins}"
    )


def guess_file_type(path: Path) -> FileType | None:
    """Return the type of a file by its suffix; None if it is not media."""
    suffix = path.suffix.lower()
    is_known = suffix in IMAGE_SUFFIXES | VIDEO_SUFFIXES | AUDIO_SUFFIXES | set(MIME_TYPES)
    return _of_ending(suffix) if is_known else None


def detect_file_type(path: Path) -> FileType | None:
    """Return the type of a file by its first bytes, else by its suffix; None if it is not media.

    Raises:
        OSError: If it cannot be read.
    """
    file_type = identify_bytes(path) if path.is_file() else None
    return file_type or guess_file_type(path)


def _of_ending(ending: str) -> FileType:
    sense: Modality = "other"
    for name, endings in (
        ("picture", IMAGE_SUFFIXES),
        ("clip", VIDEO_SUFFIXES),
        ("sound", AUDIO_SUFFIXES),
    ):
        if ending in endings:
            sense = name  # type: ignore[assignment]  # one of the three modalities
    return FileType(ending, sense, MIME_TYPES.get(ending, ""))


def list_files(path: Path, endings: AbstractSet[str]) -> list[Path]:
    """Return a named file, whatever its suffix, or the matching files below a folder, sorted."""
    if path.is_file():
        return [path]
    return sorted(
        file for file in path.rglob("*") if file.is_file() and file.suffix.lower() in endings
    )


def read_folder_label(name: str) -> str:
    """Return ``real`` or ``fake`` if a folder is named so, also ``0_real``, ``1_fake``; else ''."""
    found = _FOLDER_LABEL.fullmatch(name)
    return found[1].lower() if found else ""


@dataclass(frozen=True)
class FileListing:
    """Media files, and files of folders that were skipped as not media."""

    media: tuple[Path, ...]
    passed_over: tuple[Path, ...] = ()

    def line(self) -> str:
        """Format the skipped files as one line, empty if there are none."""
        if not self.passed_over:
            return ""
        count: dict[str, int] = {}
        for path in self.passed_over:
            ending = path.suffix.lower() or "without an ending"
            count[ending] = count.get(ending, 0) + 1
        endings = ", ".join(f"{ending} {number}" for ending, number in sorted(count.items()))
        many = "1 file was" if len(self.passed_over) == 1 else f"{len(self.passed_over)} files were"
        return f"{many} skipped as not media: {endings}"


def collect_files(paths: Sequence[Path], is_medium: Callable[[Path], bool]) -> FileListing:
    """Return the named files, and every media file below folders, sorted.

    A broken link counts as a file, so that the check reports it as unreadable.
    """
    media: list[Path] = []
    passed_over: list[Path] = []
    for path in paths:
        if not path.is_dir():
            media.append(path)
            continue
        for file in sorted(path.rglob("*")):
            if not file.is_dir():
                (media if is_medium(file) else passed_over).append(file)
    return FileListing(tuple(media), tuple(passed_over))
