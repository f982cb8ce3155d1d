"""Retrieval triples: a query for a passage, and mined hard negatives.

Source: Wang et al. 2024, arXiv:2401.00368, section 3.1 (queries of named kinds by a model) and
Moreira et al. 2024 (NV-Retriever), arXiv:2407.15831, section 3 (negatives nearest to the query, but
no nearer than a share of the positive's score: false negatives go); Dai et al. 2022 (Promptagator),
arXiv:2209.11755 (a query must find its own passage). Differs: negatives are mined
by meaning, by words, or taken from a file; the teacher may be asked about each as well. A query
that copies its passage, is cut, or is none of its kind is dropped: it would teach to match words.

The BM25 is the house's (``stillroom.text.bm25``), as Lucene has it, k1 1.2 and b 0.75. Exact:
every passage is compared. For collections of millions, mine with an index and give the file as
candidates.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from typing_extensions import override

from stillroom.recipes import Reference
from stillroom.records import Passage
from stillroom.synth.interfaces import GeneratorState
from stillroom.synth.lexical_overlap import extract_content_stems
from stillroom.synth.prompting.conversation import make_qa_messages, refers_to_source
from stillroom.synth.prompting.coroutines import (
    CoroutineBatch,
    GenerationUnit,
    RequestCoroutine,
    StepwiseGenerator,
    run_concurrently,
)
from stillroom.synth.prompting.requests import (
    PromptTemplate,
    fence_text,
    make_enum_schema,
    make_object_schema,
    make_string_schema,
    to_one_line,
)
from stillroom.synth.types import GenerationResult, GeneratorContext, SeedKind, WorkItem
from stillroom.text.bm25 import BM25Parameters, TermImpacts, rank_rows, weigh_term
from stillroom.text.unicode import split_words

if TYPE_CHECKING:
    from stillroom.models import Embedder, TextModel

__all__ = [
    "HardNegative",
    "HardNegativeIndex",
    "RetrievalTriples",
]


QueryKind = Literal["question", "keywords", "claim"]

_KINDS: dict[QueryKind, str] = {
    "question": "a question that the text answers",
    "keywords": "the few keywords that a person would type to find this text",
    "claim": "a statement that this text bears out, in other words",
}

_ANSWERS = make_object_schema(answers=make_enum_schema("yes", "no"))
_MARK = re.compile("[?？؟]")
_COPIED_RUN = 5
_COPIED_WORDS = 8
_COPIED_SHARE = 0.6
_FEWEST_WORDS = 4
_MOST_KEYWORDS = 12


class RetrievalTriples(StepwiseGenerator):
    """Writes queries for passages and mines what is near but wrong."""

    paper: ClassVar[str] = "arXiv:2407.15831"
    takes: ClassVar[tuple[SeedKind, ...]] = ("passages",)
    default_filters: ClassVar[tuple[str, ...]] = (
        "shape",
        "refusal",
        "injection",
        "repetition",
        "decontaminate",
    )
    templates: ClassVar = {
        "query": PromptTemplate(
            "{text}\n\nWrite {kind}. It must name its subject and be understood without the text."
        ),
        "answers": PromptTemplate(
            "Query: {query}\n\n{text}\n\nDoes this text answer the query, or bear it out?"
        ),
    }

    kinds: tuple[QueryKind, ...] = Field(
        ("question",), min_length=1, description="kinds of queries, drawn from alike often"
    )
    negatives: int = Field(4, ge=1, le=100, description="negatives of a query, at most")
    mine: Literal["dense", "words", "both"] = Field(
        "dense", description="dense: nearest by embedding; words: by BM25; both: in turn"
    )
    candidates: Reference | None = Field(
        None, description="a file of passages to take negatives from; by default the recipe's own"
    )
    embedder: Reference = Field(
        "hub:sentence-transformers/all-MiniLM-L6-v2", description="what measures nearness"
    )
    max_share: float = Field(
        0.95, gt=0, le=1,
        description="of the positive's score, above which a negative may be an answer and is out",
    )  # fmt: skip
    max_rank: int = Field(
        10, ge=1, description="rank of the passage for its own query, below which it is dropped"
    )
    depth: int = Field(50, ge=1, le=10_000, description="nearest passages that are looked at")
    ask_teacher: bool = Field(False, description="ask the teacher whether a negative answers it")
    max_query_characters: int = Field(200, ge=20, le=2000, description="longest query")

    @property
    @override
    def asks(self) -> int:
        return 1 + (self.negatives if self.ask_teacher else 0)

    @property
    @override
    def longest(self) -> int:
        return self.max_query_characters

    @override
    def begin(self, corpus: GeneratorContext) -> GeneratorState:
        return _RetrievalTriplesState(self, corpus)

    @override
    def write(self, unit: GenerationUnit) -> RequestCoroutine[None]:
        return self.compose(unit, HardNegativeIndex((unit.seed.passage,), self.embedder, self.mine))

    def compose(self, unit: GenerationUnit, mine: HardNegativeIndex) -> RequestCoroutine[None]:
        """Ask for a query and keep it with its negatives."""
        passage = unit.seed.passage
        kind = unit.rng("kind").choice(self.kinds)
        found = yield from unit.fill(
            unit.words("query", text=fence_text(passage.text), kind=_KINDS[kind]),
            make_object_schema(query=make_string_schema(self.max_query_characters, 6)),
            what="query",
        )
        if found is None:
            return
        query, why = self._settle_query(kind, found["query"], passage)
        if why:
            unit.fail(why, query)
            return
        positive, rank, near = mine.nearest(query, passage, self.depth)
        if rank > self.max_rank:
            unit.fail("query that does not find its passage", f"rank {rank}: {query}")
            return
        right = [one for one in near if one.score > self.max_share * positive]
        unit.count("false negatives by score", len(right))
        rest = [one for one in near if one.score <= self.max_share * positive]
        chosen = rest[: self.negatives]
        if self.ask_teacher:
            asked = yield from run_concurrently(
                [self._answers(unit, query, one.passage) for one in chosen]
            )
            unit.count("false negatives by the teacher", sum(asked))
            chosen = [one for one, is_right in zip(chosen, asked, strict=True) if not is_right]
        if not chosen:
            unit.fail("no hard negative is left", query)
            return
        told = {
            "question": query,
            "query_kind": kind,
            "positive": {
                "passage_id": passage.id,
                "score": round(positive, 4),
                "rank": rank,
            },
            "negatives": [
                {
                    "passage_id": one.passage.id,
                    "text": one.passage.text,
                    "score": round(one.score, 4),
                    "by": one.by,
                }
                for one in chosen
            ],
        }
        parents = [one.passage.id for one in chosen]
        unit.keep(make_qa_messages(query, passage.text), told, parents=parents)

    def _settle_query(self, kind: QueryKind, said: str, passage: Passage) -> tuple[str, str]:
        """Return a query as it is kept, and why it is none."""
        query = to_one_line(said)
        mark = _MARK.search(query)
        if kind == "question" and mark is not None:
            query = query[: mark.end()]  # what comes after answers it, or asks on
        count = len(split_words(query))
        checks = (
            (refers_to_source(query), "query that speaks of its text"),
            (kind == "question" and mark is None, "no question"),
            (kind == "keywords" and count > _MOST_KEYWORDS, "keywords that are a text"),
            (kind != "keywords" and query.isascii() and count < _FEWEST_WORDS, "query too short"),
            (_is_copied(query, passage.text), "query copied from its text"),
        )
        return query, next((why for is_so, why in checks if is_so), "")

    def _answers(
        self, unit: GenerationUnit, query: str, passage: Passage
    ) -> RequestCoroutine[bool]:
        """Return whether the teacher finds that a passage answers; unread, it does."""
        asked = unit.words("answers", query=query, text=fence_text(passage.text))
        found = yield from unit.fill(asked, _ANSWERS, what="check of a negative", temperature=0.0)
        return found is None or found["answers"] == "yes"


def _is_copied(query: str, text: str) -> bool:
    """Return whether most runs of words of a long query stand in a text as they are."""
    asked, told = split_words(query), split_words(text)
    if len(asked) < _COPIED_WORDS:
        return False
    known = {tuple(told[at : at + _COPIED_RUN]) for at in range(len(told) - _COPIED_RUN + 1)}
    runs = [tuple(asked[at : at + _COPIED_RUN]) for at in range(len(asked) - _COPIED_RUN + 1)]
    return sum(run in known for run in runs) >= _COPIED_SHARE * len(runs)


class _RetrievalTriplesState:
    """The passages of one side, embedded once."""

    round_size = 0

    def __init__(self, method: RetrievalTriples, corpus: GeneratorContext) -> None:
        self._method, self._corpus = method, corpus
        self._lock = threading.Lock()
        self._mine: HardNegativeIndex | None = None

    def generate(self, seeds: Sequence[WorkItem], model: TextModel) -> Iterator[GenerationResult]:
        return self.open(seeds, model).run()

    def open(self, seeds: Sequence[WorkItem], model: TextModel) -> CoroutineBatch:
        mine = self._open()

        def write(unit: GenerationUnit) -> RequestCoroutine[None]:
            return self._method.compose(unit, mine)

        return CoroutineBatch.of(self._method, write, seeds, model)

    def settle(self, draft: GenerationResult) -> GenerationResult:
        """Give a draft back as it is: triples do not depend on each other."""
        return draft

    def _open(self) -> HardNegativeIndex:
        from stillroom.synth.seeds import read_seed_passages

        with self._lock:
            if self._mine is None:
                method = self._method
                own = tuple(one for one in self._corpus.items if isinstance(one, Passage))
                others = (
                    read_seed_passages(method.candidates).passages if method.candidates else own
                )
                self._mine = HardNegativeIndex(others, method.embedder, method.mine)
            return self._mine


_CHARACTERS = 4000


class HardNegative(NamedTuple):
    """A passage, how near it is to the query by embedding (cosine), and what found it."""

    passage: Passage
    score: float
    by: str


class HardNegativeIndex:
    """A collection to find hard negatives in."""

    def __init__(
        self,
        passages: Sequence[Passage],
        embedder: str,
        by: Literal["dense", "words", "both"] = "dense",
    ) -> None:
        """Embed the passages once.

        Args:
            passages: The collection.
            embedder: A reference.
            by: What finds candidates; their scores are cosines in any case.

        Raises:
            CheckpointError: If the reference leads to no embedder.
        """
        from stillroom.models import open_embedder

        self._passages = list(passages)
        self._embedder: Embedder = open_embedder(embedder)
        self._by = by
        texts = [passage.text[:_CHARACTERS] for passage in self._passages]
        self._vectors: Any = self._embedder.embed(texts, kind="passage")
        self._keywords = _Bm25Index(texts) if by != "dense" else None

    def nearest(
        self, query: str, positive: Passage, depth: int
    ) -> tuple[float, int, list[HardNegative]]:
        """Return cosine and rank (from 1) of the positive, and the nearest others, nearest first.

        Left out are the positive, other passages with its text, and passages that overlap it.
        """
        vector = self._embedder.embed([query], kind="query")[0]
        own = self._embedder.embed([positive.text[:_CHARACTERS]], kind="passage")[0]
        cosines = self._vectors @ vector
        orders = {}
        if self._by != "words":
            orders["dense"] = _top_indices(cosines, depth)
        if self._keywords is not None:
            orders["words"] = self._keywords.nearest(query, depth)
        found: dict[int, str] = {}
        for rank in range(depth):
            for by, order in orders.items():
                if rank < len(order):
                    found.setdefault(int(order[rank]), by)
        near = [
            HardNegative(self._passages[place], float(cosines[place]), by)
            for place, by in found.items()
            if not _is_same_text(self._passages[place], positive)
        ]
        score = float(own @ vector)
        others = [not _is_same_text(passage, positive) for passage in self._passages]
        return score, 1 + int((cosines[others] > score).sum()), near


class _Bm25Index:
    """BM25 over texts in memory; a term is the stem of a word that carries meaning."""

    def __init__(self, texts: Sequence[str]) -> None:
        counts = [Counter(extract_content_stems(text)) for text in texts]
        self._size = len(texts)
        lengths = np.array([count.total() for count in counts], dtype=np.float64)
        lengths /= max(lengths.sum() / max(self._size, 1), 1.0)
        held: dict[str, list[tuple[int, int]]] = {}
        for row, count in enumerate(counts):
            for stem, number in count.items():
                held.setdefault(stem, []).append((row, number))
        self._impacts: dict[str, TermImpacts] = {}
        for stem, pairs in held.items():
            rows = np.array([row for row, _ in pairs], dtype=np.int64)
            frequency = np.array([number for _, number in pairs], dtype=np.float64)
            self._impacts[stem] = weigh_term(
                BM25Parameters(), rows, frequency, lengths[rows], self._size
            )

    def nearest(self, query: str, depth: int) -> NDArray[np.int64]:
        """Return the best rows, best first, ties by row; those without a term of it never."""
        terms = Counter(extract_content_stems(query)).items()
        known = self._impacts
        weighted = [(stem, float(times), known[stem]) for stem, times in terms if stem in known]
        return rank_rows(weighted, self._size, depth, None)[0]


def _top_indices(scores: NDArray[Any], depth: int) -> NDArray[Any]:
    """Return the places of the highest scores above zero, ties by place."""
    order = np.lexsort((np.arange(len(scores)), -scores))[:depth]
    return order[scores[order] > 0]


def _is_same_text(one: Passage, other: Passage) -> bool:
    overlaps = (
        one.document_id == other.document_id and one.start < other.end and other.start < one.end
    )
    return one.id == other.id or overlaps or one.text.split() == other.text.split()
