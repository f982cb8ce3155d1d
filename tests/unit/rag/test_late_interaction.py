import numpy as np
import pytest

from stillroom.errors import DataError
from stillroom.rag.index import Index
from stillroom.rag.method import RERANKERS, RETRIEVERS, Query
from stillroom.rag.prefixes import passage_texts


class Tokens:
    """Gives the index's own vectors, and for tokens those of single words."""

    def __init__(self, inner):
        self._inner = inner
        self.read = []

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def embed(self, texts, *, kind):
        return self._inner.embed(texts, kind=kind)

    def count_tokens(self, text):
        return self._inner.count_tokens(text)

    def embed_tokens(self, texts, *, kind):
        self.read += texts
        return [self._inner.embed(text.split(), kind=kind) for text in texts]

    @property
    def dimensions(self):
        return self._inner.dimensions

    @property
    def max_tokens(self):
        return self._inner.max_tokens

    @property
    def fingerprint(self):
        return self._inner.fingerprint

    truncated = 0


@pytest.fixture
def with_tokens(built):
    from stillroom.models import open_embedder

    with Index.open(built, embedder=Tokens(open_embedder("static"))) as opened:
        yield opened


def reference(query, passage):
    """Return MaxSim token by token."""
    total = 0.0
    for asked in query:
        total += max(float(np.dot(asked, held)) for held in passage)
    return total / len(query)


def test_it_is_max_sim_where_the_first_order_counts_nothing(with_tokens):
    query = Query("dogs guard the house")
    hits = RETRIEVERS.build("hybrid").retrieve(query, 5, with_tokens)
    again = RERANKERS.build({"name": "late_interaction", "weight": 1}).rerank(
        query, hits, with_tokens
    )
    embed = with_tokens.embedder.embed_tokens
    (asked,) = embed([query.text], kind="query")
    texts = passage_texts([hit.passage for hit in hits], with_tokens.embedder, with_headings=True)
    own = [reference(asked, embed([text], kind="passage")[0]) for text in texts]
    low, high = min(own), max(own)
    expected = {h.passage.id: (s - low) / (high - low) for h, s in zip(hits, own, strict=True)}
    assert {hit.passage.id: hit.score for hit in again} == pytest.approx(expected, abs=1e-6)
    assert [hit.rank for hit in again] == list(range(1, len(hits) + 1))


def test_without_weight_the_first_order_stays(with_tokens):
    query = Query("a cat or a dog at night")
    hits = RETRIEVERS.build("keyword").retrieve(query, 5, with_tokens)
    again = RERANKERS.build({"name": "late_interaction", "weight": 0}).rerank(
        query, hits, with_tokens
    )
    assert [hit.passage.id for hit in again] == [hit.passage.id for hit in hits]


def test_hits_beyond_the_depth_are_not_read_and_follow(with_tokens):
    query = Query("a cat or a dog at night")
    hits = RETRIEVERS.build("hybrid").retrieve(query, 5, with_tokens)
    method = RERANKERS.build({"name": "late_interaction", "depth": 2})
    again = method.rerank(query, hits, with_tokens)
    passages = [hit.passage for hit in hits[:2]]
    texts = passage_texts(passages, with_tokens.embedder, with_headings=True)
    assert with_tokens.embedder.read == [query.text, *texts]
    assert texts[0].startswith(f"{passages[0].title}\n")
    assert [hit.passage.id for hit in again[2:]] == [hit.passage.id for hit in hits[2:]]
    assert [hit.score for hit in again] == sorted((hit.score for hit in again), reverse=True)


def test_an_embedder_without_token_states_is_refused(index):
    hits = RETRIEVERS.build("keyword").retrieve(Query("cat"), 2, index)
    with pytest.raises(DataError) as caught:
        RERANKERS.build("late_interaction").rerank(Query("cat"), hits, index)
    assert caught.value.code == "rag.no-token-states"
