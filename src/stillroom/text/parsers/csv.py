"""CSV and TSV files as text, byte for byte.

The metadata has the delimiter and the header's column names; rows are kept unchanged. The header is
the first row that is not empty, after the line ``sep=;`` by which spreadsheets tell a delimiter.
"""

from __future__ import annotations

import csv
import io
import re
from typing import ClassVar

from typing_extensions import override

from stillroom.records import Document
from stillroom.text.chunking.boundaries import find_header_row
from stillroom.text.documents.builder import build_document, require_text
from stillroom.text.encoding import build_anchors, decode_text
from stillroom.text.interfaces import Parser, SourceFile

__all__ = ["Csv"]

_QUOTED = re.compile(r'"[^"]*"')
_TOLD = re.compile(r"sep=([\t;|,])", re.IGNORECASE)


class Csv(Parser):
    """Tables in CSV and TSV."""

    suffixes: ClassVar[tuple[str, ...]] = (".csv", ".tsv", ".tab")
    media_type: ClassVar[str] = "text/csv"

    @override
    def parse(self, data: bytes, source: SourceFile) -> Document:
        decoded = decode_text(data, source.path)
        begin, end = find_header_row(decoded.text)
        first, told = decoded.text[begin:end][:8192], _TOLD.search(decoded.text, 0, begin)
        delimiter = told[1] if told else max("\t;|,", key=_QUOTED.sub("", first).count)
        metadata = {**decoded.metadata, "delimiter": delimiter, "is_table": True}
        try:
            rows = csv.reader(io.StringIO(first, ""), delimiter=delimiter)
            metadata["columns"] = next(rows, [])[:256]
        except csv.Error as error:
            metadata["columns_error"] = str(error)
        document = build_document(decoded.text, build_anchors(decoded), source, metadata=metadata)
        return require_text(document)
