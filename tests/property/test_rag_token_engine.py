"""The token engine against the sum of largest products in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.errors import IntegrityError
from stillroom.rag.engines import token_engine as module
from stillroom.rag.engines.token_engine import TOKENS, TokenEngine, TokenVectors


def make_passages(rng, count, width, *, twins):
    made = [
        rng.standard_normal((rng.integers(0, 9), width)).astype(np.float32) for _ in range(count)
    ]
    return [made[rng.integers(0, max(1, count // 3))] for _ in range(count)] if twins else made


def best_of(passages, query, allowed, k):
    scores = {
        row: np.float32(
            (own.astype(np.float64) @ query.astype(np.float64).T).max(axis=0).sum()
        ).item()
        for row, own in enumerate(passages)
        if len(own) and allowed[row]
    }
    rows = sorted(scores, key=lambda row: (-scores[row], row))[:k]
    return rows, [scores[row] for row in rows]


@given(st.integers(0, 2**32), st.integers(1, 80), st.booleans(), st.data())
@settings(max_examples=80, deadline=None)
def test_the_best_rows_are_those_of_scoring_all(seed, count, twins, data):
    rng = np.random.default_rng(seed)
    width = data.draw(st.sampled_from([1, 5, 32]))
    passages = make_passages(rng, count, width, twins=twins)
    query = rng.standard_normal((data.draw(st.integers(1, 6)), width)).astype(np.float32)
    cut = data.draw(st.integers(0, count))
    alive, mask = rng.random(count) < 0.8, rng.random(count) < data.draw(st.floats(0, 1))
    parts = [TokenVectors.join(some, width) for some in (passages[:cut], passages[cut:])]
    k = data.draw(st.integers(1, 9))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK_TOKENS", data.draw(st.sampled_from([1, 7, 8192])))
        engine = TokenEngine(parts, alive)
        rows, scores = engine.search(query, k, mask=mask)
        assert (rows.tolist(), scores.tolist()) == best_of(passages, query, alive & mask, k)
        few = rng.permutation(count)[: count // 2]
        rows, scores = engine.search(query, k, rows=few)
        both = alive & np.isin(np.arange(count), few)
        assert (rows.tolist(), scores.tolist()) == best_of(passages, query, both, k)


def test_few_passages_are_scored_twice():
    rng = np.random.default_rng(0)
    passages = [rng.standard_normal((20, 64)).astype(np.float32) for _ in range(500)]
    engine = TokenEngine([TokenVectors.join(passages, 64)])
    near = engine._nearest(passages[7][:8], 10, np.arange(500))
    assert len(near) < 15


def test_token_vectors_come_back_from_their_file_and_damage_is_named(tmp_path):
    rng = np.random.default_rng(0)
    passages = make_passages(rng, 30, 16, twins=False)
    for kind in (np.float32, np.float16):
        made = TokenVectors.join([own.astype(kind) for own in passages], 16)
        half = TokenVectors(made.tokens.astype(kind), made.starts)
        half.write(tmp_path)
        opened = TokenVectors.open(tmp_path)
        assert len(opened) == 30
        query = rng.standard_normal((3, 16)).astype(np.float32)
        one, other = TokenEngine([half]).search(query, 5), TokenEngine([opened]).search(query, 5)
        assert [each.tolist() for each in one] == [each.tolist() for each in other]
    (tmp_path / TOKENS).write_bytes((tmp_path / TOKENS).read_bytes()[:-1])
    with pytest.raises(IntegrityError) as caught:
        TokenVectors.open(tmp_path)
    assert caught.value.code == "rag.index-damaged"


def test_nothing_is_found_among_passages_without_tokens():
    empty = TokenVectors.join([np.zeros((0, 4), np.float32)] * 3, 4)
    for engine in (TokenEngine([]), TokenEngine([empty]), TokenEngine([TokenVectors.join([], 4)])):
        rows, scores = engine.search(np.ones((2, 4), dtype=np.float32), 3)
        assert (rows.tolist(), scores.tolist()) == ([], [])
