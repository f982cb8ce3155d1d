"""``stillroom distill import``: log-probabilities of other tools as a teacher cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stillroom.cli.numbers import FiniteRange
from stillroom.cli.options import debug_option, existing_path, json_option, print_json

__all__ = ["command"]


@click.command(
    "import",
    epilog="""
\b
Examples:
  stillroom distill import logprobs.jsonl --format axolotl --teacher ./teacher --out teacher-cache
  stillroom distill import ./sampled --format distillkit --teacher ./teacher --out teacher-cache
""",
)
@click.argument("file", type=existing_path)
@click.option(
    "--format", "format", type=click.Choice(["axolotl", "distillkit"]), required=True, help="Whose."
)
@click.option("--teacher", required=True, help="The checkpoint that spoke.")
@click.option("--tokenizer", default="", help="A checkpoint with the ids' tokenizer; default it.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The cache's folder.")
@click.option(
    "--temperature",
    type=FiniteRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="What the teacher's logits were divided by.",
)
@click.option("--license", default="", help="Of the teacher; default what its card says.")
@click.option(
    "--logprob-dtype",
    type=click.Choice(["float16", "float32"]),
    default="float16",
    show_default=True,
    help="Type to keep them in.",
)
@json_option
@debug_option
def command(file: Path, out: Path, as_json: bool, **settings: Any) -> None:
    """Make a teacher cache of log-probabilities captured elsewhere.

    FILE is axolotl's JSON lines with input_ids and target_token_ids, target_logprobs, target_mask
    (or logprobs), or DistillKit's parquet file or folder with its compression_config.yaml. Check it
    afterwards: stillroom distill verify OUT.
    """
    from stillroom.distill.cache_import import import_cache

    report = import_cache(file, out, say=lambda line: click.echo(line, err=True), **settings)
    if as_json:
        print_json({"out": str(out), **report.to_json()})
        return
    click.echo(f"{out}: {report}")
