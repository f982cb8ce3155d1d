import numpy as np
import pytest

from stillroom.errors import DataError
from stillroom.rag.index.searcher import Index
from stillroom.rag.interfaces import RERANKERS, RETRIEVERS, Query
from stillroom.rag.rerankers.late_interaction import weigh_tokens
from stillroom.rag.types import build_embedding_texts


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


def reference(query, passage, weights):
    """Return MaxSim token by token."""
    total = 0.0
    for asked, weight in zip(query, weights, strict=True):
        total += weight * max(float(np.dot(asked, held)) for held in passage)
    return total


@pytest.mark.parametrize("by_rarity", [False, True])
def test_it_is_max_sim_where_the_first_order_counts_nothing(with_tokens, by_rarity):
    query = Query("dogs guard the house")
    hits = with_tokens.hits(RETRIEVERS.build("hybrid").retrieve(query, 5, with_tokens))
    settings = {"name": "late_interaction", "weight": 1, "by_rarity": by_rarity}
    again = RERANKERS.build(settings).rerank(query, hits, with_tokens)
    idf = with_tokens.lexicon.idf
    weights = [idf("dog"), idf("guard"), 0.0, idf("hous")] if by_rarity else [1.0] * 4
    embed = with_tokens.embedder.embed_tokens
    (asked,) = embed([query.text], kind="query")
    texts = build_embedding_texts(
        [hit.passage for hit in hits], with_tokens.embedder, with_headings=True
    )
    own = [reference(asked, embed([text], kind="passage")[0], weights) for text in texts]
    low, high = min(own), max(own)
    expected = {h.passage.id: (s - low) / (high - low) for h, s in zip(hits, own, strict=True)}
    assert {hit.passage.id: hit.score for hit in again} == pytest.approx(expected, abs=1e-6)
    assert [hit.rank for hit in again] == list(range(1, len(hits) + 1))


def test_without_weight_the_first_order_stays(with_tokens):
    query = Query("a cat or a dog at night")
    hits = with_tokens.hits(RETRIEVERS.build("keyword").retrieve(query, 5, with_tokens))
    again = RERANKERS.build({"name": "late_interaction", "weight": 0}).rerank(
        query, hits, with_tokens
    )
    assert [hit.passage.id for hit in again] == [hit.passage.id for hit in hits]


def test_hits_beyond_the_depth_are_not_read_and_follow(with_tokens):
    query = Query("a cat or a dog at night")
    hits = with_tokens.hits(RETRIEVERS.build("hybrid").retrieve(query, 5, with_tokens))
    method = RERANKERS.build({"name": "late_interaction", "depth": 2})
    again = method.rerank(query, hits, with_tokens)
    passages = [hit.passage for hit in hits[:2]]
    texts = build_embedding_texts(passages, with_tokens.embedder, with_headings=True)
    assert with_tokens.embedder.read == [query.text, *texts]
    assert texts[0].startswith(f"{passages[0].title}\n")
    assert [hit.passage.id for hit in again[2:]] == [hit.passage.id for hit in hits[2:]]
    assert [hit.score for hit in again] == sorted((hit.score for hit in again), reverse=True)


def test_an_embedder_without_token_states_is_refused(index):
    hits = index.hits(RETRIEVERS.build("keyword").retrieve(Query("cat"), 2, index))
    with pytest.raises(DataError) as caught:
        RERANKERS.build("late_interaction").rerank(Query("cat"), hits, index)
    assert caught.value.code == "rag.no-token-states"


@pytest.mark.parametrize(
    ("text", "count"), [("dogs guard the house", 6), ("dogs", 9), ("", 0), ("the of ?", 3)]
)
def test_all_tokens_count_alike_where_it_is_not_known_which_is_which(with_tokens, text, count):
    assert weigh_tokens(text, count, with_tokens).tolist() == [1.0] * count


def test_kept_token_vectors_are_weighed_as_read_ones(build, tmp_path):
    from stillroom.models import open_embedder

    embedder = Tokens(open_embedder("static"))
    build(embedder=embedder, store={"name": "folder", "late_interaction": {"bits": 8}})
    query = Query("which dogs guard the house")
    with Index.open(tmp_path / "index", embedder=embedder) as index:
        assert index.has_tokens
        weights = weigh_tokens(query.text, 5, index)
        plain = dict(index.search_tokens(query, 9))
        weighed = dict(index.search_tokens(query, 9, weigh=lambda count: weights))
        hits = index.hits(RETRIEVERS.build("hybrid").retrieve(query, 5, index))
        again = RERANKERS.build({"name": "late_interaction", "weight": 1}).rerank(
            query, hits, index
        )
    assert plain != weighed
    order = sorted((-weighed[index.row_of(hit.passage.id)], hit.passage.id) for hit in hits)
    assert [hit.passage.id for hit in again] == [name for _, name in order]
