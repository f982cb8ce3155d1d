"""Marks of origin in a PDF outside of its text: properties, document metadata (XMP), margins.

The metadata of the document alone counts, to which its catalog refers: pictures have some of their
own. A catalog within a compressed object stream is not read.

Source: ISO 32000-2, section 14.3 (metadata).
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

from stillroom.text.documents.statements import MarkCollector, read_xml
from stillroom.text.pdf.structure import PdfPage

__all__ = ["collect_pdf_marks"]

_CATALOG = re.compile(rb"/Type\s*/Catalog\b")
_METADATA = re.compile(rb"/Metadata\s+(\d{1,9})\s+(\d{1,5})\s+R")
_STREAM = re.compile(rb"(<<[^\0]{0,2000}?>>)\s*stream\r?\n")
_MAX_PACKET = 2**20
_MAX_DICTIONARY = 4000
_OWN_KEYS = ("AIGC", "DigitalSourceType")


def collect_pdf_marks(
    pdf: Any, data: bytes, pages: Sequence[PdfPage], marks: MarkCollector
) -> None:
    """Read the marks of a document that pypdfium2 opened; ``pages`` still have their margins."""
    where = "the properties of the PDF"
    for name, value in pdf.get_metadata_dict(skip_empty=True).items():
        marks.add_property(where, name, value)
    for name in _OWN_KEYS:
        if value := pdf.get_metadata_value(name):
            marks.add_property(where, name, value)
    if packet := _find_packet(data):
        for name, value in read_xml(packet):
            marks.add_property("XMP", name, value)
    counts = Counter(text for page in pages for text in {*_list_margins(page)})
    for text, count in counts.items():
        if count > 1 or (len(pages) == 1 and text == pages[0].blocks[-1].text):
            marks.add_margin("a running head or foot", text)


def _list_margins(page: PdfPage) -> list[str]:
    return [
        block.text
        for block in page.blocks
        if block.kind != "table" and len(block.lines) <= 3 and page.is_marginal(block)
    ]


def _find_packet(data: bytes) -> bytes:
    """Return the XMP packet of the document; empty without one."""
    packet = b""
    for catalog in _CATALOG.finditer(data):  # the last one is in force
        begin, end = max(0, catalog.start() - _MAX_DICTIONARY), catalog.end() + _MAX_DICTIONARY
        first = data.rfind(b"obj", begin, catalog.start())
        last = data.find(b"endobj", catalog.end(), end)
        named = _METADATA.search(data, max(first, begin), last if last >= 0 else end)
        if named is None:
            continue
        head = re.compile(rb"(?<!\d)%s\s+%s\s+obj\b\s*" % (named[1], named[2]))
        for place in head.finditer(data):
            stream = _STREAM.match(data, place.end())
            if stream is None:
                continue
            stop = data.find(b"endstream", stream.end(), stream.end() + 4 * _MAX_PACKET)
            packet = _decode(stream[1], data[stream.end() : stop]) if stop >= 0 else packet
    return packet.strip()


def _decode(dictionary: bytes, content: bytes) -> bytes:
    if b"/Filter" not in dictionary:
        return content[:_MAX_PACKET]
    if b"FlateDecode" not in dictionary:
        return b""
    try:
        return zlib.decompressobj().decompress(content, _MAX_PACKET)
    except zlib.error:
        return b""
