"""Chunkers by the published protocol of chunking_evaluation, ours and LangChain's side by side.

Both texts are cut, all passages of both are embedded, and the five nearest to each question are
retrieved. Recall is the share of the
question's excerpts that these cover, precision the share of what was retrieved that is excerpt, and
IoU their common part by their union, all over character offsets as the published code has it, so
that text retrieved twice counts twice against precision. Intervals are of the mean over questions
(bootstrap, 2,000 draws); differences are paired.

Run with labels to measure these alone; vectors are kept in build/chunking_quality.npz, so that it
can be run in pieces.

Source: Smith and Troynikov 2024, Evaluating Chunking Strategies for Retrieval.
"""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from peers import peer_python

from stillroom.models import open_embedder
from stillroom.models.encoders.text_encoder import get_max_text_tokens
from stillroom.models.hub import DEFAULT_EMBEDDER, resolve_checkpoint
from stillroom.models.interfaces import Embedder, TextKind
from stillroom.provenance import digest_json
from stillroom.rag.types import build_embedding_texts
from stillroom.text import CHUNKERS, parse_bytes

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(
    os.environ.get("STILLROOM_CHUNKING_DATA", ROOT.parent / "shared/data/retrieval/chunking")
)
RETRIEVED = 5
DRAWS = 2_000
BATCH = 128
BASELINE = "langchain recursive 400/0"
PEERS = {BASELINE: (400, 0), "langchain recursive 200/0": (200, 0)}
OURS: dict[str, dict[str, object]] = {
    "fixed 200": {"name": "fixed"},
    "sentence 200": {"name": "sentence"},
    "recursive 200": {"name": "recursive"},
    "recursive 100": {"name": "recursive", "size": 100},
    "heading 200": {"name": "heading"},
}

Span = tuple[int, int]


@dataclass(frozen=True)
class Piece:
    """A passage: which text, which span is shown, what is embedded."""

    corpus: str
    span: Span
    text: str


class Vectors:
    """The vectors of texts, kept on disk so that none is made twice."""

    def __init__(self, embedder: Embedder, path: Path) -> None:
        """Keep what ``embedder`` makes at ``path``."""
        self.embedder, self.path = embedder, path
        self.rows: dict[str, NDArray[np.float32]] = {}
        if path.is_file():
            with np.load(path) as kept:
                self.rows = dict(zip(kept["marks"].tolist(), kept["rows"], strict=True))

    def embed(self, texts: Sequence[str], kind: TextKind = "passage") -> NDArray[np.float32]:
        """Return a row for each text."""
        marks = [digest_json([self.embedder.fingerprint, kind, text]) for text in texts]
        new = {mark: text for mark, text in zip(marks, texts, strict=True) if mark not in self.rows}
        missing = list(new)
        for start in range(0, len(missing), BATCH):
            batch = missing[start : start + BATCH]
            made = self.embedder.embed([new[mark] for mark in batch], kind=kind)
            self.rows |= dict(zip(batch, made, strict=True))
            self.path.parent.mkdir(parents=True, exist_ok=True)
            marked = np.array(list(self.rows))
            np.savez(self.path, marks=marked, rows=np.stack(list(self.rows.values())))
        return np.stack([self.rows[mark] for mark in marks])


def read_questions() -> list[tuple[str, str, list[Span]]]:
    """Return (question, corpus, excerpts' spans) of every question."""
    with (DATA / "questions.csv").open(encoding="utf-8", newline="") as file:
        return [
            (
                row["question"],
                row["corpus_id"],
                [(one["start_index"], one["end_index"]) for one in json.loads(row["references"])],
            )
            for row in csv.DictReader(file)
        ]


def cut_ours(setting: dict[str, object], vectors: Vectors, names: Sequence[str]) -> list[Piece]:
    """Cut the texts with one of our chunkers."""
    chunker = CHUNKERS.build(setting)
    pieces = []
    for name in names:
        document = parse_bytes((DATA / f"{name}.md").read_bytes(), f"{name}.md")
        assert document.text == (DATA / f"{name}.md").read_text(encoding="utf-8")
        count = vectors.embedder.count_tokens
        passages = list(chunker.chunk(document, count=count))
        texts = build_embedding_texts(passages, vectors.embedder, with_headings=False)
        pieces += [
            Piece(name, (one.start, one.end), text)
            for one, text in zip(passages, texts, strict=True)
        ]
    return pieces


