"""Question sets (QA datasets: SQuAD, BEIR, CSV, JSON lines), and held-out records as questions.

Records that cannot be asked are counted by reason.

Takes JSON lines (``question``, ``user_input`` or ``query``; ``answers``, ``answer``, ``reference``
or ``correct_answer``; ``evidence``, ``reference_contexts`` or ``correct_chunks``), CSV with such
columns (an empty answer: the documents have none), SQuAD's JSON (2.0's impossible questions have no
answer), a list of such rows in one JSON file, a folder in BEIR's layout whose queries have answers
(the judgments are the evidence), and records from ``synth`` or other sources, whose evidence names
a document and a span. Judgments of people on answers are read as they count at last
(``merge_judgments``). An unreadable row raises an error with file and line.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stillroom.errors import DataError, count_noun
from stillroom.evaluate.qa.collections import find_collection, read_qrels
from stillroom.evaluate.qa.judgments import are_judgments, drop_torn_line, merge_judgments
from stillroom.objects.disk import require_file
from stillroom.provenance import ARTIFACT_FILE, digest_json, find_output, read_artifact
from stillroom.provenance.digests import load_json
from stillroom.records import Origin, Record, combine_origins, read_records
from stillroom.records.encodings import find_encoding_error
from stillroom.records.files import count_unread
from stillroom.records.streams import open_table
from stillroom.text.language import split_sentences

__all__ = [
    "HELD_OUT_FILE",
    "QUESTIONS_FILE",
    "EvidenceSpan",
    "JudgedQuestion",
    "Question",
    "find_question_origin",
    "find_records",
    "read_question_set",
    "select_questions",
]


HELD_OUT_FILE = "held_out.jsonl"
"""File of the questions that a training job kept apart, in its output."""
QUESTIONS_FILE = "questions.jsonl"
"""File of the questions of a job of kind evaluate.questions, in its output."""
_SETS = (HELD_OUT_FILE, QUESTIONS_FILE)
_RECORD_FILES = ("records.jsonl", "records.jsonl.zst", "records.parquet")


@dataclass(frozen=True, slots=True)
class Question:
    """One question with its expected answer and the answer's evidence."""

    id: str
    text: str
    answer: str
    evidence: Mapping[str, Any]
    record: Record


def find_records(path: Path) -> Path:
    """Return the records file of an artifact, of a folder, or the file itself.

    Raises:
        DataError: If there is none.
    """
    folder = find_output(path, "records")
    if folder.is_file():
        return folder
    for name in _RECORD_FILES:
        if (folder / name).is_file():
            return folder / name
    raise DataError(
        f"{path} holds no records",
        code="data.missing",
        expected=f"one of: {', '.join(_RECORD_FILES)}",
        next="give a records artifact, or a file of records",
    )


def find_question_origin(path: Path) -> Origin:
    """Return the origin of a question set: of its artifact, else of its records, else unknown."""
    if (path / ARTIFACT_FILE).is_file():
        return Origin.from_json(read_artifact(path).origin)
    try:
        return combine_origins(record.origin for record in read_records(find_records(path)))
    except DataError:  # a file of questions says nothing of their origin
        return Origin()


