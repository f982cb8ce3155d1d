"""Question sets with the answers they should get, as people keep them, read into one form.

Takes JSON lines (``question``, ``user_input`` or ``query``; ``answers``, ``answer``, ``reference``
or ``correct_answer``; ``evidence``, ``reference_contexts`` or ``correct_chunks``), SQuAD's JSON
(2.0's impossible questions have no answer), a list of such rows in one JSON file, a folder in
BEIR's layout whose queries have answers (the judgements are the evidence), and records that
``synth`` or anyone else made, whose evidence names a document and a span. A row that cannot be read
stops the reading, named by file and line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stillroom.errors import DataError
from stillroom.evaluate.collections import find_collection, read_qrels
from stillroom.evaluate.questions import find_records, pick_questions
from stillroom.records import read_records
from stillroom.text.sentences import split_sentences

__all__ = ["Evidence", "JudgedQuestion", "read_question_set"]

_QUESTIONS = ("question", "user_input", "query", "text")
_ANSWERS = ("answers", "answer", "reference", "correct_answer", "expected")
_EVIDENCE = ("evidence", "reference_contexts", "references", "correct_chunks", "citations")
_IDS = ("id", "_id", "query_id", "qid")
_QUOTES = ("quote", "text", "content")
_MEND = "mend the file; nothing is left out in silence"
_NAMES = ("path", "document_id", "passage_id", "doc_id", "corpus-id")


@dataclass(frozen=True, slots=True)
class Evidence:
    """Where an answer stands: a quote, a name (path or id), a span of that document, or some.

    ``passage_id`` is the passage that a question was made from, where its maker says so.
    """

    quote: str = ""
    name: str = ""
    start: int = -1
    end: int = -1
    passage_id: str = ""


@dataclass(frozen=True, slots=True)
class JudgedQuestion:
    """One question, every answer that is accepted (none: it has no answer), and the evidence."""

    id: str
    text: str
    answers: tuple[str, ...]
    evidence: tuple[Evidence, ...] = field(default=())

    @property
    def is_answerable(self) -> bool:
        """Whether the documents hold an answer."""
        return bool(self.answers)


def read_question_set(path: Path) -> list[JudgedQuestion]:
    """Return the questions of a file, or of a records artifact.

    Raises:
        DataError: If a row cannot be read, an id comes twice, or there is no question.
    """
    found = list(_read(path))
    seen: set[str] = set()
    for one in found:
        if one.id in seen:
            raise _bad(str(path), f"question '{one.id}' comes twice", "every id once")
        seen.add(one.id)
    if not found:
        raise _bad(str(path), "there is no question", "at least one")
    return found


def _read(path: Path) -> Iterator[JudgedQuestion]:
    if path.is_dir() and (path / "queries.jsonl").is_file():
        yield from _read_collection(path)
        return
    if path.is_dir() or path.suffix in {".parquet", ".zst"}:
        yield from _read_records(path)
        return
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise _bad(
            str(path),
            f"the questions cannot be read: {error}",
            "a UTF-8 text file, or a folder of records or in BEIR's layout",
            help="check the path",
        ) from error
    if path.suffix == ".json":
        whole = _parse(text, str(path))
        if isinstance(whole, dict) and isinstance(whole.get("data"), list):
            yield from _read_squad(whole["data"], str(path))
        elif isinstance(whole, list):
            for number, row in enumerate(whole):
                yield _read_row(row, f"{path}: row {number}", str(number))
        else:
            raise _bad(str(path), "the file is no question set", "SQuAD's JSON or a list of rows")
        return
    rows = [
        (f"{path}:{number}", _parse(line, f"{path}:{number}"))
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip()
    ]
    if rows and all(isinstance(row, dict) and "messages" in row for _, row in rows):
        yield from _read_records(path)
        return
    for number, (where, row) in enumerate(rows):
        yield _read_row(row, where, str(number))


def _read_row(row: Any, where: str, number: str) -> JudgedQuestion:
    if not isinstance(row, dict):
        raise _bad(where, "the row is no JSON object", "one question a row")
    text = next((row[key] for key in _QUESTIONS if isinstance(row.get(key), str)), "")
    if not text.strip():
        raise _bad(where, "the row has no question", f"text under one of: {', '.join(_QUESTIONS)}")
    answers = next((row[key] for key in _ANSWERS if key in row), None)
    if answers is None:
        raise _bad(where, "the row has no answer", f"one of: {', '.join(_ANSWERS)}; [] for none")
    if isinstance(answers, Mapping):  # Hugging Face's SQuAD: {"text": [...], "answer_start": [...]}
        answers = answers.get("text", [])
    accepted = [answers] if isinstance(answers, str) else answers or []
    if not isinstance(accepted, list) or not all(isinstance(one, str) for one in accepted):
        raise _bad(where, f"the answers are {accepted!r:.60}", "text, or a list of texts")
    name = next((str(row[key]) for key in _IDS if row.get(key) not in (None, "")), number)
    given: Any = next((row[key] for key in _EVIDENCE if row.get(key)), [])
    pieces = given if isinstance(given, list) else [given]
    evidence = tuple(_read_evidence(piece, where) for piece in pieces)
    return JudgedQuestion(name, text, tuple(one for one in accepted if one.strip()), evidence)


def _read_evidence(piece: Any, where: str) -> Evidence:
    """Read a quote (text with white space), a name (text without) or an object of both."""
    if isinstance(piece, str):
        return Evidence(quote=piece) if len(piece.split()) > 1 else Evidence(name=piece)
    if not isinstance(piece, Mapping):
        raise _bad(where, f"the evidence is {piece!r:.60}", "text, or {quote, path, start, end}")
    quote = next((piece[key] for key in _QUOTES if isinstance(piece.get(key), str)), "")
    name = next((str(piece[key]) for key in _NAMES if piece.get(key)), "")
    start = piece.get("start", piece.get("start_index", -1))
    end = piece.get("end", piece.get("end_index", -1))
    if not isinstance(start, int) or not isinstance(end, int) or not (quote or name):
        raise _bad(where, f"the evidence is {dict(piece)!r:.80}", "{quote, path, start, end}")
    return Evidence(quote, name, start, end, str(piece.get("passage_id") or ""))


def _read_collection(folder: Path) -> Iterator[JudgedQuestion]:
    """Read BEIR's layout with answers beside the queries, or in their metadata."""
    found = find_collection(folder)
    qrels = read_qrels(found.qrels)
    for number, line in enumerate(found.queries.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        where = f"{found.queries}:{number}"
        row = _parse(line, where)
        if isinstance(row, dict) and isinstance(row.get("metadata"), Mapping):
            row = {**row["metadata"], **row}
        one = _read_row(row, where, str(number))
        judged = (name for name, grade in qrels.get(one.id, {}).items() if grade > 0)
        evidence = one.evidence or tuple(Evidence(name=name) for name in judged)
        yield JudgedQuestion(one.id, one.text, one.answers, evidence)


def _read_squad(articles: Sequence[Any], where: str) -> Iterator[JudgedQuestion]:
    """Read SQuAD 1.1 and 2.0; the evidence is the sentence that holds the first answer."""
    try:
        for article in articles:
            for paragraph in article["paragraphs"]:
                context = paragraph["context"]
                for row in paragraph["qas"]:
                    answers = [] if row.get("is_impossible") else row["answers"]
                    accepted = tuple(dict.fromkeys(one["text"] for one in answers))
                    start = answers[0]["answer_start"] if answers else -1
                    evidence = (Evidence(_sentence_at(context, start)),) if answers else ()
                    yield JudgedQuestion(str(row["id"]), row["question"], accepted, evidence)
    except (KeyError, TypeError, IndexError) as error:
        raise _bad(where, f"the file is not SQuAD's: {error!r}", "data, paragraphs, qas") from error


def _sentence_at(context: str, start: int) -> str:
    for begin, end in split_sentences(context):
        if begin <= start < end:
            return context[begin:end]
    return context


def _read_records(path: Path) -> Iterator[JudgedQuestion]:
    """Read what was made from documents; where splits are told, the held-out ones alone."""
    records = list(read_records(find_records(path)))
    questions, _ = pick_questions(records, limit=len(records), seed=0)
    for one in questions:
        place = one.evidence
        evidence = Evidence(
            str(place.get("quote", "")),
            str(place.get("document_id", "")),
            int(place.get("start", -1)),
            int(place.get("end", -1)),
            str(place.get("passage_id", "")),
        )
        has_place = bool(evidence.quote or evidence.name)
        yield JudgedQuestion(one.id, one.text, (one.answer,), (evidence,) if has_place else ())


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise _bad(where, f"it is no JSON: {error}", "JSON") from error


def _bad(where: str, what: str, expected: str, help: str = _MEND) -> DataError:
    return DataError(
        what,
        code="data.question-set",
        where=where,
        expected=expected,
        next=help,
    )
