"""The keyword engine against scoring every row with a formula written anew."""

import math
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.rag.search_engines.keyword import KeywordEngine, Postings, write_postings
from stillroom.text.bm25 import TermImpactCache

WORDS = [f"w{at}" for at in range(8)]
terms = st.lists(st.sampled_from(WORDS), max_size=6)
parts = st.lists(st.lists(st.tuples(terms, terms), max_size=7), min_size=1, max_size=3)
weights = st.dictionaries(st.sampled_from(WORDS), st.sampled_from([1.0, 2.0, 0.5]), min_size=1)


def make_engine(told, alive=None, limit_bytes=None):
    opened = []
    with tempfile.TemporaryDirectory() as folder:
        for at, rows in enumerate(told):
            place = Path(folder) / str(at)
            place.mkdir()
            write_postings(place, [("id", h, b, len(h), len(b)) for h, b in rows])
            opened.append(Postings.open(place))
    engine = KeywordEngine(opened, alive)
    if limit_bytes is not None:
        engine._cache = TermImpactCache(limit_bytes=limit_bytes)
    return engine


def score_all(rows, alive, query, heading_weight, k1=1.2, b=0.75):
    """Return the score of every allowed row that some term adds to."""
    weigh = heading_weight, 1.0
    tf = [{w: weigh[0] * h.count(w) + weigh[1] * t.count(w) for w in query} for h, t in rows]
    length = [weigh[0] * len(h) + weigh[1] * len(t) for h, t in rows]
    seen = [at for at in range(len(rows)) if alive[at]]
    mean = sum(length[at] for at in seen) / len(seen) if seen else 1
    scores = {}
    for at in seen:
        norm = 1 - b + b * length[at] / (mean or 1)
        total = 0.0
        for word, weight in query.items():
            n = sum(tf[other][word] > 0 for other in seen)
            idf = math.log(1 + (len(seen) - n + 0.5) / (n + 0.5))
            total += weight * idf * tf[at][word] / (tf[at][word] + k1 * norm) if n else 0.0
        if total > 0:
            scores[at] = total
    return scores


@given(parts, weights, st.sampled_from([2.0, 0.0]), st.data())
@settings(max_examples=60, deadline=None)
def test_the_best_rows_are_those_of_scoring_all(told, query, heading_weight, data):
    rows = [row for part in told for row in part]
    flags = st.lists(st.booleans(), min_size=len(rows), max_size=len(rows))
    alive, mask = data.draw(flags), data.draw(flags)
    expected = score_all(rows, alive, query, heading_weight)
    engine = make_engine(told, np.array(alive, dtype=bool))
    how = {"heading_weight": heading_weight}
    found, scores = engine.search(query, max(1, len(rows)), **how)
    assert sorted(found.tolist()) == sorted(expected)
    assert scores.tolist() == pytest.approx([expected[at] for at in found.tolist()], rel=1e-12)
    assert sorted(zip((-scores).tolist(), found.tolist(), strict=True)) == list(
        zip((-scores).tolist(), found.tolist(), strict=True)
    )
    # A depth, a mask and another layout change nothing but which rows are shown.
    together = make_engine([rows], np.array(alive, dtype=bool))
    for k in (1, 2, 5):
        for one in (engine, together):
            few, values = one.search(query, k, **how)
            assert few.tolist() == found.tolist()[:k]
            assert values.tolist() == scores.tolist()[:k]
        few, values = engine.search(query, k, **how, mask=np.array(mask, dtype=bool))
        kept = [at for at, row in enumerate(found.tolist()) if mask[row]][:k]
        assert few.tolist() == found[kept].tolist()
        assert values.tolist() == scores[kept].tolist()


@given(parts, st.lists(st.sampled_from(WORDS[:3]), min_size=1, max_size=4), st.data())
@settings(max_examples=40, deadline=None)
def test_a_phrase_is_in_the_rows_that_hold_it(told, phrase, data):
    rows = [row for part in told for row in part]
    alive = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    engine = make_engine(told, np.array(alive, dtype=bool))
    for column, field in enumerate(("headings", "body")):
        expected = [
            at
            for at, row in enumerate(rows)
            if alive[at]
            and any(row[column][s : s + len(phrase)] == phrase for s in range(len(row[column])))
        ]
        assert engine.phrase(phrase, field=field).tolist() == expected


@pytest.fixture(scope="module")
def large():
    rng = np.random.default_rng(0)
    ranks = np.minimum(rng.zipf(1.3, size=(3000, 20)), 400)
    return [([], [f"t{word}" for word in row]) for row in ranks.tolist()]


@pytest.mark.parametrize("share", [0.001, 0.01, 0.2, 0.9])
def test_narrow_and_wide_masks_give_the_same_bits(large, share):
    engine = make_engine([large[:1000], large[1000:]])
    mask = np.random.default_rng(1).random(3000) < share
    for words in (["t1", "t2", "t90"], ["t7"], ["t200", "t201", "t3", "t4"], ["t399", "absent"]):
        query = dict.fromkeys(words, 1.0)
        every, scores = engine.search(query, 3000)
        found, values = engine.search(query, 10, mask=mask)
        kept = np.flatnonzero(mask[every])[:10]
        assert found.tolist() == every[kept].tolist()
        assert values.tolist() == scores[kept].tolist()


def test_what_may_not_be_seen_changes_no_score(large):
    secret = [([], ["t7", "t8", "secret"])] * 500
    alive = np.array([True] * 3000 + [False] * 500)
    without, with_secret = make_engine([large]), make_engine([large, secret], alive)
    query = {"t7": 1.0, "t8": 1.0, "secret": 1.0}
    for one, other in zip(without.search(query, 50), with_secret.search(query, 50), strict=True):
        assert one.tolist() == other.tolist()
    assert with_secret.document_frequency("secret") == 0
    assert with_secret.idf("t7") == without.idf("t7")
    assert with_secret.phrase(["t7", "t8", "secret"]).tolist() == []
    assert with_secret.population == 3000


def test_a_small_cache_keeps_its_bound_and_the_scores(large):
    small, roomy = make_engine([large], limit_bytes=40_000), make_engine([large])
    for at in range(1, 120):
        query = {f"t{at}": 1.0, f"t{at + 1}": 1.0}
        small_found, roomy_found = small.search(query, 5), roomy.search(query, 5)
        assert [each.tolist() for each in small_found] == [each.tolist() for each in roomy_found]
    assert small._cache.size_bytes <= 40_000


def test_threads_see_what_one_thread_sees(large):
    engine = make_engine([large], limit_bytes=100_000)
    alone = make_engine([large])
    queries = [{f"t{at}": 1.0, f"t{at % 17 + 1}": 2.0} for at in range(1, 200)]
    expected = [alone.search(query, 10)[0].tolist() for query in queries]
    found = [[] for _ in range(4)]

    def work(number):
        for query in queries:
            found[number].append(engine.search(query, 10)[0].tolist())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4
