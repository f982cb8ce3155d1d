import pytest
from pydantic import ValidationError

from stillroom.errors import DataError, RecipeError
from stillroom.rag.interfaces import (
    QUERY_TRANSFORMS,
    RERANKERS,
    RETRIEVERS,
    Query,
)
from stillroom.rag.retrieval.pipeline import retrieve
from stillroom.rag.retrieval.ranking import fuse_reciprocal_ranks
from stillroom.testing import scripted_model


def test_fusion_is_the_stated_formula():
    first = [(7, 9.0), (3, 8.0), (5, 7.0)]
    second = [(3, 0.1), (9, 0.05)]
    fused = dict(fuse_reciprocal_ranks([first, second], k=60, weights=[1.0, 2.0]))
    assert fused == pytest.approx({7: 1 / 61, 3: 1 / 62 + 2 / 61, 5: 1 / 63, 9: 2 / 62})


def test_equal_scores_are_ordered_by_best_rank_then_row():
    assert [row for row, _ in fuse_reciprocal_ranks([[(8, 1)], [(2, 1)]])] == [2, 8]
    lists = [[(1, 0), (2, 0)], [(2, 0), (1, 0)], [(5, 0)]]
    assert [row for row, _ in fuse_reciprocal_ranks(lists)] == [1, 2, 5]


def test_fusing_nothing_gives_nothing():
    assert fuse_reciprocal_ranks([]) == []
    assert fuse_reciprocal_ranks([[], []]) == []


def test_hybrid_is_the_fusion_of_both_legs(index):
    query = Query("a cat or a dog at night")
    legs = [index.search_keyword(query, 100), index.search_dense(query, 100)]
    expected = [row for row, _ in fuse_reciprocal_ranks(legs)][:4]
    found = index.hits(RETRIEVERS.build("hybrid").retrieve(query, 4, index))
    assert [index.row_of(hit.passage.id) for hit in found] == expected


def test_a_leg_of_weight_zero_changes_no_order(index):
    query = Query("a cat or a dog at night")
    keyword = index.hits(RETRIEVERS.build("keyword").retrieve(query, 3, index))
    hybrid = index.hits(
        RETRIEVERS.build({"name": "hybrid", "dense_weight": 0}).retrieve(query, 3, index)
    )
    assert [hit.passage.id for hit in hybrid][: len(keyword)] == [hit.passage.id for hit in keyword]


def test_two_legs_of_weight_zero_are_refused():
    with pytest.raises(ValidationError, match="nothing is ranked"):
        RETRIEVERS.build({"name": "hybrid", "keyword_weight": 0, "dense_weight": 0})


def test_an_unknown_retriever_names_the_known_ones(index):
    with pytest.raises(RecipeError, match="hybrid"):
        retrieve(index, "cat", retriever="hybird")


def test_a_reranker_keeps_the_hits_and_orders_them(index):
    query = Query("dogs guard the house")
    hits = index.hits(RETRIEVERS.build("hybrid").retrieve(query, 5, index))
    again = RERANKERS.build("mmr").rerank(query, hits, index)
    assert {hit.passage.id for hit in again} == {hit.passage.id for hit in hits}
    assert [hit.rank for hit in again] == [1, 2, 3, 4, 5][: len(hits)]
    assert [hit.score for hit in again] == sorted((hit.score for hit in again), reverse=True)
    assert again[0].passage.location.path == "animals/dogs.md"
    assert RERANKERS.build("mmr").rerank(query, [], index) == []


def test_expansion_keeps_the_own_terms_and_adds_from_the_first_passages(index):
    (query,) = QUERY_TRANSFORMS.build("expand").rewrite(Query("purring cats"), index, None)
    assert {"pur", "cat"} & set(query.terms)
    assert "sleep" in query.terms
    assert query.text == "purring cats"
    assert sum(query.terms.values()) == pytest.approx(1.0)


def test_expansion_of_an_unknown_word_changes_nothing(index):
    query = Query("zzzz")
    assert QUERY_TRANSFORMS.build("expand").rewrite(query, index, None) == [query]


def test_hyde_searches_with_what_the_model_writes(index):
    model = scripted_model(lambda prompt: "A dog barks at strangers and guards the house.")
    hits = retrieve(
        index, "who protects my home", 1, retriever="dense", transform="hyde", model=model
    )
    assert hits[0].passage.location.path == "animals/dogs.md"
    assert "who protects my home" in model.asked[0].messages[-1].content


def test_hyde_without_a_model_is_refused(index):
    with pytest.raises(DataError) as caught:
        retrieve(index, "cat", transform="hyde")
    assert caught.value.code == "rag.no-model"


def test_several_queries_are_fused(index, monkeypatch):
    method = QUERY_TRANSFORMS.build("expand")
    queries = [Query("cat"), Query("dog")]
    monkeypatch.setattr(type(method), "rewrite", lambda *_: queries)
    hits = retrieve(index, "pets", 2, retriever="keyword", transform=method)
    assert {hit.passage.location.path for hit in hits} == {"animals/cats.md", "animals/dogs.md"}
    assert [hit.rank for hit in hits] == [1, 2]
