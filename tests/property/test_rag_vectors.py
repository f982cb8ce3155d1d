"""The dense engine against scoring every row in float64."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.errors import IntegrityError
from stillroom.rag.search_engines import dense as module
from stillroom.rag.search_engines.dense import CODES, DenseEngine, VectorCodes

KINDS = ("spread", "twins", "zeros", "spikes", "levels", "huge", "tiny", "half")


def make_vectors(kind, rng, count, width):
    made = rng.standard_normal((count, width)).astype(np.float32)
    if kind == "twins":
        made = made[rng.integers(0, min(3, count), count)]
    if kind == "zeros":
        made[rng.random(count) < 0.5] = 0
    if kind == "spikes":
        made *= 0.01
        made[np.arange(count), rng.integers(0, width, count)] = 1
    if kind == "levels":
        made = rng.integers(-2, 3, (count, width)).astype(np.float32)
    if kind == "huge":
        made *= np.float32(1e12)
    if kind == "tiny":
        made *= np.float32(1e-30)
    return made.astype(np.float16) if kind == "half" else made


def best_of(vectors, query, allowed, k):
    scores = np.array(
        [np.float32(np.sum(row.astype(np.float64) * query.astype(np.float64))) for row in vectors],
        dtype=np.float32,
    )
    rows = [row for row in range(len(vectors)) if allowed is None or allowed[row]]
    rows.sort(key=lambda row: (-scores[row], row))
    return rows[:k], scores[rows[:k]].tolist()


@pytest.mark.parametrize("integers", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_the_best_rows_are_those_of_scoring_all(kind, integers, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    count, width = data.draw(st.integers(1, 200)), data.draw(st.sampled_from([1, 3, 32, 100]))
    vectors = make_vectors(kind, rng, count, width)
    query = make_vectors(data.draw(st.sampled_from(KINDS[:5])), rng, 1, width)[0]
    cuts = sorted(data.draw(st.lists(st.integers(0, count), max_size=3)))
    parts = np.split(vectors, cuts)
    alive = data.draw(st.none() | st.just(rng.random(count) < 0.7))
    mask = data.draw(st.none() | st.just(rng.random(count) < rng.random()))
    flags = [one for one in (alive, mask) if one is not None]
    allowed = np.logical_and.reduce(flags) if flags else None
    k = data.draw(st.integers(1, 12))
    engine = DenseEngine(parts, alive)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_has_exact_integers", lambda: integers)
        patch.setattr(module, "_MIN_ROWS_FOR_TORCH", 0)
        patch.setattr(module, "_GATHERED_SHARE", data.draw(st.sampled_from([1, 24, 1000])))
        found, scores = engine.search(query, k, mask=mask)
    assert (found.tolist(), scores.tolist()) == best_of(vectors, query, allowed, k)
    few = rng.permutation(count)[: count // 2]
    found, scores = engine.search(query, k, mask=mask, rows=few)
    both = np.isin(np.arange(count), few)
    both = both if allowed is None else both & allowed
    assert (found.tolist(), scores.tolist()) == best_of(vectors, query, both, k)


@pytest.mark.parametrize("kind", KINDS)
def test_no_row_scores_outside_its_bounds(kind):
    rng = np.random.default_rng(3)
    vectors = make_vectors(kind, rng, 500, 64)
    codes = VectorCodes.encode(vectors)
    for kind_of_query in KINDS[:5]:
        query = make_vectors(kind_of_query, rng, 1, 64)[0]
        exact = vectors.astype(np.float64) @ query.astype(np.float64)
        for about, radius in (codes.bound(query), module._bound_floats(vectors, codes, query)):
            assert (np.abs(exact - about) <= radius).all()


def test_few_rows_of_many_are_scored_twice():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((4000, 96)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    engine = DenseEngine([vectors])
    counts = [len(engine._near(query, 10, None)) for query in vectors[:50] + vectors[50:100]]
    assert max(counts) < 200


def test_codes_come_back_from_their_file_and_damage_is_named(tmp_path):
    vectors = np.random.default_rng(0).standard_normal((300, 32)).astype(np.float32)
    made = VectorCodes.encode(vectors)
    made.write(tmp_path)
    opened = VectorCodes.open(tmp_path)
    assert len(opened) == 300
    query = vectors[7]
    plain = DenseEngine([vectors]).search(query, 20)
    coded = DenseEngine([vectors], codes=[opened]).search(query, 20)
    assert [each.tolist() for each in plain] == [each.tolist() for each in coded]
    data = (tmp_path / CODES).read_bytes()
    for harm in (data[:-1], b"", data.replace(b"scales", b"scalez")):
        (tmp_path / CODES).write_bytes(harm)
        with pytest.raises(IntegrityError) as caught:
            VectorCodes.open(tmp_path)
        assert caught.value.code == "rag.index-damaged"


def test_products_that_overflow_are_noticed(monkeypatch):
    module._has_exact_integers.cache_clear()
    right = module._multiply_codes

    def saturating(codes, code):
        pairs = (codes.astype(np.int64) + 128) * code  # as processors do that want one unsigned
        halves = np.clip(pairs[:, ::2] + pairs[:, 1::2], -(2**15), 2**15 - 1)
        return halves.sum(axis=1) - 128 * code.astype(np.int64).sum()

    monkeypatch.setattr(module, "_multiply_codes", saturating)
    assert not module._has_exact_integers()
    module._has_exact_integers.cache_clear()
    monkeypatch.setattr(module, "_multiply_codes", right)
    assert module._has_exact_integers()


def test_threads_make_codes_once_and_see_what_one_thread_sees():
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((3000, 32)).astype(np.float32)
    expected = [DenseEngine([vectors]).search(query, 5)[0].tolist() for query in vectors[:20]]
    engine = DenseEngine([vectors[:1000], vectors[1000:]])
    found = [[] for _ in range(4)]

    def work(number):
        found[number] = [engine.search(query, 5)[0].tolist() for query in vectors[:20]]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


def test_nothing_is_found_in_no_rows():
    empty = np.zeros((0, 8), dtype=np.float32)
    for engine in (DenseEngine([]), DenseEngine([empty]), DenseEngine([empty, empty])):
        rows, scores = engine.search(np.ones(8, dtype=np.float32), 3)
        assert (rows.tolist(), scores.tolist()) == ([], [])
