"""Approximate dense search over 50,000 vectors: recall against exact search, and time.

Recall@10 of sketches (one bit a dimension, then full vectors of the nearest) over the queries that
did not choose the oversampling: half of them calibrate, the others measure. The peer is our own
exact search; with filters that keep 1, 5 and 20 % of the rows as well.
"""

import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch  # as with any embedder: without it small indexes are scanned in float32

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from commands import print_figure
from corpus import prepare
from searching import time_queries

from stillroom.rag.search_engines.dense import (
    ApproximateEngine,
    BinaryCodes,
    DenseEngine,
    VectorCodes,
)

REPEATS = int(os.environ.get("STILLROOM_BENCH_REPEATS", "7"))
K = 10


torch.set_num_threads(1)


def main() -> None:
    """Print recall with times beside it."""
    folder = prepare()
    vectors = np.load(folder / "vectors.npy", mmap_mode="r")
    asked = np.load(folder / "query-vectors.npy")
    exact = DenseEngine([vectors], codes=[VectorCodes.encode(vectors)])
    start = time.process_time()
    sketches = BinaryCodes.make(vectors)
    making = time.process_time() - start
    engine = ApproximateEngine(exact, sketches=[sketches])
    told = engine.calibrate(asked[::2], k=K)
    others = asked[1::2]
    recalls = {"all": measure_recall(engine, exact, others, None)}
    for percent in (1, 5, 20):
        mask = np.random.default_rng(percent).random(len(vectors)) < percent / 100
        recalls[f"{percent} %"] = measure_recall(engine, exact, others, mask)
    times: list[list[float]] = [[], []]
    for _ in range(REPEATS):
        for kept, way in zip(times, (engine, exact), strict=True):
            kept.append(
                time_queries(lambda at, way=way: way.search(others[at], K)[0], 0, len(others))[0]
            )
    print_figure(
        "rag/dense_approx/recall@10",
        "recall",
        [recalls["all"]],
        None,
        None,
        calibrated=round(told.recall, 4),
        oversampling=told.oversampling,
        with_filter={name: round(value, 4) for name, value in recalls.items() if name != "all"},
        cpu_ms=round(statistics.median(times[0]), 4),
        exact_cpu_ms=round(statistics.median(times[1]), 4),
        making_cpu_s=round(making, 3),
        bytes_a_row=sketches.bits.nbytes // len(vectors),
        queries=len(others),
        rounds=REPEATS,
    )


def measure_recall(
    engine: ApproximateEngine, exact: DenseEngine, asked: np.ndarray, mask: np.ndarray | None
) -> float:
    """Return the mean share of the exact best that are found."""
    shares = [
        len(
            np.intersect1d(
                engine.search(query, K, mask=mask)[0], exact.search(query, K, mask=mask)[0]
            )
        )
        / K
        for query in asked
    ]
    return float(np.mean(shares))


if __name__ == "__main__":
    main()
