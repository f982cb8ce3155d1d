"""Retrieval triples: a query for a passage, and mined hard negatives.

Source: Wang et al. 2024, arXiv:2401.00368, section 3.1 (queries of given kinds by a model:
distilabel's GenerateSentencePair) and Moreira et al. 2024 (NV-Retriever), arXiv:2407.15831, section
3 (negatives nearest to the query, but below a share of the positive's score, which excludes false
negatives); Dai et al. 2022 (Promptagator), arXiv:2209.11755 (a query must retrieve its own
passage). Differs: negatives are mined by embedding, by BM25, or taken from a file; the teacher can
check each as well. A query that copies its passage, is cut off, or is not of its kind is dropped:
it would teach word matching.

BM25 (``stillroom.text.bm25``) is Lucene's variant, k1 1.2 and b 0.75. Search is exhaustive: every
passage is compared. For collections of millions, mine with an index and pass the file as
candidates.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from typing_extensions import override

from stillroom.recipes import DISTINCT, Reference
from stillroom.records import Passage
from stillroom.synth.interfaces import EMBEDDER, GeneratorState
from stillroom.synth.lexical_overlap import extract_content_stems
from stillroom.synth.prompting.conversation import make_qa_messages, refers_to_source
from stillroom.synth.prompting.requests import (
    fence_text,
    make_enum_schema,
    make_object_schema,
    make_string_schema,
    to_one_line,
)
from stillroom.synth.prompting.stepwise import (
    CoroutineBatch,
    GenerationUnit,
    RequestCoroutine,
    StepwiseGenerator,
    run_concurrently,
)
from stillroom.synth.types import GeneratorContext, WorkItem
from stillroom.text.bm25 import BM25Parameters, TermImpacts, rank_rows, weigh_term
from stillroom.text.unicode import split_words

if TYPE_CHECKING:
    from stillroom.models import Embedder, TextModel

__all__ = ["HardNegative", "HardNegativeIndex", "RetrievalTriples"]

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
    """Write queries for passages and mine hard negatives."""

    paper: ClassVar[str] = "arXiv:2407.15831"
    default_filters: ClassVar[tuple[str, ...]] = (
        "shape",
        "refusal",
        "injection",
        "repetition",
        "decontaminate",
    )
    templates: ClassVar = {
        "query": "{text}\n\nWrite {kind}. It must name its subject and be understood without the "
        "text.",
        "answers": "Query: {query}\n\n{text}\n\nDoes this text answer the query, or bear it out?",
    }

    kinds: Annotated[tuple[QueryKind, ...], DISTINCT] = Field(
        ("question",), min_length=1, description="kinds of queries to sample from, uniformly"
    )
    negatives: int = Field(4, ge=1, le=100, description="maximum negatives per query")
    mine: Literal["dense", "words", "both"] = Field(
        "dense", description="dense: nearest by embedding; words: by BM25; both: alternating"
    )
    candidates: Reference | None = Field(
        None, description="a file of passages to take negatives from; by default the recipe's own"
    )
    embedder: Reference = EMBEDDER
    max_share: float = Field(
        0.95, gt=0, le=1,
        description="share of the positive's score above which a negative is excluded as a "
                    "possible answer",
    )  # fmt: skip
    max_rank: int = Field(
        10,
        ge=1,
        description="maximum rank of the passage for its own query; below it the query is dropped",
    )
    depth: int = Field(50, ge=1, le=10_000, description="number of nearest passages considered")
    ask_teacher: bool = Field(
        False, description="ask the teacher whether a negative answers the query"
    )
    max_query_characters: int = Field(
        200, ge=20, le=2000, description="maximum characters of a query"
    )

    @property
    @override
    def max_requests(self) -> int:
        return 1 + (self.negatives if self.ask_teacher else 0)

    @override
    def start(self, corpus: GeneratorContext) -> GeneratorState:
        return _RetrievalTriplesState(self, corpus)

    @override
    def write(self, unit: GenerationUnit) -> RequestCoroutine[None]:
        return self.compose(unit, HardNegativeIndex((unit.seed.passage,), self.embedder, self.mine))

    def compose(self, unit: GenerationUnit, index: HardNegativeIndex) -> RequestCoroutine[None]:
        """Request a query and add it with its negatives."""
        passage = unit.seed.passage
        kind = unit.rng("kind").choice(self.kinds)
        reply = yield from unit.ask_json(
            unit.render("query", text=fence_text(passage.text), kind=_KINDS[kind]),
            make_object_schema(query=make_string_schema(self.max_query_characters, 6)),
            label="query",
        )
        if reply is None:
            return
        query, failure = self._settle_query(kind, reply["query"], passage)
        if failure:
            unit.fail(failure, query)
            return
        positive, rank, near = index.nearest(query, passage, self.depth)
        if rank > self.max_rank:
            unit.fail("query that does not find its passage", f"rank {rank}: {query}")
            return
        false_negatives = [
            candidate for candidate in near if candidate.score > self.max_share * positive
        ]
        unit.count("false negatives by score", len(false_negatives))
        negatives = [
            candidate for candidate in near if candidate.score <= self.max_share * positive
        ]
        selected = negatives[: self.negatives]
        if self.ask_teacher:
            verdicts = yield from run_concurrently(
                [self._answers(unit, query, candidate.passage) for candidate in selected]
            )
            unit.count("false negatives by the teacher", sum(verdicts))
            selected = [
                candidate
                for candidate, is_right in zip(selected, verdicts, strict=True)
                if not is_right
            ]
        if not selected:
            unit.fail("no hard negative is left", query)
            return
        fields = {
            "question": query,
            "query_kind": kind,
            "positive": {"passage_id": passage.id, "score": round(positive, 4), "rank": rank},
            "negatives": [
                {
                    "passage_id": candidate.passage.id,
                    "text": candidate.passage.text,
                    "score": round(candidate.score, 4),
                    "by": candidate.by,
                }
                for candidate in selected
            ],
        }
        parents = [candidate.passage.id for candidate in selected]
        unit.add_record(make_qa_messages(query, passage.text), fields, parents=parents)

    def _settle_query(self, kind: QueryKind, text: str, passage: Passage) -> tuple[str, str]:
        """Return the query as it is kept, and the reason to reject it, if any."""
        query = to_one_line(text)
        mark = _MARK.search(query)
        if kind == "question" and mark is not None:
            query = query[: mark.end()]  # the text after it answers the query, or continues asking
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
        """Return whether the teacher finds that a passage answers; True if unparsable."""
        prompt_text = unit.render("answers", query=query, text=fence_text(passage.text))
        reply = yield from unit.ask_json(
            prompt_text, _ANSWERS, label="check of a negative", temperature=0.0
        )
        return reply is None or reply["answers"] == "yes"


def _is_copied(query: str, text: str) -> bool:
    """Return whether most word n-grams of a long query occur verbatim in a text."""
    query_words, text_words = split_words(query), split_words(text)
    if len(query_words) < _COPIED_WORDS:
        return False
    text_runs = {
        tuple(text_words[start : start + _COPIED_RUN])
        for start in range(len(text_words) - _COPIED_RUN + 1)
    }
    runs = [
        tuple(query_words[start : start + _COPIED_RUN])
        for start in range(len(query_words) - _COPIED_RUN + 1)
    ]
    return sum(run in text_runs for run in runs) >= _COPIED_SHARE * len(runs)


class _RetrievalTriplesState(GeneratorState):
    """The passages of one side of the split, embedded once."""

    def __init__(self, method: RetrievalTriples, corpus: GeneratorContext) -> None:
        self._method, self._corpus = method, corpus
        self._lock = threading.Lock()
        self._index: HardNegativeIndex | None = None

    def open(self, seeds: Sequence[WorkItem], model: TextModel) -> CoroutineBatch:
        index = self._open()
        write = partial(self._method.compose, index=index)
        return CoroutineBatch.of(self._method, write, seeds, model)

    def _open(self) -> HardNegativeIndex:
        from stillroom.synth.seeds import read_seed_passages

        with self._lock:
            if self._index is None:
                method = self._method
                passages = tuple(item for item in self._corpus.items if isinstance(item, Passage))
                collection = (
                    read_seed_passages(method.candidates).passages
                    if method.candidates
                    else passages
                )
                self._index = HardNegativeIndex(collection, method.embedder, method.mine)
            return self._index


_CHARACTERS = 4000


class HardNegative(NamedTuple):
    """A passage, its cosine similarity to the query, and the method that found it."""

    passage: Passage
    score: float
    by: str


class HardNegativeIndex:
    """A collection to mine hard negatives from."""

    def __init__(
        self,
        passages: Sequence[Passage],
        embedder: str,
        by: Literal["dense", "words", "both"] = "dense",
    ) -> None:
        """Embed the passages once.

        Args:
            passages: The collection.
            embedder: Reference of the embedder.
            by: Method that finds candidates; their scores are cosines in any case.

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
        """Return the cosine and rank (from 1) of the positive, and the nearest others in order.

        The positive is excluded, as are passages with its text and passages that overlap it.
        """
        vector = self._embedder.embed([query], kind="query")[0]
        positive_vector = self._embedder.embed([positive.text[:_CHARACTERS]], kind="passage")[0]
        cosines = self._vectors @ vector
        orders = {}
        if self._by != "words":
            orders["dense"] = _top_indices(cosines, depth)
        if self._keywords is not None:
            orders["words"] = self._keywords.nearest(query, depth)
        candidates: dict[int, str] = {}
        for rank in range(depth):
            for by, order in orders.items():
                if rank < len(order):
                    candidates.setdefault(int(order[rank]), by)
        negatives = [
            HardNegative(self._passages[row], float(cosines[row]), by)
            for row, by in candidates.items()
            if not _is_same_text(self._passages[row], positive)
        ]
        score = float(positive_vector @ vector)
        is_other = [not _is_same_text(passage, positive) for passage in self._passages]
        return score, 1 + int((cosines[is_other] > score).sum()), negatives


