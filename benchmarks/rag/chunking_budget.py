"""Chunkers at an equal number of tokens read: is the answer in what a model is shown?

Every article of XQuAD (48) and of the SQuAD subset is one document, and so is each of the two texts
of ``chunking_quality.py``. Questions are searched as by default (words and vectors, fused), and
passages are shown best first, whole, as long as they stay within a budget of the embedder's tokens.
What counts is the share of the characters of a question's excerpts that stand in what is shown.
Differences are paired over questions, with 95 % bootstrap intervals.

``python benchmarks/rag/chunking_budget.py [--queries 500] [--set NAME] [--chunker LABEL ...]``;
indexes are kept under build.
"""

import argparse
import csv
import json
import os
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from stillroom.evaluate import bootstrap, paired_difference
from stillroom.flow import run_recipe
from stillroom.jobs import choose_reporter
from stillroom.rag.index.searcher import Index
from stillroom.rag.jobs.index import IndexRecipe
from stillroom.rag.retrieval.pipeline import retrieve

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("STILLROOM_QUALITY_DATA", ROOT.parent / "shared/data"))
KEPT = ROOT / "build/bench/rag-chunking-budget"
SETS = {"xquad": "xquad.en.json", "squad": "squad-subset.json", "chunking": ""}
Question = tuple[str, list[tuple[str, int, int]]]
"""What is asked, and what answers it: file, first and last + 1 character."""
BUDGETS = (300, 600, 1000, 1500)
DEPTH = 60
CHUNKERS: dict[str, dict[str, object]] = {
    "heading 200": {"name": "heading"},
    "heading 100": {"name": "heading", "size": 100},
}


def read_set(name: str) -> tuple[dict[str, str], list[Question]]:
    """Return documents by file name, and questions."""
    if name == "chunking":
        return read_texts()
    articles, questions = {}, []
    data = json.loads((DATA / "qa" / SETS[name]).read_text(encoding="utf-8"))["data"]
    for number, article in enumerate(data):
        path, text = f"{number:03d}.txt", ""
        for paragraph in article["paragraphs"]:
            start = len(text)
            text += paragraph["context"].strip() + "\n\n"
            lead = len(paragraph["context"]) - len(paragraph["context"].lstrip())
            for one in paragraph["qas"]:
                if one.get("is_impossible") or not one["answers"]:
                    continue
                first = start - lead + one["answers"][0]["answer_start"]
                last = first + len(one["answers"][0]["text"])
                questions.append((one["question"], [(path, first, last)]))
        articles[path] = text
    return articles, questions


def read_texts() -> tuple[dict[str, str], list[Question]]:
    """Return the two texts of the chunking protocol, and its questions."""
    folder, questions = DATA / "retrieval/chunking", []
    with (folder / "questions.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            path, told = f"{row['corpus_id']}.md", json.loads(row["references"])
            spans = [(path, one["start_index"], one["end_index"]) for one in told]
            questions.append((row["question"], spans))
    names = {path for _, spans in questions for path, _, _ in spans}
    return {one: (folder / one).read_text(encoding="utf-8") for one in sorted(names)}, questions


def build(name: str, label: str, articles: dict[str, str]) -> Path:
    """Return the index of a set by a chunker, built once."""
    documents = KEPT / name / "documents"
    if not documents.exists():
        documents.mkdir(parents=True)
        for path, text in articles.items():
            (documents / path).write_text(text, encoding="utf-8", newline="")
    out = KEPT / name / label.replace(" ", "-")
    if not (out / "artifact.json").exists():
        recipe = IndexRecipe(documents=str(documents), chunker=CHUNKERS[label])
        run_recipe(recipe, out, resume=True, reporter=choose_reporter())
    return out


def measure(index: Index, questions: list[Question]) -> dict[int, list[float]]:
    """Return for each budget which share of each question's excerpts is shown."""
    found: dict[int, list[float]] = {budget: [] for budget in BUDGETS}
    for text, spans in questions:
        wanted = {(path, at) for path, first, last in spans for at in range(first, last)}
        shown = retrieve(index, text, DEPTH)
        sizes = [index.embedder.count_tokens(hit.passage.text) for hit in shown]
        for budget in BUDGETS:
            spent, seen = 0, set()
            for hit, size in zip(shown, sizes, strict=True):
                if spent + size > budget:
                    break
                spent += size
                own = hit.passage
                seen |= {(own.location.path, at) for at in range(own.start, own.end)} & wanted
            found[budget].append(len(seen) / len(wanted))
    return found


def main() -> None:
    """Print one line a set, chunker and budget."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--set", action="append", choices=sorted(SETS), dest="sets")
    parser.add_argument("--chunker", action="append", choices=list(CHUNKERS), dest="chunkers")
    given = parser.parse_args()
    for name in given.sets or SETS:
        articles, questions = read_set(name)
        if len(questions) > given.queries:
            questions = random.Random(0).sample(questions, given.queries)
        base: dict[int, list[float]] = {}
        for label in given.chunkers or CHUNKERS:
            with Index.open(build(name, label, articles), verify=False) as index:
                found = measure(index, questions)
                passages = len(index)
            base = base or found
            for budget in BUDGETS:
                own = bootstrap(found[budget], seed=0, name=label)
                less = paired_difference(found[budget], base[budget], seed=0, name=label)
                line = {
                    "what": f"rag/chunking_budget/{name}/{label}/{budget}",
                    "value": round(own.value, 4),
                    "interval": [round(own.low, 4), round(own.high, 4)],
                    "less_heading_200": [
                        round(one, 4) for one in (less.value, less.low, less.high)
                    ],
                    "passages": passages,
                    "n": len(questions),
                }
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
