"""Terminal output of `show --trace`: a text with its verbatim spans, and their sources."""

from __future__ import annotations

import string
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stillroom.cli.output import format_row, print_json
from stillroom.jobs import escape_line

if TYPE_CHECKING:
    from stillroom.text.verbatim import VerbatimTrace

__all__ = ["show_trace"]

_MAX_TEXT_BYTES = 2**20


def show_trace(
    path: Path, record: str, within: Path | None, min_words: int, *, as_json: bool
) -> None:
    """Trace an answer, a text or a record, and print the result.

    Args:
        path: The answer or text; for a record, the artifact that holds it.
        record: Id of the record, or empty.
        within: What is searched; by default what the answer was asked of, or the path.
        min_words: Least number of words of a span.
        as_json: Print one JSON value instead.

    Raises:
        DataError: If there is no text, or nothing to search it in.
    """
    from stillroom.text.verbatim import trace_text

    text, cited, asked_of, notes = _read_traced(path, record, within)
    traced = trace_text(
        text,
        asked_of,
        cited=cited,
        min_words=min_words,
        record=record,
        say=lambda line: click.echo(line, err=True),
    )
    if as_json:
        told = {**traced.to_json(), "notes": [*traced.notes, *notes]}
        print_json({"trace": {"within": str(asked_of), **told}})
        return
    click.echo(_mark_spans(traced))
    for number in range(len(traced.spans)):
        click.echo("")
        for lead, line in _list_sources(traced, number):
            click.echo(format_row(lead, escape_line(line)))
    click.echo("")
    for line in [*_summarize(traced), *notes]:
        click.echo(format_row("", escape_line(line)))


def _read_traced(
    path: Path, record: str, within: Path | None
) -> tuple[str, list[int], Path, list[str]]:
    """Return the text, the numbers of its citations, what is searched, and notes on that."""
    from stillroom.errors import DataError
    from stillroom.provenance import note_other_index, read_answer
    from stillroom.text.verbatim.trace import find_record

    if record:
        found = find_record(path, record)
        said = [turn.content for turn in found.messages if turn.role == "assistant"]
        return "\n\n".join(said), [], within or path, []
    answer = read_answer(path) if path.is_file() else None
    if answer is not None:
        source = within or (Path(answer.asked_of) if answer.asked_of else None)
        text, cited = answer.text, [citation.number for citation in answer.cited]
    else:
        source, text, cited = within, _read_text(path), []
    if source is None:
        raise DataError(
            f"{path} does not name what it is to be searched in",
            code="data.answer",
            where=str(path),
            expected="a run, an index or a set of records",
            next=f"stillroom show {path} --trace --within RUN",
        )
    notes = note_other_index(answer, source) if answer is not None and source.exists() else []
    return text, cited, source, notes


def _read_text(path: Path) -> str:
    from stillroom.errors import DataError

    if path.is_file() and path.suffix != ".json" and path.stat().st_size <= _MAX_TEXT_BYTES:
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            pass
    raise DataError(
        f"{path} is no text that can be traced",
        code="data.answer",
        where=str(path),
        expected="an answer ('ask --json', a reply of the server), a text file in UTF-8 of at most "
        "1 MiB, or --record ID for a record of an artifact",
        next="save the text alone in a file, then stillroom show FILE --trace --within RUN",
    )


def _mark_spans(traced: VerbatimTrace) -> str:
    """Return the text with «spans» and their letters; spans that overlap are marked as one."""
    parts, last = [], 0
    for start, end, letters in _merge_spans(traced):
        parts += [traced.text[last:start], "«", traced.text[start:end], f"»({', '.join(letters)})"]
        last = end
    marked = "".join([*parts, traced.text[last:]])
    return "\n".join(escape_line(line) for line in marked.splitlines())


def _merge_spans(traced: VerbatimTrace) -> Iterator[tuple[int, int, list[str]]]:
    letters: list[str] = []
    start, end = -1, -1
    for number, span in enumerate(traced.spans):
        if span.start >= end:
            if letters:
                yield start, end, letters
            start, letters = span.start, []
        end = max(end, span.end)
        letters = [*letters, _letter(number)]
    if letters:
        yield start, end, letters


def _letter(number: int) -> str:
    letters = string.ascii_lowercase
    before = _letter(number // len(letters) - 1) if number >= len(letters) else ""
    return before + letters[number % len(letters)]


def _list_sources(traced: VerbatimTrace, number: int) -> Iterator[tuple[str, str]]:
    span = traced.spans[number]
    yield f"({_letter(number)}) ", f"{_count(span.words, 'word')}, {_count(span.places, 'place')}"
    for document in span.documents:
        place = f"{document.path}: bytes {document.byte_start}-{document.byte_end}"
        facts = [document.origin, *(f"page {page}" for page in document.pages[:1])]
        facts += [document.label] if document.label else []
        facts += [f"{document.places} times"] if document.places > 1 else []
        facts += [] if document.is_exact else ["these bytes hold it, within markup or encoded"]
        yield "    document  ", f"{place}  ({', '.join([*facts, *document.notes])})"
    if span.in_documents > len(span.documents):
        yield "    document  ", f"and {span.in_documents - len(span.documents)} more"
    for record in span.records:
        facts = [f"{record.role} turn", record.origin]
        facts += [f"by {record.method}"] if record.method else []
        facts += [record.split.replace("_", " ")] if record.split not in ("", "train") else []
        yield "    record    ", f"{record.record}  ({', '.join(facts)})"
    if span.in_records > len(span.records):
        yield "    record    ", f"and {span.in_records - len(span.records)} more"


def _summarize(traced: VerbatimTrace) -> Iterator[str]:
    least = f"spans of {traced.min_words} words or more that are not common phrases"
    yield f"searched {traced.searched:,} words of documents and records for {least}"
    yield (
        f"verbatim in documents {traced.in_documents} of {_count(traced.words, 'word')}, "
        f"in records {traced.in_records}"
    )
    own = "; ".join(f"“{' '.join(traced.text[a:b].split())}”" for a, b in traced.own)
    yield f"in no span {_count(traced.own_words, 'word')}" + (f": {own}" if own else "")
    yield from traced.notes


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
