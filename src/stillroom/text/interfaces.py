"""Base classes and types of parsers and chunkers; chunk size in tokens, and limits of parsing.

Contracts and limits only; file formats and chunking methods are in ``parsers`` and ``chunkers``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator
from typing_extensions import override

from stillroom.errors import DataError
from stillroom.recipes import Settings
from stillroom.records import Document, Origin, Passage
from stillroom.registry import Method, Registry

if TYPE_CHECKING:
    from stillroom.text.chunking.boundaries import Span
    from stillroom.text.chunking.tokens import TokenRuler

__all__ = [
    "CHUNKERS",
    "PARSERS",
    "Chunker",
    "ParseLimits",
    "Parser",
    "SourceFile",
    "TokenCounter",
]

TokenCounter = Callable[[str], int]


class ParseLimits(Settings):
    """Limits on the cost of one file, above which it is refused."""

    file_bytes: int = Field(default=64 * 2**20, ge=1, description="maximum size of a file in bytes")
    text_characters: int = Field(
        default=50_000_000, ge=1, description="maximum characters of one document"
    )
    pages: int = Field(default=5_000, ge=1, description="maximum pages, slides or sheets per file")
    decompressed_bytes: int = Field(
        default=512 * 2**20, ge=1, description="maximum unpacked size of an archive in bytes"
    )
    compression_ratio: float = Field(
        default=100.0, gt=1, description="maximum compression ratio, above 16 MiB unpacked"
    )
    archive_entries: int = Field(default=10_000, ge=1, description="maximum files in an archive")
    timeout_s: float = Field(
        default=60.0,
        gt=0,
        description="maximum processor seconds for one file of a risky format; twenty times as "
        "many by the wall clock",
    )
    memory_bytes: int = Field(
        default=2 * 2**30,
        ge=256 * 2**20,
        description="address space of the process for risky formats",
    )
    ocr: Literal["auto", "never", "always"] = Field(
        default="auto",
        description="read images of text: on pages without text, never, or on every page",
    )
    ocr_language: str = Field(
        default="",
        max_length=20,
        description="language of the images as ISO 639-1, checked against the OCR model",
    )
    ocr_timeout_s: float = Field(
        default=600.0,
        gt=0,
        description="maximum processor seconds for OCR of one file",
    )

    @override
    def list_unused(self) -> dict[str, str]:
        names = ("ocr_language", "ocr_timeout_s") if self.ocr == "never" else ()
        return {**super().list_unused(), **dict.fromkeys(names, "set ocr: auto, or always")}

    def make_excess_error(self, limit: str, found: str, where: str) -> DataError:
        """Return the error for a file above a limit, of which ``found`` tells the size."""
        return DataError(
            found,
            code="document.too-large",
            where=where,
            expected=f"at most {getattr(self, limit)}",
            next=f"split the file, or raise the limit {limit}",
        )


@dataclass(frozen=True, slots=True)
class SourceFile:
    """The file being parsed: its name, its bytes' digest, its origin and its limits.

    ``path`` is relative to the folder being read, with forward slashes. A slow parser, such as OCR,
    calls ``more_time`` before each page. ``declared`` is what ``Parser.read_declared`` returned.
    """

    path: str
    digest: str
    media_type: str = ""
    origin: Origin = field(default_factory=Origin)
    limits: ParseLimits = field(default_factory=lambda: ParseLimits())
    more_time: Callable[[], None] = lambda: None
    declared: Mapping[str, str] = field(default_factory=dict)

    @property
    def stem(self) -> str:
        """The file's name without folders and suffix."""
        name = self.path.rsplit("/", 1)[-1]
        return name.rsplit(".", 1)[0] or name


class Parser(Method):
    """Parser (reader, loader, converter) of one file format into a Document.

    ``is_risky`` formats (compressed, nested or read by native code) are parsed in a subprocess with
    limited memory and time.
    """

    paper: ClassVar[str] = ""
    suffixes: ClassVar[tuple[str, ...]]
    media_type: ClassVar[str] = "application/octet-stream"
    is_risky: ClassVar[bool] = False

    def read_declared(self, data: bytes, file: Path, root: Path) -> Mapping[str, str]:
        """Return what other files below ``root`` declare for a file's bytes; here nothing."""
        return {}

    @abstractmethod
    def parse(self, data: bytes, source: SourceFile) -> Document:
        """Parse bytes into a document.

        Raises:
            DataError: If the bytes are broken, encrypted, too large or hold no text.
            MissingExtraError: If the format needs a package that is not installed.
        """


class Chunker(Method):
    """Splits a Document into Passages (text splitter).

    Every passage is ``document.text[start:end]``; together they cover all that is not white space;
    starts and ends increase; none is empty; none is larger than ``size`` unless it is one
    character that cannot be split.
    """

    paper: ClassVar[str] = ""
    size: int = Field(default=200, ge=4, le=100_000, description="maximum tokens of a passage")

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        if (overlap := getattr(self, "overlap", 0)) > self.size // 2:
            raise ValueError(f"overlap ({overlap}) is above half of size ({self.size})")
        return self

    @abstractmethod
    def split(self, document: Document, ruler: TokenRuler) -> Iterable[Span]:
        """Return the passages' spans in order.

        ``ruler`` counts the tokens of the document's text.
        """

    def chunk(self, document: Document, *, count: TokenCounter | None = None) -> Iterator[Passage]:
        """Yield the document's passages in order; their origin has the chunker and the document.

        Args:
            document: The document to split.
            count: Token counter of the embedder that will embed the passages; by default word
                pieces are estimated.
        """
        from stillroom.text.chunking.boundaries import make_passages
        from stillroom.text.chunking.tokens import TokenRuler

        spans = self.split(document, TokenRuler(document.text, count))
        yield from make_passages(document, spans, f"text.chunkers.{self.method_name()}")


PARSERS: Registry[Parser] = Registry("stillroom.text.parsers", Parser)
CHUNKERS: Registry[Chunker] = Registry("stillroom.text.chunkers", Chunker)
