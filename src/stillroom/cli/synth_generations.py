"""``stillroom synth generations``: what becomes of students that learn from what students wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stillroom.cli.judged import print_report
from stillroom.cli.numbers import Finite, FiniteRange
from stillroom.cli.options import existing_path, job_options, json_option
from stillroom.cli.students import print_estimate, student_options

__all__ = ["command"]


@click.command(
    "generations",
    epilog="""
\b
Examples:
  stillroom synth generations human.jsonl --out report
  stillroom synth generations recipe.yaml --out report --rule replace --human-share 0.1 \\
    --embedder hub:sentence-transformers/all-MiniLM-L6-v2
""",
)
@click.argument("human", type=existing_path)
@click.option(
    "--rule",
    "rules",
    multiple=True,
    type=click.Choice(["replace", "accumulate", "accumulate_subsample"]),
    help="What a generation learns from; may be given again; by default all three.",
)
@click.option(
    "--generations",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="After the one of human records.",
)
@click.option("--seeds", type=int, default=3, show_default=True, help="How often all is done.")
@click.option(
    "--records", type=int, default=400, show_default=True, help="Human records to learn from."
)
@click.option(
    "--held-out", type=int, default=200, show_default=True, help="Human records to measure on."
)
@click.option(
    "--human-share",
    type=Finite(),
    default=0.0,
    show_default=True,
    help="Least share of human records in every generation.",
)
@click.option("--embedder", default="", help="Measure spread and coverage of meanings too.")
@click.option(
    "--tolerance",
    type=FiniteRange(0, 1),
    default=0.05,
    show_default=True,
    help="Share of a figure that may be lost without a warning.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Of everything that is drawn.")
@student_options
@click.option("--out", type=existing_path, required=True, help="The folder of the report.")
@click.option("--estimate", "only_estimate", is_flag=True, help="Say what it takes; do nothing.")
@json_option
@job_options
def command(
    human: Path,
    rules: tuple[str, ...],
    generations: int,
    seeds: int,
    records: int,
    held_out: int,
    human_share: float,
    embedder: str,
    tolerance: float,
    seed: int,
    out: Path,
    only_estimate: bool,
    as_json: bool,
    resume: bool,
    overwrite: bool,
    quiet: bool,
    **student: Any,
) -> None:
    """Train students on what students wrote, generation by generation, and plot what it costs.

    HUMAN is a file of records or of text, an index, or a recipe of kind synth, whose passages are
    taken. Every generation is measured on human records that nobody learned from, and its data by
    the collapse monitor.
    """
    from stillroom.cli.students import make_student
    from stillroom.jobs import check_fits, choose_reporter, describe_machine
    from stillroom.synth.generations import (
        Generations,
        compare_generations,
        estimate_generations,
    )
    from stillroom.synth.mixing import RULES

    plan = Generations(
        human,
        tuple(rule for rule in RULES if rule in rules) or RULES,
        generations,
        seeds,
        records,
        held_out,
        human_share,
        make_student(**student),
        embedder,
        tolerance,
        seed,
    )
    estimate = estimate_generations(plan)
    print_estimate(estimate, out, as_json=as_json, only=only_estimate, quiet=quiet)
    if only_estimate:
        return
    check_fits(estimate, describe_machine(out), "stillroom synth generations")
    artifact, report, outcome = compare_generations(
        plan,
        out,
        resume=resume,
        overwrite=overwrite,
        reporter=choose_reporter(quiet=quiet),
    )
    warned = sum(len(found) for found in outcome.warned.values())
    print_report(out, artifact, report, as_json=as_json, warned=warned)
