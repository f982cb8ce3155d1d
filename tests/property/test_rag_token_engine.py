"""The token engine against the sum of largest products in float64."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stillroom.errors import IntegrityError
from stillroom.rag.search_engines import late_interaction as module
from stillroom.rag.search_engines.late_interaction import (
    TOKENS,
    TokenEngine,
    TokenVectors,
    merge_token_vectors,
)


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
    for bits in (4, 8, 16, 32):
        made = TokenVectors.join(passages, 16, bits=bits)
        made.write(tmp_path)
        opened = TokenVectors.open(tmp_path)
        assert len(opened) == 30
        query = rng.standard_normal((3, 16)).astype(np.float32)
        one, other = TokenEngine([made]).search(query, 5), TokenEngine([opened]).search(query, 5)
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


@pytest.mark.parametrize(("bits", "least"), [(4, 0.985), (8, 0.9998), (16, 0.99999)])
@pytest.mark.parametrize("width", [96, 128, 384])
def test_codes_read_back_as_nearly_the_tokens(bits, least, width):
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((300, width)).astype(np.float32)
    tokens[:, 0] *= 20  # one number that outweighs the others, as some models have
    tokens /= np.linalg.norm(tokens, axis=1, keepdims=True)
    made = TokenVectors.join([tokens], width, bits=bits)
    cosines = (made.read(slice(None)) * made.prepare(tokens)).sum(axis=1)
    norms = np.linalg.norm(made.read(slice(None)), axis=1)
    assert (cosines / norms).min() >= least
    assert made.tokens.nbytes <= 300 * (width + 63) * bits // 8


@given(st.integers(0, 2**32), st.sampled_from([4, 8, 16, 32]), st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_of_codes_the_best_rows_are_those_of_what_they_read_back_as(seed, bits, count):
    rng = np.random.default_rng(seed)
    passages = make_passages(rng, count, 20, twins=False)
    query = rng.standard_normal((3, 20)).astype(np.float32)
    cut = int(rng.integers(0, count + 1))
    parts = [TokenVectors.join(some, 20, bits=bits) for some in (passages[:cut], passages[cut:])]
    read = [part.of(row) for part in parts for row in range(len(part))]
    asked = query if bits > 8 else parts[0].prepare(query)
    expected = best_of(read, asked, np.ones(count, dtype=bool), 5)
    rows, scores = TokenEngine(parts).search(query, 5)
    assert (rows.tolist(), scores.tolist()) == expected


@example(111288673, 4)
@given(st.integers(0, 2**32), st.sampled_from([4, 8, 16, 32]))
@settings(max_examples=40, deadline=None)
def test_merged_files_have_the_bytes_of_one(tmp_path_factory, seed, bits):
    rng = np.random.default_rng(seed)
    folder = tmp_path_factory.mktemp("merge")
    told = [make_passages(rng, int(rng.integers(1, 12)), 20, twins=False) for _ in range(3)]
    masks = [None, rng.random(len(told[1])) < 0.5, rng.random(len(told[2])) < 0.5]
    parts = [TokenVectors.join(one, 20, bits=bits) for one in told]
    first = int(rng.integers(0, len(told[0]) + 1))
    parts[0] = parts[0].span(first, len(told[0]))
    rows = told[0][first:]
    for one, mask in zip(told[1:], masks[1:], strict=True):
        rows += [row for row, stays in zip(one, mask, strict=True) if stays]
    for name in ("merged", "own"):
        (folder / name).mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stillroom.rag.search_engines.late_interaction._BLOCK_TOKENS", 5)
        pieces = zip(parts, masks, strict=True)
        merge_token_vectors(folder / "merged", pieces)
        assert len(TokenVectors.open(folder / "merged")) == len(rows)
    TokenVectors.join(rows, 20, bits=bits).write(folder / "own")
    merged, own = (TokenVectors.open(folder / name) for name in ("merged", "own"))
    for name in ("tokens", "starts", "scales"):
        assert np.array_equal(getattr(merged, name), getattr(own, name))
    assert merged.largest >= own.largest