def select_questions(
    records: Iterable[Record],
    *,
    limit: int,
    seed: int,
    may_be_none: bool = False,
    unread: Sequence[str] = (),
) -> tuple[list[Question], dict[str, int]]:
    """Return the questions to ask, and the number of records skipped, by reason.

    If any record has a split, only ``held_out`` ones are asked; data without splits is asked as a
    whole. Beyond ``limit``, questions are sampled by the seed and each record's id, independent of
    the order of the file. ``unread`` are the reasons of rows that the file's reader left out; it
    may grow while ``records`` is read.

    Raises:
        DataError: If there are no questions, unless ``may_be_none``.
    """
    every = list(records)
    has_splits = any("split" in record.fields for record in every)
    skipped: Counter[str] = Counter(count_unread(unread))
    questions: dict[str, Question] = {}
    for record in every:
        if has_splits and record.fields.get("split") != "held_out":
            skipped["not held out"] += 1
            continue
        question = _read_question(record)
        if question is None:
            skipped["no question or no answer"] += 1
        elif question.id in questions:
            skipped["the same record again"] += 1
        else:
            questions[question.id] = question
    if not questions and not may_be_none:
        raise DataError(
            f"none of {len(every) + len(unread)} records can be asked"
            + "".join(f"; {reason}: {count}" for reason, count in skipped.items()),
            code="data.no-questions",
            expected="records with a question, an answer and fields.split 'held_out'",
            next="make some with held_out=0.9 and num_records.held_out=100",
        )
    selected = set(sorted(questions, key=lambda name: digest_json([seed, name]))[:limit])
    if len(questions) > len(selected):
        skipped["more than max_questions"] = len(questions) - len(selected)
    return [question for name, question in questions.items() if name in selected], dict(skipped)


def _read_question(record: Record) -> Question | None:
    """Read question and answer from the fields, or from the last two turns."""
    fields = record.fields
    turns = record.messages
    question, answer = fields.get("question"), fields.get("answer")
    if not question:
        question = next((turn.content for turn in reversed(turns) if turn.role == "user"), "")
    if not answer:
        answer = turns[-1].content if turns and turns[-1].role == "assistant" else ""
    if not (isinstance(question, str) and isinstance(answer, str)):
        return None
    if not question.strip() or not answer.strip():
        return None
    evidence = fields.get("evidence")
    location = {"document_id": fields.get("document_id", "")}
    if isinstance(evidence, Mapping):
        location.update(evidence)
    return Question(record.id, question, answer, location, record)


_QUESTIONS = ("question", "user_input", "query", "text")
_ANSWERS = ("answers", "answer", "reference", "correct_answer", "expected")
_EVIDENCE = ("evidence", "reference_contexts", "references", "correct_chunks", "citations")
_IDS = ("id", "_id", "query_id", "qid")
_QUOTES = ("quote", "text", "content")
_REPAIR_HINT = "correct the row; unreadable rows are not skipped"
_DOCUMENT_KEYS = ("path", "document_id", "passage_id", "doc_id", "corpus-id")


@dataclass(frozen=True, slots=True)
class EvidenceSpan:
    """Evidence of an answer: a quote, a name (path or id), a span of that document, or several.

    ``passage_id`` is the passage that the question was generated from, if known.
    """

    quote: str = ""
    name: str = ""
    start: int = -1
    end: int = -1
    passage_id: str = ""


@dataclass(frozen=True, slots=True)
class JudgedQuestion:
    """One question, all accepted answers (empty: unanswerable), and the evidence."""

    id: str
    text: str
    answers: tuple[str, ...]
    evidence: tuple[EvidenceSpan, ...] = field(default=())

    @property
    def is_answerable(self) -> bool:
        """Whether the documents contain an answer."""
        return bool(self.answers)

    def to_json(self) -> dict[str, Any]:
        """Convert to a row that ``read_question_set`` reads."""
        evidence = [
            {
                "quote": span.quote,
                "document_id": span.name,
                "start": span.start,
                "end": span.end,
                "passage_id": span.passage_id,
            }
            for span in self.evidence
        ]
        row = {"id": self.id, "question": self.text, "answers": list(self.answers)}
        return {**row, "evidence": evidence}


