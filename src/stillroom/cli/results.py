"""Printed results of runs and answers."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stillroom.cli.output import (
    format_metric,
    format_row,
    print_json,
    print_measurements,
    print_report,
    print_text,
)
from stillroom.errors import CheckpointError, count_noun
from stillroom.jobs import escape_line
from stillroom.provenance import Artifact, read_artifact
from stillroom.provenance.evidence import describe_citations
from stillroom.records import Answer, Citation, Location, list_cited_quotes
from stillroom.text.line_wrapping import unwrap_lines

__all__ = [
    "format_excerpt",
    "format_place",
    "list_cited",
    "print_answer",
    "print_flags",
    "print_run",
]

_MAX_NEAREST = 2
_MAX_EXCERPT = 160  # characters of a passage
_HEADING = re.compile(r"#{1,6} +(\S.*)")  # as in Markdown, which parsers of pages write, too
_NAME_WIDTH = 34
_MAIN_METRICS = (
    *(
        f"reader/{arm}/{figure}"
        for figure, arms in (
            ("served_holds", ("owned", "packaged", "sentence", "base")),
            ("served_first", ("owned", "packaged", "sentence")),
            ("served_silent_unanswerable", ("owned", "packaged", "sentence")),
            ("holds", ("owned", "packaged", "sentence", "base")),
        )
        for arm in arms
    ),
    "reader/cpu_s_a_question",
    "student/parameters",
    "teacher/parameters",
    "student/kl_to_teacher/initial",
    "student/kl_to_teacher/final",
    "retrieval/recall@5",
    "answers/teacher/closed/f1",
    "answers/teacher/retrieved/f1",
    "answers/student/closed/f1",
    "answers/student/retrieved/f1",
)


def print_run(out: Path, artifact: Artifact, *, as_json: bool = False) -> None:
    """Print the result of a job; of a run the main metrics and the next commands."""
    report = out / "report.json"
    if as_json:
        warnings = artifact.details.get("warnings", [])
        result = {"out": str(out), "kind": artifact.kind, "digest": artifact.digest}
        print_json({**result, "warnings": warnings})
    elif artifact.kind == "report" and artifact.details.get("sections"):
        from stillroom.evaluate import Report

        print_report(out, artifact, Report.from_json(artifact.details))
    elif artifact.kind != "report" or not report.is_file():
        _print_job(out, artifact)
    else:
        _print_flow(out, artifact, report)


def _print_flow(out: Path, artifact: Artifact, report: Path) -> None:
    details = artifact.details
    told = [line for name in ("decision", "judgments") if (line := details.get(name))]
    for lines in (told, details.get("notes", ())):
        text = "\n".join(format_row("", escape_line(line)) for line in lines)
        print_text(f"{text}\n" if text else "", nl=bool(text))
    metrics = {
        metric["name"]: metric
        for metric in json.loads(report.read_text(encoding="utf-8"))["metrics"]
    }
    names = [name for name in _MAIN_METRICS if name in metrics]
    width = max([_NAME_WIDTH, *map(len, names)])
    for name in names:
        print_text(f"{name:{width}} {format_metric(metrics[name])}")
    for name, reason in artifact.details.get("skipped", {}).items():
        print_text(escape_line(f"{name:{width}} not done: {reason}"))
    steps = [read_artifact(out / folder) for folder in artifact.details.get("steps", {}).values()]
    if any(step.kind == "index" and step.details.get("passages") == 0 for step in steps):
        print_text("answers  nothing: no document could be used, so the index is empty")
    else:
        _print_untrained(artifact)
    reused = artifact.details.get("reused") or ()
    took = ", ".join(
        f"{name} {'kept' if name in reused else f'{value:.0f} s'}"
        for name, value in artifact.details.get("seconds", {}).items()
    )
    print_text(f"\ntook     {took}" if took else "")
    print_text(f"report   {out / 'report.html'}")
    _print_next(out, can_answer=bool(artifact.details.get("answer")))


def _print_job(out: Path, artifact: Artifact) -> None:
    """Print the result of a single job; of a detector what it measured on people held out."""
    print_text(f"{out}: {artifact.kind}, digest {artifact.digest[:16]}")
    if artifact.kind == "index" and (number := artifact.details.get("snapshot")):
        digest = artifact.details["index"]
        print_text(f"{out}: snapshot {number}, snapshot digest {digest[:16]}")
    if artifact.kind == "report":
        print_measurements(out / "output")
    detector = artifact.details.get("detector")
    if not detector or "audit" not in detector:
        return
    for name, metric in detector["metrics"]["auc"].items():
        print_text(f"area under the curve, {name:8} {metric['value']:.3f}")
    learned = detector["training_set"]
    count = f"{learned['count']} in all, {learned['digest'][:16]}"
    print_text(escape_line(f"trained  on {learned['name']}, {count}"))
    known_share = detector["domain"]["tried"]["as they are"]["value"]
    print_text(f"domain   {known_share:.1%} of the samples of test people; others are inconclusive")
    if leak := detector["audit"]["leak"]:
        print_text(escape_line(f"leak     {leak}: check reports all findings as inconclusive"))
    for line in detector["limitations"]:
        print_text(escape_line(f"limits   {line}"))
    print_text(f"use      stillroom forensics check FILE --detector {out}")


def _print_next(out: Path, *, can_answer: bool) -> None:
    """Print what can be done with a run; without `answer:` in its recipe, nothing answers."""
    if can_answer:
        print_text(f'ask      stillroom ask {out} "..."')
    print_text(f"lineage  stillroom show {out} --lineage")
    if can_answer:
        print_text(f"serve    stillroom serve {out}")


def _print_untrained(artifact: Artifact) -> None:
    """Print what answers where the step that trains was skipped."""
    answer, skipped = artifact.details.get("answer") or {}, artifact.details.get("skipped", {})
    reads = answer.get("trained_reader") or answer.get("reader")
    if (reads or answer.get("model")) not in skipped:
        return
    by = answer.get("fallback", "")
    if reads:
        from stillroom.rag.answer_selection.reader import (
            BUILTIN_READER,
            OVERLAP_READER,
            open_reader,
        )

        reader = BUILTIN_READER if answer["reader"] in skipped else answer["reader"]
        by = "the program's own reader" if reader == BUILTIN_READER else reader
        try:
            open_reader(reader)
        except CheckpointError as error:
            by = f"{OVERLAP_READER}, since {reader} cannot be opened ({error.problems[0].code})"
    print_text(escape_line(f"answers  by {by}: nothing was trained"))


def print_answer(
    pieces: Iterable[str | Answer],
    *,
    as_json: bool,
    steps: bool = False,
    asked_of: Path | None = None,
    keep: Callable[[Answer], str] | None = None,
    model: str = "",
) -> None:
    """Stream an answer to standard output, then list its sources.

    ``asked_of`` is recorded in the JSON, to trace the answer later. ``keep`` stores the answer to
    be judged and returns its id, or an empty text. ``model`` is the one that the caller named; a
    note says if it was not used.
    """
    answer = _print_stream(pieces, is_shown=not as_json)
    if answer is None:
        return
    name = keep(answer) if keep is not None else ""
    if as_json:
        where = {"asked_of": str(asked_of.absolute())} if asked_of else {}
        print_json({**({"id": name} if name else {}), **_to_json(answer), **where})
        return
    print_text("")
    cached = answer.details.get("cached")
    if cached:
        print_text(f"cached answer ({cached['kind']}), to the question: {cached['question']}")
    _print_sources(answer)
    _print_judged(answer)
    _print_support(answer)
    _print_notices(answer)
    if name:
        choices = "(or --wrong, --absent, --quote TEXT)"
        command = shlex.join(["stillroom", "judge", str(asked_of), name, "--right"])
        print_text(f"judge    {command} {choices}")
    if model and answer.details.get("answering") == "quote" and not answer.details.get("calls"):
        print_text(f"note: {model} was not used, since quotes need none: --answering generate")
    if steps:
        _print_steps(answer)


def _print_stream(pieces: Iterable[str | Answer], *, is_shown: bool) -> Answer | None:
    """Print the pieces of an answer, and end its line before a file is named that it is in."""
    answer: Answer | None = None
    for piece in pieces:
        answer = piece if isinstance(piece, Answer) else answer
        if is_shown and isinstance(piece, str):
            print_text(unwrap_lines(piece), nl=False)
        elif is_shown and answer is not None:
            print_text("" if answer.completion.text.strip() else "(the model returned no text)")
    return answer


def _print_steps(answer: Answer) -> None:
    for step in answer.details.get("trace", ()):
        details = ", ".join(f"{key} {value}" for key, value in step.items() if key != "step")
        print_text(f"step {step['step']}: {details}" if details else f"step {step['step']}")


def _to_json(answer: Answer) -> dict[str, Any]:
    return {
        "answer": answer.completion.text,
        "model": answer.completion.model,
        "citations": describe_citations(answer.citations, answer.details),
        "details": dict(answer.details),
    }


# The text of an answer does not say these.
_NOTED_REFUSALS = {"no-answer", "no-question", "empty", "restated"}
_JUDGED_NOTES = {
    "right": "the answer is right",
    "quote": "this sentence answers",
    "wrong": "another answer was wrong, whose first quote is left out",
    "absent": "the documents hold no answer; they have not changed since",
}
_PROVENANCE_NOTES = {
    "signed": ", its file is signed",
    "generated": ", its file is marked as machine-generated",
    "changed": ", its file was changed since it was signed",
    "refused": ", its file is signed in a way that is no longer accepted",
    "lab": ", its file is a forgery of this lab",
    "stated": ", as the file says of itself",
    "credential-valid": ", its content credential holds",
    "credential-partial": ", a content credential holds for a part of its text",
    "credential-changed": ", its text was changed since its content credential was signed",
    "credential-invalid": ", the signature of its content credential does not hold",
    "credential-unverified": ", its content credential was not verified",
    "credential-damaged": ", its content credential is cut or damaged",
}


def list_cited(answer: Answer) -> list[tuple[Citation, Mapping[str, Any]]]:
    """Return the citations; of an answer that quotes, one for each quote, with its bytes.

    Quotes of one citation, as the cells of a row and the items of a list, are listed once.
    """
    quotes = answer.details.get("quotes", ())
    if not quotes:
        return [(citation, {}) for citation in answer.citations]
    cited = {citation.number: citation for citation in answer.citations}
    listed = list[tuple[Citation, Mapping[str, Any]]]()
    for quote in list_cited_quotes(quotes):
        citation = cited[quote["number"]]
        location = replace(
            citation.location,
            byte_start=quote["byte_start"],
            byte_end=quote["byte_end"],
            pages=tuple(quote["pages"]),
        )
        citation = replace(citation, location=location)
        if listed and listed[-1][0] == citation:
            quote = {**quote, **listed.pop()[1]}
        listed.append((citation, quote))
    return listed


def _print_sources(answer: Answer) -> None:
    """Print the source of every citation or quote, its author, and points to verify."""
    sources = {source["number"]: source for source in answer.details.get("sources", ())}
    for citation, quote in list_cited(answer):
        source = sources.get(citation.number, {})
        is_known = source.get("origin", "unknown") != "unknown"
        origin = f", origin {source['origin']}" if is_known else ""
        checked = _PROVENANCE_NOTES.get(str(source.get("checked", "")), "")
        headings = quote.get("headings") or source.get("headings") or ()
        place = f"{format_place(citation.location, headings)}{origin}{checked}"
        print_text(escape_line(f"[{citation.number}] {place}"))
        is_answer = not answer.details.get("abstained")
        if is_answer and (short := quote.get("short")):
            print_text(f"    short answer: {' '.join(short.split())}")
        if not (is_answer or quote):
            print_text(f"    {format_excerpt(citation.text, headings)}")
        print_flags(source.get("flags", ()), indent=4)
    for step in answer.details.get("trace", ()):
        if step["step"] == "quote" and "probability" in step:
            print_text(f"probability that the first quote answers: {step['probability']:.2f}")
    origins = answer.details.get("origins", {})
    if answer.citations and (len(origins) > 1 or origins.keys() & {"synthetic", "suspected-fake"}):
        shares = ", ".join(f"{count} {name}" for name, count in origins.items())
        print_text(f"origin of the sources: {shares}")


def format_place(location: Location, headings: Sequence[str]) -> str:
    """Return a place in a document with its section."""
    return f"{location}, section {' › '.join(headings)}" if headings else str(location)


def format_excerpt(text: str, headings: Sequence[str]) -> str:
    """Return the beginning of a passage on one line, its headings without marks.

    Those that it opens with and that ``headings``, beside which it is printed, have are left out.
    A document without headings may have other lines that begin with such a mark.
    """
    lines = [" ".join(line.split()) for line in text.strip().split("\n")]
    named = {"", *(" ".join(heading.split()) for heading in headings)}
    while headings and len(lines) > 1 and lines[0].lstrip("# ") in named:
        del lines[0]
    shown = [_HEADING.sub(r"\1:", line) for line in lines] if headings else lines
    return " ".join(filter(None, shown))[:_MAX_EXCERPT]


def print_flags(flags: Iterable[str], *, indent: int) -> None:
    """Print what a text with content flags may hold."""
    from stillroom.rag.generation.content_flags import CONTENT_FLAGS

    if told := "; ".join(CONTENT_FLAGS.get(flag, flag) for flag in flags):
        print_text(f"{' ' * indent}caution: this may hold {told}")


def _print_judged(answer: Answer) -> None:
    """Print whose judgment the answer follows, and of when."""
    judged = answer.details.get("judged")
    if judged:
        what = _JUDGED_NOTES[judged["verdict"]]
        print_text(f"judged   by a person on {judged['time'][:10]}: {what} ({judged['id']})")


def _print_notices(answer: Answer) -> None:
    """Print notes on truncation and left out passages."""
    note = answer.details.get("refusal_note")  # none in an answer of an earlier version
    if note and answer.details.get("refusal") in _NOTED_REFUSALS:
        print_text(f"note: {note}")
    if answer.completion.finish_reason == "length":
        print_text("note: the answer was cut off at the token limit")
    dropped, left_out = answer.details.get("dropped", 0), answer.details.get("left_out", ())
    if dropped:
        total = len(answer.hits) + dropped
        print_text(f"note: {dropped} of {count_noun(total, 'passage')} did not fit the prompt")
    if len(left_out) > dropped:
        print_text("note: the last passage shown was cut after a sentence")
    for note in answer.details.get("notices", ()):
        print_text(f"note: {note}")


def _print_support(answer: Answer) -> None:
    """Print sentences without support; if none has support, the nearest passages."""
    details = answer.details
    for dropped in details.get("dropped_statements", ()):
        print_text(f"left out, unsupported: {dropped['text']}")
    if details.get("abstained"):
        return
    statements = details.get("statements", ())
    open_ones = [
        statement
        for statement in statements
        if statement["status"] in {"unsupported", "unverified"}
    ]
    if not answer.citations:
        print_text("no passage supports this answer")
        nearest = sorted(answer.hits, key=lambda hit: hit.rank)[:_MAX_NEAREST]
        for hit in nearest:
            print_text(escape_line(f"nearest  {hit.passage.location}"))
        return
    for statement in (statement for statement in open_ones if "start" in statement):
        text = answer.completion.text[statement["start"] : statement["end"]]
        label = (
            "not in the cited passage"
            if statement["status"] == "unverified"
            else "not in any passage"
        )
        print_text(f"{label}: {text}")
    if open_ones:
        print_text(f"{len(open_ones)} of {len(statements)} sentences are supported by no passage")
