"""Questions with and without an answer in the index, for the benchmarks of answering.

A question is made unanswerable by leaving its own passages out of the index, so that what is near
is still about the same things: the hard kind. Half of the questions are treated so; those of the
other half whose passages went with them are dropped.

Data: docs-qa (Anthropic's documentation, MIT) and a subset of SQuAD (CC BY-SA 4.0).
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stillroom.errors import IntegrityError
from stillroom.jobs import Job
from stillroom.rag.index.searcher import Index
from stillroom.rag.jobs.index import IndexRecipe, run

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("STILLROOM_DATA", ROOT.parent / "shared/data"))
if not DATA.is_dir():
    DATA = ROOT.parents[1] / "shared/data"
BUILD = Path(os.environ.get("STILLROOM_ANSWERS_KEPT", ROOT / "build/bench/answers"))


@dataclass(frozen=True)
class Asked:
    """A question, what answers it, and the names of the passages that do; none if none is left."""

    id: str
    text: str
    answer: str
    right: tuple[str, ...]
    is_answerable: bool


def read_docs_qa() -> tuple[dict[str, str], list[Asked]]:
    """Return texts by name, and the questions, all answerable."""
    folder = DATA / "retrieval/docs-qa"
    rows = json.loads((folder / "anthropic_docs.json").read_text(encoding="utf-8"))
    names = {row["chunk_link"]: f"{at:04d}" for at, row in enumerate(rows)}
    texts = {
        names[row["chunk_link"]]: f"# {row['chunk_heading']}\n\n{row['text']}\n" for row in rows
    }
    asked = json.loads((folder / "docs_evaluation_dataset.json").read_text(encoding="utf-8"))
    questions = [
        Asked(
            row["id"],
            row["question"],
            row["correct_answer"],
            tuple(names[link] for link in row["correct_chunks"] if link in names),
            True,
        )
        for row in asked
    ]
    return texts, [one for one in questions if one.right]


def read_squad(*, every: int = 1) -> tuple[dict[str, str], list[Asked]]:
    """Return paragraphs by name, and of each the first question, all answerable."""
    data = json.loads((DATA / "qa/squad-subset.json").read_text(encoding="utf-8"))["data"]
    texts, questions = {}, []
    paragraphs = [one for article in data for one in article["paragraphs"]]
    for at, paragraph in enumerate(paragraphs):
        name = f"{at:04d}"
        texts[name] = paragraph["context"] + "\n"
        if at % every == 0 and paragraph["qas"]:
            first = paragraph["qas"][0]
            answer = first["answers"][0]["text"]
            questions.append(Asked(first["id"], first["question"], answer, (name,), True))
    return texts, questions


def hold_out(
    texts: dict[str, str], questions: Sequence[Asked]
) -> tuple[dict[str, str], list[Asked]]:
    """Return the texts without those that answer every second question, and what is left to ask."""
    gone = {name for one in questions[1::2] for name in one.right}
    kept = {name: text for name, text in texts.items() if name not in gone}
    asked = []
    for at, one in enumerate(questions):
        left = tuple(name for name in one.right if name in kept)
        if at % 2:
            asked.append(Asked(one.id, one.text, one.answer, (), False))
        elif len(left) == len(one.right):
            asked.append(one)
    return kept, asked


def build_index(name: str, texts: dict[str, str], *, embedder: str = "") -> Path:
    """Index the texts, one file each, unless that was done before by the same code."""
    folder = BUILD / name
    if (folder / "index/artifact.json").is_file():
        try:
            Index.open(folder / "index").close()
        except IntegrityError:
            pass
        else:
            return folder / "index"
    (folder / "documents").mkdir(parents=True, exist_ok=True)
    for old in (folder / "documents").iterdir():
        old.unlink()
    for key, text in texts.items():
        (folder / "documents" / f"{key}.md").write_text(text, encoding="utf-8")
    chosen = {"embedder": embedder} if embedder else {}
    recipe = IndexRecipe(documents=str(folder / "documents"), **chosen)
    run(recipe, Job.start(folder / "index", f"{recipe!r}\n", overwrite=True))
    return folder / "index"
