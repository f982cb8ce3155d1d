import pytest

from stillroom.rag.interfaces import RETRIEVERS, Query
from stillroom.rag.retrieval.ranking import fuse_scores, normalize_scores

KEYWORD = [(7, 12.0), (3, 8.0), (5, 2.0)]
DENSE = [(3, 0.9), (9, 0.5), (7, 0.1)]


def reference(alpha):
    """Fuse KEYWORD and DENSE by the formula of the documentation, one row at a time."""
    fused = {}
    for leg, weight in ((KEYWORD, 1 - alpha), (DENSE, alpha)):
        low, high = (end(score for _, score in leg) for end in (min, max))
        for row, score in leg:
            fused[row] = fused.get(row, 0.0) + weight * (score - low) / (high - low)
    return fused


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_it_is_the_stated_formula(index, alpha):
    method = RETRIEVERS.build({"name": "convex", "alpha": alpha, "coverage": 0})
    fused = method.fuse([KEYWORD, DENSE], Query("cat"), index)
    assert dict(fused) == pytest.approx(reference(alpha))
    assert [score for _, score in fused] == sorted((s for _, s in fused), reverse=True)


def test_equal_scores_still_count_more_than_being_absent():
    assert normalize_scores([2.0, 2.0]) == [1.0, 1.0]
    assert normalize_scores([]) == []


def test_a_floor_below_the_lowest_score_is_the_zero():
    assert normalize_scores([4.0, 2.0], floor=0.0) == [1.0, 0.5]


def test_equal_sums_are_ordered_by_best_rank_then_row():
    lists = [[(8, 1.0)], [(2, 1.0)]]
    fused = fuse_scores(lists, [0.5, 0.5])
    assert [row for row, _ in fused] == [2, 8]


def test_alpha_chooses_between_the_legs(index):
    query = Query("a cat or a dog at night")
    for alpha, leg in ((0, "keyword"), (1, "dense")):
        method = RETRIEVERS.build({"name": "convex", "alpha": alpha})
        alone = index.hits(RETRIEVERS.build(leg).retrieve(query, 3, index))
        both = index.hits(method.retrieve(query, 3, index))
        assert [hit.passage.id for hit in both][: len(alone)] == [h.passage.id for h in alone]


@pytest.mark.parametrize(
    ("question", "words", "first"),
    [
        ("Which cat sleeps sixteen hours?", "keyword", "Cats"),
        ("Which flag turns strange beasts at dusk?", "keyword", "Dogs"),
        ("Which flag turns strange beasts at dusk?", "sparse", "C++"),
        ("Which flag turns strange beasts at dusk?", "all", "C++"),
    ],
)
def test_the_keyword_list_decides_only_where_its_best_passage_has_the_words(
    index, question, words, first
):
    rows = {index.passage_at(row).title: row for row in range(len(index))}
    keyword = [(rows["Cats" if "cat" in question else "C++"], 9.0), (rows["Python"], 1.0)]
    dense = [(rows["Dogs"], 0.9), (rows["Python"], 0.8)]
    settings = {"coverage": 0} if words == "all" else {"words": words}
    method = RETRIEVERS.build({"name": "convex", "alpha": 0.45, **settings})
    fused = method.fuse([keyword, dense], Query(question), index)
    assert index.passage_at(fused[0][0]).title == first
    assert len(fused) == 3


def test_a_query_without_words_keeps_the_weights(index):
    method = RETRIEVERS.build({"name": "convex", "alpha": 0.3})
    assert dict(method.fuse([[(0, 2.0), (1, 1.0)], [(1, 0.9), (0, 0.1)]], Query("?"), index)) == (
        pytest.approx({0: 0.7, 1: 0.3})
    )
