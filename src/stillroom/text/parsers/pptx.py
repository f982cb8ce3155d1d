"""PowerPoint presentations: title, text, tables and notes of each slide.

Shapes are read from top to bottom. Charts become their titles and values, diagrams their text;
pictures are left out and counted.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, ClassVar

from typing_extensions import override

from stillroom.errors import MissingExtraError
from stillroom.records import Document
from stillroom.text.documents.builder import DocumentBuilder, render_table
from stillroom.text.documents.office import (
    extract_text,
    open_archive,
    read_drawings,
    unreadable_as_error,
)
from stillroom.text.documents.statements import MarkCollector
from stillroom.text.interfaces import Parser, SourceFile

__all__ = ["Pptx"]

_MAX_LEVEL = 8  # deepest level of an outline
_OTHER_KINDS = (
    "application/vnd.ms-powerpoint.slideshow.macroEnabled.main+xml",
    "application/vnd.ms-powerpoint.template.macroEnabled.main+xml",
    "application/vnd.openxmlformats-officedocument.presentationml.slideshow.main+xml",
    "application/vnd.openxmlformats-officedocument.presentationml.template.main+xml",
)


class Pptx(Parser):
    """PowerPoint presentations since 2007."""

    suffixes: ClassVar[tuple[str, ...]] = (".pptx", ".pptm", ".ppsx")
    media_type: ClassVar[str] = (
        "application/vnd.openxmlformats-officedocument.presentationml.presentation"
    )
    is_risky: ClassVar[bool] = True

    @override
    def parse(self, data: bytes, source: SourceFile) -> Document:
        with MissingExtraError.guard("python-pptx", "documents", "reading slides"):
            import pptx.opc.package
            import pptx.package
            import pptx.parts.presentation
            from pptx.enum.shapes import PP_PLACEHOLDER
        archive = open_archive(data, source.path, source.limits, required="[Content_Types].xml")
        assembly = DocumentBuilder(source)
        pictures = 0
        with unreadable_as_error(source.path):
            # pptx.Presentation refuses templates and shows, which are the same inside.
            kind = pptx.parts.presentation.PresentationPart
            pptx.opc.package.PartFactory.part_type_for.update(dict.fromkeys(_OTHER_KINDS, kind))
            main = pptx.package.Package.open(io.BytesIO(data)).main_document_part
            if not isinstance(main, kind):
                raise TypeError(f"its main part is '{main.content_type}', no presentation")
            deck = main.presentation
            if len(deck.slides) > source.limits.pages:
                found = f"the presentation has {len(deck.slides)} slides"
                raise source.limits.make_excess_error("pages", found, source.path)
            for number, slide in enumerate(deck.slides, 1):
                part = str(slide.part.partname).lstrip("/")
                pictures += _add_slide(slide, number, archive.span(part), assembly)
            title = str(deck.core_properties.title or "")
            marks = MarkCollector()
            marks.add_archive(archive)
            for number, slide in enumerate(deck.slides, 1):
                for shape in slide.placeholders:
                    if shape.placeholder_format.type == PP_PLACEHOLDER.FOOTER:
                        marks.add_margin(f"the footer of slide {number}", shape.text_frame.text)
        if title.lower() in {"powerpoint presentation", "presentation"}:
            title = ""
        return assembly.finish(
            title=title or assembly.first_heading,
            metadata={
                "slides": len(deck.slides),
                **({"pictures_left_out": pictures} if pictures else {}),
                **marks.to_metadata(),
            },
            expected="text beside pictures",
        )


def _add_slide(slide: Any, number: int, span: tuple[int, int], assembly: DocumentBuilder) -> int:
    """Add one slide; return its number of pictures."""
    place: dict[str, Any] = {"span": span, "page": number, "label": f"slide {number}"}
    title = slide.shapes.title
    if title is not None and title.has_text_frame and title.text_frame.text.strip():
        name = " ".join(extract_text(title._element).split())
        assembly.gap()
        assembly.heading(1, name)
        assembly.add(f"# {name}", **place)
    shapes = sorted(_shapes(slide.shapes), key=lambda item: (item.top or 0, item.left or 0))
    for shape in shapes:
        if title is not None and shape.shape_id == title.shape_id:
            continue
        drawings = [text for text, _ in read_drawings(shape._element, slide.part)]
        for text in (_shape_text(shape), *drawings):
            if text:
                assembly.gap()
                assembly.add(text, **place)
    if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
        notes = slide.notes_slide.notes_text_frame.text.strip()
        if notes:
            assembly.gap()
            assembly.add(f"Notes: {notes}", **place)
    return sum(str(shape._element.tag).endswith("}pic") for shape in shapes)


def _shapes(shapes: Any) -> Iterator[Any]:
    """Yield shapes, including those in groups."""
    for shape in shapes:
        if hasattr(shape, "shapes"):
            yield from _shapes(shape.shapes)
        else:
            yield shape


def _shape_text(shape: Any) -> str:
    if getattr(shape, "has_table", False):
        return render_table(_table_rows(shape.table))
    if not getattr(shape, "has_text_frame", False):
        return ""
    lines = []
    for paragraph in shape.text_frame.paragraphs:
        text = " ".join(extract_text(paragraph._p).split())
        if text:
            level = min(paragraph.level, _MAX_LEVEL)
            lines.append("  " * level + ("- " if level else "") + text)
    return "\n".join(lines)


def _table_rows(table: Any) -> list[list[str]]:
    """Return a table's texts; cells that span columns are repeated, except over a whole row."""
    rows: list[list[str]] = []
    for row in table.rows:
        texts: list[str] = []
        widest = 1
        for column, cell in enumerate(row.cells):
            if cell.is_spanned:
                above = rows[-1][column] if rows and column < len(rows[-1]) else ""
                is_across = column > 0 and int(cell._tc.get("hMerge", "0") in {"1", "true"})
                texts.append(texts[-1] if is_across else above)
            else:
                widest = max(widest, cell.span_width if cell.is_merge_origin else 1)
                texts.append(cell.text)
        rows.append(texts if widest < len(texts) else [texts[0], *[""] * (len(texts) - 1)])
    return rows