def read_question_set(
    path: Path, *, every: bool = False, warn: Callable[[str], None] | None = None
) -> list[JudgedQuestion]:
    """Return the questions of a file, of a records artifact, or those that a training held out.

    Args:
        path: A file, a records artifact, or an artifact whose output has ``held_out.jsonl`` or
            ``questions.jsonl``.
        every: Whether to return the questions of all records, not of the held-out ones alone (of
            records with none held out, all are returned).
        warn: Called with a line if a question is asked more than once.

    Raises:
        DataError: If a row cannot be read, an id occurs twice, or there is no question
            (``data.no-questions``).
    """
    questions = list(_read_file(path, every=every))
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise _row_error(str(path), f"question '{question.id}' occurs twice", "every id once")
        seen.add(question.id)
    if warn and (repeats := _describe_repeats(questions)):
        warn(f"{path.name}: {repeats}")
    if not questions:
        held_out = any((path / place / HELD_OUT_FILE).is_file() for place in ("", "output"))
        raise DataError(
            "no question was held out to judge by" if held_out else "there is no question",
            code="data.no-questions",
            where=str(path),
            expected="at least one; of a question, more than that an answer is wrong",
            next="add questions",
        )
    return questions


def _describe_repeats(questions: Iterable[JudgedQuestion]) -> str:
    """Return a sentence on questions asked more than once; empty if there is none."""
    asked: dict[str, list[JudgedQuestion]] = {}
    for question in questions:
        asked.setdefault(" ".join(question.text.lower().split()), []).append(question)
    repeated = [group for group in asked.values() if len(group) > 1]
    if not repeated:
        return ""
    differing = [group for group in repeated if len({_key_answers(one) for one in group}) > 1]
    first = (differing or repeated)[0]
    return (
        f"{count_noun(len(repeated), 'question is', 'questions are')} asked more than once, "
        f"{len(differing)} of them with different answers: each counts; the first: "
        f"{' and '.join(one.id for one in first)}"
    )


def _key_answers(question: JudgedQuestion) -> frozenset[str]:
    return frozenset(" ".join(answer.lower().split()) for answer in question.answers)


def _read_file(path: Path, *, every: bool) -> Iterator[JudgedQuestion]:
    places = [folder / name for folder in (path, path / "output") for name in _SETS]
    path = next((place for place in places if place.is_file()), path)
    if path.is_dir() and (path / "queries.jsonl").is_file():
        yield from _read_collection(path)
        return
    if path.is_dir() or path.suffix in {".parquet", ".zst", ".gz"}:
        yield from _read_records(path, every=every)
        return
    text = _read_text(path)
    if path.suffix in {".csv", ".tsv"}:
        yield from _read_table(text, str(path))
        return
    if path.suffix == ".json":
        yield from _read_json(_parse_json_row(text, str(path)), path)
        return
    rows = _parse_lines(text, path)
    if rows and all(isinstance(row, dict) and "messages" in row for _, row in rows):
        yield from _read_records(path, every=every)
        return
    for number, (where, row) in enumerate(rows):
        yield _read_row(row, where, str(number))


