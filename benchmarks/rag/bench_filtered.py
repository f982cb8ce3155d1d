"""Search by words and vectors where a filter keeps 1 % of 50,000 rows: recall and time.

A query's filter keeps the rows of one of a hundred tenants. Recall@10 is that of each search
against its whole ranking without the filter, cut to the filter's rows (words), and against float64
products of the filter's rows alone (vectors). Time is CPU ms of both searches at depth 100 and
their fusion, without embedding the query; terms' postings are kept (warm) or not (cold). The peer
is the same two searches without any filter.
"""

import os
import statistics
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import torch  # as with any embedder: without it small indexes are scanned in float32

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench_keyword import make_engine
from commands import print_figure
from corpus import passages, prepare, queries
from searching import time_queries

from stillroom.rag.retrieval.ranking import fuse_reciprocal_ranks
from stillroom.rag.search_engines.dense import DenseEngine, VectorCodes
from stillroom.rag.search_engines.keyword import KeywordEngine

REPEATS = int(os.environ.get("STILLROOM_BENCH_REPEATS", "7"))
TENANTS = 100
K = 10
DEPTH = 100


torch.set_num_threads(1)


def main() -> None:
    """Print recall, then time."""
    texts, folder = passages(), prepare()
    asked = queries(texts)
    vectors = np.load(folder / "vectors.npy", mmap_mode="r")
    aims = np.load(folder / "query-vectors.npy")
    owners = np.random.default_rng(0).integers(0, TENANTS, len(texts))
    masks = [owners == tenant for tenant in range(TENANTS)]
    with tempfile.TemporaryDirectory() as place:
        analyzer, postings = make_engine(texts, Path(place))
        terms = [Counter(analyzer.content_terms(query)) for _, query in asked]
        words = KeywordEngine([postings])
        dense = DenseEngine([vectors], codes=[VectorCodes.encode(vectors)])

        def hybrid(at: int, mask: np.ndarray | None) -> list[int]:
            lists = [words.search(terms[at], DEPTH, mask=mask)]
            lists.append(dense.search(aims[at], DEPTH, mask=mask))
            ranked = [list(zip(rows.tolist(), got.tolist(), strict=True)) for rows, got in lists]
            return [row for row, _ in fuse_reciprocal_ranks(ranked)[:K]]

        found = []
        for at in range(len(asked)):
            mask = masks[at % TENANTS]
            found.append(recall_words(words, terms[at], mask))
            found.append(recall_vectors(dense, vectors, aims[at], mask))
        print_figure("rag/filtered_1pct/recall", "recall@10", found, None, None, lowest=min(found))
        ways = [lambda at: hybrid(at, masks[at % TENANTS]), lambda at: hybrid(at, None)]
        words = KeywordEngine([postings])
        cold = time_queries(ways[0], 0, len(asked))[0]
        times: list[list[float]] = [[], []]
        for _ in range(REPEATS):
            for kept, way in zip(times, ways, strict=True):
                kept.append(time_queries(way, 0, len(asked))[0])
        each = [time_queries(ways[0], at, at + 1)[0] for at in range(len(asked))]
        print_figure(
            "rag/filtered_1pct/hybrid_cpu_ms",
            "CPU ms a query",
            times[0],
            ("without a filter", times[1]),
            None,
            mostly_cold=round(cold, 4),
            p95=round(statistics.quantiles(each, n=20)[-1], 4),
            queries=len(asked),
        )


def recall_words(engine: KeywordEngine, terms: Counter[str], mask: np.ndarray) -> float:
    """Return which share of the best rows within the mask is found with it."""
    every = engine.search(terms, len(engine))[0]
    best = every[mask[every]][:K]
    found = engine.search(terms, K, mask=mask)[0]
    return len(np.intersect1d(best, found)) / len(best) if len(best) else 1.0


def recall_vectors(
    engine: DenseEngine, vectors: np.ndarray, query: np.ndarray, mask: np.ndarray
) -> float:
    """Return which share of the best rows within the mask is found with it; ties count as one."""
    rows = np.flatnonzero(mask)
    scores = (vectors[rows].astype(np.float64) @ query.astype(np.float64)).astype(np.float32)
    limit = np.sort(scores)[-K]
    found = engine.search(query, K, mask=mask)[0]
    near = scores[np.searchsorted(rows, found)] >= limit - 1e-7
    return float(near.sum()) / K


if __name__ == "__main__":
    main()
