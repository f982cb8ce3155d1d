"""``stillroom synth generations``, ``worth`` and ``monitor``: experiments on data quality."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stillroom.cli.options import (
    FiniteFloat,
    FiniteFloatRange,
    existing_path,
    out_folder_option,
    run_options,
    seed_option,
)
from stillroom.cli.output import print_report
from stillroom.cli.synth.options import print_estimate, student_options

__all__ = [
    "generations_command",
    "monitor_command",
    "worth_command",
]


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
    help="Training data of a generation; may be repeated; by default all three.",
)
@click.option(
    "--generations",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Number of generations after the human one.",
)
@click.option("--seeds", type=int, default=3, show_default=True, help="Number of repetitions.")
@click.option(
    "--records",
    type=int,
    default=400,
    show_default=True,
    help="Number of human training records.",
)
@click.option(
    "--held-out", type=int, default=200, show_default=True, help="Number of human test records."
)
@click.option(
    "--human-share",
    type=FiniteFloat(),
    default=0.0,
    show_default=True,
    help="Minimum share of human records in every generation.",
)
@click.option(
    "--embedder", default="", help="Also measure semantic spread and coverage with this embedder."
)
@click.option(
    "--tolerance",
    type=FiniteFloatRange(0, 1),
    default=0.05,
    show_default=True,
    help="Share of a metric that may be lost without a warning.",
)
@seed_option
@student_options
@out_folder_option
@click.option("--estimate", "only_estimate", is_flag=True, help="Print the estimate; run nothing.")
@run_options
def generations_command(
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
    """Train students on outputs of students over generations, and plot the degradation.

    HUMAN is a file of records or of text, an index, or a recipe of kind synth, whose passages are
    used. Every generation is measured on held-out human records, and its data by the collapse
    monitor.
    """
    from stillroom.cli.synth.options import build_student_settings
    from stillroom.jobs import check_fits, choose_reporter, describe_machine
    from stillroom.synth.experiments.model_collapse import (
        estimate_collapse_study,
        run_collapse_study,
    )
    from stillroom.synth.experiments.model_collapse_report import CollapseStudy
    from stillroom.synth.selection import MIX_RULES

    plan = CollapseStudy(
        human,
        tuple(rule for rule in MIX_RULES if rule in rules) or MIX_RULES,
        generations,
        seeds,
        records,
        held_out,
        human_share,
        build_student_settings(**student),
        embedder,
        tolerance,
        seed,
    )
    estimate = estimate_collapse_study(plan)
    print_estimate(estimate, out, as_json=as_json, only=only_estimate, quiet=quiet)
    if only_estimate:
        return
    check_fits(estimate, describe_machine(out), "stillroom synth generations")
    artifact, report, outcome = run_collapse_study(
        plan,
        out,
        resume=resume,
        overwrite=overwrite,
        reporter=choose_reporter(quiet=quiet),
    )
    warned = sum(len(warnings) for warnings in outcome.warned.values())
    print_report(out, artifact, report, as_json=as_json, warned=warned)


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
    help="Human records to measure on; none may be used for training.",
)
@click.option(
    "--by",
    default="generator",
    show_default=True,
    help="Grouping: generator, filter (needs dropped.jsonl), or the name of a field.",
)
@click.option(
    "--group",
    "groups",
    multiple=True,
    help="Group to compare; may be repeated; 'all filters' is one of the filters'.",
)
@click.option(
    "--seeds",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Number of seeds for each arm.",
)
@click.option(
    "--records",
    "most",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    help="Maximum number of training records of a student.",
)
@click.option(
    "--held-out",
    type=click.IntRange(2),
    default=200,
    show_default=True,
    help="Maximum number of human test records.",
)
@click.option(
    "--least",
    type=click.IntRange(1),
    default=20,
    show_default=True,
    help="Minimum number of records of a group.",
)
@click.option(
    "--equal",
    type=click.Choice(["tokens", "records"]),
    default="tokens",
    show_default=True,
    help="Unit of equal size: all arms train on the same amount of it.",
)
@seed_option
@student_options
@out_folder_option
@click.option("--estimate", "only_estimate", is_flag=True, help="Print the estimate; run nothing.")
@run_options
def worth_command(
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
    """Measure the value of subsets of records by training small students on them.

    Each group is left out, and taken alone, at equal size; every student is measured on the human
    records. With --by filter, dropped records are put back: does the filter help?
    """
    from stillroom.cli.synth.options import build_student_settings
    from stillroom.jobs import check_fits, choose_reporter, describe_machine
    from stillroom.synth.experiments.ablations import DataValueStudy
    from stillroom.synth.experiments.data_value import (
        estimate_data_value_study,
        run_data_value_study,
    )

    plan = DataValueStudy(
        records,
        human,
        by,
        seeds,
        most,
        held_out,
        least,
        "records" if equal == "records" else "tokens",
        build_student_settings(**student),
        seed,
        groups,
    )
    estimate = estimate_data_value_study(plan)
    print_estimate(estimate, out, as_json=as_json, only=only_estimate, quiet=quiet)
    if only_estimate:
        return
    check_fits(estimate, describe_machine(out), "stillroom synth worth")
    artifact, report, _ = run_data_value_study(
        plan,
        out,
        resume=resume,
        overwrite=overwrite,
        reporter=choose_reporter(quiet=quiet),
    )
    print_report(out, artifact, report, as_json=as_json)


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
@click.option(
    "--embedder", default="", help="Also measure semantic spread and coverage with this embedder."
)
@click.option(
    "--student",
    "students",
    multiple=True,
    help="Checkpoint trained on a generation; once for each, in order.",
)
@click.option(
    "--human", type=existing_path, help="Held-out records, for the perplexity of the students."
)
@click.option(
    "--tolerance",
    type=FiniteFloatRange(0, 1),
    default=0.05,
    show_default=True,
    help="Share of the reference value that may be lost without a warning.",
)
@click.option(
    "--budget",
    type=click.IntRange(0),
    default=0,
    help="Number of words of a sample; 0 chooses one.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Random seed of the samples.")
@out_folder_option
@run_options
def monitor_command(
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
    """Compare generations of data with the first, human one, and warn of collapse.

    Every metric is computed on samples of equal size. Rare words vanish first: watch 'tail', and
    'surprise', the cross-entropy of human text under a model of the generation.
    """
    from stillroom.jobs import choose_reporter
    from stillroom.synth.experiments.diversity_monitor import (
        DiversityMonitorSettings,
        monitor_diversity,
    )

    artifact, report, warned = monitor_diversity(
        DiversityMonitorSettings(generations, embedder, tolerance, budget, seed, students, human),
        out,
        resume=resume,
        overwrite=overwrite,
        reporter=choose_reporter(quiet=quiet),
    )
    print_report(out, artifact, report, as_json=as_json, warned=len(warned))
