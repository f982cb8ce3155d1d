"""Which way of retrieving finds most: every judged set that is here, one JSON line a figure.

Four sets: docs-qa (product documentation, 100 questions), xquad and squad (question to paragraph,
of SQuAD's format) and chunking (two long texts, questions with exact excerpts; a passage is
relevant that holds half of an excerpt or more). No way is tuned for a set. Each set is indexed once
and kept; a killed run goes on where it stopped. Lines are named
``rag/ndcg@10/SET/{keyword,dense,hybrid,...}``, with the interval over questions and the paired
difference from ``hybrid``, which is the default that fuses both; ``rrf`` is reciprocal rank. The
index keeps a vector for each token, 8 bits a number, which ``reranked`` (late interaction) reads.

``python benchmarks/rag/quality.py [--set NAME ...] [--queries 300]``. STILLROOM_QUALITY_DATA names
the folder of the sets.
"""

import argparse
import csv
import json
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stillroom.evaluate import Report
from stillroom.evaluate.qa.collections import CorpusRow
from stillroom.flow import run_recipe
from stillroom.jobs import choose_reporter
from stillroom.rag.evaluation.retrieval import unpack_corpus
from stillroom.rag.index.searcher import Index
from stillroom.rag.interfaces import DEFAULT_RETRIEVER, LateInteractionSettings
from stillroom.rag.jobs.index import IndexRecipe
from stillroom.rag.jobs.retrieval_evaluation import RetrievalEvaluationRecipe
from stillroom.rag.stores.folder import Folder

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("STILLROOM_QUALITY_DATA", ROOT.parent / "shared/data"))
KEPT = Path(os.environ.get("STILLROOM_QUALITY_KEPT", ROOT / "build/bench/rag-quality"))
HELD = 0.5
MEASURE = "ndcg@10"
WAYS = {
    "hybrid": DEFAULT_RETRIEVER,
    "keyword": "keyword",
    "dense": "dense",
    "rrf": "hybrid",
    "reranked": f"{DEFAULT_RETRIEVER}+late_interaction",
    "reranked-0.7": f"{DEFAULT_RETRIEVER}+late_interaction:weight=0.7",
}


@dataclass(frozen=True)
class JudgedSet:
    """A corpus with its questions; ``relevant`` are corpus ids, or spans of a file."""

    name: str
    rows: list[CorpusRow]
    queries: dict[str, str]
    relevant: dict[str, list[str]]
    spans: dict[str, list[tuple[str, int, int]]]


def read_docs_qa() -> JudgedSet:
    """Read the documentation set."""
    folder = DATA / "retrieval/docs-qa"
    parts = json.loads((folder / "anthropic_docs.json").read_text(encoding="utf-8"))
    asked = json.loads((folder / "docs_evaluation_dataset.json").read_text(encoding="utf-8"))
    rows = {one["chunk_link"]: one for one in parts}
    corpus = [CorpusRow(key, one["chunk_heading"], one["text"]) for key, one in rows.items()]
    queries = {one["id"]: one["question"] for one in asked}
    relevant = {one["id"]: sorted(set(one["correct_chunks"]) & set(rows)) for one in asked}
    return JudgedSet("docs-qa", corpus, queries, relevant, {})


def read_squad(name: str, file: str) -> JudgedSet:
    """Read a file of SQuAD's format as question to paragraph."""
    articles = json.loads((DATA / "qa" / file).read_text(encoding="utf-8"))["data"]
    corpus, queries, relevant = [], {}, {}
    for number, article in enumerate(articles):
        for place, paragraph in enumerate(article["paragraphs"]):
            key = f"{number:03d}-{place:03d}"
            corpus.append(CorpusRow(key, article["title"].replace("_", " "), paragraph["context"]))
            for one in paragraph["qas"]:
                queries[one["id"]], relevant[one["id"]] = one["question"], [key]
    return JudgedSet(name, corpus, queries, relevant, {})


def read_chunking() -> JudgedSet:
    """Read the two long texts, whose questions name excerpts."""
    folder = DATA / "retrieval/chunking"
    queries, spans, names = {}, {}, set()
    with (folder / "questions.csv").open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file)):
            key, path = f"q{number:03d}", f"{row['corpus_id']}.md"
            names.add(path)
            queries[key] = row["question"]
            spans[key] = [
                (path, one["start_index"], one["end_index"])
                for one in json.loads(row["references"])
            ]
    texts = [CorpusRow(name, "", (folder / name).read_text(encoding="utf-8")) for name in names]
    return JudgedSet("chunking", sorted(texts, key=lambda one: one.id), queries, {}, spans)


