"""``stillroom synth monitor``: has data lost variety over its generations?"""

from __future__ import annotations

from pathlib import Path

import click

from stillroom.cli.judged import print_report
from stillroom.cli.numbers import FiniteRange
from stillroom.cli.options import existing_path, job_options, json_option

__all__ = ["command"]


@click.command(
    "monitor",
    epilog="""
\b
Examples:
  stillroom synth monitor human.jsonl generation-1.jsonl generation-2.jsonl --out report
  stillroom synth monitor human.jsonl made.jsonl --out report \\
    --embedder hub:sentence-transformers/all-MiniLM-L6-v2
""",
)
@click.argument("generations", type=existing_path, nargs=-1, required=True)
@click.option("--embedder", default="", help="Measure spread and coverage of meanings too.")
@click.option(
    "--student",
    "students",
    multiple=True,
    help="A checkpoint trained on a generation; once for each, in order.",
)
@click.option(
    "--human", type=existing_path, help="Records that no student has seen, for their perplexity."
)
@click.option(
    "--tolerance",
    type=FiniteRange(0, 1),
    default=0.05,
    show_default=True,
    help="Share of the reference's figure that may be lost without a warning.",
)
@click.option("--budget", type=click.IntRange(0), default=0, help="Words of a draw; 0 chooses.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Of the draws.")
@click.option("--out", type=existing_path, required=True, help="The folder of the report.")
@json_option
@job_options
def command(
    generations: tuple[Path, ...],
    embedder: str,
    students: tuple[str, ...],
    human: Path | None,
    tolerance: float,
    budget: int,
    seed: int,
    out: Path,
    as_json: bool,
    resume: bool,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Compare generations of data with the first, which people wrote, and warn of collapse.

    Every figure is taken of draws of as much text. The rare words go first: watch 'tail', and
    'surprise', what people's text costs to foresee who has read the generation alone.
    """
    from stillroom.jobs import choose_reporter
    from stillroom.synth.monitoring import Monitoring, monitor

    artifact, report, warned = monitor(
        Monitoring(generations, embedder, tolerance, budget, seed, students, human),
        out,
        resume=resume,
        overwrite=overwrite,
        reporter=choose_reporter(quiet=quiet),
    )
    print_report(out, artifact, report, as_json=as_json, warned=len(warned))
