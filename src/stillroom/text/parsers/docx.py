"""Word documents: paragraphs, headings, lists, tables, equations, notes and comments.

Bytes are those of the archive's member that holds the text. Tracked deletions are left out,
insertions kept; headers, footers and pictures are left out.
"""

from __future__ import annotations

import io
import re
from typing import Any, ClassVar

from typing_extensions import override

from stillroom.errors import MissingExtraError
from stillroom.records import Document
from stillroom.text.archives import Archive, open_archive
from stillroom.text.assembly import Assembly, render_table
from stillroom.text.method import Parser, Source
from stillroom.text.office import text_of, unreadable

__all__ = ["Docx"]

_MAIN = "word/document.xml"
_HEADING = re.compile(r"heading\s*(\d)", re.IGNORECASE)
_NOTES = {"footnotes": "Footnotes", "endnotes": "Endnotes", "comments": "Comments"}


class Docx(Parser):
    """Word documents since 2007."""

    suffixes: ClassVar[tuple[str, ...]] = (".docx", ".docm", ".dotx")
    media_type: ClassVar[str] = (
        "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
    )
    is_risky: ClassVar[bool] = True

    @override
    def parse(self, data: bytes, source: Source) -> Document:
        try:
            import docx
        except ImportError as error:
            raise MissingExtraError.of("python-docx", "documents", "reading Word files") from error
        archive = open_archive(data, source.path, source.limits, required="[Content_Types].xml")
        with unreadable(source.path):
            word = docx.Document(io.BytesIO(data))
            main = str(word.part.partname).lstrip("/")
            assembly = Assembly(source)
            body = _Body(assembly, archive.span(main), main)
            for item in word.iter_inner_content():
                if hasattr(item, "rows"):
                    body.add_table(item)
                else:
                    body.add_paragraph(item)
            _add_notes(word, archive, assembly)
            title = str(word.core_properties.title or "")
        return assembly.finish(title=title or body.title, expected="text beside pictures")


class _Body:
    """Adds the blocks of a document's body."""

    def __init__(self, assembly: Assembly, span: tuple[int, int], label: str) -> None:
        self._assembly = assembly
        self._place: dict[str, Any] = {"span": span, "label": label}
        self._was_item = False
        self.title = ""

    def add_paragraph(self, paragraph: Any) -> None:
        text = text_of(paragraph._p).strip()
        if not text:
            return
        style = paragraph.style
        name = str(getattr(style, "name", "") or "")
        level = _level(style, name)
        is_item = not level and _is_item(paragraph, name)
        self._assembly.gap("\n" if is_item and self._was_item else "\n\n")
        self._was_item = is_item
        if level:
            text = " ".join(text.split())
            self.title = self.title or (text if name.lower() == "title" else "")
            self._assembly.heading(level, text)
            text = "#" * level + " " + text
        self._assembly.add("- " + text if is_item else text, **self._place)

    def add_table(self, table: Any) -> None:
        rendered = render_table(
            [[text_of(cell) for cell in row.tc_lst] for row in table._tbl.tr_lst]
        )
        if rendered:
            self._assembly.gap()
            self._assembly.add(rendered, **self._place)
            self._was_item = False


def _level(style: Any, name: str) -> int:
    """Return a paragraph's heading level by its style or those it is based on; 0 for none."""
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


def _is_item(paragraph: Any, style: str) -> bool:
    properties = paragraph._p.pPr
    numbered = properties is not None and properties.numPr is not None
    return numbered or style.lower().startswith("list")


def _add_notes(word: Any, archive: Archive, assembly: Assembly) -> None:
    """Add footnotes, endnotes and comments as sections of their own."""
    from lxml import etree

    parser = etree.XMLParser(resolve_entities=False, no_network=True, huge_tree=False)
    for kind, title in _NOTES.items():
        name = f"word/{kind}.xml"
        if name not in archive:
            continue
        notes = [
            " ".join(text_of(note).split()) for note in etree.fromstring(archive.read(name), parser)
        ]
        notes = [note for note in notes if note]
        if not notes:
            continue
        place: dict[str, Any] = {"span": archive.span(name), "label": name}
        assembly.gap()
        assembly.heading(2, title)
        assembly.add(f"## {title}\n\n" + "\n".join(f"- {note}" for note in notes), **place)
