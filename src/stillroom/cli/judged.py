"""What commands on judged queries share: where the judgements are, and tables on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from stillroom.cli.options import existing_path, print_json

if TYPE_CHECKING:
    from stillroom.evaluate import Report
    from stillroom.provenance import Artifact
    from stillroom.rag.access import Access

__all__ = ["align_columns", "find_access", "find_judged", "judged_options", "print_report"]

F = TypeVar("F", bound=Callable[..., Any])
_WIDEST = 60


def judged_options(function: F) -> F:
    """Add --collection, --split, --queries and --qrels."""
    for option in (
        click.option(
            "--qrels", type=existing_path, help="TREC's or BEIR's columns, or JSON lines."
        ),
        click.option(
            "--queries", type=existing_path, help="JSON lines, or lines of id, tab, text."
        ),
        click.option(
            "--split", default="test", show_default=True, help="Of the collection's judgements."
        ),
        click.option("--collection", type=existing_path, help="A folder in BEIR's layout."),
    ):
        function = option(function)
    return function


def find_judged(
    collection: Path | None, split: str, queries: Path | None, qrels: Path | None
) -> tuple[Path, Path]:
    """Return where queries and judgements are; single files go before the collection's.

    Raises:
        click.UsageError: If one of them is not said.
    """
    from stillroom.evaluate.collections import find_collection

    if collection is not None:
        found = find_collection(collection, split)
        queries, qrels = queries or found.queries, qrels or found.qrels
    if queries is None or qrels is None:
        raise click.UsageError("give --collection, or --queries and --qrels")
    return queries, qrels


def find_access(tenant: str, principals: Sequence[str]) -> Access | None:
    """Return who asks, or nobody where no tenant is named."""
    from stillroom.rag.access import Access

    return Access(tenant, principals) if tenant or principals else None


def print_report(
    out: Path, artifact: Artifact, report: Report, *, as_json: bool, **also: Any
) -> None:
    """Print a report's summary and tables, or one JSON object with what ``also`` names."""
    if as_json:
        print_json({"out": str(out), "digest": artifact.digest, **also, **report.to_json()})
        return
    click.echo(report.summary)
    for section in report.sections:
        if section.table is not None:
            click.echo(f"\n{section.title}: {section.table.caption}. {section.text}".rstrip())
            click.echo(align_columns([section.table.columns, *section.table.rows]))
    click.echo(f"\n{out}: {artifact.kind}, digest {artifact.digest[:16]}")


def align_columns(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as text, each column as wide as its longest cell, at most 60."""
    widths = [min(max(len(row[at]) for row in rows), _WIDEST) for at in range(len(rows[0]))]
    lines = (
        "  ".join(
            cell[:_WIDEST].ljust(width) for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    )
    return "\n".join(lines)
