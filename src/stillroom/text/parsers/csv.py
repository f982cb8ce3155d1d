"""Comma- and tab-separated values: the text is the file, byte for byte.

The delimiter and the header's column names are told in the metadata; rows stay as they are written.
"""

from __future__ import annotations

import csv
from typing import ClassVar

from typing_extensions import override

from stillroom.records import Document
from stillroom.text.assembly import from_source_text, require_text
from stillroom.text.decoding import decode, make_anchors
from stillroom.text.method import Parser, Source

__all__ = ["Csv"]


class Csv(Parser):
    """Tables in CSV and TSV."""

    suffixes: ClassVar[tuple[str, ...]] = (".csv", ".tsv", ".tab")
    media_type: ClassVar[str] = "text/csv"

    @override
    def parse(self, data: bytes, source: Source) -> Document:
        decoded = decode(data, source.path)
        first = decoded.text[:8192].split("\n", 1)[0].rstrip("\r")
        delimiter = max("\t;|,", key=first.count)
        metadata = {**decoded.metadata, "delimiter": delimiter, "is_table": True}
        try:
            metadata["columns"] = next(csv.reader([first], delimiter=delimiter), [])[:256]
        except csv.Error as error:
            metadata["columns_error"] = str(error)
        document = from_source_text(decoded.text, make_anchors(decoded), source, metadata=metadata)
        return require_text(document)
