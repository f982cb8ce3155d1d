"""Jupyter notebooks: Markdown and code cells with their byte ranges.

Outputs are left out and counted, but searched for marks of origin, as is the metadata.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, ClassVar

from typing_extensions import override

from stillroom.errors import DataError
from stillroom.records import Document
from stillroom.text.documents.builder import DocumentBuilder
from stillroom.text.documents.statements import MarkCollector
from stillroom.text.encoding import ByteMap, decode_text
from stillroom.text.interfaces import Parser, SourceFile

__all__ = ["Ipynb"]

_MAX_NAME = 40  # characters of a language's name
_SPACE = re.compile(r"[\s,]*")
_HEADING = re.compile(r"^(#{1,6})[ \t]+(.+?)[ \t]*#*[ \t]*$", re.MULTILINE)
_FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)


class Ipynb(Parser):
    """Jupyter notebooks, formats 3 and 4."""

    suffixes: ClassVar[tuple[str, ...]] = (".ipynb",)
    media_type: ClassVar[str] = "application/x-ipynb+json"

    @override
    def parse(self, data: bytes, source: SourceFile) -> Document:
        decoded = decode_text(data, source.path)
        where = ByteMap(decoded)
        assembly = DocumentBuilder(source)
        outputs = 0
        language = "python"
        try:
            notebook = json.loads(decoded.text)
            facts = notebook.get("metadata", {})
            named = str(facts.get("language_info", {}).get("name", language))
            language = " ".join(named.replace("`", "").split())[:_MAX_NAME]
            cells = list(_cells(decoded.text))
            if not all(isinstance(cell, dict) for cell, _, _ in cells):
                raise TypeError("a cell is not an object")
            if not all(isinstance(_get_source(cell), str | list) for cell, _, _ in cells):
                raise TypeError("a cell's source is not text")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(
                f"the notebook cannot be read: {error}",
                code="document.unreadable",
                where=source.path,
                expected="a notebook of format 3 or 4",
                next="open and save it in Jupyter, or leave it out",
            ) from error
        marks = MarkCollector()
        marks.add_property("the notebook's metadata", "", facts)
        for number, (cell, start, end) in enumerate(cells, 1):
            cell_outputs = cell.get("outputs")
            outputs += len(cell_outputs) if isinstance(cell_outputs, list) else bool(cell_outputs)
            _add_cell(cell, assembly, (where.at(start), where.at(end)), f"cell {number}", language)
            _read_marks(cell, f"cell {number}", marks)
        title = str(facts.get("title") or facts.get("name") or "")
        metadata = {**decoded.metadata, "outputs_left_out": outputs, **marks.to_metadata()}
        return assembly.finish(title=title, metadata=metadata)


def _read_marks(cell: dict[str, Any], label: str, marks: MarkCollector) -> None:
    """Search a cell's metadata and outputs for marks of origin."""
    metadata, outputs = cell.get("metadata"), cell.get("outputs")
    for tag in _as_list(metadata.get("tags") if isinstance(metadata, dict) else None):
        marks.add_words(f"a tag of {label}", str(tag))
    marks.add_property(f"the metadata of {label}", "", metadata)
    for output in _as_list(outputs):
        if isinstance(output, dict):
            marks.add_property(f"an output of {label}", "", output.get("metadata"))
            data = output.get("data")
            for text in [output.get("text"), *(data.values() if isinstance(data, dict) else ())]:
                marks.add_text(_join_lines(text))


def _as_list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _join_lines(content: object) -> str:
    return "".join(map(str, content)) if isinstance(content, list) else str(content)


def _get_source(cell: dict[str, Any]) -> object:
    source = cell.get("source", cell.get("input"))  # format 3 uses "input" for code
    return "" if source is None else source


def _add_cell(
    cell: dict[str, Any],
    assembly: DocumentBuilder,
    span: tuple[int, int],
    label: str,
    language: str,
) -> None:
    text = _join_lines(_get_source(cell))
    if not text.strip():
        return
    assembly.gap()
    if cell.get("cell_type") == "heading":
        level = cell.get("level")
        text = " ".join(text.split())
        assembly.heading(level if isinstance(level, int) and 1 <= level <= 6 else 1, text)
        assembly.add("# " + text, span, label=label)
        return
    if cell.get("cell_type") == "code":
        text = f"```{language}\n{text}\n```"
        assembly.add(text, span, label=label)
        return
    fences = [match.span() for match in _FENCE.finditer(text)]
    position = 0
    for match in _HEADING.finditer(text):
        if any(start <= match.start() < end for start, end in fences):
            continue
        assembly.add(text[position : match.start()], span, label=label)
        assembly.heading(len(match.group(1)), match.group(2))
        position = match.start()
    assembly.add(text[position:], span, label=label)


def _cells(text: str) -> Iterator[tuple[dict[str, Any], int, int]]:
    """Yield every cell with its range in the notebook's text.

    In format 3 the cells are inside worksheets.
    """
    decoder = json.JSONDecoder()
    yield from _cells_of(text, text.index("{"), decoder)


def _cells_of(
    text: str, opening: int, decoder: json.JSONDecoder
) -> Iterator[tuple[dict[str, Any], int, int]]:
    position = opening + 1
    while True:
        position = _skip(text, position)
        if text[position] == "}":
            return
        key, position = decoder.raw_decode(text, position)
        position = _skip(text, text.index(":", position) + 1)
        if key not in {"cells", "worksheets"} or text[position] != "[":
            position = decoder.raw_decode(text, position)[1]
            continue
        position = _skip(text, position + 1)
        while text[position] != "]":
            cell, end = decoder.raw_decode(text, position)
            if key == "cells":
                yield cell, position, end
            elif isinstance(cell, dict):
                yield from _cells_of(text, position, decoder)
            position = _skip(text, end)
        position += 1


def _skip(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position
