"""What is laid over a PDF page: filled form fields, notes, links.

Knows PDFium's annotations; nothing of the page's own text.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Overlay", "read_overlay"]

_MOST = 2000
_NOTES = {1: "Note", 3: "Text", 9: "Highlight", 10: "Underline", 12: "Strikeout", 13: "Stamp"}
_LINK, _WIDGET = 2, 20
_TEXTUAL = {4, 5, 6}  # combo box, list box, text field
_CHECKED = {2, 3}  # check box, radio button
_HIDDEN = 2  # the flag of annotations that are not shown


@dataclass(slots=True)
class Overlay:
    """A page's form fields and notes as lines of text, its links, and what is hidden."""

    fields: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    hidden: int = 0


def read_overlay(document: Any, page: Any, form: Any | None) -> Overlay:
    """Read the annotations of a page.

    Args:
        document: PDFium's handle of the document.
        page: Its handle of the page.
        form: Its handle of the form, if the document has one.
    """
    import pypdfium2.raw as pdfium

    found = Overlay()
    for index in range(min(pdfium.FPDFPage_GetAnnotCount(page), _MOST)):
        one = pdfium.FPDFPage_GetAnnot(page, index)
        if not one:
            continue
        try:
            _read(one, document, form, found)
        finally:
            pdfium.FPDFPage_CloseAnnot(one)
    return found


def _read(one: Any, document: Any, form: Any | None, found: Overlay) -> None:
    import pypdfium2.raw as pdfium

    kind = pdfium.FPDFAnnot_GetSubtype(one)
    if kind == _LINK:
        target = _target(document, pdfium.FPDFAnnot_GetLink(one))
        if target:
            found.links.append(target)
        return
    is_field = kind == _WIDGET and form is not None
    if not is_field and kind not in _NOTES:
        return
    text = _field(form, one) if is_field else _note(one, _NOTES[kind])
    if not text:
        return
    if pdfium.FPDFAnnot_GetFlags(one) & _HIDDEN:
        found.hidden += len(text)
    else:
        (found.fields if is_field else found.notes).append(text)


def _field(form: Any, one: Any) -> str:
    """Return a filled form field as 'name: value', or nothing."""
    import pypdfium2.raw as pdfium

    kind = pdfium.FPDFAnnot_GetFormFieldType(form, one)
    name = _string(pdfium.FPDFAnnot_GetFormFieldAlternateName, form, one)
    name = name or _string(pdfium.FPDFAnnot_GetFormFieldName, form, one)
    if kind in _TEXTUAL:
        value = _string(pdfium.FPDFAnnot_GetFormFieldValue, form, one)
    elif kind in _CHECKED and pdfium.FPDFAnnot_IsChecked(form, one):
        value = _string(pdfium.FPDFAnnot_GetFormFieldExportValue, form, one) or "yes"
    else:
        value = ""
    return f"{name or 'Field'}: {value}" if value else ""


def _note(one: Any, title: str) -> str:
    import pypdfium2.raw as pdfium

    content = _string(pdfium.FPDFAnnot_GetStringValue, one, b"Contents")
    return f"{title}: {content}" if content else ""


def _target(document: Any, link: Any) -> str:
    import pypdfium2.raw as pdfium

    action = pdfium.FPDFLink_GetAction(link) if link else None
    if not action:
        return ""
    size = pdfium.FPDFAction_GetURIPath(document, action, None, 0)
    if not 0 < size <= 4096:
        return ""
    buffer = ctypes.create_string_buffer(size)
    pdfium.FPDFAction_GetURIPath(document, action, buffer, size)
    return buffer.value.decode("utf-8", "replace")


def _string(read: Callable[..., int], *owner: Any) -> str:
    """Return a string that PDFium writes as UTF-16 into a buffer, on one line."""
    size = read(*owner, None, 0)
    if not 2 < size <= 1 << 20:
        return ""
    import pypdfium2.raw as pdfium

    buffer = ctypes.create_string_buffer(size)
    read(*owner, ctypes.cast(buffer, ctypes.POINTER(pdfium.FPDF_WCHAR)), size)
    text = buffer.raw[:size].decode("utf-16-le", "replace").rstrip("\x00")
    return " ".join(text.split())
