"""PDF: the text of each page in reading order, with page numbers and the outline's headings.

Words that a line's end has cut are joined. Pages without text (scans) are counted; a file of
nothing else is refused, since nothing here reads pictures. Bytes are those of the whole file.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

from typing_extensions import override

from stillroom.errors import DataError, MissingExtraError
from stillroom.records import Document
from stillroom.text.assembly import Assembly
from stillroom.text.method import Parser, Source
from stillroom.text.office import unreadable

__all__ = ["Pdf"]

_CUT_WORD = re.compile("[\x02\ufffe\u00ad](?:\r\n|\n|\r)?|(?<=[a-z])-(?:\r\n|\n)(?=[a-z]{2})")
_SPACE = re.compile(r"[ \t\xa0]+")
_BLANK = re.compile(r"\n{3,}")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f]")
_NO_TITLE = re.compile(
    r"untitled|^\(?anonymous\)?$|\.(docx?|tex|indd|pdf|dvi)$|^microsoft word", re.IGNORECASE
)
_MAX_OUTLINE = 5000


class Pdf(Parser):
    """PDF files with a text layer."""

    suffixes: ClassVar[tuple[str, ...]] = (".pdf",)
    media_type: ClassVar[str] = "application/pdf"
    is_risky: ClassVar[bool] = True

    @override
    def parse(self, data: bytes, source: Source) -> Document:
        try:
            import pypdfium2
        except ImportError as error:
            raise MissingExtraError.of("pypdfium2", "documents", "reading PDF files") from error
        with unreadable(source.path):
            try:
                pdf = pypdfium2.PdfDocument(data)
            except pypdfium2.PdfiumError as error:
                raise _refusal(str(error), source.path) from error
            try:
                return _read(pdf, data, source)
            finally:
                pdf.close()


def _read(pdf: Any, data: bytes, source: Source) -> Document:
    total = len(pdf)
    if total > source.limits.pages:
        raise DataError(
            f"the file has {total} pages",
            code="document.too-large",
            where=source.path,
            expected=f"at most {source.limits.pages}",
            next="split the file, or raise the limit 'pages'",
        )
    outline = _outline(pdf)
    assembly = Assembly(source)
    silent = broken = 0
    for number in range(1, total + 1):
        try:
            text = _page_text(pdf, number - 1)
        except (RuntimeError, ValueError, OSError):  # one bad page does not lose the others
            broken += 1
            continue
        if not text:
            silent += 1
            continue
        assembly.gap()
        _add_headings(text, outline.get(number, []), assembly)
        assembly.add(text, (0, len(data)), page=number)
    title = _CONTROL.sub("", str(pdf.get_metadata_dict().get("Title", ""))).strip()
    if _NO_TITLE.search(title):
        title = ""
    metadata = {"pages": total, "pages_without_text": silent, "pages_unreadable": broken}
    return assembly.finish(
        title=title, metadata=metadata, expected="a text layer (the pages seem to be pictures)"
    )


def _page_text(pdf: Any, index: int) -> str:
    page = pdf[index]
    try:
        reader = page.get_textpage()
        try:
            text = str(reader.get_text_range())
        finally:
            reader.close()
    finally:
        page.close()
    text = _CUT_WORD.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    text = _CONTROL.sub("", text)
    lines = (_SPACE.sub(" ", line).strip() for line in text.split("\n"))
    return _BLANK.sub("\n\n", "\n".join(lines)).strip()


def _outline(pdf: Any) -> dict[int, list[tuple[int, str]]]:
    """Return the outline's entries as (level, title) by page, from 1."""
    found: dict[int, list[tuple[int, str]]] = {}
    for number, mark in enumerate(pdf.get_toc(max_depth=6)):
        if number >= _MAX_OUTLINE:
            break
        target = mark.get_dest()
        index = target.get_index() if target is not None else None
        title = " ".join(str(mark.get_title() or "").split())
        if index is not None and title:
            found.setdefault(index + 1, []).append((mark.level + 1, title))
    return found


def _add_headings(text: str, entries: list[tuple[int, str]], assembly: Assembly) -> None:
    """Place the headings of a page where their titles stand in its text, else at its start."""
    placed: list[tuple[int, int, str]] = []
    cursor = 0
    for level, title in entries:
        pattern = r"\s+".join(re.escape(word) for word in title.split())
        match = re.compile(pattern, re.IGNORECASE).search(text, cursor)
        cursor = match.start() if match else cursor
        line = text.rfind("\n", 0, cursor) + 1
        is_short = cursor - line <= 12  # the section's number may stand before its title
        placed.append((line if match and is_short else cursor, level, title))
    for start, level, title in placed:
        assembly.heading(level, title, at=assembly.length + start)


def _refusal(why: str, where: str) -> DataError:
    if "password" in why.lower():
        return DataError(
            "the file is encrypted",
            code="document.encrypted",
            where=where,
            expected="a file that opens without a password",
            next="save a copy without a password",
        )
    return DataError(
        f"the file cannot be read: {why}",
        code="document.unreadable",
        where=where,
        expected="a whole PDF file",
        next="get the file anew, or print it to PDF again",
    )
