"""Test collections in BEIR and TREC formats: corpora, queries, qrels and runs.

Reads BEIR's layout (corpus.jsonl, queries.jsonl, qrels/*.tsv), TREC's qrels and run files, and
plain JSON lines; writes TREC's run files. Column lines that start with ``#`` are comments, as in
trec_eval. An unreadable row raises an error with file and line: silently dropped judgments would
bias every figure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillroom.errors import DataError
from stillroom.jobs import atomic_write
from stillroom.objects.disk import require_file
from stillroom.provenance.digests import load_json
from stillroom.records.encodings import find_encoding_error

__all__ = [
    "CorpusRow",
    "JudgedCollection",
    "find_collection",
    "read_corpus",
    "read_qrels",
    "read_queries",
    "read_run",
    "write_run",
]

_QUERY_IDS = ("_id", "id", "query_id", "query-id", "qid")
_QUERY_TEXTS = ("text", "query", "question")
_CORPUS_IDS = ("_id", "id", "doc_id", "corpus-id")
_QRELS_QUERY_IDS = ("query-id", "query_id", "qid")
_QRELS_DOCUMENT_IDS = ("corpus-id", "corpus_id", "doc_id", "docid", "passage_id", "path")
_GRADES = ("score", "relevance", "label")
_RUN_TAG = "stillroom"
_MAX_GRADE = 10_000  # trec_eval keeps a table as long as the highest grade


@dataclass(frozen=True, slots=True)
class CorpusRow:
    """One document of a corpus: its id, its title (may be empty) and its text."""

    id: str
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class JudgedCollection:
    """Paths of the parts of a judged collection."""

    corpus: Path
    queries: Path
    qrels: Path


def find_collection(folder: Path, split: str = "test") -> JudgedCollection:
    """Return the files of a collection in BEIR's layout.

    Raises:
        DataError: If a file is missing.
    """
    collection = JudgedCollection(
        folder / "corpus.jsonl", folder / "queries.jsonl", folder / "qrels" / f"{split}.tsv"
    )
    for path in (collection.corpus, collection.queries, collection.qrels):
        if not path.is_file():
            raise DataError(
                f"the collection has no {path.name}",
                code="data.collection",
                where=str(path),
                expected="corpus.jsonl, queries.jsonl and qrels/test.tsv, as BEIR lays them out",
                next="check the folder, or name another split",
            )
    return collection


def read_corpus(path: Path) -> Iterator[CorpusRow]:
    """Yield the rows of a corpus: JSON lines with an id, a text and perhaps a title.

    Raises:
        DataError: If a row is malformed or an id occurs twice.
    """
    seen: set[str] = set()
    for where, row in _json_rows(path):
        name = _first_text(row, _CORPUS_IDS, where)
        if name in seen:
            raise _row_error(where, f"'{name}' occurs twice", "every id once")
        seen.add(name)
        text = row.get("text")
        if not isinstance(text, str):
            raise _row_error(where, "the row has no text", "a string under 'text'")
        yield CorpusRow(name, str(row.get("title") or ""), text)


def read_queries(path: Path) -> dict[str, str]:
    """Return queries by id, from JSON lines or from lines of id, tab and text.

    Raises:
        DataError: If a row is malformed or an id occurs twice.
    """
    queries: dict[str, str] = {}
    for where, name, text in _query_rows(path):
        if name in queries:
            raise _row_error(where, f"query '{name}' occurs twice", "every id once")
        queries[name] = text
    if not queries:
        raise _row_error(str(path), "there is no query", "at least one")
    return queries


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """Return relevance by query and id.

    Accepts TREC's four columns (query, iteration, id, relevance), BEIR's three with a header line,
    and JSON lines.

    Raises:
        DataError: If a row is malformed, or one id is judged twice and differently for a query.
    """
    judgments: dict[str, dict[str, int]] = {}
    rows = _json_judgments if path.suffix == ".jsonl" else _column_judgments
    for where, query, name, grade in rows(path):
        if abs(grade) > _MAX_GRADE:
            raise _row_error(where, f"the relevance is {grade}", f"at most {_MAX_GRADE}")
        known = judgments.setdefault(query, {})
        if known.setdefault(name, grade) != grade:
            raise _row_error(
                where,
                f"'{name}' is judged {known[name]} and {grade} for '{query}'",
                "one judgment",
            )
    if not judgments:
        raise _row_error(str(path), "there is no judgment", "at least one")
    return judgments


def read_run(path: Path) -> dict[str, list[tuple[str, float]]]:
    """Return scores by query from a TREC run file, in the order of the file.

    Raises:
        DataError: If a row does not have six columns or its score is not finite.
    """
    run: dict[str, list[tuple[str, float]]] = {}
    for where, columns in _columns(path, (6,), 4):
        if len(columns) != 6:
            raise _row_error(where, f"{len(columns)} columns", "query Q0 id rank score tag")
        score = _parse_number(columns[4], float, where, "the score")
        if not math.isfinite(score):
            raise _row_error(where, f"the score is {columns[4]}", "a finite number")
        run.setdefault(columns[0], []).append((columns[2], score))
    return run


def write_run(
    path: Path, run: Mapping[str, Sequence[tuple[str, float]]], *, tag: str = _RUN_TAG
) -> None:
    """Write a TREC run file: query Q0 id rank score tag.

    Scores are written with full precision. trec_eval orders equal scores by id, ignoring ranks.
    Columns are separated by tabs where an id contains white space, so that ``read_run`` reads it.
    """
    with atomic_write(path) as file:
        for query, ranking in run.items():
            for rank, (name, score) in enumerate(ranking, 1):
                columns = (query, "Q0", name, str(rank), repr(score), tag)
                has_space = any(len(column.split()) > 1 for column in columns)
                file.write(("\t" if has_space else " ").join(columns) + "\n")


def _query_rows(path: Path) -> Iterator[tuple[str, str, str]]:
    if path.suffix == ".jsonl":
        for where, row in _json_rows(path):
            yield where, _first_text(row, _QUERY_IDS, where), _first_text(row, _QUERY_TEXTS, where)
        return
    for number, line in enumerate(_read_lines(path), 1):
        where = f"{path}:{number}"
        name, tab, text = line.partition("\t")
        if not tab or not name.strip() or not text.strip():
            raise _row_error(where, "the line is not a query", "an id, a tab and the text")
        yield where, name.strip(), text.strip()


def _json_judgments(path: Path) -> Iterator[tuple[str, str, str, int]]:
    for where, row in _json_rows(path):
        grade = next((row[key] for key in _GRADES if key in row), 1)
        if isinstance(grade, bool) or not isinstance(grade, int):
            raise _row_error(where, f"the relevance is {grade!r}", "a whole number")
        yield (
            where,
            _first_text(row, _QRELS_QUERY_IDS, where),
            _first_text(row, _QRELS_DOCUMENT_IDS, where),
            grade,
        )


def _column_judgments(path: Path) -> Iterator[tuple[str, str, str, int]]:
    for index, (where, columns) in enumerate(_columns(path, (3, 4), -1)):
        if len(columns) not in (3, 4):
            raise _row_error(
                where, f"{len(columns)} columns", "query 0 id relevance, or query id relevance"
            )
        if index == 0 and columns[0] in _QRELS_QUERY_IDS:
            continue
        grade = _parse_number(columns[-1].removesuffix(".0"), int, where, "the relevance")
        yield where, columns[0], columns[-2], grade


def _columns(
    path: Path, counts: Sequence[int], number_column: int
) -> Iterator[tuple[str, list[str]]]:
    for number, line in enumerate(_read_lines(path), 1):
        if line.strip() and not line.startswith("#"):
            cells = [cell.strip() for cell in line.split("\t")]
            # Ids such as paths may contain spaces, if tabs separate all columns. Otherwise a tab is
            # one of the spaces between columns; a number contains none.
            is_tabular = len(cells) in counts and all(cells)
            if is_tabular:
                is_tabular = len(cells[0].split()) == len(cells[number_column].split()) == 1
            yield f"{path}:{number}", cells if is_tabular else line.split()


def _json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(_read_lines(path), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = load_json(line)
        except ValueError as error:
            raise _row_error(
                where, f"the line is not valid JSON: {error}", "one JSON object"
            ) from error
        if not isinstance(row, dict):
            raise _row_error(where, "the line is not a JSON object", "one JSON object")
        yield where, row


def _read_lines(path: Path) -> Iterator[str]:
    try:
        with require_file(path).open(encoding="utf-8-sig") as file:
            for line in file:
                yield line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise find_encoding_error(path) from error
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error}",
            code="data.collection",
            where=str(path),
            expected="a UTF-8 text file",
            next="check the path",
        ) from error


def _first_text(row: Mapping[str, Any], keys: Sequence[str], where: str) -> str:
    for key in keys:
        value = row.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if isinstance(value, str) and value.strip():
            return value.strip()
    raise _row_error(where, "a field is missing", f"text under one of: {', '.join(keys)}")


def _parse_number(text: str, kind: Callable[[str], Any], where: str, name: str) -> Any:
    try:
        return kind(text)
    except ValueError as error:
        raise _row_error(where, f"{name} is {text!r}", "a number") from error


def _row_error(where: str, message: str, expected: str) -> DataError:
    return DataError(
        message,
        code="data.collection",
        where=where,
        expected=expected,
        next="correct the row; unreadable rows are not skipped",
    )
