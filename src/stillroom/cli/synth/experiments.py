"""``stillroom synth generations``, ``worth`` and ``monitor``: experiments on data quality."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stillroom.cli.options import command, existing_path, path_option
from stillroom.cli.synth.options import report_options, run_study

__all__ = [
    "generations_command",
    "monitor_command",
    "worth_command",
]


@command(
    "generations",
    "stillroom synth generations human.jsonl --out report",
    "stillroom synth generations recipe.yaml --out report --rule replace --set human_share=0.1 \\\n"
    "    --set embedder=hub:sentence-transformers/all-MiniLM-L6-v2",
)
@click.argument("human", type=existing_path)
@click.option(
    "--rule",
    "rules",
    multiple=True,
    type=click.Choice(["replace", "accumulate", "accumulate_subsample"]),
    help="Training data of a generation; may be repeated; by default all three.",
)
@report_options
def generations_command(human: Path, rules: tuple[str, ...], **job: Any) -> None:
    """Train students on outputs of students over generations, and plot the degradation.

    HUMAN is a file of records or of text, an index, or a recipe of kind synth.records, whose
    passages are used. Every generation is measured on held-out human records, and its data by the
    collapse monitor. The settings are those of a recipe of kind synth.collapse.
    """
    settings: dict[str, Any] = {"kind": "synth.collapse", "human": str(human)}
    if rules:
        settings["rules"] = list(rules)
    run_study(settings, **job)


@command(
    "worth",
    "stillroom synth worth records --human held-out.jsonl --by filter --out report",
    "stillroom synth worth a.jsonl b.jsonl --human held-out.jsonl --by generator --out report \\\n"
    "    --set student.checkpoint=hub:HuggingFaceTB/SmolLM2-135M-Instruct \\\n"
    "    --set student.train.lora.rank=8 --set student.train.learning_rate=3e-4",
)
@click.argument("records", type=existing_path, nargs=-1, required=True)
@path_option(
    "--human", required=True, help="Human records to measure on; none may be used for training."
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
@report_options
def worth_command(
    records: tuple[Path, ...], human: Path, by: str, groups: tuple[str, ...], **job: Any
) -> None:
    """Measure the value of subsets of records by training small students on them.

    Each group is left out, and taken alone, at equal size; every student is measured on the human
    records. With --by filter, dropped records are put back: does the filter help? The settings are
    those of a recipe of kind synth.data_value.
    """
    settings = {
        "kind": "synth.data_value",
        "records": list(map(str, records)),
        "human": str(human),
        "by": by,
        "groups": list(groups),
    }
    run_study(settings, **job)


@command(
    "monitor",
    "stillroom synth monitor human.jsonl generation-1.jsonl generation-2.jsonl --out report",
    "stillroom synth monitor human.jsonl made.jsonl --out report \\\n"
    "    --set embedder=hub:sentence-transformers/all-MiniLM-L6-v2",
)
@click.argument("generations", type=existing_path, nargs=-1, required=True)
@click.option(
    "--student",
    "students",
    multiple=True,
    help="Student trained on a generation, one for each in order: also measure the perplexity of "
    "--human.",
)
@path_option("--human", help="Human records that no --student was trained on.")
@report_options
def monitor_command(
    generations: tuple[Path, ...], students: tuple[str, ...], human: Path | None, **job: Any
) -> None:
    """Compare generations of data with the first, human one, and warn of collapse.

    Every metric is computed on samples of equal size. Rare words vanish first: watch 'tail', and
    'surprise', the cross-entropy of human text under a model of the generation. The settings are
    those of a recipe of kind synth.diversity.
    """
    settings: dict[str, Any] = {
        "kind": "synth.diversity",
        "generations": list(map(str, generations)),
    }
    if students or human is not None:
        settings["perplexity"] = {
            **({"students": list(students)} if students else {}),
            **({"human": str(human)} if human is not None else {}),
        }
    run_study(settings, **job)
