"""``stillroom rag``: indexing, retrieval, evaluation and maintenance."""

from __future__ import annotations

from stillroom.cli.app import command_group

__all__ = ["rag_group"]


@command_group(
    "rag",
    "stillroom rag index ./documents --out index",
    'stillroom rag search index "context manager"',
    package=__name__,
)
def rag_group() -> None:
    """Retrieval: build, search and evaluate indexes."""
