"""What helps to find a passage that does not name its subject: its title.

XQuAD's English articles, one document each with the title above it, are cut into passages of 100
tokens; a question's passages are those that hold its answer. Two indexes of the same passages:
``bare`` (each by itself, headings weigh nothing) and ``titles`` (the default: title and headings
are embedded before a passage and matched as words). One JSON line an index and retriever:
success at 1 and at 5, and the paired difference from ``bare`` with its interval (bootstrap over
questions).

``python benchmarks/rag/finding_aids.py [--queries 400] [--index NAME ...]``; indexes are kept.
STILLROOM_QUALITY_DATA names the folder of the sets.
"""

import argparse
import json
import random
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from quality import DATA, KEPT

from stillroom.flow import run_recipe
from stillroom.jobs import choose_reporter
from stillroom.models import open_embedder
from stillroom.models.hub import DEFAULT_EMBEDDER
from stillroom.rag.index.searcher import Index
from stillroom.rag.jobs.index import IndexRecipe
from stillroom.rag.retrieval.pipeline import retrieve

DRAWS = 2_000
PLACE = KEPT / "finding-aids"
CHUNKER = {"name": "heading", "size": 100}
INDEXES: dict[str, dict[str, object]] = {
    "bare": {"embedding": {"with_headings": False}, "keyword": {"heading_weight": 0.0}},
    "titles": {},
}

Question = tuple[str, str, int, int]


def write_documents() -> list[Question]:
    """Write the articles; return (question, path, start and end of its answer) of each question."""
    articles = json.loads((DATA / "qa/xquad.en.json").read_text(encoding="utf-8"))["data"]
    folder = PLACE / "documents"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    questions = []
    for number, article in enumerate(articles):
        text = f"# {article['title'].replace('_', ' ')}\n"
        for paragraph in article["paragraphs"]:
            text += "\n"
            for one in paragraph["qas"]:
                answer = one["answers"][0]
                start = len(text) + answer["answer_start"]
                end = start + len(answer["text"])
                questions.append((one["question"], f"{number:03d}.md", start, end))
            text += paragraph["context"] + "\n"
        (folder / f"{number:03d}.md").write_text(text, encoding="utf-8", newline="")
    return questions


def build_index(name: str) -> Path:
    """Return the index of that name, built once."""
    index = PLACE / name
    if not (index / "artifact.json").exists():
        recipe = IndexRecipe.model_validate(
            {"documents": str(PLACE / "documents"), "chunker": CHUNKER, **INDEXES[name]}
        )
        run_recipe(recipe, index, resume=True, reporter=choose_reporter())
    return index


def score(index: Index, retriever: str, questions: list[Question]) -> NDArray[np.float64]:
    """Return (questions, 2): success at 1 and at 5 in finding a passage that holds the answer."""
    rows = []
    for question, path, start, end in questions:
        hits = retrieve(index, question, 5, retriever=retriever)
        held = [
            hit.passage.location.path == path
            and hit.passage.start <= start
            and end <= hit.passage.end
            for hit in hits
        ]
        rows.append((float(any(held[:1])), float(any(held))))
    return np.array(rows)


def interval(values: NDArray[np.float64]) -> list[float]:
    """Return a mean and its 95 % bootstrap interval."""
    draws = np.random.default_rng(0).integers(0, len(values), (DRAWS, len(values)))
    low, high = np.quantile(values[draws].mean(1), [0.025, 0.975])
    return [round(float(one), 4) for one in (values.mean(), low, high)]


def main() -> None:
    """Print one line an index and retriever, ``bare`` first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=400)
    parser.add_argument("--index", action="append", choices=sorted(INDEXES), dest="indexes")
    given = parser.parse_args()
    questions = write_documents()
    questions = random.Random(0).sample(questions, min(given.queries, len(questions)))
    embedder = open_embedder(DEFAULT_EMBEDDER)
    base: dict[str, NDArray[np.float64]] = {}
    for name in ["bare", *(one for one in given.indexes or INDEXES if one != "bare")]:
        with Index.open(build_index(name), embedder=embedder) as index:
            for retriever in ("keyword", "dense"):
                rows = score(index, retriever, questions)
                gain = rows - base.setdefault(retriever, rows)
                line: dict[str, object] = {"what": f"rag/finding_aids/{name}/{retriever}"}
                for column, measure in enumerate(("success@1", "success@5")):
                    line[measure] = interval(rows[:, column])
                    line[f"{measure}_gain"] = interval(gain[:, column])
                line |= {"n": len(questions), "passages": len(index)}
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
