"""Base classes and registries of the room's methods, and the query they work on.

Retrievers, rerankers, query transforms, graders and checkers are pure: they read an open ``Index``
and a ``Query``, keep no state, and may be used from several threads at once. Each is called by one
step of ``rag.retrieval.pipeline`` or by a strategy, and calls neither back. An answer strategy
calls them for one question, through an ``AnswerSession`` that limits it and records each step.

A ``PassageExtraction`` depends only on the passage's text, the extractor and its model, so that it
can be cached and reused for equal texts. Offsets are offsets into that text.
"""

from __future__ import annotations

import datetime
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field
from typing_extensions import override

from stillroom.errors import DataError
from stillroom.provenance import digest_json
from stillroom.rag.observability import stage
from stillroom.recipes import Reference, Settings
from stillroom.registry import Method, Registry

if TYPE_CHECKING:
    from stillroom.models import TextModel
    from stillroom.rag.generation.session import AnswerSession
    from stillroom.rag.groundedness.score import SourceTexts
    from stillroom.rag.index.searcher import Index
    from stillroom.rag.storage.protocol import IndexStorage, IndexWriter
    from stillroom.rag.types import RankedRows
    from stillroom.records import Hit, Message, Passage

__all__ = [
    "ANSWER_STRATEGIES",
    "CHECKERS",
    "DEFAULT_RETRIEVER",
    "EXTRACTORS",
    "GRADERS",
    "QUERY_TRANSFORMS",
    "RERANKERS",
    "RETRIEVERS",
    "STORES",
    "AnswerStrategy",
    "EntityExtractor",
    "GroundednessChecker",
    "HybridRetriever",
    "IndexStore",
    "LateInteractionSettings",
    "Mention",
    "PassageExtraction",
    "PassageReranker",
    "Query",
    "QueryTransform",
    "Relation",
    "RelevanceGrader",
    "Retriever",
    "SparseSettings",
    "TimeDependent",
    "make_query",
]


_MAX_QUERY_CHARACTERS = 32_768
DEFAULT_RETRIEVER = "convex"
"""Default retriever: on every judged set that was measured it finds at least as much as
``keyword``, ``dense`` and ``hybrid`` (docs/explanation/lab-notebook.md)."""


@dataclass(frozen=True, slots=True)
class Query:
    """Query of an index.

    ``terms`` (analyzed, with weights) replace the text in keyword search; ``drafts`` are
    hypothetical answers, averaged with the text in vector search; ``history`` is the conversation
    before the query, oldest turn first.
    """

    text: str
    terms: Mapping[str, float] = field(default_factory=dict)
    drafts: tuple[str, ...] = ()
    history: tuple[Message, ...] = ()


class TimeDependent(Method):
    """A method whose result may depend on more than its settings, the query and the index."""

    @property
    def moment(self) -> str:
        """Further state the result depends on, as the day, a graph's digest or a model's weights.

        By default that of the methods among the settings, or empty. A cached answer is reused only
        while this value is the same.
        """
        parts = (getattr(self, name) for name in type(self).model_fields)
        moments = (part.moment for part in parts if isinstance(part, TimeDependent))
        return " ".join(filter(None, moments))

    def on_day(self, day: datetime.date) -> Self:
        """Return the method as it is on a day, if its result depends on that.

        By default with the methods among its settings as they are then.
        """
        parts = {name: getattr(self, name) for name in type(self).model_fields}
        dated = {
            name: part.on_day(day)
            for name, part in parts.items()
            if isinstance(part, TimeDependent)
        }
        changed = {name: part for name, part in dated.items() if part is not parts[name]}
        return self.model_copy(update=changed) if changed else self


class Retriever(TimeDependent, ABC):
    """Finds the passages of an index that match a query."""

    @abstractmethod
    def retrieve(self, query: Query, k: int, index: Index) -> RankedRows:
        """Return at most ``k`` rows with scores, best first; equal scores in order of rows.

        A row is the number of a passage, by document path and position. ``index`` has the searches:
        ``search_keyword``, ``search_dense``, ``search_sparse`` and ``search_tokens``. A query
        without anything to search for returns an empty list.
        """


