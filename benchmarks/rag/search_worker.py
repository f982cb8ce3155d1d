"""A peer's search in the peer's own environment: answers all queries each time a line comes in.

Run as ``python search_worker.py PEER FOLDER K`` over what corpus.py left in FOLDER. Answers the
first line once the index stands (how long that took), and every further line with processor
milliseconds a query and the rows found. Everything a peer does with a query counts; the words
or vectors of queries are at hand beforehand, as the peer takes them.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Search = Callable[[int], list[int]]
OTHERS: list[int] = []
"""Processes of a server, whose processor time a query takes beside our own."""


def load_words(folder: Path) -> tuple[list[list[str]], list[list[str]]]:
    """Return the words of passages and of queries, stop words left out, stemmed."""
    return tuple(
        [
            line.split(" ")
            for line in (folder / name).read_text("utf-8", "surrogatepass").split("\n")
        ]
        for name in ("words.txt", "query-words.txt")
    )


def load_texts(folder: Path) -> tuple[list[str], list[str]]:
    """Return the texts of passages and of queries."""
    texts = json.loads((folder / "passages-50000.json").read_text(encoding="utf-8"))
    return texts, json.loads((folder / "queries.json").read_text(encoding="utf-8"))


def make_bm25s(folder: Path, k: int) -> Search:
    import bm25s

    words, queries = load_words(folder)
    made = bm25s.BM25(method="lucene", k1=1.2, b=0.75, backend="numba")
    made.index(words, show_progress=False)
    made.activate_numba_scorer()
    return lambda at: (
        made.retrieve(
            [queries[at]], k=k, show_progress=False, n_threads=1, backend_selection="numba"
        )
        .documents[0]
        .tolist()
    )


def make_rank_bm25(folder: Path, k: int) -> Search:
    from rank_bm25 import BM25Okapi

    words, queries = load_words(folder)
    made = BM25Okapi(words, k1=1.2, b=0.75)
    return lambda at: np.argsort(-made.get_scores(queries[at]), kind="stable")[:k].tolist()


def make_haystack(folder: Path, k: int) -> Search:
    from haystack import Document
    from haystack.document_stores.in_memory import InMemoryDocumentStore

    texts, queries = load_texts(folder)
    store = InMemoryDocumentStore()
    store.write_documents([Document(id=str(at), content=text) for at, text in enumerate(texts)])
    return lambda at: [int(one.id) for one in store.bm25_retrieval(queries[at], top_k=k)]


def make_fts5(folder: Path, k: int) -> Search:
    import sqlite3

    texts, _ = load_texts(folder)
    _, queries = load_words(folder)
    base = sqlite3.connect(":memory:")
    base.execute("CREATE VIRTUAL TABLE t USING fts5(body, tokenize='porter unicode61')")
    base.executemany("INSERT INTO t(rowid, body) VALUES (?, ?)", enumerate(texts))
    base.execute("INSERT INTO t(t) VALUES ('optimize')")
    asked = [" OR ".join('"' + word.replace('"', "") + '"' for word in one) for one in queries]
    sql = "SELECT rowid FROM t WHERE t MATCH ? ORDER BY rank LIMIT ?"
    return lambda at: [row for (row,) in base.execute(sql, (asked[at], k))]


def load_vectors(folder: Path) -> tuple[Any, Any]:
    """Return vectors of passages and of queries, (N, D) float32."""
    return np.load(folder / "vectors.npy"), np.load(folder / "query-vectors.npy")


def make_llama_index(folder: Path, k: int) -> Search:
    from llama_index.core.schema import TextNode
    from llama_index.core.vector_stores import SimpleVectorStore, VectorStoreQuery

    vectors, queries = load_vectors(folder)
    store = SimpleVectorStore()
    store.add(
        [TextNode(id_=str(at), text="", embedding=row.tolist()) for at, row in enumerate(vectors)]
    )
    asked = [VectorStoreQuery(query_embedding=row.tolist(), similarity_top_k=k) for row in queries]
    return lambda at: [int(one) for one in store.query(asked[at]).ids or []]


def make_langchain(folder: Path, k: int) -> Search:
    from langchain_core.embeddings import Embeddings
    from langchain_core.vectorstores import InMemoryVectorStore

    class Given(Embeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return [vectors[int(text)].tolist() for text in texts]

        def embed_query(self, text: str) -> list[float]:
            return asked[int(text)]

    vectors, queries = load_vectors(folder)
    asked = [row.tolist() for row in queries]
    store = InMemoryVectorStore(Given())
    names = [str(at) for at in range(len(vectors))]
    store.add_texts(names, ids=names)
    return lambda at: [
        int(one.page_content) for one in store.similarity_search_by_vector(asked[at], k=k)
    ]


def make_sqlite_vec(folder: Path, k: int) -> Search:
    import apsw
    import sqlite_vec

    vectors, queries = load_vectors(folder)
    base = apsw.Connection(":memory:")
    base.enable_load_extension(True)
    base.load_extension(sqlite_vec.loadable_path())
    base.execute(f"CREATE VIRTUAL TABLE t USING vec0(v float[{vectors.shape[1]}])")
    with base:
        base.executemany(
            "INSERT INTO t(rowid, v) VALUES (?, ?)",
            ((at, row.tobytes()) for at, row in enumerate(vectors)),
        )
    asked = [row.tobytes() for row in queries]
    sql = "SELECT rowid FROM t WHERE v MATCH ? AND k = ? ORDER BY distance"
    return lambda at: [row for (row,) in base.execute(sql, (asked[at], k))]


def make_lancedb(folder: Path, k: int) -> Search:
    import tempfile

    import lancedb
    import pyarrow as pa

    vectors, queries = load_vectors(folder)
    base = lancedb.connect(tempfile.mkdtemp(dir=folder))
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    table = base.create_table("t", pa.table({"row": pa.array(range(len(vectors))), "vector": flat}))
    return lambda at: (
        table.search(queries[at])
        .distance_type("dot")
        .select(["row", "_distance"])
        .limit(k)
        .to_arrow()["row"]
    ).to_pylist()


def make_pgvector(folder: Path, k: int) -> Search:
    """Ask the server that STILLROOM_BENCH_POSTGRES names; its session's time counts, too."""
    import psycopg

    vectors, queries = load_vectors(folder)
    base = psycopg.connect(os.environ["STILLROOM_BENCH_POSTGRES"], autocommit=True)
    base.execute("CREATE EXTENSION IF NOT EXISTS vector")
    base.execute("SET max_parallel_workers_per_gather = 0")  # its time would be another process's
    base.execute("DROP TABLE IF EXISTS t")
    column = f"vector({vectors.shape[1]}) STORAGE PLAIN"
    base.execute(f"CREATE TABLE t(row int PRIMARY KEY, v {column})".encode())
    with base.cursor().copy("COPY t FROM STDIN") as copy:
        for at, row in enumerate(vectors):
            copy.write_row((at, "[" + ",".join(map(repr, row.tolist())) + "]"))
    base.execute("VACUUM ANALYZE t")
    asked = ["[" + ",".join(map(repr, row.tolist())) + "]" for row in queries]
    sql = "SELECT row FROM t ORDER BY v <#> %s::vector LIMIT %s"
    OTHERS.append(base.info.backend_pid)
    return lambda at: [row for (row,) in base.execute(sql, (asked[at], k), prepare=True)]


PEERS = {name[5:]: made for name, made in list(globals().items()) if name.startswith("make_")}


def spend_time() -> float:
    """Return the processor seconds of this process and of a server's sessions for it."""
    spent = time.process_time()
    for process in OTHERS:
        told = Path(f"/proc/{process}/stat").read_text().rsplit(") ", 1)[1].split()
        spent += (int(told[11]) + int(told[12])) / os.sysconf("SC_CLK_TCK")
    return spent


def main() -> None:
    """Serve until the input ends; a line says which queries to answer, as ``START STOP``."""
    name, folder, k = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    start = time.process_time()
    search = PEERS[name](folder, k)
    print(json.dumps({"built": time.process_time() - start, "pid": os.getpid()}), flush=True)
    for line in sys.stdin:
        first, last = map(int, line.split())
        start = spend_time()
        rows = [search(at) for at in range(first, last)]
        spent = (spend_time() - start) / (last - first) * 1000
        print(json.dumps({"ms": spent, "rows": rows}), flush=True)


if __name__ == "__main__":
    main()
