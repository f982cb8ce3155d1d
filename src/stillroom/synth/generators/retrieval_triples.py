"""Retrieval triples: a query for a passage, and hard negatives that are no answers to it.

Source: Wang et al. 2024, arXiv:2401.00368, section 3.1 (queries of named kinds by a model) and
Moreira et al. 2024 (NV-Retriever), arXiv:2407.15831, section 3 (negatives nearest to the query, but
no nearer than a share of the positive's score: false negatives go); Dai et al. 2022 (Promptagator),
arXiv:2209.11755 (a query must find its own passage). Differs: negatives are mined
by meaning, by words, or taken from a file; the teacher may be asked about each as well. A query
that copies its passage, is cut, or is none of its kind is dropped: it would teach to match words.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.recipes import Reference
from stillroom.records import Passage
from stillroom.synth.asking import fence, one_line
from stillroom.synth.method import Corpus, Draft, Seed, SeedKind, Writer
from stillroom.synth.mining import Mine
from stillroom.synth.steps import Drafting, Steps, Stepwise, Unit, together
from stillroom.synth.structured import choice_of, object_of, text_of
from stillroom.synth.tasks import leans_on_text, pair
from stillroom.synth.templates import Template
from stillroom.text.normalize import words

if TYPE_CHECKING:
    from stillroom.models import TextModel

__all__ = ["RetrievalTriples"]

QueryKind = Literal["question", "keywords", "claim"]
_KINDS: dict[QueryKind, str] = {
    "question": "a question that the text answers",
    "keywords": "the few keywords that a person would type to find this text",
    "claim": "a statement that this text bears out, in other words",
}
_ANSWERS = object_of(answers=choice_of("yes", "no"))
_MARK = re.compile("[?？؟]")
_COPIED_RUN = 5
_COPIED_WORDS = 8
_COPIED_SHARE = 0.6
_FEWEST_WORDS = 4
_MOST_KEYWORDS = 12


class RetrievalTriples(Stepwise):
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
        "query": Template(
            "{text}\n\nWrite {kind}. It must name its subject and be understood without the text."
        ),
        "answers": Template(
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
    def begin(self, corpus: Corpus) -> Writer:
        return _Mining(self, corpus)

    @override
    def write(self, unit: Unit) -> Steps[None]:
        return self.compose(unit, Mine((unit.seed.passage,), self.embedder, self.mine))

    def compose(self, unit: Unit, mine: Mine) -> Steps[None]:
        """Ask for a query and keep it with its negatives."""
        passage = unit.seed.passage
        kind = unit.rng("kind").choice(self.kinds)
        found = yield from unit.fill(
            unit.words("query", text=fence(passage.text), kind=_KINDS[kind]),
            object_of(query=text_of(self.max_query_characters, 6)),
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
            asked = yield from together([self._answers(unit, query, one.passage) for one in chosen])
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
        unit.keep(pair(query, passage.text), told, parents=parents)

    def _settle_query(self, kind: QueryKind, said: str, passage: Passage) -> tuple[str, str]:
        """Return a query as it is kept, and why it is none."""
        query = one_line(said)
        mark = _MARK.search(query)
        if kind == "question" and mark is not None:
            query = query[: mark.end()]  # what comes after answers it, or asks on
        count = len(words(query))
        checks = (
            (leans_on_text(query), "query that speaks of its text"),
            (kind == "question" and mark is None, "no question"),
            (kind == "keywords" and count > _MOST_KEYWORDS, "keywords that are a text"),
            (kind != "keywords" and query.isascii() and count < _FEWEST_WORDS, "query too short"),
            (_is_copied(query, passage.text), "query copied from its text"),
        )
        return query, next((why for is_so, why in checks if is_so), "")

    def _answers(self, unit: Unit, query: str, passage: Passage) -> Steps[bool]:
        """Return whether the teacher finds that a passage answers; unread, it does."""
        asked = unit.words("answers", query=query, text=fence(passage.text))
        found = yield from unit.fill(asked, _ANSWERS, what="check of a negative", temperature=0.0)
        return found is None or found["answers"] == "yes"


def _is_copied(query: str, text: str) -> bool:
    """Return whether most runs of words of a long query stand in a text as they are."""
    asked, told = words(query), words(text)
    if len(asked) < _COPIED_WORDS:
        return False
    known = {tuple(told[at : at + _COPIED_RUN]) for at in range(len(told) - _COPIED_RUN + 1)}
    runs = [tuple(asked[at : at + _COPIED_RUN]) for at in range(len(asked) - _COPIED_RUN + 1)]
    return sum(run in known for run in runs) >= _COPIED_SHARE * len(runs)


class _Mining:
    """The passages of one side, embedded once."""

    round_size = 0

    def __init__(self, method: RetrievalTriples, corpus: Corpus) -> None:
        self._method, self._corpus = method, corpus
        self._lock = threading.Lock()
        self._mine: Mine | None = None

    def generate(self, seeds: Sequence[Seed], model: TextModel) -> Iterator[Draft]:
        return self.open(seeds, model).run()

    def open(self, seeds: Sequence[Seed], model: TextModel) -> Drafting:
        mine = self._open()

        def write(unit: Unit) -> Steps[None]:
            return self._method.compose(unit, mine)

        return Drafting.of(self._method, write, seeds, model)

    def settle(self, draft: Draft) -> Draft:
        """Give a draft back as it is: triples do not depend on each other."""
        return draft

    def _open(self) -> Mine:
        from stillroom.synth.source import read_source

        with self._lock:
            if self._mine is None:
                method = self._method
                own = tuple(one for one in self._corpus.items if isinstance(one, Passage))
                others = read_source(method.candidates).passages if method.candidates else own
                self._mine = Mine(others, method.embedder, method.mine)
            return self._mine
