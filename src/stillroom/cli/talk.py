"""What commands print about runs and answers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import click

from stillroom.cli.options import print_json
from stillroom.provenance import Artifact
from stillroom.records import Answer

__all__ = ["print_answer", "tell_run"]

_SHOWN = (
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


def tell_run(out: Path, artifact: Artifact) -> None:
    """Say what a job left, and for a whole run its main figures and the next commands."""
    report = out / "report.json"
    if artifact.kind != "report" or not report.is_file():
        click.echo(f"{out}: {artifact.kind}, digest {artifact.digest[:16]}")
        for failed in artifact.details.get("failed", ()):
            click.echo(
                f"left out {failed['path']}: {failed['reason']}  [{failed['code']}]", err=True
            )
        return
    metrics = {
        metric["name"]: metric
        for metric in json.loads(report.read_text(encoding="utf-8"))["metrics"]
    }
    for name in _SHOWN:
        if name in metrics:
            click.echo(f"{name:34} {_figure(metrics[name])}")
    click.echo(f"\nreport   {out / 'report.html'}")
    click.echo(f'ask      stillroom ask {out} "..."')
    click.echo(f"lineage  stillroom show {out} --lineage")
    click.echo(f"serve    stillroom serve {out}")


def _figure(metric: dict[str, object]) -> str:
    value, low, high = metric["value"], metric["low"], metric["high"]
    is_whole = not isinstance(value, float) or value.is_integer()
    shown = f"{value:,.0f}" if is_whole else f"{value:,.4g}"
    interval = f" [{low:.4g}, {high:.4g}]" if low is not None and low != high else ""
    unit = f" {metric['unit']}" if metric["unit"] else ""
    return f"{shown}{interval}{unit} (n={metric['n']})"


def print_answer(pieces: Iterable[str | Answer], *, as_json: bool) -> None:
    """Stream an answer to standard output, then list what it stands on."""
    answer: Answer | None = None
    for piece in pieces:
        if isinstance(piece, Answer):
            answer = piece
        elif not as_json:
            click.echo(piece, nl=False)
    if answer is None:
        return
    if as_json:
        print_json(
            {
                "answer": answer.completion.text,
                "model": answer.completion.model,
                "citations": [
                    {
                        "number": citation.number,
                        "passage_id": citation.passage_id,
                        "path": citation.location.path,
                        "byte_start": citation.location.byte_start,
                        "byte_end": citation.location.byte_end,
                        "pages": list(citation.location.pages),
                        "text": citation.text,
                    }
                    for citation in answer.citations
                ],
                "details": dict(answer.details),
            }
        )
        return
    click.echo("\n" if answer.completion.text.strip() else "(the model said nothing)\n")
    for citation in answer.citations:
        click.echo(f"[{citation.number}] {citation.location}")
    if not answer.citations:
        click.echo("no passage supports this answer")
        return
    statements = answer.details.get("statements", ())
    open_ones = sum(statement["status"] == "unsupported" for statement in statements)
    if open_ones:
        click.echo(f"{open_ones} of {len(statements)} sentences are supported by no passage")
