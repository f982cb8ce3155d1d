"""BM25 over 50,000 passages beside bm25s, rank_bm25, SQLite FTS5 and Haystack's in-memory store.

Processor milliseconds a query of 4 to 8 words, k = 10, ours from the text of the query. bm25s and
rank_bm25 are given our stemmed words, so that bm25s (its Lucene variant) must find the same rows,
which is checked first; FTS5 and Haystack analyze the texts their own way. "cold" is each query's
first time with nothing kept of any term. STILLROOM_BENCH_PEERS names some of the peers.
"""

import os
import statistics
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from commands import print_figure
from corpus import content_words, passages, prepare, queries
from searching import Peer, compare, hit_rate, overlap, time_queries

from stillroom.rag.analysis.analyzer import Analyzer
from stillroom.rag.search_engines.keyword import KeywordEngine, Postings, write_postings

REPEATS = int(os.environ.get("STILLROOM_BENCH_REPEATS", "7"))
K = 10
PEERS: dict[str, tuple[tuple[str, str], list[str], int, int]] = {
    # package, what else it needs, queries a round, rounds at most
    "bm25s": (("bm25s", "0.3.16"), ["numba"], 400, 9),
    "fts5": (("", "FTS5 of Python's sqlite3"), [], 100, 7),
    "rank_bm25": (("rank-bm25", "0.2.2"), [], 10, 5),
    "haystack": (("haystack-ai", "3.4.1"), [], 4, 3),
}


def make_engine(texts: list[str], folder: Path) -> tuple[Analyzer, Postings]:
    """Write the postings of all passages; return them open."""
    analyzer = Analyzer("english")
    rows = (
        (str(at), [], analyzer.terms(text), 0, len(content_words(analyzer, text)))
        for at, text in enumerate(texts)
    )
    write_postings(folder, rows)
    return analyzer, Postings.open(folder)


def main() -> None:
    """Print one line a peer."""
    texts, folder = passages(), prepare()
    asked = queries(texts)
    names = os.environ.get("STILLROOM_BENCH_PEERS", ",".join(PEERS)).split(",")
    with tempfile.TemporaryDirectory() as place:
        analyzer, postings = make_engine(texts, Path(place))
        engine = KeywordEngine([postings])

        def search(at: int) -> list[int]:
            return engine.search(find_terms(analyzer, asked[at][1]), K)[0].tolist()

        cold = []
        for at in range(len(asked)):
            engine = KeywordEngine([postings])
            cold.append(time_queries(search, at, at + 1)[0])
        engine = KeywordEngine([postings])
        for name in names:
            package, also, count, rounds = PEERS[name]
            peer = Peer(name, package, also, str(folder), str(K))
            told = compare(peer, search, count, min(rounds, REPEATS))
            peer.close()
            if name == "bm25s":
                terms = [find_terms(analyzer, query) for _, query in asked]
                check_scores(engine, terms, told)
            print_figure(
                f"rag/keyword/vs_{name}",
                "CPU ms a query",
                told["ours"],
                (peer.name, told["theirs"]),
                None,
                cold=round(statistics.median(cold), 4),
                same_rows=round(overlap(told["our_rows"], told["their_rows"]), 4),
                hit_rate={
                    "ours": round(hit_rate(told["our_rows"], [row for row, _ in asked]), 3),
                    "peer": round(hit_rate(told["their_rows"], [row for row, _ in asked]), 3),
                },
                queries=count,
                passages=len(texts),
                disk_mb=round(postings.path.stat().st_size / 1e6, 1),
            )


def find_terms(analyzer: Analyzer, query: str) -> Counter[str]:
    """Return a query's words and how often it has each."""
    return Counter(analyzer.content_terms(query))


def check_scores(engine: KeywordEngine, terms: list[Counter[str]], told: dict[str, Any]) -> None:
    """Hold that what the peer found scores what we found scores: rows may differ in ties alone."""
    for query, ours, theirs in zip(terms, told["our_rows"], told["their_rows"], strict=False):
        mask = np.zeros(len(engine), dtype=bool)
        mask[theirs] = True
        best = engine.search(query, len(ours))[1]
        np.testing.assert_allclose(engine.search(query, len(ours), mask=mask)[1], best, rtol=1e-5)


if __name__ == "__main__":
    main()
