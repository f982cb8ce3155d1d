"""Base classes and types of parsers and chunkers.

Knows the contracts and the limits, no file format and no way to cut.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from stillroom.records import Document, Origin, Passage
from stillroom.registry import Method, Registry

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    TextEmbedder = Callable[[Sequence[str]], NDArray[np.float32]]
else:
    TextEmbedder = Any

__all__ = [
    "CHUNKERS",
    "PARSERS",
    "Chunker",
    "ParseLimits",
    "Parser",
    "SourceFile",
    "TextEmbedder",
    "TokenCounter",
]

TokenCounter = Callable[[str], int]


class ParseLimits(BaseModel):
    """How much one file may cost before it is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    file_bytes: int = Field(
        default=64 * 2**20, ge=1, description="largest file that is read, in bytes"
    )
    text_characters: int = Field(
        default=50_000_000, ge=1, description="most characters that one document may hold"
    )
    pages: int = Field(default=5_000, ge=1, description="most pages, slides or sheets of one file")
    decompressed_bytes: int = Field(
        default=512 * 2**20, ge=1, description="most bytes that an archive may unpack to"
    )
    compression_ratio: float = Field(
        default=100.0, gt=1, description="most that an archive may shrink, above 16 MiB unpacked"
    )
    archive_entries: int = Field(default=10_000, ge=1, description="most files within an archive")
    timeout_s: float = Field(
        default=60.0,
        gt=0,
        description="most seconds of processor time for one file of a risky format; of the wall "
        "clock twenty times as many",
    )
    memory_bytes: int = Field(
        default=2 * 2**30,
        ge=256 * 2**20,
        description="address space of the process for risky formats",
    )
    ocr: Literal["auto", "never", "always"] = Field(
        default="auto",
        description="read pictures of text: on pages without text, never, or on every page",
    )
    ocr_language: str = Field(
        default="",
        max_length=20,
        description="the pictures' language as ISO 639-1, checked against what can be read",
    )
    ocr_timeout_s: float = Field(
        default=600.0,
        gt=0,
        description="most seconds of processor time for reading the pictures of one file",
    )


@dataclass(frozen=True, slots=True)
class SourceFile:
    """The file that a parser is at: its name, its bytes' digest, its origin and its limits.

    ``path`` is relative to the folder that was read, with forward slashes. A parser that works long
    on a whole file, as OCR does, calls ``more_time`` before each page.
    """

    path: str
    digest: str
    media_type: str = ""
    origin: Origin = field(default_factory=Origin)
    limits: ParseLimits = field(default_factory=lambda: ParseLimits())
    more_time: Callable[[], None] = lambda: None

    @property
    def stem(self) -> str:
        """The file's name without folders and suffix."""
        name = self.path.rsplit("/", 1)[-1]
        return name.rsplit(".", 1)[0] or name


class Parser(Method):
    """Turns the bytes of one file format into a Document.

    ``is_risky`` formats (compressed, nested or read by native code) are parsed in a process of
    their own, with its memory and time limited.
    """

    paper: ClassVar[str] = ""
    suffixes: ClassVar[tuple[str, ...]]
    media_type: ClassVar[str] = "application/octet-stream"
    is_risky: ClassVar[bool] = False

    @abstractmethod
    def parse(self, data: bytes, source: SourceFile) -> Document:
        """Return the document that the bytes hold.

        Args:
            data: The whole file.
            source: Where the bytes come from, and the limits to keep.

        Raises:
            DataError: If the bytes are broken, encrypted, too large or hold no text.
            MissingExtraError: If the format needs a package that is not installed.
        """


class Chunker(Method):
    """Cuts a Document into Passages.

    Every passage is ``document.text[start:end]``; together they cover all that is not white space;
    starts and ends increase; none is empty; none is larger than ``size`` unless it is one
    character that cannot be split. ``needs_embedder`` says that the method reads vectors.
    """

    paper: ClassVar[str] = ""
    needs_embedder: ClassVar[bool] = False
    size: int = Field(default=200, ge=4, le=100_000, description="most tokens of a passage")

    @property
    def reading_passes(self) -> int:
        """How many times all of a text is embedded only to find where to cut it."""
        return int(self.needs_embedder)

    @abstractmethod
    def chunk(
        self,
        document: Document,
        *,
        count: TokenCounter | None = None,
        embed: TextEmbedder | None = None,
    ) -> Iterator[Passage]:
        """Yield the document's passages in order.

        Args:
            document: What to cut.
            count: Counts the tokens of a text, as the embedder that will read the passages does;
                by default word pieces are estimated.
            embed: Gives one row of length 1 for each text, (N, D); only for a method that needs it.

        Yields:
            Passages whose origin names the chunker and the document.

        Raises:
            DataError: If the method needs vectors and no ``embed`` is given.
        """


PARSERS: Registry[Parser] = Registry("stillroom.text.parsers", Parser)
CHUNKERS: Registry[Chunker] = Registry("stillroom.text.chunkers", Chunker)
