"""Word documents: paragraphs, headings, lists, tables, equations, charts, notes and comments.

Anchors have the bytes of the archive member with the text. Tracked deletions and hidden text are
left out and counted, insertions kept; headers, footers and pictures are left out and counted, but
headers, footers and properties are searched for marks of origin. A cell that spans several rows or
columns is repeated in each, unless it spans a whole row.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, ClassVar

from typing_extensions import override

from stillroom.errors import MissingExtraError
from stillroom.records import Document
from stillroom.text.documents.builder import DocumentBuilder, expand_row, render_table
from stillroom.text.documents.office import (
    CheckedArchive,
    extract_text,
    open_archive,
    parse_bounded,
    parse_xml,
    read_drawings,
    unreadable_as_error,
)
from stillroom.text.documents.statements import MarkCollector
from stillroom.text.interfaces import Parser, SourceFile

__all__ = ["Docx"]

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_HEADING = re.compile(r"heading\s*(\d)", re.IGNORECASE)
_NOTES = {"footnotes": "Footnotes", "endnotes": "Endnotes", "comments": "Comments"}
_PREFIX = {"footnotes": "", "endnotes": "e"}
_WRAPPERS = frozenset({"sdt", "sdtContent", "ins", "customXml", "smartTag", "moveTo"})
_MAX_LEVEL = 8
_OTHER_KINDS = (
    "application/vnd.ms-word.document.macroEnabled.main+xml",
    "application/vnd.ms-word.template.macroEnabledTemplate.main+xml",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.template.main+xml",
)


class Docx(Parser):
    """Word documents since 2007."""

    suffixes: ClassVar[tuple[str, ...]] = (".docx", ".docm", ".dotx")
    media_type: ClassVar[str] = (
        "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
    )
    is_risky: ClassVar[bool] = True

    @override
    def parse(self, data: bytes, source: SourceFile) -> Document:
        with MissingExtraError.guard("python-docx", "documents", "reading Word files"):
            import docx.opc.part
            import docx.package
            import docx.parts.document
        archive = open_archive(data, source.path, source.limits, required="[Content_Types].xml")
        with unreadable_as_error(source.path):
            # docx.Document refuses templates and files with macros, which are the same inside.
            kind = docx.parts.document.DocumentPart
            docx.opc.part.PartFactory.part_type_for.update(dict.fromkeys(_OTHER_KINDS, kind))
            part = docx.package.Package.open(io.BytesIO(data)).main_document_part
            if not isinstance(part, kind):
                raise TypeError(f"its main part is '{part.content_type}', no Word document")
            document = part.document
            main = str(document.part.partname).lstrip("/")
            assembly = DocumentBuilder(source)
            body = _BodyReader(document, assembly, archive, main)
            for element in _elements(document.element.body):
                if str(element.tag) == f"{_W}tbl":
                    body.add_table(element)
                else:
                    body.add_paragraph(element)
            _add_notes(archive, assembly, body.counts)
            title = str(document.core_properties.title or "")
            marks = MarkCollector()
            marks.add_archive(archive)
            body.counts["margins"] = _read_margins(archive, marks)
            body.counts["imports"] = len(list(document.element.body.iter(f"{_W}altChunk")))
        metadata: dict[str, Any] = {
            f"{name}_left_out": body.counts[key]
            for key, name in (
                ("deleted", "deleted_characters"),
                ("hidden", "hidden_characters"),
                ("pictures", "pictures"),
                ("margins", "heads_and_feet"),
                ("imports", "imported_files"),
            )
            if body.counts[key]
        }
        if body.counts["inserted"]:
            metadata["insertions_kept"] = body.counts["inserted"]
        metadata |= marks.to_metadata()
        return assembly.finish(
            title=title or body.title, metadata=metadata, expected="text beside pictures"
        )


def _elements(parent: Any) -> Iterator[Any]:
    """Yield the paragraphs and tables of a body, including those in content controls."""
    for child in parent:
        name = str(child.tag).rpartition("}")[2]
        if name in {"p", "tbl"}:
            yield child
        elif name in _WRAPPERS:
            yield from _elements(child)


class _BodyReader:
    """Adds the blocks of a document's body."""

    def __init__(
        self, document: Any, assembly: DocumentBuilder, archive: CheckedArchive, label: str
    ) -> None:
        self._word, self._assembly, self._archive = document, assembly, archive
        self._place: dict[str, Any] = {"span": archive.span(label), "label": label}
        self._was_item = False
        self._numbering = _ListNumbering(document)
        self.title = ""
        self.counts: Counter[str] = Counter()

    def add_paragraph(self, element: Any) -> None:
        text = extract_text(element, self.counts).strip()
        if text:
            self._add_text(element, text)
        self._add_drawings(element)

    def _add_text(self, element: Any, text: str) -> None:
        from docx.text.paragraph import Paragraph

        style = Paragraph(element, self._word).style
        name = str(getattr(style, "name", "") or "")
        level = _level(style, name)
        mark = "" if level else self._numbering.mark(element, style, name)
        self._assembly.gap("\n" if mark and self._was_item else "\n\n")
        self._was_item = bool(mark)
        if level:
            text = " ".join(text.split())
            self.title = self.title or (text if name.lower() == "title" else "")
            self._assembly.heading(level, text)
            text = "#" * level + " " + text
        self._assembly.add(mark + text, **self._place)

    def add_table(self, element: Any) -> None:
        rows: list[list[str]] = []
        for row in element.iter(f"{_W}tr"):
            if next(row.iterancestors(f"{_W}tbl")) is not element:
                continue  # a nested table is part of the cell's text
            cells: list[tuple[str, int]] = []
            for cell in _cells(row):
                above = rows[-1] if rows else []
                goes_on, width = _merge(cell)
                column = sum(size for _, size in cells)
                is_known = goes_on and column < len(above)
                cells.append(
                    (above[column] if is_known else extract_text(cell, self.counts), width)
                )
            rows.append(expand_row(cells))
        rendered = render_table(rows)
        if rendered:
            self._assembly.gap()
            self._assembly.add(rendered, **self._place)
            self._was_item = False
        self._add_drawings(element)

    def _add_drawings(self, element: Any) -> None:
        """Add the text of charts and diagrams, with the bytes of their own members."""
        for text, part in read_drawings(element, self._word.part):
            name = str(part.partname).lstrip("/")
            self._assembly.gap()
            self._assembly.add(text, self._archive.span(name), label=name)
            self.counts["pictures"] -= 1
            self._was_item = False


