"""Exact dense search over 50,000 vectors beside stores in memory and three databases.

Processor milliseconds a query, k = 10, 384 dimensions (LSA vectors of the passages), one thread.
Ours is given the vectors memory-mapped and their codes as an index keeps them; the bound is
NumPy's float32 product of all vectors with the query, without looking for the best. All must find
the same rows but for ties, which is checked first. pgvector runs in a real server on a socket, one
session without helpers, whose processor time is the server's own and the client's.
STILLROOM_BENCH_PEERS names some of the peers.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch  # as with any embedder: without it small indexes are scanned in float32

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(1, str(Path(__file__).resolve().parents[2]))
from commands import print_figure
from corpus import prepare
from searching import Peer, compare, overlap
from tests.postgres import serve

from stillroom.rag.search_engines.dense import DenseEngine, VectorCodes

REPEATS = int(os.environ.get("STILLROOM_BENCH_REPEATS", "7"))
K = 10
PEERS: dict[str, tuple[tuple[str, str], list[str], int, int]] = {
    # package, what else it needs, queries a round, rounds at most
    "sqlite_vec": (("sqlite-vec", "0.1.9"), ["apsw", "numpy"], 40, 7),
    "lancedb": (("lancedb", "0.40.0"), ["numpy"], 20, 7),
    "pgvector": (("psycopg", "3.3.9"), ["psycopg-binary", "numpy"], 20, 7),
    "llama_index": (("llama-index-core", "0.14.25"), [], 4, 3),
    "langchain": (("langchain-core", "1.8.3"), ["numpy"], 4, 3),
}


torch.set_num_threads(1)


def main() -> None:
    """Make the engine, and put it beside the peers."""
    folder = prepare()
    vectors = np.load(folder / "vectors.npy", mmap_mode="r")
    asked = np.load(folder / "query-vectors.npy")
    start = time.process_time()
    codes = VectorCodes.encode(vectors)
    encoding = time.process_time() - start
    engine = DenseEngine([vectors], codes=[codes])

    def search(at: int) -> list[int]:
        return engine.search(asked[at], K)[0].tolist()

    bare = time_bare(np.array(vectors), asked)
    names = os.environ.get("STILLROOM_BENCH_PEERS", ",".join(PEERS)).split(",")
    with serve() if "pgvector" in names else nullcontext("") as address:
        os.environ["STILLROOM_BENCH_POSTGRES"] = address
        measure(names, folder, search, engine, asked, bare, encoding)


def measure(
    names: list[str],
    folder: Path,
    search: Callable[[int], list[int]],
    engine: DenseEngine,
    asked: np.ndarray,
    bare: float,
    encoding: float,
) -> None:
    """Print one line a peer."""
    for name in names:
        package, also, count, rounds = PEERS[name]
        peer = Peer(name, package, also, str(folder), str(K))
        told = compare(peer, search, count, min(rounds, REPEATS))
        peer.close()
        for at in range(count):
            ours, theirs = (np.sort(told[key][at]) for key in ("our_rows", "their_rows"))
            scores = [np.sort(engine.score(asked[at], rows)) for rows in (ours, theirs)]
            np.testing.assert_allclose(*scores, atol=1e-5)
        print_figure(
            f"rag/dense_exact/vs_{name}",
            "CPU ms a query",
            told["ours"],
            (peer.name, told["theirs"]),
            bare,
            same_rows=round(overlap(told["our_rows"], told["their_rows"]), 4),
            queries=count,
            vectors=[len(engine), asked.shape[1]],
            codes_cpu_s=round(encoding, 3),
        )


def time_bare(vectors: np.ndarray, asked: np.ndarray) -> float:
    """Return processor milliseconds of multiplying all vectors with a query."""
    times = []
    for query in asked[:60]:
        start = time.process_time()
        vectors @ query
        times.append((time.process_time() - start) * 1000)
    return statistics.median(times)


if __name__ == "__main__":
    main()