class HybridRetriever(Retriever, ABC):
    """Searches by words and by vectors, and fuses the two lists.

    Subclasses have a setting ``depth``: how many hits of each list are fused, at least ``k``.
    """

    depth: int
    words: Literal["keyword", "sparse"] = Field(
        "keyword", description="word search: BM25 (keyword), or learned term weights (sparse)"
    )

    @abstractmethod
    def fuse(self, rankings: Sequence[RankedRows], query: Query, index: Index) -> RankedRows:
        """Return the rows of the lists by words and by vectors with fused scores, best first."""

    @override
    def retrieve(self, query: Query, k: int, index: Index) -> RankedRows:
        depth = max(self.depth, k)
        search = index.search_sparse if self.words == "sparse" else index.search_keyword
        rankings = [search(query, depth), index.search_dense(query, depth)]
        with stage("fuse"):
            return self.fuse(rankings, query, index)[:k]


class PassageReranker(TimeDependent, ABC):
    """Reorders hits by reading query and passage together."""

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
            DataError: If the method needs a text model and ``model`` is None.
        """


class QueryTransform(Method, ABC):
    """Turns a query into the queries that are searched."""

    @abstractmethod
    def rewrite(self, query: Query, index: Index, model: TextModel | None) -> list[Query]:
        """Return one or more queries; the hits of several are fused.

        Raises:
            DataError: If the method needs a model and ``model`` is None.
        """


class RelevanceGrader(TimeDependent, ABC):
    """Estimates how likely a passage is to answer a question.

    Subclasses have settings ``upper`` and ``lower``: from ``upper`` a passage counts as relevant,
    below ``lower`` as irrelevant. Each method has its own, since graders share no scale.
    """

    upper: float
    lower: float

    @abstractmethod
    def grade(
        self,
        query: Query,
        texts: Sequence[str],
        index: Index,
    ) -> list[float]:
        """Return one grade per text, from 0 to 1."""


class GroundednessChecker(TimeDependent, ABC):
    """Scores how well passages support a sentence."""

    @abstractmethod
    def hold(self, passages: Sequence[str], index: Index) -> SourceTexts:
        """Return the passages, numbered from 1, prepared for scoring sentences."""


class AnswerStrategy(TimeDependent, ABC):
    """Controls what is searched, graded and read for one question.

    The limits apply to every method: a loop that reaches one stops, records it in its trace, and
    continues with what it has.
    """

    needs_model: ClassVar[bool] = True
    """Whether it calls the text model; one that is not called need not be opened."""

    max_rounds: int = Field(2, ge=0, le=16, description="maximum repeated searches after the first")
    max_calls: int = Field(
        64, ge=1, le=10_000, description="maximum model calls, the answer included"
    )
    max_seconds: float = Field(
        120.0, gt=0, description="seconds after which only the answer is still generated"
    )

    @abstractmethod
    def answer(self, inquiry: AnswerSession) -> Iterator[str]:
        """Yield the model's text as it comes, after ``inquiry.read`` has fixed the shown passages.

        A method without support calls ``inquiry.abstain`` and yields nothing.
        """


RETRIEVERS = Registry("stillroom.rag.retrievers", Retriever)
RERANKERS = Registry("stillroom.rag.rerankers", PassageReranker)
QUERY_TRANSFORMS = Registry("stillroom.rag.query_transforms", QueryTransform)
GRADERS = Registry("stillroom.rag.graders", RelevanceGrader)
CHECKERS = Registry("stillroom.rag.checkers", GroundednessChecker)
ANSWER_STRATEGIES = Registry("stillroom.rag.answer_strategies", AnswerStrategy)


def make_query(text: str | Query) -> Query:
    """Return a valid query: half surrogates are replaced, length is limited.

    Raises:
        DataError: If the text is longer than ``_MAX_QUERY_CHARACTERS``.
    """
    query = text if isinstance(text, Query) else Query(text)
    if len(query.text) > _MAX_QUERY_CHARACTERS:
        raise DataError(
            f"the query has {len(query.text)} characters",
            code="rag.query-too-long",
            expected=f"at most {_MAX_QUERY_CHARACTERS}",
            next="ask a question, not a document; index documents with 'stillroom rag index'",
        )
    clean = query.text.encode("utf-8", "replace").decode("utf-8")
    return replace(query, text=clean)


@dataclass(frozen=True, slots=True)
class Mention:
    """Mention (occurrence) of an entity at ``text[start:end]``, in a numbered sentence."""

    name: str
    start: int
    end: int
    sentence: int
    type: str = ""
    description: str = ""


@dataclass(frozen=True, slots=True)
class Relation:
    """Relation between two named entities; ``text[start:end]`` contains both."""

    source: str
    target: str
    start: int
    end: int
    keywords: tuple[str, ...] = ()
    description: str = ""
    strength: float = 1.0


@dataclass(frozen=True, slots=True)
class PassageExtraction:
    """Mentions, relations and acronyms of one text, and counts of what was dropped.

    ``aliases`` are pairs of acronym and expansion. ``dropped`` counts by reason: ``ungrounded``
    (not in the text), ``unreadable`` (an answer that is not JSON).
    """

    mentions: tuple[Mention, ...] = ()
    relations: tuple[Relation, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)


class EntityExtractor(Method, ABC):
    """Extracts entities and relations from passages."""

    needs_model: ClassVar[bool] = False
    calls_per_passage: ClassVar[int] = 0

    min_count: int = Field(
        1, ge=1, le=1000, description="minimum number of passages that mention an entity"
    )

    @abstractmethod
    def extract(
        self,
        passages: Sequence[Passage],
        model: TextModel | None = None,
        *,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> list[PassageExtraction]:
        """Return one extraction per passage, in order; fewer if cancelled.

        An extraction does not depend on the other passages.

        Raises:
            DataError: If the method needs a model and ``model`` is None.
        """

    def weigh(self, together: float, source: int, target: int, passages: int) -> float:
        """Return the weight of a relation; 0 or less leaves it out.

        ``together`` passages of all ``passages`` mention both ends as related; ``source`` and
        ``target`` mention one of them.
        """
        return float(together)

    @property
    def reach(self) -> int:
        """Maximum distance of related mentions, in sentences; 0 if the extractor relates them."""
        return 0

    @property
    def pruned(self) -> float:
        """Share of the edges that is left out, the lightest first."""
        return 0.0

    def fingerprint(self, model: TextModel | None) -> str:
        """Return the digest of everything but the text that an extraction depends on."""
        settings = self.model_dump(mode="json", exclude=set(self.assembly_settings))
        return digest_json([settings, model.fingerprint if model and self.needs_model else ""])

    @property
    def assembly_settings(self) -> tuple[str, ...]:
        """Settings that only affect how the graph is assembled, not the extractions."""
        return ("min_count",)


EXTRACTORS = Registry("stillroom.rag.extractors", EntityExtractor)


class SparseSettings(Settings):
    """Learned sparse search: a masked language model weights terms of passages and queries."""

    model: Reference = Field(
        description="masked language model: a SPLADE checkpoint's folder, or another's"
    )
    max_terms: int = Field(
        256, ge=1, le=100_000, description="maximum terms per passage, the heaviest first"
    )


class LateInteractionSettings(Settings):
    """Late interaction: one vector for every token of passages and questions."""

    model: Reference = Field(
        "builtin:embedder",
        description="a ColBERT checkpoint's folder; builtin:embedder uses the token states of the "
        "index's embedder",
    )
    bits: Literal[4, 8, 16, 32] = Field(
        8, description="bits per stored number; below 16 they are codes after a rotation"
    )


class IndexStore(Method, ABC):
    """Storage backend of an index, with its settings."""

    @property
    def auxiliary(self) -> tuple[SparseSettings | None, LateInteractionSettings | None]:
        """Settings of the auxiliary vectors that the store keeps: term weights, token vectors."""
        return None, None

    @abstractmethod
    def create(self, folder: Path, description: Mapping[str, Any]) -> IndexWriter:
        """Create an empty index in an artifact's folder that no reader uses yet.

        Files of an earlier attempt are replaced. ``description`` has settings, embedder and
        analyzer; it is part of the digest of every snapshot.

        Raises:
            MissingExtraError: If a package is not installed.
            ResourceError: If the store cannot be reached.
        """

    @abstractmethod
    def open(self, folder: Path, config: Mapping[str, Any]) -> IndexStorage:
        """Return the index of an artifact's folder; ``config`` is its ``store.json``.

        Raises:
            MissingExtraError: If a package is not installed.
        """


STORES: Registry[IndexStore] = Registry("stillroom.rag.stores", IndexStore)
