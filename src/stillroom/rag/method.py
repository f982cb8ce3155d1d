"""What a method of this room is given and must give back, seam by seam.

Retriever, Reranker, Transform, Grader and Checker are pure: they read an open ``Index`` and a
``Query``, keep nothing, and may be used from several threads at once. An Answering directs them for
one question, through an ``Inquiry`` that bounds it and notes each step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.errors import DataError
from stillroom.rag.extraction import EXTRACTORS
from stillroom.rag.stages import stage
from stillroom.rag.storing import STORES
from stillroom.registry import Method, Seam

if TYPE_CHECKING:
    from stillroom.models import TextModel
    from stillroom.rag.fusion import Ranked
    from stillroom.rag.index import Index
    from stillroom.rag.inquiry import Inquiry
    from stillroom.rag.support import Evidence
    from stillroom.records import Hit, Message

__all__ = [
    "ANSWERING",
    "CHECKERS",
    "DEFAULT_RETRIEVER",
    "EXTRACTORS",
    "GRADERS",
    "MAX_QUERY_CHARACTERS",
    "RERANKERS",
    "RETRIEVERS",
    "STORES",
    "TRANSFORMS",
    "Answering",
    "Checker",
    "Grader",
    "LegRetriever",
    "Momentary",
    "Query",
    "Reranker",
    "Retriever",
    "Transform",
    "make_query",
    "search_dense",
    "search_keyword",
    "search_sparse",
    "search_tokens",
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
    ``history`` is the conversation before it, oldest turn first; ``keywords`` and ``themes`` are
    what a model names in it, for graphs.
    """

    text: str
    terms: Mapping[str, float] = field(default_factory=dict)
    drafts: tuple[str, ...] = ()
    history: tuple[Message, ...] = ()
    keywords: tuple[str, ...] = ()
    themes: tuple[str, ...] = ()


class Momentary(Method):
    """A method whose outcome may depend on more than its settings, the query and the index."""

    @property
    def moment(self) -> str:
        """What else the outcome depends on, as the day or the digest of a graph; mostly nothing.

        An answer that is kept is given again only while this is the same.
        """
        return ""


class Retriever(Momentary, ABC):
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
    words: Literal["keyword", "sparse"] = Field(
        "keyword", description="what searches by words: BM25, or term weights that a model learned"
    )

    @abstractmethod
    def fuse(self, legs: Sequence[Ranked]) -> list[tuple[int, float]]:
        """Return the rows of the keyword and the dense list with fused scores, best first."""

    @override
    def retrieve(self, query: Query, k: int, index: Index) -> list[Hit]:
        depth = max(self.depth, k)
        search = search_sparse if self.words == "sparse" else search_keyword
        legs = [search(index, query, depth), search_dense(index, query, depth)]
        with stage("fuse"):
            return index.hits(self.fuse(legs)[:k])


def search_keyword(index: Index, query: Query, k: int, **settings: Any) -> Ranked:
    """Return the best ``k`` rows by words, as a stage of its own; settings as the index takes."""
    with stage("keyword") as span:
        found = index.search_keyword(query, k, **settings)
        span.tell(stillroom__rows=len(found), gen_ai__data_source__id=index.digest)
        return found


def search_dense(index: Index, query: Query, k: int, **settings: Any) -> Ranked:
    """Return the best ``k`` rows by vectors; embedding the query is a stage before it."""
    with stage("embed") as span:
        index.embed_query(query)  # the index remembers it
        if span.is_heard:
            span.tell(embedding__model_name=index.embedder.fingerprint)
    with stage("dense") as span:
        found = index.search_dense(query, k, **settings)
        span.tell(stillroom__rows=len(found), gen_ai__data_source__id=index.digest)
        return found


def search_sparse(index: Index, query: Query, k: int) -> Ranked:
    """Return the best ``k`` rows by learned term weights, as a stage of its own."""
    with stage("sparse") as span:
        found = index.search_sparse(query, k)
        span.tell(stillroom__rows=len(found), gen_ai__data_source__id=index.digest)
        return found


def search_tokens(index: Index, query: Query, k: int, rows: Iterable[int] | None) -> Ranked:
    """Return the best ``k`` of some rows by late interaction, as a stage of its own."""
    with stage("tokens") as span:
        found = index.search_tokens(query, k, rows)
        span.tell(stillroom__rows=len(found), gen_ai__data_source__id=index.digest)
        return found


class Reranker(Momentary, ABC):
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


class Grader(Method, ABC):
    """Says how likely a passage is to hold what a question asks for.

    Subclasses have settings ``upper`` and ``lower``: the grade from which a passage is taken to
    hold the answer, and the one below which it is taken to miss it. They are the method's own,
    since no two graders share a scale.
    """

    upper: float
    lower: float

    @abstractmethod
    def grade(
        self,
        query: Query,
        texts: Sequence[str],
        index: Index,
        model: TextModel | None = None,
    ) -> list[float]:
        """Return one grade for each text, from 0 to 1.

        Raises:
            DataError: If the method needs a text model and none is given.
        """


class Checker(Method, ABC):
    """Says how well passages support a sentence."""

    @abstractmethod
    def hold(self, passages: Sequence[str], index: Index) -> Evidence:
        """Return the passages, numbered from 1, ready to be held against sentences."""


class Answering(Momentary, ABC):
    """Directs what is searched, judged and read for one question.

    The bounds hold for every method: a loop that reaches one stops, says so in its trace, and goes
    on with what it has.
    """

    max_rounds: int = Field(
        2, ge=0, le=16, description="how often is searched again after the first time"
    )
    max_calls: int = Field(
        64, ge=1, le=10_000, description="how often the model may be asked, the answer included"
    )
    max_seconds: float = Field(
        120.0, gt=0, description="after how many seconds nothing but the answer is begun"
    )

    @abstractmethod
    def answer(self, inquiry: Inquiry) -> Iterator[str]:
        """Yield the model's text as it comes, after ``inquiry.read`` has said what is shown.

        A method that finds no support calls ``inquiry.abstain`` and yields nothing.
        """


RETRIEVERS = Seam("stillroom.rag.retrievers", Retriever)
RERANKERS = Seam("stillroom.rag.rerankers", Reranker)
TRANSFORMS = Seam("stillroom.rag.transforms", Transform)
GRADERS = Seam("stillroom.rag.graders", Grader)
CHECKERS = Seam("stillroom.rag.checkers", Checker)
ANSWERING = Seam("stillroom.rag.answering", Answering)


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
