"""``stillroom synth decontaminate``: test questions out of files of records."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from stillroom.cli.numbers import Finite
from stillroom.cli.options import existing_path, job_options, json_option, print_json

__all__ = ["command"]


@click.command(
    "decontaminate",
    epilog="""
\b
Examples:
  stillroom synth decontaminate records.jsonl --against test.jsonl --out clean
  stillroom synth decontaminate r.jsonl --against test.jsonl --out clean \\
    --embedder hub:sentence-transformers/all-MiniLM-L6-v2
""",
)
@click.argument("records", type=existing_path, nargs=-1, required=True)
@click.option(
    "--against",
    type=existing_path,
    multiple=True,
    required=True,
    help="File or artifact of what must not be learned; may be given again.",
)
@click.option(
    "--near",
    type=Finite(),
    default=0.65,
    show_default=True,
    help="Share of an item's words, in order, from which it is found.",
)
@click.option("--embedder", default="", help="Look for rewordings too, by this embedder.")
@click.option("--judge", default="", help="Model that decides on rewordings in doubt.")
@click.option("--out", type=existing_path, required=True, help="The folder to write.")
@json_option
@job_options
def command(
    records: tuple[Path, ...],
    against: tuple[Path, ...],
    near: float,
    embedder: str,
    judge: str,
    out: Path,
    as_json: bool,
    resume: bool,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Take what holds a test question out of files of records.

    Found are items word for word, with words changed, in another order, and, with --embedder, in
    other words. output/contaminated.jsonl lists each record that fell with what is in it. Where the
    embedder or the judge fails, records go to output/unchecked.jsonl and the exit code is 1.
    """
    from stillroom.jobs import choose_reporter
    from stillroom.synth.decontamination import Decontamination, decontaminate
    from stillroom.synth.leak_check import Limits

    artifact, told = decontaminate(
        Decontamination(records, against, embedder, judge, Limits(near=near)),
        out,
        resume=resume,
        overwrite=overwrite,
        reporter=choose_reporter(quiet=quiet),
    )
    if as_json:
        print_json({"out": str(out), "digest": artifact.digest, **told})
    else:
        kinds = ", ".join(f"{count} {kind}" for kind, count in told["kinds"].items())
        click.echo(
            f"{out}: {told['kept']} of {told['read']} records are clean; {told['contaminated']} "
            f"hold one of {told['items_found']} items" + (f" ({kinds})" if kinds else "")
        )
        if not told["rewordings"]:
            click.echo("rewordings were not looked for: add --embedder")
        if told["unchecked"]:
            click.echo(f"{told['unchecked']} records are not checked: {told['why_unchecked']}")
    if told["unchecked"]:
        sys.exit(1)
