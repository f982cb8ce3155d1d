"""Video and audio files: title, description, chapters and embedded subtitles.

Nothing is transcribed. Of several text tracks the default one is read, else the first; the others
are named. Chapters are sections, and each subtitle line is labeled with its start time. All anchors
have the bytes of the whole file.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, ClassVar

from typing_extensions import override

from stillroom.errors import DataError, MissingExtraError
from stillroom.records import Document
from stillroom.text.documents.builder import DocumentBuilder, add_cue, format_timestamp
from stillroom.text.interfaces import Parser, SourceFile

__all__ = ["Clip"]

_TAGS = ("title", "artist", "description", "synopsis", "comment", "lyrics")
_TEXT_TRACKS = {"subrip", "srt", "webvtt", "mov_text", "ass", "ssa", "text"}
_MAX_CUES = 100_000


class Clip(Parser):
    """MP4, QuickTime, Matroska, WebM and audio files, with the extra ``forensics``."""

    suffixes: ClassVar[tuple[str, ...]] = (
        *(".mp4", ".m4v", ".mov", ".mkv", ".webm"),
        *(".m4a", ".mp3", ".flac", ".ogg", ".opus", ".wav", ".mka"),
    )
    media_type: ClassVar[str] = "video/mp4"
    is_risky: ClassVar[bool] = True

    @override
    def parse(self, data: bytes, source: SourceFile) -> Document:
        with MissingExtraError.guard("av", "forensics", "reading films and recordings"):
            import av
        try:
            with av.open(io.BytesIO(data), metadata_errors="replace") as container:
                return _read(container, len(data), source)
        except DataError:
            raise
        except (av.error.FFmpegError, ValueError, EOFError, OSError) as error:
            raise DataError(
                f"the file cannot be read as a film or recording: {error}",
                code="document.unreadable",
                where=source.path,
                expected="an MP4, QuickTime, Matroska, WebM or sound file that is whole",
                next="convert it, or leave the file out",
            ) from error


def _read(container: Any, size: int, source: SourceFile) -> Document:
    assembly, span = DocumentBuilder(source), (0, size)
    tags = {str(key).lower(): str(value).strip() for key, value in container.metadata.items()}
    for name in _TAGS:
        if tags.get(name):
            assembly.gap()
            assembly.add(f"{name.capitalize()}: {tags[name]}", span)
    tracks = [track for track in container.streams if track.type == "subtitle"]
    texts = [track for track in tracks if track.codec_context.name in _TEXT_TRACKS]
    selected = next(filter(_is_default, texts), texts[0] if texts else None)
    chapters = list(_chapters(container))
    cues = 0
    for begins, lines in _cues(container, selected):
        while chapters and chapters[0][0] <= begins:
            _add_chapter(assembly, *chapters.pop(0), span)
        cues += 1
        for line in lines if cues <= _MAX_CUES else ():
            add_cue(assembly, line, begins, span)
    for chapter in chapters:
        _add_chapter(assembly, *chapter, span)
    metadata: dict[str, Any] = {
        "duration_s": round(container.duration / 1e6, 3) if container.duration else None,
        "subtitles": _track_name(selected) if selected is not None else "",
        "cues": min(cues, _MAX_CUES),
        "subtitles_left_out": [_track_name(track) for track in tracks if track is not selected],
    }
    if cues > _MAX_CUES:
        metadata["cues_left_out"] = cues - _MAX_CUES
    return assembly.finish(
        title=tags.get("title", ""),
        metadata=metadata,
        expected="subtitles, chapters or a description in the file; speech is not transcribed",
    )


def _cues(container: Any, track: Any) -> Iterator[tuple[float, list[str]]]:
    """Yield each cue's start in seconds, and its lines."""
    if track is None:
        return
    for packet in container.demux(track):
        if packet.pts is None:
            continue
        begins = max(float(packet.pts * packet.time_base), 0.0)
        shown = [
            bytes(rect.dialogue) for event in packet.decode() for rect in _subtitle_texts(event)
        ]
        text = b"\n".join(shown).decode("utf-8", "replace")
        yield begins, text.replace("\\N", "\n").replace("\\n", "\n").split("\n")


def _subtitle_texts(event: Any) -> list[Any]:
    """Return the text events of a decoded subtitle, given as a set or as one event."""
    parts = list(event) if hasattr(event, "__iter__") else [event]
    return [part for part in parts if getattr(part, "dialogue", None)]


def _chapters(container: Any) -> Iterator[tuple[float, str]]:
    """Yield each chapter's start in seconds, and its title."""
    for number, chapter in enumerate(getattr(container, "chapters", list)(), 1):
        title = " ".join(str(chapter["metadata"].get("title", "")).split())
        yield float(chapter["start"] * chapter["time_base"]), title or f"Chapter {number}"


def _add_chapter(
    assembly: DocumentBuilder, begins: float, title: str, span: tuple[int, int]
) -> None:
    assembly.gap()
    assembly.heading(2, title)
    assembly.add(f"## {title}", span, label=format_timestamp(begins))
    assembly.gap("\n")  # the line that follows adds another


def _is_default(track: Any) -> bool:
    return "default" in str(getattr(track, "disposition", "")).lower()


def _track_name(track: Any) -> str:
    parts = (track.metadata.get("language", ""), track.metadata.get("title", ""))
    return " ".join(filter(None, parts)) or f"track {track.index}"
