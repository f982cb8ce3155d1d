"""Inputs that several kinds share: an index with its reader, and judged queries."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from stillroom.recipes import Reference, Settings

if TYPE_CHECKING:
    from stillroom.rag.index.searcher import Index
    from stillroom.rag.index.view import AccessContext

__all__ = ["IndexInput", "JudgedQueries", "Reader", "ReaderInput", "is_path"]


_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:")


def is_path(*references: str | None) -> bool:
    """Return whether all references are paths, not outputs that a step of a flow will write."""
    return not any(reference and _SCHEME.match(reference) for reference in references)


class JudgedQueries(Settings):
    """Queries of a collection and their relevance judgments."""

    queries: Reference = Field(description="queries: TREC, BEIR, TSV or JSON lines")
    qrels: Reference = Field(description="relevance judgments of the queries")


class Reader(Settings):
    """Identity that opens an index with tenants; it sees what the labels show it."""

    tenant: str = Field(min_length=1, description="tenant of the documents")
    principals: list[str] = Field(
        default=[], description="user and groups, as the labels of documents name them"
    )


class ReaderInput(Settings):
    """The reader of an index, which may have tenants."""

    reader: Reader | None = Field(default=None, description="reader of an index with tenants")

    def get_access(self) -> AccessContext | None:
        """Return the access of the reader; None for an index that is open to everyone."""
        from stillroom.rag.index.view import AccessContext

        reader = self.reader
        return AccessContext(reader.tenant, reader.principals) if reader is not None else None

    def describe_reader(self) -> dict[str, Any]:
        """Return the reader as settings; empty for an index without tenants."""
        if self.reader is None:
            return {}
        return {"tenant": self.reader.tenant, "principals": sorted(self.reader.principals)}


class IndexInput(ReaderInput):
    """An index that a job reads."""

    index: Reference = Field(description="index that is read")

    def open_index(self) -> Index:
        """Open the index for the reader.

        Raises:
            DataError: If it is no index, or has tenants and there is no reader.
        """
        from stillroom.rag.index.searcher import Index

        return Index.open(Path(self.index), access=self.get_access())