def cut_langchain(size: int, overlap: int, names: Sequence[str]) -> list[Piece]:
    """Cut the texts with LangChain's splitter and the protocol's separators."""
    python = peer_python("langchain-text-splitters", "1.1.3", also=["transformers"])
    script = (
        "import json, sys\n"
        "from transformers import AutoTokenizer\n"
        "from langchain_text_splitters import RecursiveCharacterTextSplitter as Splitter\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "splitter = Splitter.from_huggingface_tokenizer(tokenizer, chunk_size=int(sys.argv[2]),"
        " chunk_overlap=int(sys.argv[3]), separators=['\\n\\n', '\\n', '.', '?', '!', ' ', ''])\n"
        "json.dump([splitter.split_text(open(path, encoding='utf-8').read())"
        " for path in sys.argv[4:]], sys.stdout)\n"
    )
    folder = str(resolve_checkpoint(DEFAULT_EMBEDDER))
    paths = [str(DATA / f"{name}.md") for name in names]
    command = [str(python), "-c", script, folder, str(size), str(overlap), *paths]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    pieces = []
    for name, passages in zip(names, json.loads(done.stdout), strict=True):
        text, at = (DATA / f"{name}.md").read_text(encoding="utf-8"), 0
        for passage in passages:
            start = text.index(passage, at)
            at = start + 1
            pieces.append(Piece(name, (start, start + len(passage)), passage))
    return pieces


def cover(excerpts: Sequence[Span], retrieved: Sequence[Span]) -> tuple[float, int, int]:
    """Return recall, the characters in common, and those of excerpts that were missed."""
    end = max(stop for _, stop in [*excerpts, *retrieved])
    wanted, given = np.zeros(end, dtype=bool), np.zeros(end, dtype=bool)
    for start, stop in excerpts:
        wanted[start:stop] = True
    for start, stop in retrieved:
        given[start:stop] = True
    common = int((wanted & given).sum())
    total = sum(stop - start for start, stop in excerpts)
    return common / total, common, int((wanted & ~given).sum())


def retrieve(order: NDArray[np.int64], pieces: Sequence[Piece]) -> list[tuple[str, Span]]:
    """Return what is shown: the first spans, those that overlap as one."""
    shown: list[tuple[str, Span]] = []
    for at in order:
        corpus, (start, end) = pieces[at].corpus, pieces[at].span
        over = [one for one in shown if one[0] == corpus and one[1][0] < end and start < one[1][1]]
        if len(shown) - len(over) == RETRIEVED:
            break
        if not over and len(shown) == RETRIEVED:
            break
        for one in over:
            start, end = min(start, one[1][0]), max(end, one[1][1])
        shown = [one for one in shown if one not in over] + [(corpus, (start, end))]
    return shown


def measure(
    pieces: Sequence[Piece],
    questions: Sequence[tuple[str, str, list[Span]]],
    vectors: Vectors,
) -> NDArray[np.float64]:
    """Return (questions, 3): recall, precision, IoU."""
    queries = vectors.embed([question for question, _, _ in questions], "query")
    passages = vectors.embed([piece.text for piece in pieces])
    rows = []
    for scores, (_, corpus, excerpts) in zip(queries @ passages.T, questions, strict=True):
        shown = retrieve(np.argsort(-scores, kind="stable"), pieces)
        size = sum(end - start for _, (start, end) in shown)
        recall, common, missed = cover(excerpts, [span for name, span in shown if name == corpus])
        rows.append((recall, common / size, common / (size + missed)))
    return np.array(rows)


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a mean over questions."""
    draws = np.random.default_rng(0).integers(0, len(values), (DRAWS, len(values)))
    low, high = np.quantile(values[draws].mean(1), [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    """Print one JSON line a chunker, the baseline first."""
    questions = read_questions()
    names = sorted({corpus for _, corpus, _ in questions})
    embedder = open_embedder(DEFAULT_EMBEDDER)
    vectors = Vectors(embedder, ROOT / "build/chunking_quality.npz")
    wanted = sys.argv[1:] or [*PEERS, *OURS]
    base: NDArray[np.float64] | None = None
    for label in [BASELINE, *(one for one in wanted if one != BASELINE)]:
        pieces = (
            cut_langchain(*PEERS[label], names)
            if label in PEERS
            else cut_ours(OURS[label], vectors, names)
        )
        rows = measure(pieces, questions, vectors)
        base = rows if base is None else base
        line: dict[str, object] = {"what": f"rag/chunking_quality/{label}"}
        for column, measure_name in enumerate(("recall", "precision", "iou")):
            gain = rows[:, column] - base[:, column]
            line[measure_name] = round(float(rows[:, column].mean()), 4)
            line[f"{measure_name}_interval"] = [round(x, 4) for x in interval(rows[:, column])]
            line[f"{measure_name}_gain"] = [
                round(x, 4) for x in (float(gain.mean()), *interval(gain))
            ]
        line |= {"passages": len(pieces), "n": len(questions)}
        room = get_max_text_tokens(embedder)
        line["truncated"] = sum(embedder.count_tokens(piece.text) > room for piece in pieces)
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
