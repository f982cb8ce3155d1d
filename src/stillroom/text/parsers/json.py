r"""JSON and JSON Lines files as text, with ``\uXXXX`` decoded.

All other bytes are kept. A file that is not valid JSON is read as text too; the metadata has its
first error.
"""

from __future__ import annotations

import json
import re
from typing import ClassVar

from typing_extensions import override

from stillroom.provenance.digests import load_json
from stillroom.records import Document
from stillroom.text.documents.builder import DocumentBuilder
from stillroom.text.encoding import ByteMap, DecodedText, decode_text
from stillroom.text.interfaces import Parser, SourceFile

__all__ = ["Json"]

_ESCAPES = re.compile(r"\\\\|((?:\\u[0-9a-fA-F]{4})+)")
_LINE_END = re.compile(r"\r\n|\r|\n")
_CHECKED_CHARACTERS = 5_000_000


class Json(Parser):
    """JSON, JSON lines and GeoJSON."""

    suffixes: ClassVar[tuple[str, ...]] = (".json", ".jsonl", ".ndjson", ".geojson")
    media_type: ClassVar[str] = "application/json"

    @override
    def parse(self, data: bytes, source: SourceFile) -> Document:
        decoded = decode_text(data, source.path)
        is_lines = source.path.lower().endswith((".jsonl", ".ndjson"))
        metadata = {**decoded.metadata, "is_table": is_lines}
        problem = _find_problem(decoded.text, is_lines=is_lines)
        if problem:
            metadata["json_error"] = problem
        assembly = DocumentBuilder(source)
        _add(decoded, assembly)
        return assembly.finish(metadata=metadata)


def _add(decoded: DecodedText, assembly: DocumentBuilder) -> None:
    """Add the text, with each run of escapes decoded."""
    text, where, position = decoded.text, ByteMap(decoded), 0
    for match in _ESCAPES.finditer(text):
        readable = _unescape(match.group(1) or "")
        if not readable:
            continue
        _add_plain(text, position, match.start(), where, assembly)
        assembly.add(readable, (where.at(match.start()), where.at(match.end())))
        position = match.end()
    _add_plain(text, position, len(text), where, assembly)


def _add_plain(text: str, start: int, end: int, where: ByteMap, assembly: DocumentBuilder) -> None:
    for piece in range(start, end, 4096):
        stop = min(piece + 4096, end)
        span = (where.at(piece), where.at(stop))
        assembly.add(text[piece:stop], span, is_exact=where.is_exact(piece, stop))


def _unescape(run: str) -> str:
    r"""Decode ``\uXXXX...``; return an empty string where the result would not be valid JSON."""
    if not run:
        return ""
    try:
        readable = str(load_json(f'"{run}"'))
    except ValueError:
        return ""
    is_safe = all(
        ord(character) >= 0x80 and not 0xD800 <= ord(character) < 0xE000 for character in readable
    )
    return readable if is_safe else ""


def _find_problem(text: str, *, is_lines: bool) -> str:
    if len(text) > _CHECKED_CHARACTERS:
        return ""
    # Not splitlines: JSON may hold the other line ends of Unicode within its strings.
    for number, part in enumerate(_LINE_END.split(text) if is_lines else [text], 1):
        if not part.strip():
            continue
        try:
            json.loads(part)
        except RecursionError:
            return "nested too deeply to check"
        except ValueError as error:
            return f"line {number}: {error}" if is_lines else str(error)
    return ""