def _cells(row: Any) -> Iterator[Any]:
    for child in row:
        name = str(child.tag).rpartition("}")[2]
        if name == "tc":
            yield child
        elif name in _WRAPPERS:
            yield from child.iter(f"{_W}tc")


def _merge(cell: Any) -> tuple[bool, int]:
    """Return whether a cell continues the one above, and its number of columns."""
    properties = cell.find(f"{_W}tcPr")
    if properties is None:
        return False, 1
    down = properties.find(f"{_W}vMerge")
    across = properties.find(f"{_W}gridSpan")
    goes_on = down is not None and down.get(f"{_W}val", "continue") == "continue"
    return goes_on, parse_bounded(across.get(f"{_W}val") if across is not None else None, 1, 512)


class _ListNumbering:
    """List markers: bullets, or running numbers."""

    def __init__(self, document: Any) -> None:
        self._formats: dict[str, dict[int, str]] = {}
        self._counts: dict[tuple[str, int], int] = {}
        try:
            root = document.part.numbering_part.element
        except (KeyError, AttributeError, RuntimeError):
            return
        kinds = {
            element.get(f"{_W}abstractNumId"): {
                parse_bounded(level.get(f"{_W}ilvl"), 0, _MAX_LEVEL): _value(level, "numFmt")
                for level in element.iter(f"{_W}lvl")
            }
            for element in root.iter(f"{_W}abstractNum")
        }
        for element in root.iter(f"{_W}num"):
            number = element.get(f"{_W}numId")
            self._formats[number] = kinds.get(_value(element, "abstractNumId"), {})

    def mark(self, paragraph: Any, style: Any, name: str) -> str:
        """Return the marker of a list item, or an empty string."""
        number, level = _numbers(paragraph.find(f"{_W}pPr"))
        if not number:
            properties = getattr(getattr(style, "element", None), "pPr", None)
            number, level = _numbers(properties)
        if number == "0" or not (number or name.lower().startswith("list")):
            return ""
        indent = "  " * level
        kind = self._formats.get(number, {}).get(level, "")
        if kind in {"", "bullet", "none"}:
            return f"{indent}- "
        for deeper in range(level + 1, _MAX_LEVEL + 1):
            self._counts.pop((number, deeper), None)
        count = self._counts[number, level] = self._counts.get((number, level), 0) + 1
        return f"{indent}{count}. "


def _numbers(properties: Any) -> tuple[str, int]:
    """Return the list and the level in a paragraph's properties."""
    numbering = properties.find(f"{_W}numPr") if properties is not None else None
    if numbering is None:
        return "", 0
    return _value(numbering, "numId"), parse_bounded(_value(numbering, "ilvl"), 0, _MAX_LEVEL)


def _value(element: Any, name: str) -> str:
    child = element.find(f"{_W}{name}")
    return "" if child is None else str(child.get(f"{_W}val", ""))


def _level(style: Any, name: str) -> int:
    """Return a paragraph's heading level from its style or the style's bases; 0 for none."""
    if name.lower() == "title":
        return 1
    for _ in range(10):
        if style is None:
            return 0
        match = _HEADING.match(str(style.name or ""))
        if match:
            return min(max(int(match.group(1)), 1), 6)
        style = getattr(style, "base_style", None)
    return 0


def _add_notes(archive: CheckedArchive, assembly: DocumentBuilder, counts: Counter[str]) -> None:
    """Add footnotes, endnotes and comments as sections of their own."""
    for kind, title in _NOTES.items():
        name = f"word/{kind}.xml"
        if name not in archive:
            continue
        lines = []
        for note in parse_xml(archive.read(name)):
            text = " ".join(extract_text(note, counts).split())
            mark = f"[^{_PREFIX[kind]}{note.get(f'{_W}id')}]: " if kind in _PREFIX else ""
            if text:
                lines.append(f"- {mark}{text}")
        assembly.add_list(title, lines, span=archive.span(name), label=name)


def _read_margins(archive: CheckedArchive, marks: MarkCollector) -> int:
    """Search the headers and footers for marks; return the number of those with text."""
    count = 0
    for name in archive.file.namelist():
        if re.fullmatch(r"word/(?:header|footer)\d*\.xml", name):
            text = extract_text(parse_xml(archive.read(name))).strip()
            marks.add_margin(name, text)
            count += bool(text)
    return count
