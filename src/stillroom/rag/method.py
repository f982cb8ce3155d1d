"""Retriever, Reranker and Transform: what a method of this room is given and must give back.

All three are pure: they read an open ``Index`` and a ``Query``, keep nothing, and may be used from
several threads at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from typing_extensions import override

from stillroom.errors import DataError
from stillroom.registry import Method, Seam

if TYPE_CHECKING:
    from stillroom.models import TextModel
    from stillroom.rag.fusion import Ranked
    from stillroom.rag.index import Index
    from stillroom.records import Hit, Message

__all__ = [
    "DEFAULT_RETRIEVER",
    "MAX_QUERY_CHARACTERS",
    "RERANKERS",
    "RETRIEVERS",
    "TRANSFORMS",
    "LegRetriever",
    "Query",
    "Reranker",
    "Retriever",
    "Transform",
    "make_query",
]

MAX_QUERY_CHARACTERS = 32_768
DEFAULT_RETRIEVER = "convex"
"""What searches where nothing is said: on every judged set that was measured it finds more than
``keyword``, ``dense`` and ``hybrid``, or as much (docs/explanation/lab-notebook.md)."""


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked of an index.

    ``terms`` (analyzed, with weights) stand in for the text where keywords are searched; ``drafts``
    are passages that a model imagines as the answer, averaged with the text where vectors are;
    ``history`` is the conversation before it, oldest turn first.
    """

    text: str
    terms: Mapping[str, float] = field(default_factory=dict)
    drafts: tuple[str, ...] = ()
    history: tuple[Message, ...] = ()


class Retriever(Method, ABC):
    """Finds the passages of an index that fit a query."""

    @abstractmethod
    def retrieve(self, query: Query, k: int, index: Index) -> list[Hit]:
        """Return at most ``k`` hits, best first, ranks from 1; equal scores in order of rows.

        An index row is a passage, by document path and then position. A query that holds nothing
        to search for gives an empty list.
        """


class LegRetriever(Retriever, ABC):
    """Finds passages by words and by vectors, and fuses the two lists.

    Subclasses have a setting ``depth``: how many of each list are fused, if not more are asked for.
    """

    depth: int

    @abstractmethod
    def fuse(self, legs: Sequence[Ranked]) -> list[tuple[int, float]]:
        """Return the rows of the keyword and the dense list with fused scores, best first."""

    @override
    def retrieve(self, query: Query, k: int, index: Index) -> list[Hit]:
        depth = max(self.depth, k)
        legs = [index.search_keyword(query, depth), index.search_dense(query, depth)]
        return index.hits(self.fuse(legs)[:k])


class Reranker(Method, ABC):
    """Orders hits anew, reading query and passage together."""

    @abstractmethod
    def rerank(
        self,
        query: Query,
        hits: Sequence[Hit],
        index: Index,
        model: TextModel | None = None,
    ) -> list[Hit]:
        """Return the same hits, best first, with new scores and ranks from 1.

        Raises:
            DataError: If the method needs a text model and none is given.
        """


class Transform(Method, ABC):
    """Makes of one query the queries that are really searched."""

    @abstractmethod
    def rewrite(self, query: Query, index: Index, model: TextModel | None) -> list[Query]:
        """Return one or more queries; the hits of several are fused.

        Raises:
            DataError: If the method needs a model and none is given.
        """


RETRIEVERS = Seam("stillroom.rag.retrievers", Retriever)
RERANKERS = Seam("stillroom.rag.rerankers", Reranker)
TRANSFORMS = Seam("stillroom.rag.transforms", Transform)


def make_query(text: str | Query) -> Query:
    """Return a query that every method can take: half surrogates are replaced, length is bounded.

    Raises:
        DataError: If the text is longer than ``MAX_QUERY_CHARACTERS``.
    """
    query = text if isinstance(text, Query) else Query(text)
    if len(query.text) > MAX_QUERY_CHARACTERS:
        raise DataError(
            f"the query has {len(query.text)} characters",
            code="rag.query-too-long",
            expected=f"at most {MAX_QUERY_CHARACTERS}",
            next="ask a question, not a document; index documents with 'stillroom rag index'",
        )
    clean = query.text.encode("utf-8", "replace").decode("utf-8")
    return replace(query, text=clean)