def _read_text(path: Path) -> str:
    try:
        return require_file(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise find_encoding_error(path) from error
    except OSError as error:
        raise _row_error(
            str(path),
            f"the questions cannot be read: {error}",
            "a UTF-8 text file, or a folder of records or in BEIR's layout",
            help="check the path",
        ) from error


def _read_json(data: Any, path: Path) -> Iterator[JudgedQuestion]:
    if isinstance(data, dict) and isinstance(data.get("data"), list):
        yield from _read_squad(data["data"], str(path))
        return
    if not isinstance(data, list):
        raise _row_error(
            str(path), "the file is not a question set", "SQuAD's JSON or a list of rows"
        )
    for number, row in enumerate(data):
        yield _read_row(row, f"{path}: row {number}", str(number))


def _parse_lines(text: str, path: Path) -> list[tuple[str, Any]]:
    """Return place and row of every line; of judgments, the rows that count at last."""
    is_judged = are_judgments(text)
    # Not splitlines: JSON may hold the other line ends of Unicode within its strings.
    lines = (drop_torn_line(text) if is_judged else text).split("\n")
    rows = [
        (f"{path}:{number}", _parse_json_row(line, f"{path}:{number}"))
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    return list(merge_judgments(rows)) if is_judged else rows


def _read_table(text: str, where: str) -> Iterator[JudgedQuestion]:
    """Read a table with a header, separated by commas, semicolons or tabs."""
    try:
        reader = open_table(io.StringIO(text, newline=""))
    except csv.Error as error:
        raise _make_table_error(f"{where}:1", error) from error
    names = [str(name).strip().lower() for name in reader.fieldnames or ()]
    if not set(names) & set(_QUESTIONS) or not set(names) & set(_ANSWERS):
        raise _row_error(
            f"{where}:1",
            f"the columns are {', '.join(names) or 'none'}",
            "a header with the columns question and answer, and evidence where known",
            help="add the header",
        )
    twice = [name for name in (*_QUESTIONS, *_ANSWERS, *_EVIDENCE, *_IDS) if names.count(name) > 1]
    if twice:
        raise _row_error(
            f"{where}:1",
            f"the column {twice[0]} occurs twice",
            "each column once; rows of JSON can have several answers",
            help="rename or remove one of them",
        )
    reader.fieldnames = names
    try:
        for row in reader:
            if not any((cell or "").strip() for cell in _list_cells(row)):
                continue  # spreadsheets write such rows at the end
            place = f"{where}:{reader.line_num}"
            if None in row or None in row.values():
                raise _row_error(
                    place, "the row has another number of cells", f"{len(names)} cells, as above"
                )
            yield _read_row(row, place, str(reader.line_num))
    except csv.Error as error:
        raise _make_table_error(f"{where}:{reader.line_num + 1}", error) from error


def _make_table_error(where: str, error: csv.Error) -> DataError:
    return _row_error(where, f"it is not valid CSV: {error}", "CSV as in RFC 4180")


def _list_cells(row: Mapping[str | None, Any]) -> list[str | None]:
    """Return the cells of a row, also those beyond the header."""
    return [cell for key, cell in row.items() if key is not None] + list(row.get(None) or ())


def _read_row(row: Any, where: str, number: str) -> JudgedQuestion:
    if not isinstance(row, dict):
        raise _row_error(where, "the row is not a JSON object", "one question a row")
    text = next((row[key] for key in _QUESTIONS if isinstance(row.get(key), str)), "")
    if not text.strip():
        raise _row_error(
            where, "the row has no question", f"text under one of: {', '.join(_QUESTIONS)}"
        )
    answers = next((row[key] for key in _ANSWERS if key in row), None)
    if answers is None:
        raise _row_error(
            where, "the row has no answer", f"one of: {', '.join(_ANSWERS)}; [] for none"
        )
    if isinstance(answers, Mapping):  # Hugging Face's SQuAD: {"text": [...], "answer_start": [...]}
        answers = answers.get("text", [])
    accepted = [answers] if isinstance(answers, str) else answers
    if not isinstance(accepted, list) or not all(isinstance(answer, str) for answer in accepted):
        raise _row_error(where, f"the answers are {accepted!r:.60}", "text, or a list of texts")
    name = next((str(row[key]) for key in _IDS if row.get(key) not in (None, "")), number)
    raw_evidence: Any = next((row[key] for key in _EVIDENCE if row.get(key)), [])
    pieces = raw_evidence if isinstance(raw_evidence, list) else [raw_evidence]
    evidence = tuple(_read_evidence(piece, where) for piece in pieces)
    return JudgedQuestion(
        name, text, tuple(answer for answer in accepted if answer.strip()), evidence
    )


def _read_evidence(piece: Any, where: str) -> EvidenceSpan:
    """Read a quote (text with white space), a name (text without) or an object of both."""
    if isinstance(piece, str):
        return EvidenceSpan(quote=piece) if len(piece.split()) > 1 else EvidenceSpan(name=piece)
    if not isinstance(piece, Mapping):
        raise _row_error(
            where, f"the evidence is {piece!r:.60}", "text, or {quote, path, start, end}"
        )
    quote = next((piece[key] for key in _QUOTES if isinstance(piece.get(key), str)), "")
    name = next((str(piece[key]) for key in _DOCUMENT_KEYS if piece.get(key)), "")
    start = piece.get("start", piece.get("start_index", -1))
    end = piece.get("end", piece.get("end_index", -1))
    if not isinstance(start, int) or not isinstance(end, int) or not (quote or name):
        raise _row_error(where, f"the evidence is {dict(piece)!r:.80}", "{quote, path, start, end}")
    return EvidenceSpan(quote, name, start, end, str(piece.get("passage_id") or ""))


def _read_collection(folder: Path) -> Iterator[JudgedQuestion]:
    """Read BEIR's layout with answers beside the queries, or in their metadata."""
    collection = find_collection(folder)
    qrels = read_qrels(collection.qrels)
    rows = _parse_lines(_read_text(collection.queries), collection.queries)
    for number, (where, row) in enumerate(rows, 1):
        if isinstance(row, dict) and isinstance(row.get("metadata"), Mapping):
            row = {**row["metadata"], **row}
        question = _read_row(row, where, str(number))
        judged = (name for name, grade in qrels.get(question.id, {}).items() if grade > 0)
        evidence = question.evidence or tuple(EvidenceSpan(name=name) for name in judged)
        yield JudgedQuestion(question.id, question.text, question.answers, evidence)


def _read_squad(articles: Sequence[Any], where: str) -> Iterator[JudgedQuestion]:
    """Read SQuAD 1.1 and 2.0; the evidence is the sentence with the first answer."""
    try:
        for article in articles:
            for paragraph in article["paragraphs"]:
                context = paragraph["context"]
                for row in paragraph["qas"]:
                    answers = [] if row.get("is_impossible") else row["answers"]
                    accepted = [answer["text"] for answer in answers]
                    place = f"{where}: question '{row['id']}'"
                    if not all(isinstance(text, str) and text.strip() for text in accepted):
                        raise _row_error(place, f"the answers are {accepted!r:.60}", "texts")
                    quotes = [
                        {"quote": _sentence_at(context, answer["answer_start"])}
                        for answer in answers[:1]
                    ]
                    fields = {"question": row["question"], "answers": list(dict.fromkeys(accepted))}
                    yield _read_row({**fields, "evidence": quotes}, place, str(row["id"]))
    except (KeyError, TypeError, IndexError) as error:
        raise _row_error(
            where, f"the file is not SQuAD's: {error!r}", "data, paragraphs, qas"
        ) from error


def _sentence_at(context: str, start: int) -> str:
    for begin, end in split_sentences(context):
        if begin <= start < end:
            return context[begin:end]
    return context


def _read_records(path: Path, *, every: bool) -> Iterator[JudgedQuestion]:
    """Read records generated from documents; only held-out ones if there are any."""
    records = list(read_records(find_records(path)))
    if every or not any(record.fields.get("split") == "held_out" for record in records):
        records = [
            replace(record, fields={**record.fields, "split": "held_out"}) for record in records
        ]
    questions, _ = select_questions(records, limit=len(records), seed=0)
    for question in questions:
        location = question.evidence
        evidence = EvidenceSpan(
            str(location.get("quote", "")),
            str(location.get("document_id", "")),
            int(location.get("start", -1)),
            int(location.get("end", -1)),
            str(location.get("passage_id", "")),
        )
        has_place = bool(evidence.quote or evidence.name)
        yield JudgedQuestion(
            question.id, question.text, (question.answer,), (evidence,) if has_place else ()
        )


def _parse_json_row(text: str, where: str) -> Any:
    try:
        return load_json(text)
    except ValueError as error:
        raise _row_error(where, f"it is not valid JSON: {error}", "JSON") from error


def _row_error(where: str, message: str, expected: str, help: str = _REPAIR_HINT) -> DataError:
    return DataError(
        message,
        code="data.question-set",
        where=where,
        expected=expected,
        next=help,
    )
