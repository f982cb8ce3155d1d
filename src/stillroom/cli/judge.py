"""``stillroom judge`` (people's judgments: ``rag.evaluation.judging``), and answers kept for it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from stillroom.cli.options import (
    access_options,
    build_access,
    command,
    existing_path,
    flag_option,
    output_options,
)
from stillroom.cli.output import print_json, print_text

if TYPE_CHECKING:
    from stillroom.evaluate.qa.judgments import Judgment, JudgmentStore, Verdict
    from stillroom.rag.index.view import AccessContext
    from stillroom.records import Answer

__all__ = ["KEEP_VARIABLE", "judge_command", "keep_answers"]

KEEP_VARIABLE = "STILLROOM_KEEP_ANSWERS"
_QUESTION_CHARS = 60


def keep_answers(
    path: Path, question: str, access: AccessContext | None = None, where: str = ""
) -> Callable[[Answer], str]:
    """Return a function that stores an answer to be judged, and returns its id.

    The id is empty if nothing is stored: where the index has tenants, where the environment
    variable STILLROOM_KEEP_ANSWERS is 0, and where nothing can be written beside the run, since the
    answer is worth more than that. A filter ``where`` makes the documents another index.
    """
    from stillroom.errors import ResourceError
    from stillroom.evaluate.qa.judgments import find_judgments
    from stillroom.provenance import digest_json
    from stillroom.rag.evaluation.judging import describe_asked

    def keep(answer: Answer) -> str:
        if access is not None or os.environ.get(KEEP_VARIABLE) == "0":
            return ""
        asked = describe_asked(question, answer, access)
        if where:
            asked = replace(asked, index=digest_json([asked.index, where]))
        try:
            find_judgments(path).keep_answer(asked)
        except ResourceError:
            return ""
        return asked.id

    return keep


@command(
    "judge",
    "stillroom judge run --right",
    'stillroom judge run 3f2a9c1d04 --quote "The pump must be drained before winter."',
    "stillroom judge run --list",
)
@click.argument("run", type=existing_path)
@click.argument("answer_id", default="")
@flag_option("--right", help="The answer is right.")
@flag_option("--wrong", help="The answer is wrong.")
@flag_option("--absent", help="The documents hold no answer.")
@click.option("--quote", metavar="TEXT", help="This text of the documents answers.")
@flag_option("--list", "is_list", help="List the judgments.")
@click.option("--delete", metavar="ID", help="Delete all that is stored on a question.")
@access_options
@output_options
def judge_command(
    run: Path,
    answer_id: str,
    quote: str | None,
    is_list: bool,
    delete: str | None,
    tenant: str,
    principals: tuple[str, ...],
    as_json: bool,
    **verdicts: bool,
) -> None:
    """Judge an answer of 'ask', to train and evaluate readers.

    RUN is a run or an index; ANSWER_ID is printed by 'ask', and is the last answer by default.
    Judgments are kept in RUN.judgments, as question sets: train.jsonl and test.jsonl.
    """
    given = [name for name, is_given in verdicts.items() if is_given]
    given += ["quote"] * (quote is not None)
    if len(given) + is_list + (delete is not None) != 1:
        raise click.UsageError(
            "give one of --right, --wrong, --absent, --quote TEXT, --list and --delete ID"
        )
    if answer_id and (is_list or delete is not None):
        raise click.UsageError("--list and --delete take no ANSWER_ID")
    from stillroom.evaluate.qa.judgments import find_judgments
    from stillroom.flow.opening import find_index
    from stillroom.rag.evaluation.judging import get_scope, record_judgment
    from stillroom.rag.index.searcher import Index

    access = build_access(tenant, principals)
    scope = get_scope(access)
    own = (scope[0], *scope[1])
    folder, store = find_index(run), find_judgments(run)
    if delete is not None:
        count = store.delete(delete, own)
        print_json({"deleted": count}) if as_json else print_text(f"{count} deleted")
        return
    with Index.open(folder, access=access) as index:
        if is_list:
            judgments = [one for one in store.read() if one.asked.scope == own]
            _print_list(store, judgments, index, as_json=as_json)
            return
        asked = store.find_answer(answer_id, own)
        verdict = cast("Verdict", given[0])
        judgment = record_judgment(store, index, asked, verdict, quote or "", access=access)
    _print_judgment(store, judgment, as_json=as_json)


def _echo(line: str) -> None:
    """Print a line; documents and clients may hold what steers a terminal."""
    from stillroom.jobs.progress import escape_line

    print_text(escape_line(line))


def _print_judgment(store: JudgmentStore, judgment: Judgment, *, as_json: bool) -> None:
    if as_json:
        print_json({**judgment.to_json(), "split": judgment.side})
        return
    _echo(f"{judgment.verdict}: {' '.join(judgment.asked.question.split())}")
    for part in judgment.evidence:
        _echo(f"  {part['file']}: {' '.join(part['quote'].split())}")
    if judgment.verdict == "right" and not judgment.evidence:
        why = "it quotes no sentence"
        if judgment.asked.quotes:
            why = "the documents changed: none holds the quoted sentence"
        _echo(f"  {why}, so readers cannot be trained on it; give the sentence by --quote TEXT")
    if judgment.verdict == "absent":
        use = "trained to leave it unanswered, next to questions with sentences that answer"
        _echo(f"  readers are {use if judgment.side == 'train' else 'evaluated on it'}")
    _echo(f"{judgment.id} in {store.path_of(judgment.side)}")


def _print_list(
    store: JudgmentStore, judgments: list[Judgment], index: Any, *, as_json: bool
) -> None:
    """Print the judgments, and how many of them the documents no longer bear out."""
    from stillroom.rag.evaluation.judging import find_gone

    gone = find_gone(index, judgments)
    if as_json:
        print_json(
            {
                "folder": str(store.folder),
                "judgments": [
                    {
                        **one.to_json(),
                        "split": one.side,
                        "stands": one.id not in gone if one.evidence else None,
                    }
                    for one in judgments
                ],
            }
        )
        return
    for one in judgments:
        note = "  (no longer in the documents)" if one.id in gone else ""
        question = " ".join(one.asked.question.split())[:_QUESTION_CHARS]
        _echo(f"{one.id}  {one.time[:16]}  {one.side:5}  {one.verdict:6}  {question}{note}")
    sides = [one.side for one in judgments]
    print_text(
        f"{len(judgments)} judged answers, {sides.count('train')} to train and "
        f"{sides.count('test')} to test; {len(gone)} with evidence that the index no longer holds"
    )
