"""``stillroom ask``, and the options of every command that answers (``rag.settings``)."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from stillroom.cli.options import (
    FiniteFloatRange,
    build_access,
    command,
    count_option,
    existing_path,
    file_path,
    flag_option,
    mark_option,
    output_options,
    path_option,
    refuse_existing_output,
    refuse_idle_options,
    replace_option,
    view_options,
)
from stillroom.cli.output import print_text
from stillroom.cli.proof import EvidenceWriter, evidence_options
from stillroom.errors import DataError, MissingExtraError
from stillroom.models.hub import DEFAULT_TEACHER
from stillroom.rag.settings import AnswerSettings
from stillroom.records import Answer

__all__ = [
    "ask_command",
    "ask_options",
    "ask_settings",
    "passages_option",
    "write_answers",
]

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


def _build_option(name: str, *, is_served: bool = False) -> Callable[[CommandT], CommandT]:
    """Return the option of a setting, with the bounds of requests if it is for a server."""
    setting, option = AnswerSettings.client_options()[name]
    flag, text = f"--{name.replace('_', '-')}", option.description or setting.description
    if setting.annotation is bool:
        return click.option(flag, is_flag=True, help=text)
    bounds = {
        key: value
        for bound in setting.metadata
        for key in ("ge", "le")
        if (value := getattr(bound, key, None)) is not None
    }
    default = "" if setting.default is None else setting.default
    shown: dict[str, Any] = {"default": default, "show_default": default != "", "help": text}
    if setting.annotation is int:
        most: dict[str, Any] = {"most": option.maximum} if is_served and option.maximum else {}
        return count_option(flag, least=bounds["ge"], **most, **shown)
    kind: Any = str
    if setting.annotation is float:
        kind = FiniteFloatRange(bounds.get("ge"), bounds.get("le"))
    elif not option.is_method:
        kind = click.Choice(get_args(setting.annotation))
    return click.option(flag, type=kind, **shown)


def passages_option(*, is_served: bool = False) -> Callable[[CommandT], CommandT]:
    """Return --k, which each command places itself; a server bounds it as requests do."""
    return _build_option("k", is_served=is_served)


def ask_options(function: CommandT) -> CommandT:
    """Add the options of retrieval, answering and context."""
    function = click.option(
        "--cache",
        type=file_path,
        help="Cache answers in this file, and reuse them for the same question.",
    )(function)
    for name in reversed([name for name in AnswerSettings.client_options() if name != "k"]):
        function = _build_option(name)(function)
    return function


def ask_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of ``AnswerSettings`` that the options of a command give.

    Raises:
        RecipeError: If a method or setting is unknown, or a value is out of range.
        DataError: If the answer cache cannot be used.
    """
    from stillroom.rag.generation.semantic_cache import SemanticCache
    from stillroom.rag.retrieval.pipeline import parse_answer_settings

    names = AnswerSettings.client_options().keys() & options.keys()
    settings = parse_answer_settings({name: options[name] for name in names})
    if options.get("cache") is not None:
        settings["cache"] = SemanticCache(options["cache"])
    return settings


