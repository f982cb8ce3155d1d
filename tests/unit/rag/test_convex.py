import math

import pytest

from stillroom.rag.interfaces import RETRIEVERS, Query
from stillroom.rag.retrieval.ranking import fuse_scores, normalize_scores

KEYWORD = [(7, 12.0), (3, 8.0), (5, 2.0)]
DENSE = [(3, 0.9), (9, 0.5), (7, 0.1)]


def reference(normalization, alpha):
    """Fuse KEYWORD and DENSE by the formulas of the documentation, one row at a time."""
    fused = {}
    for leg, weight, floor in ((KEYWORD, 1 - alpha, 0.0), (DENSE, alpha, -1.0)):
        scores = [score for _, score in leg]
        mean = sum(scores) / len(scores)
        spread = math.sqrt(sum((score - mean) ** 2 for score in scores) / len(scores))
        low, high = min(scores), max(scores)
        for row, score in leg:
            normal = {
                "minmax": (score - low) / (high - low),
                "zscore": (score - low) / spread,
                "theoretical": (score - floor) / (high - floor),
                "dbsf": (score - (mean - 3 * spread)) / (6 * spread),
            }[normalization]
            fused[row] = fused.get(row, 0.0) + weight * normal
    return fused


@pytest.mark.parametrize("normalization", ["minmax", "zscore", "theoretical", "dbsf"])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_it_is_the_stated_formula(normalization, alpha):
    method = RETRIEVERS.build({"name": "convex", "alpha": alpha, "normalization": normalization})
    fused = method.fuse([KEYWORD, DENSE])
    assert dict(fused) == pytest.approx(reference(normalization, alpha))
    assert [score for _, score in fused] == sorted((s for _, s in fused), reverse=True)


def test_zscore_orders_as_z_scores_with_absent_ones_at_the_lowest():
    fused = dict(
        RETRIEVERS.build({"name": "convex", "normalization": "zscore"}).fuse([KEYWORD, DENSE])
    )
    own = {}
    for leg in (KEYWORD, DENSE):
        scores = [score for _, score in leg]
        mean = sum(scores) / 3
        spread = math.sqrt(sum((score - mean) ** 2 for score in scores) / 3)
        lowest = (min(scores) - mean) / spread
        for row in fused:
            found = dict(leg).get(row)
            own[row] = own.get(row, 0) + 0.5 * (
                lowest if found is None else (found - mean) / spread
            )
    gaps = {round(fused[row] - own[row], 9) for row in fused}
    assert len(gaps) == 1


def test_equal_scores_still_count_more_than_being_absent():
    for normalization in ("minmax", "zscore", "theoretical"):
        assert normalize_scores([2.0, 2.0], normalization) == [1.0, 1.0]
    assert normalize_scores([2.0], "dbsf") == [0.5]
    assert normalize_scores([], "minmax") == []


def test_an_outlier_below_counts_no_less_than_an_absent_one():
    assert min(normalize_scores([1.0] * 30 + [-50.0], "dbsf")) == 0.0


def test_equal_sums_are_ordered_by_best_rank_then_row():
    lists = [[(8, 1.0)], [(2, 1.0)]]
    fused = fuse_scores(lists, [0.5, 0.5], normalization="minmax", floors=[0, 0])
    assert [row for row, _ in fused] == [2, 8]


def test_alpha_chooses_between_the_legs(index):
    query = Query("a cat or a dog at night")
    for alpha, leg in ((0, "keyword"), (1, "dense")):
        method = RETRIEVERS.build(
            {"name": "convex", "alpha": alpha, "normalization": "theoretical"}
        )
        alone = index.hits(RETRIEVERS.build(leg).retrieve(query, 3, index))
        both = index.hits(method.retrieve(query, 3, index))
        assert [hit.passage.id for hit in both][: len(alone)] == [h.passage.id for h in alone]
