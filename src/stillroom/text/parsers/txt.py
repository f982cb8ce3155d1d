"""Plain text and source code: the text is the file, byte for byte.

The encoding is told by a byte order mark, else UTF-8, else statistics; see ``decoding``.
"""

from __future__ import annotations

from typing import ClassVar

from typing_extensions import override

from stillroom.records import Document
from stillroom.text.assembly import from_source_text, require_text
from stillroom.text.decoding import decode, make_anchors
from stillroom.text.method import Parser, Source

__all__ = ["Txt"]

_CODE = (
    ".py .pyi .js .mjs .ts .tsx .jsx .c .h .cc .cpp .hpp .cs .java .kt .go .rs .rb .php .swift"
    " .scala .lua .pl .r .jl .sh .bash .sql .css .scss .yaml .yml .toml .ini .cfg .conf .xml .xsl"
    " .svg .tex .bib .proto .graphql .cmake .mk .diff .patch"
)


class Txt(Parser):
    """Text files of any encoding, and source code."""

    suffixes: ClassVar[tuple[str, ...]] = (".txt", ".text", ".log", ".srt", ".vtt", *_CODE.split())
    media_type: ClassVar[str] = "text/plain"

    @override
    def parse(self, data: bytes, source: Source) -> Document:
        decoded = decode(data, source.path)
        metadata = dict(decoded.metadata)
        if source.path.lower().endswith(tuple(_CODE.split())):
            metadata["is_code"] = True
        document = from_source_text(decoded.text, make_anchors(decoded), source, metadata=metadata)
        return require_text(document)
