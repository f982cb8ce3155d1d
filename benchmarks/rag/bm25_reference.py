"""Our keyword search against bm25s' Lucene variant, whole documents, the same k1 and b.

No headings apart, no cutting: what differs is the analyzer (ours splits identifiers and knows its
own stop words; the reference takes words, 33 stop words and the Snowball stemmer). Two settings:
Anserini's (0.9, 0.4) and Lucene's own (1.2, 0.75). Differences are paired, 95 % over queries.

    pip install --target build/peers/bm25s bm25s PyStemmer
    python benchmarks/rag/bm25_reference.py docs-qa xquad
"""

import json
import re
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.append(str(Path(__file__).resolve().parents[2] / "build/peers/bm25s"))

import bm25s
import Stemmer
from benchmarks.rag.quality import READERS, JudgedSet

from stillroom.evaluate.metrics.bootstrap import paired_difference
from stillroom.evaluate.metrics.retrieval import score_run
from stillroom.jobs import Job
from stillroom.models import open_embedder
from stillroom.rag.index.searcher import Index
from stillroom.rag.index_settings import EmbeddingSettings
from stillroom.rag.jobs.index import IndexRecipe, run
from stillroom.rag.retrieval.pipeline import retrieve
from stillroom.rag.retrievers.keyword import Keyword

DEPTH = 100
MEASURES = ("ndcg@10", "recall@100")
SETTINGS = ((0.9, 0.4), (1.2, 0.75))
STOPS = frozenset(
    "a an and are as at be but by for if in into is it no not of on or such that the their then"  # noqa: SIM905
    " there these they this to was will with".split()
)
STEMMER = Stemmer.Stemmer("english")
Runs = dict[str, list[tuple[str, float]]]


def analyze(text: str) -> list[str]:
    words = re.findall(r"\w+", text.lower())
    return [STEMMER.stemWord(word) for word in words if word not in STOPS]


def search_theirs(judged: JudgedSet, texts: list[str], k1: float, b: float) -> Runs:
    engine = bm25s.BM25(method="lucene", k1=k1, b=b)
    engine.index([analyze(text) for text in texts], show_progress=False)
    found: Runs = {}
    for query in judged.relevant:
        words = analyze(judged.queries[query])
        scores = engine.get_scores(words) if words else np.zeros(len(texts))
        order = np.argsort(-scores, kind="stable")[:DEPTH]
        found[query] = [(judged.rows[at].id, float(scores[at])) for at in order if scores[at] > 0]
    return found


def search_ours(judged: JudgedSet, index: Index, k1: float, b: float) -> Runs:
    found: Runs = {}
    for query in judged.relevant:
        best: dict[str, float] = {}
        for hit in retrieve(index, judged.queries[query], DEPTH, retriever=Keyword(k1=k1, b=b)):
            name = judged.rows[int(Path(hit.passage.location.path).stem)].id
            best.setdefault(name, hit.score)
        found[query] = list(best.items())
    return found


def main() -> None:
    """Print one JSON line a set, setting and measure."""
    for name in sys.argv[1:] or ("docs-qa", "xquad"):
        judged = READERS[name]()
        qrels = {query: dict.fromkeys(ids, 1) for query, ids in judged.relevant.items()}
        texts = [f"{row.title}\n{row.text}" for row in judged.rows]
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "documents"
            folder.mkdir()
            for at, text in enumerate(texts):
                (folder / f"{at:05d}.txt").write_text(text, encoding="utf-8")
            whole = {"name": "fixed", "size": 100_000}
            recipe = IndexRecipe(
                documents=str(folder),
                embedder="static",
                chunker=whole,
                embedding=EmbeddingSettings(with_headings=False),
            )
            job = Job.start(Path(scratch) / "index", "recipe\n")
            run(recipe, job, embedder=open_embedder("static"))
            with Index.open(Path(scratch) / "index") as index:
                for k1, b in SETTINGS:
                    sides = [search_ours(judged, index, k1, b), search_theirs(judged, texts, k1, b)]
                    ours, theirs = (score_run(side, qrels, MEASURES) for side in sides)
                    for measure in MEASURES:
                        pair = [[side[measure][q] for q in qrels] for side in (ours, theirs)]
                        less = paired_difference(*pair, seed=0)
                        line = {
                            "what": f"rag/bm25_reference/{name}/{measure}",
                            "k1": k1,
                            "b": b,
                            "value": round(float(np.mean(pair[0])), 4),
                            "peer": round(float(np.mean(pair[1])), 4),
                            "difference": round(less.value, 4),
                            "interval": [round(less.low, 4), round(less.high, 4)],
                            "n": len(qrels),
                        }
                        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
