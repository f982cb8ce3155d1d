"""PDF files: paragraphs, headings, lists and tables in reading order, with page numbers.

Columns are read one after the other; tables, with or without rules, become Markdown tables;
repeated headers and footers are kept once and counted, tables of contents are left out and counted;
hyphenated words are joined. Filled form
fields and notes follow their page. A page that is an image is read by OCR if the extra ``ocr`` is
installed and labeled so, else counted. All anchors have the bytes of the whole file.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from typing import Any, ClassVar

from typing_extensions import override

from stillroom.errors import DataError, MissingExtraError
from stillroom.records import Document
from stillroom.text.documents.builder import DocumentBuilder, render_table
from stillroom.text.documents.office import make_encrypted_error, unreadable_as_error
from stillroom.text.documents.statements import MarkCollector
from stillroom.text.interfaces import Parser, SourceFile
from stillroom.text.pdf.layout import PageBlock, arrange_blocks
from stillroom.text.pdf.marks import collect_pdf_marks
from stillroom.text.pdf.ocr import has_ocr, recognize_text, require_ocr_language
from stillroom.text.pdf.page import (
    SOFT_HYPHEN,
    PageAnnotations,
    PageText,
    read_annotations,
    read_page_text,
)
from stillroom.text.pdf.structure import (
    DocumentVocabulary,
    OutlineEntry,
    PdfPage,
    compile_title,
    drop_contents,
    drop_running_heads,
    find_heading_levels,
    join_heading_labels,
    match_outline,
)
from stillroom.text.pdf.tables import find_table_grids, read_ruling_lines

__all__ = ["Pdf"]

_SPACE = re.compile(r"[ \t\xa0]+")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f]")
_LETTER = re.compile(r"[^\W_]")
_PLACEHOLDER_TITLE = re.compile(
    r"untitled|^\(?anonymous\)?$|\.(docx?|tex|indd|pdf|dvi)$|^microsoft word", re.IGNORECASE
)
_SENTENCE_END = re.compile(r"[.!?:;\"”’)。！？：；]$")
_FULL_LINE = 0.97  # of the width of a paragraph
_MAX_OUTLINE = 5000
_MAX_LINKS = 200
_MIN_LETTERS = 20  # a page with an image and fewer letters is read by OCR
_MAX_OCR_SIDE = 2000  # pixels; longer side of a page rendered for OCR
_OCR_SCALE = 2.5  # pixels per point, at most


class Pdf(Parser):
    """PDF files, scanned ones with the extra ``ocr``."""

    suffixes: ClassVar[tuple[str, ...]] = (".pdf",)
    media_type: ClassVar[str] = "application/pdf"
    is_risky: ClassVar[bool] = True

    @override
    def parse(self, data: bytes, source: SourceFile) -> Document:
        with MissingExtraError.guard("pypdfium2", "documents", "reading PDF files"):
            import pypdfium2
        with unreadable_as_error(source.path):
            try:
                pdf = pypdfium2.PdfDocument(data)
            except pypdfium2.PdfiumError as error:
                raise _refused_error(str(error), source.path) from error
            try:
                return _PdfReader(pdf, source).document(data)
            finally:
                pdf.close()


class _PdfReader:
    """Reads one file: its pages and their counts."""

    def __init__(self, pdf: Any, source: SourceFile) -> None:
        self._pdf, self._source = pdf, source
        self._pages: list[PdfPage] = []
        self._overlays: dict[int, PageAnnotations] = {}
        self._confidence: dict[int, float] = {}
        self._unread: list[int] = []
        self._turned: list[int] = []
        self._counts = dict.fromkeys(("broken", "silent", "hidden"), 0)
        self._spent = 0.0

    def document(self, data: bytes) -> Document:
        total = len(self._pdf)
        limits = self._source.limits
        if total > limits.pages:
            found = f"the file has {total} pages"
            raise limits.make_excess_error("pages", found, self._source.path)
        if limits.ocr != "never":
            require_ocr_language(limits.ocr_language, self._source.path)
        if self._pdf.get_formtype():
            self._pdf.init_forms()
        for number in range(1, total + 1):
            try:
                self._read_page(number)
            except (RuntimeError, ValueError, OSError):  # keep the other pages
                self._counts["broken"] += 1
        self._require_ocr()
        marks = MarkCollector()
        collect_pdf_marks(self._pdf, data, self._pages, marks)
        dropped = drop_running_heads(self._pages)
        contents = drop_contents(self._pages)
        join_heading_labels(self._pages)
        known, within = match_outline(self._pages, _outline(self._pdf))
        levels = find_heading_levels(self._pages, known)
        assembly = DocumentBuilder(self._source)
        _MarkdownWriter(assembly, levels, within, DocumentVocabulary(self._pages), len(data)).write(
            self._pages, self
        )
        title = _CONTROL.sub("", str(self._pdf.get_metadata_dict().get("Title", ""))).strip()
        if _PLACEHOLDER_TITLE.search(title):
            title = ""
        return assembly.finish(
            title=title,
            metadata={**self._metadata(total, dropped, contents), **marks.to_metadata()},
            expected="text, or pictures of text (the pages are blank, or OCR read nothing)",
        )

    def overlay(self, number: int) -> PageAnnotations:
        """Return the annotations of a page."""
        return self._overlays.get(number) or PageAnnotations()

    def label(self, number: int) -> str:
        """Return the OCR label of a page, or an empty string."""
        sure = self._confidence.get(number)
        return "" if sure is None else f"OCR, confidence {sure:.2f}"

    def _read_page(self, number: int) -> None:
        with closing(self._pdf[number - 1]) as page:
            with _page_text(page) as raw:
                glyphs = read_page_text(raw, page.get_cropbox())
            self._counts["hidden"] += glyphs.hidden
            form = self._pdf.formenv
            overlay = read_annotations(self._pdf.raw, page.raw, form.raw if form else None)
            self._overlays[number] = overlay
            self._counts["hidden"] += overlay.hidden
            if self._needs_ocr(page, glyphs):
                blocks = self._read_by_ocr(page, number) or _page_blocks(page, glyphs)
            else:
                blocks = _page_blocks(page, glyphs)
            if not blocks:
                self._counts["silent"] += 1
            top, bottom = _page_edges(page, glyphs, blocks)
            self._pages.append(PdfPage(number, blocks, top, bottom))

    def _needs_ocr(self, page: Any, glyphs: PageText) -> bool:
        if self._source.limits.ocr == "always":
            return True
        letters = sum(len(_LETTER.findall(run.text)) for run in glyphs.runs)
        return letters < _MIN_LETTERS and _has_picture(page, least=0.3 if letters else 0.02)

    def _read_by_ocr(self, page: Any, number: int) -> list[PageBlock]:
        limits = self._source.limits
        is_late = self._spent > limits.ocr_timeout_s
        if limits.ocr == "never" or is_late or not has_ocr():
            self._unread.append(number)
            return []
        self._source.more_time()
        start = time.process_time()
        scale = min(_OCR_SCALE, _MAX_OCR_SIDE / max(*page.get_size(), 1.0))
        pixels = page.render(scale=scale, rev_byteorder=False).to_numpy()[:, :, :3]
        result = recognize_text(pixels, scale=1 / scale)
        self._spent += time.process_time() - start
        blocks = arrange_blocks(result.runs)
        if blocks:
            self._confidence[number] = result.confidence
            if result.turn:
                self._turned.append(number)
            for block in blocks:  # OCR and text pages use one scale, from the top
                block.top, block.bottom = block.top - result.height, block.bottom - result.height
        return blocks

    def _require_ocr(self) -> None:
        """Refuse a file of images only where OCR is not available."""
        has_text = any(page.blocks for page in self._pages) or any(
            overlay.fields or overlay.notes for overlay in self._overlays.values()
        )
        if self._unread and not has_text and self._source.limits.ocr != "never" and not has_ocr():
            raise MissingExtraError.of(
                "rapidocr", "ocr", f"reading the pictures on {len(self._unread)} pages"
            )

    def _metadata(self, total: int, dropped: int, contents: int) -> dict[str, Any]:
        counts, pages = self._counts, self._pages
        overlays = self._overlays.values()
        links = list(dict.fromkeys(link for overlay in overlays for link in overlay.links))
        sure = self._confidence
        facts: dict[str, Any] = {
            "repeated_lines_left_out": dropped,
            "contents_lines_left_out": contents,
            "hidden_characters_left_out": counts["hidden"],
            "tables": sum(block.kind == "table" for page in pages for block in page.blocks),
            "form_fields": sum(len(overlay.fields) for overlay in overlays),
            "notes": sum(len(overlay.notes) for overlay in overlays),
            "links": links[:_MAX_LINKS],
            "links_left_out": max(len(links) - _MAX_LINKS, 0),
            "attachments_left_out": self._pdf.count_attachments(),
            "pages_by_ocr": sorted(sure),
            "ocr_confidence": round(sum(sure.values()) / len(sure), 3) if sure else 0,
            "pages_turned": self._turned,
            "pages_needing_ocr": self._unread,
        }
        metadata = {key: value for key, value in facts.items() if value}
        if self._unread:
            metadata["notices"] = [self._notice()]
        return {
            "pages": total,
            "pages_without_text": counts["silent"],
            "pages_unreadable": counts["broken"],
            **metadata,
        }

    def _notice(self) -> str:
        count, limits = len(self._unread), self._source.limits
        pages = "1 page is a picture" if count == 1 else f"{count} pages are pictures"
        if limits.ocr == "never":
            return f"{pages} and left out, since the limit ocr is 'never'"
        if not has_ocr():
            return f"{pages} and left out; pip install 'stillroom[ocr]' to read them"
        return f"{pages} and left out, since OCR took longer than the limit ocr_timeout_s"


class _MarkdownWriter:
    """Writes the pages' blocks as Markdown."""

    def __init__(
        self,
        assembly: DocumentBuilder,
        levels: dict[int, int],
        within: dict[int, list[OutlineEntry]],
        words: DocumentVocabulary,
        size: int,
    ) -> None:
        self._assembly, self._levels, self._words = assembly, levels, words
        self._within = within
        self._span = (0, size)
        self._last: PageBlock | None = None

    def write(self, pages: list[PdfPage], reading: _PdfReader) -> None:
        self._join_cut_words(pages, reading)
        for page in pages:
            place: dict[str, Any] = {"page": page.number, "label": reading.label(page.number)}
            for block in page.blocks:
                self._write(block, place)
            overlay = reading.overlay(page.number)
            for title, lines in (("Form", overlay.fields), ("Notes", overlay.notes)):
                if lines:
                    self._write_lines(title, lines, place)

    def _join_cut_words(self, pages: list[PdfPage], reading: _PdfReader) -> None:
        """Move the end of a word that a page or column cut to the block where it begins."""
        blocks = [(block, page.number) for page in pages for block in page.blocks]
        for (above, number), (block, _) in pairwise(blocks):
            overlay = reading.overlay(number)
            is_apart = self._levels.get(id(block)) or overlay.fields or overlay.notes
            is_cut = above.text.endswith((SOFT_HYPHEN, "-")) and above.text[-2:-1].isalnum()
            if is_cut and not is_apart and _goes_on(above, block):
                line = block.lines[0]
                end, _, line.text = line.text.partition(" ")
                above.lines[-1].text += f"\n{end}"
                if not line.text:
                    del block.lines[0]

    def _write_lines(self, title: str, lines: list[str], place: dict[str, Any]) -> None:
        """Write fields or notes; what joins or names their words is on no page: without a place."""
        self._assembly.gap()
        self._assembly.add(f"{title}:\n")
        for line in lines:
            name, colon, content = line.partition(": ")
            self._assembly.add("\n- ")
            self._assembly.add(name, self._span if title == "Form" else None, **place)
            self._assembly.add(colon)
            self._assembly.add(content, self._span, **place)
        self._last = None

    def _write(self, block: PageBlock, place: dict[str, Any]) -> None:
        level = self._levels.get(id(block), 0)
        if block.kind == "table":
            text = render_table([[self._clean(cell) for cell in row] for row in block.rows])
        else:
            text = self._clean(block.text)
        if not text:
            return
        self._assembly.gap(self._gap(block, level))
        if level:
            text = " ".join(text.split())
            self._assembly.heading(level, text)
            text = "#" * level + " " + text
        for deep, title in self._within.get(id(block), ()):
            match = compile_title(title).search(text)
            start = self._assembly.length + (match.start() if match else 0)
            self._assembly.heading(deep, title, position=start)
        self._assembly.add(text, self._span, **place)
        self._last = block if not level else None

    def _clean(self, text: str) -> str:
        lines = self._words.mend(text).split("\n")
        return _CONTROL.sub("", "\n".join(_SPACE.sub(" ", line).strip() for line in lines)).strip()

    def _gap(self, block: PageBlock, level: int) -> str:
        """Return the white space before a block; less where it continues the previous one."""
        last = self._last
        if last is None or level:
            return "\n\n"
        if last.kind == block.kind == "li":
            return "\n"
        return "\n" if _goes_on(last, block) else "\n\n"