@command(
    "ask",
    'stillroom ask run "What does the with statement do?"',
    'stillroom ask run "What is a generator?" --answering generate --out answer.md',
    'stillroom ask index "What is a coroutine?" --where "path ~ \'library/*\'"',
    'stillroom ask run "What is a generator?" --evidence answer.json --key me.key',
)
@click.argument("run", type=existing_path)
@click.argument("question")
@passages_option()
@click.option(
    "--model",
    default="",
    help=f"Text model to use instead of the run's own; default for an index: {DEFAULT_TEACHER}.",
)
@ask_options
@evidence_options
@flag_option("--steps", help="Print every step of retrieval and answering.")
@path_option("--out", help="Also write the answer: a .txt, .md or .html file.")
@replace_option
@mark_option
@view_options
@output_options
def ask_command(
    run: Path,
    question: str,
    model: str,
    evidence: Path | None,
    key: Path | None,
    steps: bool,
    out: Path | None,
    is_marked: bool,
    where: str,
    snapshot: str | None,
    tenant: str,
    principals: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Answer a question by quoting a run's documents, or by a model that cites them.

    RUN is a run or an index.

    If no passage supports an answer, the nearest sentences are quoted, or the nearest passages
    listed. The --out file carries a content credential (C2PA) that states its generator;
    --no-mark leaves it out.
    """
    from stillroom.cli.judge import keep_answers
    from stillroom.cli.results import print_answer
    from stillroom.flow import open_run
    from stillroom.rag.observability import configure_from_environment
    from stillroom.records.text_credentials import remove_marks

    configure_from_environment()
    if not question.strip():
        raise click.UsageError("QUESTION is empty; give one, as in 'stillroom ask run \"What?\"'")
    settings, writer = ask_settings(options), EvidenceWriter(evidence, key)
    access = build_access(tenant, principals)
    question = remove_marks(question) or question
    if out is None and evidence is None:
        refuse_idle_options({"overwrite"}, "needs --out or --evidence")
    if out is None:
        refuse_idle_options({"is_marked"}, "needs --out")
    else:
        _check_answer_file(out)
    with open_run(
        run,
        model=model,
        say=lambda line: print_text(line, err=True),
        where=where,
        snapshot=snapshot,
        access=access,
    ) as opened:
        pieces = writer.watch(opened, question, settings, run)
        if out is not None:
            pieces = write_answers(pieces, out, question, model=opened.name, is_marked=is_marked)
        print_answer(
            pieces,
            as_json=as_json,
            steps=steps,
            asked_of=run,
            keep=keep_answers(run, question, access, where),
            model=model,
        )
    if writer.line and not as_json:
        print_text(writer.line)


_TYPES = {
    ".txt": "text/plain",
    ".md": "text/markdown",
    ".html": "text/html",
}


def _check_answer_file(path: Path) -> None:
    """Refuse an existing file and an unknown suffix, before anything is asked."""
    if path.suffix.lower() not in _TYPES:
        raise DataError(
            f"answers are not written as {path.suffix or 'a file without a suffix'}",
            code="data.suffix",
            where=str(path),
            expected=f"one of: {' '.join(_TYPES)}",
            next="choose another --out, or --json for JSON",
        )
    refuse_existing_output(path)


def write_answers(
    pieces: Iterable[str | Answer], path: Path, question: str, *, model: str, is_marked: bool
) -> Iterator[str | Answer]:
    """Yield the pieces of an answer; write it to a file when it is complete."""
    from stillroom.jobs import atomic_write
    from stillroom.provenance.evidence import disclose_answer
    from stillroom.provenance.text_marks import open_marker

    kind, answer = _TYPES[path.suffix.lower()], None
    for piece in pieces:
        answer = piece if isinstance(piece, Answer) else answer
        yield piece
    if answer is None:
        return
    text, note = _render(answer, question, kind), "without a content credential"
    if is_marked:
        disclosure = disclose_answer(answer.completion.model, answer.details, model)
        try:
            marker = open_marker()
            text = marker.mark(text, disclosure, kind)
            by = f"key {marker.signer.key_id[:16]}" if marker.is_kept else "a key that is not kept"
            note = f"with a content credential, signed by {by}"
        except MissingExtraError as error:
            note = f"without a content credential: {error.problems[0].next}"
    with atomic_write(path) as file:
        file.write(text)
    print_text(f"written  {path}, {note}", err=True)


def _render(answer: Answer, question: str, kind: str) -> str:
    from stillroom.cli.results import list_cited

    question = " ".join(question.split())  # a heading is one line
    text = answer.completion.text
    notes = [f"[{citation.number}] {citation.location}" for citation, _ in list_cited(answer)]
    notes += _list_doubts(answer)
    if kind == "text/html":
        paragraphs = [
            html.escape(part).replace("\n", "<br>\n") for part in (*text.split("\n\n"), *notes)
        ]
        return (
            f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f"<title>{html.escape(question)}</title>\n</head>\n<body>\n"
            f"<h1>{html.escape(question)}</h1>\n"
            + "".join(f"<p>{part}</p>\n" for part in paragraphs)
            + "</body>\n</html>\n"
        )
    head, end = "", "\n"
    if kind == "text/markdown":
        head, end = f"# {html.escape(question, quote=False)}\n\n", "  \n"  # two spaces break a line
        notes = [html.escape(note, quote=False) for note in notes]
    shown = "".join(note + end for note in notes)
    return f"{head}{text}\n" + (f"\n{shown}" if notes else "")


def _list_doubts(answer: Answer) -> list[str]:
    """Return the warnings of missing support that the terminal shows, for readers of the file."""
    details, text = answer.details, answer.completion.text
    if details.get("abstained"):
        return []
    if not answer.citations:
        return ["No passage supports this answer."]
    labels = {"unsupported": "Not in any passage", "unverified": "Not in the cited passage"}
    return [
        f"{labels[statement['status']]}: {text[statement['start'] : statement['end']].strip()}"
        for statement in details.get("statements", ())
        if statement["status"] in labels and "start" in statement
    ]
