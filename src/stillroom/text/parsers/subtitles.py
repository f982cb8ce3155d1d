"""SubRip and WebVTT subtitles: the spoken text without numbers and times.

Each cue is labeled with its start time, so that a citation has a timestamp. Cues whose times are
broken are left out and counted.
"""

from __future__ import annotations

import re
from typing import ClassVar

from typing_extensions import override

from stillroom.records import Document
from stillroom.text.documents.builder import DocumentBuilder, add_cue
from stillroom.text.encoding import ByteMap, decode_text
from stillroom.text.interfaces import Parser, SourceFile

__all__ = ["Subtitles"]

_TIME = r"(?:(\d{1,3}):)?(\d{1,2}):(\d{2})[,.](\d{1,3})"
_CUE = re.compile(
    rf"^[ \t]*{_TIME}[ \t]*-->[ \t]*{_TIME}[^\n]*(?:\n|\Z)((?:(?![ \t]*\r?\n)[^\n]*(?:\n|\Z))*)",
    re.MULTILINE,
)


class Subtitles(Parser):
    """SubRip and WebVTT files; a file without a cue is read as plain text."""

    suffixes: ClassVar[tuple[str, ...]] = (".srt", ".vtt")
    media_type: ClassVar[str] = "text/vtt"

    @override
    def parse(self, data: bytes, source: SourceFile) -> Document:
        decoded = decode_text(data, source.path)
        where = ByteMap(decoded)
        assembly = DocumentBuilder(source)
        cues, left_out = 0, decoded.text.count("-->")
        for cue in _CUE.finditer(decoded.text):
            hours, minutes, seconds = (int(part or 0) for part in cue.group(1, 2, 3))
            begins = 3600 * hours + 60 * minutes + seconds
            start = cue.start(9)
            lines = cue[9].rstrip().split("\n")
            cues += 1
            left_out -= cue[0].count("-->")
            for line in lines:
                stop = start + len(line)
                span = (where.at(start), where.at(stop))
                add_cue(assembly, line, begins, span, is_exact=where.is_exact(start, stop))
                start = stop + 1
        metadata = {**decoded.metadata, "cues": cues}
        if cues and left_out:
            metadata["cues_left_out"] = left_out
        if not cues:
            whole_span = (where.at(0), where.at(len(decoded.text)))
            exact = where.is_exact(0, len(decoded.text))
            assembly.add(decoded.text, whole_span, is_exact=exact)
        return assembly.finish(metadata=metadata)
