"""``stillroom rag verify``: an index against its own ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stillroom.cli.options import debug_option, existing_path, json_option, print_json

__all__ = ["command"]


@click.command(
    "verify",
    epilog="""
\b
Examples:
  stillroom rag verify index
  stillroom rag verify index --repair
""",
)
@click.argument("index", type=existing_path)
@click.option("--repair", is_flag=True, help="Make derived files again from the ledger.")
@json_option
@debug_option
def command(index: Path, repair: bool, as_json: bool) -> None:
    """Hold an index's segments, counts and texts against its ledger.

    What --repair makes again: segments (vectors that are damaged by the embedder), index.json and
    artifact.json, and what approximate search needs to find enough. The ledger itself cannot be
    made again.
    """
    from stillroom.errors import IntegrityError, Problem
    from stillroom.rag.approximation import check_recall, describe_recall, renew_recall
    from stillroom.rag.repairing import repair_index
    from stillroom.rag.upkeep import check_index

    findings = repair_index(index) if repair else check_index(index)
    left = check_index(index) if repair else findings
    recall: dict[str, Any] | None = None
    if not left:
        recall, doubts = check_recall(index)
        if doubts and repair:
            renew_recall(index)
            recall, left = check_recall(index)
            findings = [*findings, *doubts]
        elif doubts:
            findings = left = [*findings, *doubts]
    if as_json:
        print_json(
            {
                "findings": [finding.to_json() for finding in findings],
                "left": [finding.to_json() for finding in left],
                **({"approximate": recall} if recall else {}),
            }
        )
    elif repair:
        for finding in findings:
            click.echo(f"found: {finding}")
    if left:
        raise IntegrityError(
            [
                Problem(
                    str(finding),
                    "rag.index-damaged",
                    str(index),
                    "what the ledger says",
                    "add --repair"
                    if finding.is_derived and not repair
                    else "build the index again with --overwrite",
                )
                for finding in left
            ]
        )
    if not as_json:
        click.echo(f"{index}: ledger, segments and texts agree")
        if recall is not None:
            click.echo(describe_recall(recall))
