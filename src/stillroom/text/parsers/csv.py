"""CSV and TSV files as text, byte for byte.

The metadata has the delimiter and the header's column names; rows are kept unchanged.
"""

from __future__ import annotations

import csv
from typing import ClassVar

from typing_extensions import override

from stillroom.records import Document
from stillroom.text.documents.builder import build_document, require_text
from stillroom.text.encoding import build_anchors, decode_text
from stillroom.text.interfaces import Parser, SourceFile

__all__ = ["Csv"]


class Csv(Parser):
    """Tables in CSV and TSV."""

    suffixes: ClassVar[tuple[str, ...]] = (".csv", ".tsv", ".tab")
    media_type: ClassVar[str] = "text/csv"

    @override
    def parse(self, data: bytes, source: SourceFile) -> Document:
        decoded = decode_text(data, source.path)
        first = decoded.text[:8192].split("\n", 1)[0].rstrip("\r")
        delimiter = max("\t;|,", key=first.count)
        metadata = {**decoded.metadata, "delimiter": delimiter, "is_table": True}
        try:
            metadata["columns"] = next(csv.reader([first], delimiter=delimiter), [])[:256]
        except csv.Error as error:
            metadata["columns_error"] = str(error)
        document = build_document(decoded.text, build_anchors(decoded), source, metadata=metadata)
        return require_text(document)
