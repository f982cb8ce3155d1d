"""Approximate search: what it finds scores exactly, and what it misses is measured."""

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.errors import IntegrityError
from stillroom.rag.search_engines.arrays import build_rotation, rotate_rows
from stillroom.rag.search_engines.dense import (
    BINARY_CODES,
    ApproximateEngine,
    BinaryCodes,
    DenseEngine,
)


def make_topics(count, width, seed=0):
    """Return unit vectors around some topics, as passages' vectors are."""
    rng = np.random.default_rng(seed)
    topics = np.random.default_rng(99).standard_normal((2000, width))
    made = topics[rng.integers(0, 2000, count)] + 0.5 * rng.standard_normal((count, width))
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)


@given(st.integers(0, 2**32), st.integers(1, 300), st.sampled_from([1, 63, 64, 130]), st.data())
@settings(max_examples=60, deadline=None)
def test_what_is_found_is_allowed_scored_exactly_and_in_order(seed, count, width, data):
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((count, width)).astype(np.float32)
    alive = data.draw(st.none() | st.just(rng.random(count) < 0.8))
    mask = data.draw(st.none() | st.just(rng.random(count) < rng.random()))
    flags = [one for one in (alive, mask) if one is not None]
    allowed = np.logical_and.reduce(flags) if flags else np.ones(count, dtype=bool)
    cut = data.draw(st.integers(0, count))
    exact = DenseEngine([vectors[:cut], vectors[cut:]], alive)
    engine = ApproximateEngine(exact, oversampling=data.draw(st.integers(1, 5)))
    whole = ApproximateEngine(DenseEngine([vectors], alive), oversampling=engine.oversampling)
    k = data.draw(st.integers(1, 10))
    query = rng.standard_normal(width).astype(np.float32)
    rows, scores = engine.search(query, k, mask=mask)
    assert len(rows) == min(k, int(allowed.sum()))
    assert allowed[rows].all()
    assert scores.tolist() == [exact.score(query, rows[at : at + 1])[0] for at in range(len(rows))]
    assert list(zip(-scores, rows, strict=True)) == sorted(zip(-scores, rows, strict=True))
    assert whole.search(query, k, mask=mask)[0].tolist() == rows.tolist()


def test_a_sketch_counts_the_signs_of_a_rotation():
    vectors = make_topics(200, 128)
    made = BinaryCodes.make(vectors)
    order, signs = build_rotation(128)
    mixing = np.zeros((128, 128))
    mixing[order, np.arange(128)] = signs
    blocks = np.kron(np.eye(2), scipy.linalg.hadamard(64)) / 8
    rotation = mixing @ blocks
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(128), atol=1e-6)
    turned = vectors @ rotation > 0
    expected = (turned != turned[5]).sum(axis=1)
    assert np.abs(made.compare(vectors[5]).astype(int) - expected).max() <= 1
    assert made.compare(vectors[5])[5] == 0


@given(st.integers(0, 2**32), st.integers(1, 200), st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_a_vector_is_mixed_to_the_same_bits_among_any_others(seed, width, count):
    vectors = np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
    alone = np.concatenate([rotate_rows(vectors[row : row + 1]) for row in range(count)])
    assert alone.tobytes() == rotate_rows(vectors).tobytes()


def test_recall_is_measured_and_reached():
    vectors = make_topics(8000, 96)
    queries = make_topics(60, 96, seed=1)
    exact = DenseEngine([vectors])
    engine = ApproximateEngine(exact)
    told = engine.calibrate(queries, k=10, least=0.95)
    assert told.recall >= 0.95
    assert (told.k, told.queries, told.oversampling) == (10, 60, engine.oversampling)
    found = [
        len(np.intersect1d(engine.search(query, 10)[0], exact.search(query, 10)[0])) / 10
        for query in queries
    ]
    assert np.mean(found) == pytest.approx(told.recall)
    more = engine.calibrate(queries, k=10, least=told.recall + 0.01)
    assert more.oversampling is None or more.oversampling > told.oversampling


def test_where_sketches_miss_too_much_search_is_exact():
    # All rows share their signs: a sketch cannot tell them apart, though the scores differ.
    rng = np.random.default_rng(0)
    vectors = np.ones((3000, 64), dtype=np.float32) * rng.random((3000, 1)).astype(np.float32)
    vectors[::2] *= -1
    vectors[rng.integers(0, 3000, 2000)] += rng.standard_normal((2000, 64)).astype("f4")
    exact = DenseEngine([vectors])
    engine = ApproximateEngine(exact, oversampling=1)
    query = -rng.random(64).astype(np.float32) + 0.5
    least = engine.calibrate(query[None], k=10, least=1.01)
    assert least.oversampling is None
    assert engine.search(query, 10)[0].tolist() == exact.search(query, 10)[0].tolist()


@pytest.mark.parametrize("share", [0.001, 0.02, 0.04])
def test_a_narrow_filter_is_exact(share):
    vectors = make_topics(5000, 64)
    mask = np.random.default_rng(0).random(5000) < share
    exact = DenseEngine([vectors])
    engine = ApproximateEngine(exact, oversampling=1)
    for query in make_topics(20, 64, seed=2):
        found, scores = engine.search(query, 5, mask=mask)
        best, values = exact.search(query, 5, mask=mask)
        assert (found.tolist(), scores.tolist()) == (best.tolist(), values.tolist())


def test_a_wide_filter_costs_no_recall():
    vectors, queries = make_topics(8000, 96), make_topics(40, 96, seed=1)
    mask = np.random.default_rng(0).random(8000) < 0.1
    exact = DenseEngine([vectors])
    engine = ApproximateEngine(exact, oversampling=16)

    def recall(flags):
        pairs = [
            (engine.search(q, 10, mask=flags), exact.search(q, 10, mask=flags)) for q in queries
        ]
        return np.mean([len(np.intersect1d(one[0], other[0])) / 10 for one, other in pairs])

    assert recall(mask) >= recall(None) - 0.02


def test_sketches_come_back_from_their_file_and_damage_is_named(tmp_path):
    vectors = make_topics(100, 48)
    made = BinaryCodes.make(vectors)
    made.write(tmp_path)
    opened = BinaryCodes.open(tmp_path)
    assert len(opened) == 100
    assert opened.compare(vectors[3]).tolist() == made.compare(vectors[3]).tolist()
    data = (tmp_path / BINARY_CODES).read_bytes()
    (tmp_path / BINARY_CODES).write_bytes(data[:-1])
    with pytest.raises(IntegrityError) as caught:
        BinaryCodes.open(tmp_path)
    assert caught.value.code == "rag.index-damaged"
