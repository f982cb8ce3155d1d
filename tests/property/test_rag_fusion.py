"""Fusion keeps every row once, in falling order, and does not care about the order of lists."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillroom.rag.retrieval.ranking import fuse_reciprocal_ranks

rankings = st.lists(
    st.lists(st.integers(0, 30), unique=True, max_size=12).map(
        lambda rows: [(row, float(-at)) for at, row in enumerate(rows)]
    ),
    max_size=4,
)


@given(rankings)
def test_every_row_appears_once_in_falling_order(lists):
    fused = fuse_reciprocal_ranks(lists)
    assert {row for row, _ in fused} == {row for ranked in lists for row, _ in ranked}
    assert len(fused) == len({row for row, _ in fused})
    scores = [score for _, score in fused]
    assert scores == sorted(scores, reverse=True)


@given(rankings, st.randoms())
def test_the_order_of_lists_does_not_matter(lists, random):
    shuffled = list(lists)
    random.shuffle(shuffled)
    one, other = fuse_reciprocal_ranks(lists), fuse_reciprocal_ranks(shuffled)
    assert dict(one) == pytest.approx(dict(other))
