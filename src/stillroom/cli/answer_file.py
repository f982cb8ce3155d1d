"""Files of answers: text, Markdown or a page, with sources and a content credential."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from stillroom.errors import DataError, MissingExtraError
from stillroom.records import Answer

__all__ = ["check_answer_file", "write_answers"]

_TYPES = {
    ".txt": "text/plain",
    ".md": "text/markdown",
    ".html": "text/html",
}


def check_answer_file(path: Path) -> str:
    """Return the media type of an answer's file.

    Raises:
        DataError: If the suffix is none of those, or the file exists.
    """
    if path.suffix.lower() not in _TYPES:
        raise DataError(
            f"answers are not written as {path.suffix or 'a file without a suffix'}",
            code="data.suffix",
            where=str(path),
            expected=f"one of: {' '.join(_TYPES)}",
            next="choose another --out, or --json for JSON",
        )
    if path.exists():
        raise DataError(
            f"{path} already exists",
            code="data.exists",
            where=str(path),
            expected="a new file",
            next="choose another --out",
        )
    return _TYPES[path.suffix.lower()]


def write_answers(
    pieces: Iterable[str | Answer], path: Path, question: str, *, model: str, is_marked: bool
) -> Iterator[str | Answer]:
    """Yield the pieces of an answer; write it to a file when it is complete.

    Args:
        pieces: Pieces of the answer, then the answer.
        path: A new .txt, .md or .html file.
        question: The question.
        model: Name of the model that may write.
        is_marked: Sign a content credential into the file.
    """
    from stillroom.jobs import atomic_write
    from stillroom.provenance.answers import disclose_answer
    from stillroom.provenance.text_marks import open_marker

    kind, answer = check_answer_file(path), None
    for piece in pieces:
        answer = piece if isinstance(piece, Answer) else answer
        yield piece
    if answer is None:
        return
    text, note = _render(answer, question, kind), "without a content credential"
    if is_marked:
        said = disclose_answer(answer.completion.model, answer.details, model)
        try:
            marker = open_marker()
            text = marker.mark(text, said, kind)
            by = f"key {marker.signer.key_id[:16]}" if marker.is_kept else "a key that is not kept"
            note = f"with a content credential, signed by {by}"
        except MissingExtraError as error:
            note = f"without a content credential: {error.problems[0].next}"
    with atomic_write(path) as file:
        file.write(text)
    click.echo(f"written  {path}, {note}", err=True)


def _render(answer: Answer, question: str, kind: str) -> str:
    text = answer.completion.text
    places = [f"[{one.number}] {one.location}" for one in answer.citations]
    places += _list_doubts(answer)
    if kind == "text/html":
        return (
            f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f"<title>{html.escape(question)}</title>\n</head>\n<body>\n"
            f"<h1>{html.escape(question)}</h1>\n"
            + "".join(f"<p>{html.escape(part)}</p>\n" for part in text.split("\n\n"))
            + "".join(f"<p>{html.escape(place)}</p>\n" for place in places)
            + "</body>\n</html>\n"
        )
    head = f"# {question}\n\n" if kind == "text/markdown" else ""
    sources = "".join(f"{place}  \n" if head else f"{place}\n" for place in places)
    return f"{head}{text}\n" + (f"\n{sources}" if sources else "")


def _list_doubts(answer: Answer) -> list[str]:
    """Return what the terminal says of missing support: the file is read without it."""
    details, text = answer.details, answer.completion.text
    if details.get("abstained"):
        return []
    if not answer.citations:
        return ["No passage supports this answer."]
    labels = {"unsupported": "Not in any passage", "unverified": "Not in the cited passage"}
    return [
        f"{labels[one['status']]}: {text[one['start'] : one['end']].strip()}"
        for one in details.get("statements", ())
        if one["status"] in labels and "start" in one
    ]
