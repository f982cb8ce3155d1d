"""BM25 beside the library bm25s; in an environment of its own.

``STILLROOM_PEER_BM25S`` is a python that has bm25s. It keeps scores as float32.
"""

import json
import os
import random
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from stillroom.rag.search_engines.keyword import KeywordEngine, Postings, write_postings

pytestmark = pytest.mark.peer

WORKER = """
import json, sys
import bm25s
told = json.load(sys.stdin)
made = bm25s.BM25(method="lucene", k1=1.3, b=0.6)
made.index(told["texts"], show_progress=False)
json.dump([made.get_scores(query).tolist() for query in told["queries"]], sys.stdout)
"""


@pytest.fixture(scope="module")
def corpus():
    rng = random.Random(3)
    words = [f"w{at}" for at in range(300)]
    weights = [1 / (at + 1) for at in range(300)]
    texts = [rng.choices(words, weights, k=rng.randint(2, 80)) for _ in range(500)]
    known = sorted({word for text in texts for word in text})
    queries = [rng.sample(known, rng.randint(1, 6)) for _ in range(60)]
    return texts, queries


@pytest.fixture(scope="module")
def theirs(corpus):
    root = Path(__file__).resolve().parents[2]
    default = root / "build" / "peers" / "bm25s-0.3.16" / "bin" / "python"
    python = Path(os.environ.get("STILLROOM_PEER_BM25S", default))
    if not python.exists():
        pytest.skip("STILLROOM_PEER_BM25S names no python that has bm25s")
    texts, queries = corpus
    told = json.dumps({"texts": texts, "queries": queries})
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(python), "-c", WORKER], input=told, env=env, check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout)


def test_scores_are_those_of_bm25s(corpus, theirs, tmp_path):
    texts, queries = corpus
    rows = [(f"p{at}", [], text, 0, len(text)) for at, text in enumerate(texts)]
    write_postings(tmp_path, rows)
    engine = KeywordEngine([Postings.open(tmp_path)])
    for query, scores in zip(queries, theirs, strict=True):
        found, values = engine.search(Counter(query), len(texts), k1=1.3, b=0.6)
        expected = np.array(scores)
        np.testing.assert_allclose(values, expected[found], rtol=2e-5, atol=2e-6)
        missing = np.setdiff1d(np.arange(len(texts)), found)
        lowest = expected.min() if len(missing) else -np.inf
        assert (expected[missing] <= lowest + 1e-5).all()
