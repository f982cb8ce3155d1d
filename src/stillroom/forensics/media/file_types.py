"""File type detection by signature, and listing of media files.

A picture that is named ``.dat`` is a picture. The name decides between what one container may hold
(a film or a recording in MP4, a photograph or a raw one in TIFF), and of files whose beginning says
nothing: so a damaged file is still told as what it was meant to be. Four letters are no
beginning: a text may hold them. Where a mark is letters alone, what follows has to be no text, and
formats that are texts are known by their first elements.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stillroom.forensics.media.audio import AUDIO_SUFFIXES
from stillroom.forensics.media.images import IMAGE_SUFFIXES
from stillroom.forensics.media.video import VIDEO_SUFFIXES

__all__ = [
    "MIME_TYPES",
    "FileListing",
    "FileType",
    "collect_files",
    "detect_file_type",
    "guess_file_type",
    "identify_bytes",
    "list_files",
]


Modality = Literal["picture", "clip", "sound", "other"]


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


"""Bytes that a text can hold, of any encoding by bytes: no control characters but of lines."""


_AMBIGUOUS_SUFFIXES = {
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
class FileType:
    """What a file is: the ending that it should have, how it is looked at, and its media type.

    ``mime`` is empty where it cannot carry credentials; ``note`` says where its name is wrong.
    """

    ending: str
    sense: Modality
    mime: str = ""
    note: str = ""


def identify_bytes(path: Path) -> FileType | None:
    """Return what a file is by its first bytes, None where they say nothing.

    Raises:
        OSError: If it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
    suffix = path.suffix.lower()
    for mark, begins in _SIGNATURE_PATTERNS:
        met = mark.match(head)
        if met and (suffix == begins or suffix in _AMBIGUOUS_SUFFIXES.get(begins, ())):
            return _of_ending(suffix)
        if met and _is_sure(met.group(), begins, head):
            return _misnamed(suffix, begins)
    return None


def _is_sure(mark: bytes, ending: str, head: bytes) -> bool:
    """Return whether a mark cannot be the first words of a text."""
    is_text = mark.isascii() and _TEXT.match(mark) is not None
    return not is_text or ending in _TEXT_SUFFIXES or _TEXT.match(head) is None


def _misnamed(suffix: str, begins: str) -> FileType:
    found = _of_ending(begins)
    named = f"named {suffix}" if suffix else "named without an ending"
    return FileType(found.ending, found.sense, found.mime, f"{named}, and by its content {begins}")


def guess_file_type(path: Path) -> FileType | None:
    """Return what a file is by its name alone; None if that is of no medium."""
    suffix = path.suffix.lower()
    is_known = suffix in IMAGE_SUFFIXES | VIDEO_SUFFIXES | AUDIO_SUFFIXES | set(MIME_TYPES)
    return _of_ending(suffix) if is_known else None


def detect_file_type(path: Path) -> FileType | None:
    """Return what a file is by its first bytes, else by its name; None if it is no medium.

    Raises:
        OSError: If it cannot be read.
    """
    found = identify_bytes(path) if path.is_file() else None
    return found or guess_file_type(path)


def _of_ending(ending: str) -> FileType:
    sense: Modality = "other"
    for name, endings in (
        ("picture", IMAGE_SUFFIXES),
        ("clip", VIDEO_SUFFIXES),
        ("sound", AUDIO_SUFFIXES),
    ):
        if ending in endings:
            sense = name  # type: ignore[assignment]  # one of the three
    return FileType(ending, sense, MIME_TYPES.get(ending, ""))


def list_files(path: Path, endings: AbstractSet[str]) -> list[Path]:
    """Return the file that is named, whatever its ending, or those below a folder, sorted.

    Args:
        path: A file or a folder.
        endings: Of the files that count in a folder, in lower case.
    """
    if path.is_file():
        return [path]
    return sorted(
        file for file in path.rglob("*") if file.is_file() and file.suffix.lower() in endings
    )


@dataclass(frozen=True)
class FileListing:
    """The files that are looked at, and those of folders that are passed over as no media."""

    media: tuple[Path, ...]
    passed_over: tuple[Path, ...] = ()

    def line(self) -> str:
        """Return what was passed over as one line, empty if nothing was."""
        if not self.passed_over:
            return ""
        count: dict[str, int] = {}
        for path in self.passed_over:
            ending = path.suffix.lower() or "without an ending"
            count[ending] = count.get(ending, 0) + 1
        endings = ", ".join(f"{ending} {number}" for ending, number in sorted(count.items()))
        many = "1 file was" if len(self.passed_over) == 1 else f"{len(self.passed_over)} files were"
        return f"{many} passed over as no media: {endings}"


def collect_files(paths: Sequence[Path], is_medium: Callable[[Path], bool]) -> FileListing:
    """Return the named files, and of folders every file that is a medium, sorted.

    A link that leads nowhere counts as a file: that it cannot be read is for the check to tell.

    Args:
        paths: Files and folders.
        is_medium: Says of a file in a folder whether it is one.
    """
    media: list[Path] = []
    passed_over: list[Path] = []
    for path in paths:
        if not path.is_dir():
            media.append(path)
            continue
        for file in _files_below(path):
            (media if is_medium(file) else passed_over).append(file)
    return FileListing(tuple(media), tuple(passed_over))


def _files_below(folder: Path) -> Iterator[Path]:
    yield from (file for file in sorted(folder.rglob("*")) if not file.is_dir())
