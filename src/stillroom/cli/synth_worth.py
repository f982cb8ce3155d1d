"""``stillroom synth worth``: which records make a student better?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stillroom.cli.judged import print_report
from stillroom.cli.options import existing_path, job_options, json_option
from stillroom.cli.students import print_estimate, student_options

__all__ = ["command"]


@click.command(
    "worth",
    epilog="""
\b
Examples:
  stillroom synth worth records --human held-out.jsonl --by filter --out report
  stillroom synth worth a.jsonl b.jsonl --human held-out.jsonl --by generator --out report \\
    --student hub:HuggingFaceTB/SmolLM2-135M-Instruct --lora-rank 8 --learning-rate 3e-4
""",
)
@click.argument("records", type=existing_path, nargs=-1, required=True)
@click.option(
    "--human",
    type=existing_path,
    required=True,
    help="Records that people wrote, to measure on; none of them may be learned from.",
)
@click.option(
    "--by",
    default="generator",
    show_default=True,
    help="Groups: generator, filter (needs dropped.jsonl), or the name of a field.",
)
@click.option(
    "--group",
    "groups",
    multiple=True,
    help="Compare this group; may be given again; 'all filters' is one of the filters'.",
)
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Per arm.")
@click.option(
    "--records",
    "most",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    help="Most records that a student learns from.",
)
@click.option(
    "--held-out",
    type=click.IntRange(2),
    default=200,
    show_default=True,
    help="Most human records that are measured on.",
)
@click.option(
    "--least",
    type=click.IntRange(1),
    default=20,
    show_default=True,
    help="Records that a group needs to be compared.",
)
@click.option(
    "--equal",
    type=click.Choice(["tokens", "records"]),
    default="tokens",
    show_default=True,
    help="What all arms learn from as much of.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Of everything that is drawn.")
@student_options
@click.option("--out", type=existing_path, required=True, help="The folder of the report.")
@click.option("--estimate", "only_estimate", is_flag=True, help="Say what it takes; do nothing.")
@json_option
@job_options
def command(
    records: tuple[Path, ...],
    human: Path,
    by: str,
    groups: tuple[str, ...],
    seeds: int,
    most: int,
    held_out: int,
    least: int,
    equal: str,
    seed: int,
    out: Path,
    only_estimate: bool,
    as_json: bool,
    resume: bool,
    overwrite: bool,
    quiet: bool,
    **student: Any,
) -> None:
    """Train small students on subsets of records and say which subsets make them better.

    Each group is left out, and taken alone, at equal size; every student is measured on the human
    records. With --by filter, what a filter dropped is put back in: does the filter help?
    """
    from stillroom.cli.students import make_student
    from stillroom.jobs import check_fits, choose_reporter, describe_machine
    from stillroom.synth.worth import Worth, estimate_worth, measure_worth

    plan = Worth(
        records,
        human,
        by,
        seeds,
        most,
        held_out,
        least,
        "records" if equal == "records" else "tokens",
        make_student(**student),
        seed,
        groups,
    )
    estimate = estimate_worth(plan)
    print_estimate(estimate, out, as_json=as_json, only=only_estimate, quiet=quiet)
    if only_estimate:
        return
    check_fits(estimate, describe_machine(out), "stillroom synth worth")
    artifact, report, _ = measure_worth(
        plan,
        out,
        resume=resume,
        overwrite=overwrite,
        reporter=choose_reporter(quiet=quiet),
    )
    print_report(out, artifact, report, as_json=as_json)