def _goes_on(above: PageBlock, block: PageBlock) -> bool:
    """Return whether a block continues the paragraph of the one above."""
    return (
        above.kind in {"p", "li"}
        and block.kind == "p"
        and (block.text[:1].islower() or _is_cut(above, block))
        and not _SENTENCE_END.search(above.text)
        and 0.93 <= block.size / max(above.size, 0.1) <= 1.07
    )


def _is_cut(above: PageBlock, block: PageBlock) -> bool:
    """Return whether a page or column ended within a paragraph: its last line had no more room.

    One line on each side does not show how wide the paragraph is.
    """
    lines = [*above.lines, *block.lines]
    if block.top >= above.bottom or len(lines) < 3:
        return False
    last, first = above.lines[-1], block.lines[0]
    word = len(first.text.split(maxsplit=1)[0]) / len(first.text) * (first.right - first.left)
    width = max(line.right - line.left for line in lines)
    return last.right - min(line.left for line in above.lines) + word >= _FULL_LINE * width


@contextmanager
def _page_text(page: Any) -> Iterator[Any]:
    with closing(page.get_textpage()) as reader:
        yield reader.raw


def _page_blocks(page: Any, glyphs: PageText) -> list[PageBlock]:
    grids = find_table_grids(*read_ruling_lines(page.raw, glyphs.turn)) if glyphs.runs else []
    blocks = arrange_blocks(glyphs.runs, grids)
    for aside in glyphs.aside:
        blocks += arrange_blocks(aside)
    return blocks