class _Bm25Index:
    """In-memory BM25 index of texts; terms are the stems of content words."""

    def __init__(self, texts: Sequence[str]) -> None:
        counts = [Counter(extract_content_stems(text)) for text in texts]
        self._size = len(texts)
        lengths = np.array([count.total() for count in counts], dtype=np.float64)
        lengths /= max(lengths.sum() / max(self._size, 1), 1.0)
        postings: dict[str, list[tuple[int, int]]] = {}
        for row, count in enumerate(counts):
            for stem, number in count.items():
                postings.setdefault(stem, []).append((row, number))
        self._impacts: dict[str, TermImpacts] = {}
        for stem, pairs in postings.items():
            rows = np.array([row for row, _ in pairs], dtype=np.int64)
            frequency = np.array([number for _, number in pairs], dtype=np.float64)
            self._impacts[stem] = weigh_term(
                BM25Parameters(), rows, frequency, lengths[rows], self._size
            )

    def nearest(self, query: str, depth: int) -> NDArray[np.int64]:
        """Return the best rows in order, ties by row; rows without a query term are excluded."""
        terms = Counter(extract_content_stems(query)).items()
        known = self._impacts
        weighted = [(stem, float(times), known[stem]) for stem, times in terms if stem in known]
        return rank_rows(weighted, self._size, depth, None)[0]


def _top_indices(scores: NDArray[Any], depth: int) -> NDArray[Any]:
    """Return the indices of the highest scores above zero, ties by index."""
    order = np.lexsort((np.arange(len(scores)), -scores))[:depth]
    return order[scores[order] > 0]


def _is_same_text(first: Passage, second: Passage) -> bool:
    overlaps = (
        first.document_id == second.document_id
        and first.start < second.end
        and second.start < first.end
    )
    return first.id == second.id or overlaps or first.text.split() == second.text.split()
