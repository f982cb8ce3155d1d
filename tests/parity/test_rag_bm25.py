"""BM25 against SQLite's own: the same formula but for the idf, which theirs lets fall below zero.

Theirs: idf = ln((N - n + 0.5) / (n + 0.5)), times (k1 + 1), k1 = 1.2, b = 0.75, negative = better.
With the idf put in its place the two agree to rounding.
"""

import math
import random
import sqlite3

import pytest

from stillroom.rag.search_engines.keyword import KeywordEngine, Postings, write_postings


@pytest.fixture(scope="module")
def texts():
    rng = random.Random(7)
    words = [f"w{at}" for at in range(200)]
    weights = [1 / (at + 1) for at in range(200)]
    return [" ".join(rng.choices(words, weights, k=rng.randint(3, 90))) for _ in range(400)]


@pytest.fixture(scope="module")
def peer(texts):
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE VIRTUAL TABLE t USING fts5(body, tokenize='ascii')")
    connection.executemany("INSERT INTO t(rowid, body) VALUES (?, ?)", enumerate(texts, start=1))
    yield connection
    connection.close()


@pytest.mark.parametrize("term", ["w12", "w17", "w60", "w150"])
def test_one_term_scores_as_in_sqlite(texts, peer, tmp_path, term):
    rows = [(f"p{at}", [], text.split(), 0, len(text.split())) for at, text in enumerate(texts)]
    write_postings(tmp_path, rows)
    engine = KeywordEngine([Postings.open(tmp_path)])
    found, scores = engine.search({term: 1.0}, 1000, k1=1.2, b=0.75, heading_weight=0.0)
    idf = engine.idf(term)
    theirs = dict(peer.execute("SELECT rowid - 1, bm25(t) FROM t WHERE t MATCH ?", (term,)))
    assert set(found.tolist()) == set(theirs)
    total, having = len(texts), len(theirs)
    their_idf = math.log((total - having + 0.5) / (having + 0.5))
    assert their_idf > 0
    for row, score in zip(found.tolist(), scores.tolist(), strict=True):
        assert -theirs[row] == pytest.approx(score / idf * their_idf * 2.2, rel=1e-9)