def _page_edges(page: Any, glyphs: PageText, blocks: list[PageBlock]) -> tuple[float, float]:
    """Return top and bottom of the page in the blocks' coordinates."""
    if glyphs.turn:
        tops = [block.top for block in blocks] or [0.0]
        return min(tops), max(block.bottom for block in blocks) if blocks else 0.0
    _, bottom, _, top = page.get_cropbox()
    return -top, -bottom


def _has_picture(page: Any, *, least: float) -> bool:
    """Return whether images or many drawings cover at least that share of a page."""
    import pypdfium2.raw as pdfium

    width, height = page.get_size()
    covered = drawings = 0.0
    for drawing in page.get_objects(max_depth=3):
        if drawing.type == pdfium.FPDF_PAGEOBJ_IMAGE:
            left, bottom, right, top = drawing.get_bounds()
            covered += max(right - left, 0) * max(top - bottom, 0)
        elif drawing.type == pdfium.FPDF_PAGEOBJ_PATH:
            drawings += 1
    return covered >= least * width * height or drawings >= 100


def _outline(pdf: Any) -> dict[int, list[OutlineEntry]]:
    """Return the outline's entries as (level, title) by page number, from 1."""
    entries: dict[int, list[OutlineEntry]] = {}
    for number, mark in enumerate(pdf.get_toc(max_depth=6)):
        if number >= _MAX_OUTLINE:
            break
        target = mark.get_dest()
        index = target.get_index() if target is not None else None
        title = " ".join(str(mark.get_title() or "").split())
        if index is not None and title:
            entries.setdefault(index + 1, []).append((mark.level + 1, title))
    return entries


def _refused_error(why: str, where: str) -> DataError:
    if "password" in why.lower():
        return make_encrypted_error(where)
    return DataError(
        f"the file cannot be read: {why}",
        code="document.unreadable",
        where=where,
        expected="a whole PDF file",
        next="get the file anew, or print it to PDF again",
    )
