"""``stillroom distill texts``: documents as records, to be learned as they stand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from stillroom.cli.numbers import Finite
from stillroom.cli.options import existing_path, job_options, json_option, print_json

if TYPE_CHECKING:
    from stillroom.records.origin import OriginKind

__all__ = ["command"]


@click.command(
    "texts",
    epilog="""
\b
Examples:
  stillroom distill texts ./documents --tokenizer ./teacher --out texts
  stillroom distill texts play.txt --tokenizer ./teacher --out texts --kind human --max-tokens 256
""",
)
@click.argument("documents", type=existing_path)
@click.option("--tokenizer", required=True, help="The teacher, whose tokens are counted.")
@click.option("--out", required=True, type=existing_path, help="The folder of the artifact.")
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    default=512,
    show_default=True,
    help="Most tokens of a record.",
)
@click.option(
    "--held-out",
    type=Finite(),
    default=0.1,
    show_default=True,
    help="Share that is measured on only: whole documents of ten or more, else each one's end.",
)
@click.option(
    "--kind",
    type=click.Choice(["human", "synthetic", "unknown"]),
    default="unknown",
    show_default=True,
    help="Who wrote the documents.",
)
@click.option("--license", "license_name", default="", help="The documents' license.")
@json_option
@job_options
def command(
    documents: Path,
    tokenizer: str,
    out: Path,
    max_tokens: int,
    held_out: float,
    kind: str,
    license_name: str,
    as_json: bool,
    resume: bool,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Cut documents into records that a student learns as they stand.

    Name OUT as a distill recipe's records. Each record leads back to the bytes of its document.
    """
    from stillroom.distill.texts import TextsPlan, cut_texts
    from stillroom.jobs import choose_reporter
    from stillroom.records import Origin

    origin = Origin(cast("OriginKind", kind), (), license_name)
    artifact, told = cut_texts(
        TextsPlan(documents, tokenizer, max_tokens, held_out, origin),
        out,
        resume=resume,
        overwrite=overwrite,
        reporter=choose_reporter(quiet=quiet),
    )
    if as_json:
        print_json({"out": str(out), "digest": artifact.digest, **told.to_json()})
        return
    click.echo(str(told))
    click.echo(f"{out}: {artifact.kind}, digest {artifact.digest[:16]}")