READERS = {
    "docs-qa": read_docs_qa,
    "xquad": lambda: read_squad("xquad", "xquad.en.json"),
    "squad": lambda: read_squad("squad", "squad-subset.json"),
    "chunking": read_chunking,
}


def build_index(judged: JudgedSet) -> Path:
    """Return the index of a set, built once."""
    folder = KEPT / judged.name
    documents, index = folder / "documents", folder / "index"
    if not documents.exists():
        folder.mkdir(parents=True, exist_ok=True)
        if judged.spans:
            documents.mkdir()
            for row in judged.rows:
                (documents / row.id).write_text(row.text, encoding="utf-8", newline="")
        else:
            unpack_corpus(judged.rows, documents)
    if not (index / "artifact.json").exists():
        store = Folder(sparse=None, late_interaction=LateInteractionSettings())
        recipe = IndexRecipe(documents=str(documents), store=store)
        run_recipe(recipe, index, resume=True, reporter=choose_reporter())
    return index


def write_judgements(judged: JudgedSet, index: Path, count: int) -> tuple[Path, Path, int]:
    """Write queries and judgements of at most ``count`` questions; return how many there are."""
    relevant = dict(judged.relevant)
    if judged.spans:
        with Index.open(index) as opened:
            relevant = dict(hold_excerpts(judged, opened))
    names = sorted(name for name, found in relevant.items() if found)
    if len(names) > count:
        names = sorted(random.Random(0).sample(names, count))
    queries = KEPT / judged.name / f"queries-{count}.jsonl"
    qrels = KEPT / judged.name / f"qrels-{count}.jsonl"
    queries.write_text(
        "".join(json.dumps({"id": one, "text": judged.queries[one]}) + "\n" for one in names)
    )
    qrels.write_text(
        "".join(
            json.dumps({"query_id": one, "doc_id": key, "relevance": 1}) + "\n"
            for one in names
            for key in relevant[one]
        )
    )
    return queries, qrels, len(names)


def hold_excerpts(judged: JudgedSet, index: Index) -> Iterator[tuple[str, list[str]]]:
    """Yield for each question the passages that hold half of one of its excerpts."""
    passages = [index.passage_at(row) for row in range(len(index))]
    for name, spans in judged.spans.items():
        yield (
            name,
            [
                one.id
                for one in passages
                if any(
                    one.location.path == path
                    and min(one.end, end) - max(one.start, start) >= HELD * (end - start)
                    for path, start, end in spans
                )
            ],
        )


def measure(judged: JudgedSet, ways: dict[str, str], count: int) -> None:
    """Print one line a way."""
    index = build_index(judged)
    queries, qrels, asked = write_judgements(judged, index, count)
    recipe = RetrievalEvaluationRecipe(
        index=str(index),
        queries=str(queries),
        qrels=str(qrels),
        pipelines=list(ways.values()),
        measures=[MEASURE, "recall@10", "mrr@10"],
    )
    out = KEPT / judged.name / f"report-{count}-{len(ways)}"
    artifact = run_recipe(recipe, out, resume=True, overwrite=True, reporter=choose_reporter())
    report = Report.from_json(artifact.details)
    differences = next(one for one in report.sections if one.title.startswith("Against"))
    rows = {(row[0], row[1]): row for row in (differences.table.rows if differences.table else ())}
    times = {row[0]: row[-2:] for one in report.sections[:1] if one.table for row in one.table.rows}
    for name, way in ways.items():
        metric = report.metrics[f"{way}/{MEASURE}"]
        less = rows.get((way, MEASURE))
        line = {
            "what": f"rag/{MEASURE}/{judged.name}/{name}",
            "value": round(metric.value, 4),
            "interval": [round(metric.low, 4), round(metric.high, 4)],
            "less_hybrid": less[2] if less else None,
            "p": less[3] if less else None,
            "recall@10": round(report.metrics[f"{way}/recall@10"].value, 4),
            "cpu_ms_median": times[way][0],
            "way": way,
            "n": asked,
            "documents": len(judged.rows),
        }
        print(json.dumps(line), flush=True)


def main() -> None:
    """Measure the sets that are asked for, or every one that is here."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", action="append", choices=sorted(READERS), dest="sets")
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--build-only", action="store_true")
    given = parser.parse_args()
    for name in given.sets or READERS:
        judged = READERS[name]()
        if given.build_only:
            build_index(judged)
            continue
        measure(judged, WAYS, given.queries)


if __name__ == "__main__":
    main()
