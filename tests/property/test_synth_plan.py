"""The split stands still, and order never matters."""

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.synth.conftest import make_passages

from stillroom.synth.pipeline.inputs import order_items, split_documents

IDS = st.sets(st.text(min_size=1, max_size=12), min_size=2, max_size=40)
SHARES = st.floats(0.05, 0.95)
SEEDS = st.integers(0, 2**63 - 1)


@settings(deadline=None)
@given(IDS, SHARES, SEEDS, st.text(min_size=1))
def test_adding_a_document_never_moves_another(ids, share, seed, more):
    before = split_documents(ids, share, seed)
    after = split_documents(ids | {more}, share, seed)
    moved = {name for name in ids if before[name] != after[name]}
    # Only the document that was moved to fill an empty side may go back to its own.
    if moved:
        assert len(moved) == 1
        assert list(before.values()).count(before[moved.pop()]) == 1


@settings(deadline=None)
@given(IDS, SHARES, SEEDS)
def test_both_sides_are_filled_and_order_does_not_matter(ids, share, seed):
    split = split_documents(ids, share, seed)
    assert set(split.values()) == {"train", "held_out"}
    assert split == split_documents(sorted(ids, reverse=True), share, seed)


@settings(deadline=None)
@given(st.permutations(make_passages()), SEEDS)
def test_passages_are_ordered_the_same_from_any_order(passages, seed):
    assert order_items(passages, seed) == order_items(make_passages(), seed)
