"""Base classes of the room's methods, seam by seam, and the query they work on.

Retriever, Reranker, Transform, Grader and Checker are pure: they read an open ``Index`` and a
``Query``, keep nothing, and may be used from several threads at once. An Answering directs them for
one question, through an ``AnswerSession`` that bounds it and notes each step.

An Extraction follows from the passage's text, the extractor and its model alone, so that it can be
kept and used again wherever the same text stands. Offsets are into that text.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.errors import DataError
from stillroom.provenance import digest_json
from stillroom.rag.observability import stage
from stillroom.registry import Method, Registry

if TYPE_CHECKING:
    from stillroom.models import TextModel
    from stillroom.rag.generation.grounding import SourceTexts
    from stillroom.rag.generation.session import AnswerSession
    from stillroom.rag.index.searcher import Index
    from stillroom.rag.retrieval.ranking import RankedRows
    from stillroom.rag.storage.protocol import IndexStorage, IndexWriter
    from stillroom.records import Hit, Message, Passage

__all__ = [
    "ANSWER_STRATEGIES",
    "CHECKERS",
    "DEFAULT_RETRIEVER",
    "EXTRACTORS",
    "GRADERS",
    "MAX_QUERY_CHARACTERS",
    "QUERY_TRANSFORMS",
    "RERANKERS",
    "RETRIEVERS",
    "STORES",
    "AnswerStrategy",
    "EntityExtractor",
    "GroundednessChecker",
    "HybridRetriever",
    "IndexStore",
    "Mention",
    "PassageExtraction",
    "PassageReranker",
    "Query",
    "QueryTransform",
    "Relation",
    "RelevanceGrader",
    "Retriever",
    "TimeDependent",
    "UnsupportedPolicy",
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


class TimeDependent(Method):
    """A method whose outcome may depend on more than its settings, the query and the index."""

    @property
    def moment(self) -> str:
        """What else the outcome depends on, as the day or the digest of a graph; mostly nothing.

        An answer that is kept is given again only while this is the same.
        """
        return ""


class Retriever(TimeDependent, ABC):
    """Finds the passages of an index that fit a query."""

    @abstractmethod
    def retrieve(self, query: Query, k: int, index: Index) -> list[Hit]:
        """Return at most ``k`` hits, best first, ranks from 1; equal scores in order of rows.

        An index row is a passage, by document path and then position. A query that holds nothing
        to search for gives an empty list.
        """


class HybridRetriever(Retriever, ABC):
    """Finds passages by words and by vectors, and fuses the two lists.

    Subclasses have a setting ``depth``: how many of each list are fused, if not more are asked for.
    """

    depth: int
    words: Literal["keyword", "sparse"] = Field(
        "keyword", description="what searches by words: BM25, or term weights that a model learned"
    )

    @abstractmethod
    def fuse(self, legs: Sequence[RankedRows]) -> list[tuple[int, float]]:
        """Return the rows of the keyword and the dense list with fused scores, best first."""

    @override
    def retrieve(self, query: Query, k: int, index: Index) -> list[Hit]:
        depth = max(self.depth, k)
        search = search_sparse if self.words == "sparse" else search_keyword
        legs = [search(index, query, depth), search_dense(index, query, depth)]
        with stage("fuse"):
            return index.hits(self.fuse(legs)[:k])


def search_keyword(index: Index, query: Query, k: int, **settings: Any) -> RankedRows:
    """Return the best ``k`` rows by words, as a stage of its own; settings as the index takes."""
    with stage("keyword") as span:
        found = index.search_keyword(query, k, **settings)
        span.tell(stillroom__rows=len(found), gen_ai__data_source__id=index.digest)
        return found


def search_dense(index: Index, query: Query, k: int, **settings: Any) -> RankedRows:
    """Return the best ``k`` rows by vectors; embedding the query is a stage before it."""
    with stage("embed") as span:
        index.embed_query(query)  # the index remembers it
        if span.is_heard:
            span.tell(embedding__model_name=index.embedder.fingerprint)
    with stage("dense") as span:
        found = index.search_dense(query, k, **settings)
        span.tell(stillroom__rows=len(found), gen_ai__data_source__id=index.digest)
        return found


def search_sparse(index: Index, query: Query, k: int) -> RankedRows:
    """Return the best ``k`` rows by learned term weights, as a stage of its own."""
    with stage("sparse") as span:
        found = index.search_sparse(query, k)
        span.tell(stillroom__rows=len(found), gen_ai__data_source__id=index.digest)
        return found


def search_tokens(index: Index, query: Query, k: int, rows: Iterable[int] | None) -> RankedRows:
    """Return the best ``k`` of some rows by late interaction, as a stage of its own."""
    with stage("tokens") as span:
        found = index.search_tokens(query, k, rows)
        span.tell(stillroom__rows=len(found), gen_ai__data_source__id=index.digest)
        return found


class PassageReranker(TimeDependent, ABC):
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


class QueryTransform(Method, ABC):
    """Makes of one query the queries that are really searched."""

    @abstractmethod
    def rewrite(self, query: Query, index: Index, model: TextModel | None) -> list[Query]:
        """Return one or more queries; the hits of several are fused.

        Raises:
            DataError: If the method needs a model and none is given.
        """


class RelevanceGrader(Method, ABC):
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


class GroundednessChecker(Method, ABC):
    """Says how well passages support a sentence."""

    @abstractmethod
    def hold(self, passages: Sequence[str], index: Index) -> SourceTexts:
        """Return the passages, numbered from 1, ready to be held against sentences."""


class AnswerStrategy(TimeDependent, ABC):
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
    def answer(self, inquiry: AnswerSession) -> Iterator[str]:
        """Yield the model's text as it comes, after ``inquiry.read`` has said what is shown.

        A method that finds no support calls ``inquiry.abstain`` and yields nothing.
        """


RETRIEVERS = Registry("stillroom.rag.retrievers", Retriever)


RERANKERS = Registry("stillroom.rag.rerankers", PassageReranker)


QUERY_TRANSFORMS = Registry("stillroom.rag.query_transforms", QueryTransform)


GRADERS = Registry("stillroom.rag.graders", RelevanceGrader)


CHECKERS = Registry("stillroom.rag.checkers", GroundednessChecker)


ANSWER_STRATEGIES = Registry("stillroom.rag.answer_strategies", AnswerStrategy)


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


@dataclass(frozen=True, slots=True)
class Mention:
    """An entity as one place of a text names it: ``text[start:end]``, in which sentence."""

    name: str
    start: int
    end: int
    sentence: int
    type: str = ""
    description: str = ""


@dataclass(frozen=True, slots=True)
class Relation:
    """What a text says of two entities, by their names; ``text[start:end]`` names both."""

    source: str
    target: str
    start: int
    end: int
    keywords: tuple[str, ...] = ()
    description: str = ""
    strength: float = 1.0


@dataclass(frozen=True, slots=True)
class PassageExtraction:
    """Mentions, relations and acronyms of one text, and what was found and could not be used.

    ``aliases`` are (acronym, what it stands for). ``dropped`` counts by reason: ``ungrounded`` (no
    place of the text says it), ``unreadable`` (an answer that is no JSON).
    """

    mentions: tuple[Mention, ...] = ()
    relations: tuple[Relation, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "mentions": [
                [one.name, one.start, one.end, one.sentence, one.type, one.description]
                for one in self.mentions
            ],
            "relations": [
                [
                    one.source,
                    one.target,
                    one.start,
                    one.end,
                    list(one.keywords),
                    one.description,
                    one.strength,
                ]
                for one in self.relations
            ],
            "aliases": [list(pair) for pair in self.aliases],
            "dropped": dict(sorted(self.dropped.items())),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PassageExtraction:
        """Read what ``to_json`` wrote."""
        return cls(
            tuple(Mention(*row) for row in data["mentions"]),
            tuple(
                Relation(source, target, start, end, tuple(keywords), description, strength)
                for source, target, start, end, keywords, description, strength in data["relations"]
            ),
            tuple((short, long) for short, long in data["aliases"]),
            dict(data["dropped"]),
        )


class EntityExtractor(Method, ABC):
    """Finds what passages speak of."""

    needs_model: ClassVar[bool] = False
    calls_per_passage: ClassVar[int] = 0

    min_count: int = Field(
        1, ge=1, le=1000, description="in how many passages an entity must be mentioned to stay"
    )

    @abstractmethod
    def extract(
        self,
        passages: Sequence[Passage],
        model: TextModel | None = None,
        *,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> list[PassageExtraction]:
        """Return what each passage speaks of, in order; fewer where it was cancelled.

        What is given for a passage does not depend on the passages beside it.

        Raises:
            DataError: If the method needs a model and none is given.
        """

    def weigh(self, together: float, source: int, target: int, passages: int) -> float:
        """Return the weight of a relation; 0 or less leaves it out.

        Args:
            together: In how many passages both ends are mentioned as related.
            source: In how many the one end is mentioned.
            target: In how many the other is.
            passages: How many there are.
        """
        return float(together)

    @property
    def reach(self) -> int:
        """Within how many sentences two mentions are related; 0 where the extractor relates."""
        return 0

    @property
    def pruned(self) -> float:
        """Which share of the edges is left out, the lightest ones."""
        return 0.0

    def fingerprint(self, model: TextModel | None) -> str:
        """Return what an extraction depends on beside the text."""
        settings = self.model_dump(mode="json", exclude=set(self.assembly_settings))
        return digest_json([settings, model.fingerprint if model and self.needs_model else ""])

    @property
    def assembly_settings(self) -> tuple[str, ...]:
        """The settings that shape the graph alone, not the extractions."""
        return ("min_count",)


EXTRACTORS = Registry("stillroom.rag.extractors", EntityExtractor)


UnsupportedPolicy = Literal["mark", "drop", "refuse"]


_AUXILIARY_NAMES = {
    "sparse": "term weights of learned sparse search (sparse)",
    "tokens": "token vectors of late interaction (tokens)",
}


class IndexStore(Method, ABC):
    """A kind of store, with its settings.

    ``keeps_extras`` where it holds what else a recipe may ask for: term weights, token vectors.
    """

    keeps_extras: ClassVar[bool] = False

    def list_lacking(self, settings: Mapping[str, Any]) -> list[str]:
        """Return what an index of some settings is searched by and this store cannot hold.

        Args:
            settings: A recipe's, or those of an index's description.
        """
        if self.keeps_extras:
            return []
        return [what for name, what in _AUXILIARY_NAMES.items() if settings.get(name)]

    @abstractmethod
    def create(self, folder: Path, description: Mapping[str, Any]) -> IndexWriter:
        """Make an empty index for a folder that nobody else knows of yet.

        Args:
            folder: Of the artifact's own files; what an earlier try left is replaced.
            description: Settings, embedder and analyzer; part of the digest of every snapshot.

        Raises:
            MissingExtraError: If a package is not installed.
            ResourceError: If the store cannot be reached.
        """

    @abstractmethod
    def open(self, folder: Path, told: Mapping[str, Any]) -> IndexStorage:
        """Return the index of a folder.

        Args:
            folder: Of the artifact's own files.
            told: What ``store.json`` says beside the method; empty where there is no such file.

        Raises:
            MissingExtraError: If a package is not installed.
        """


STORES: Registry[IndexStore] = Registry("stillroom.rag.stores", IndexStore)
