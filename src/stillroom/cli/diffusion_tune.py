"""``stillroom diffusion tune``: which decoding settings are worth their time."""

from __future__ import annotations

from pathlib import Path

import click

from stillroom.cli.numbers import FiniteRange
from stillroom.cli.options import existing_path, job_options, json_option

__all__ = ["command"]


@click.command(
    "tune",
    epilog="""
\b
Examples:
  stillroom diffusion tune trained --records records.jsonl --out tuned
  stillroom diffusion tune trained --records r.jsonl --out tuned --try commit.threshold=0.8,0.9
""",
)
@click.argument("checkpoint")
@click.option(
    "--records", type=existing_path, required=True, help="Records whose answers are written."
)
@click.option("--split", default="", help="Only records of this split; empty is all.")
@click.option("--most", type=click.IntRange(min=1), default=32, help="Most records.")
@click.option(
    "--try",
    "tried",
    multiple=True,
    metavar="KEY=VALUE,VALUE",
    help="A row of the grid; may be repeated. Others keep threshold x block x cache x order.",
)
@click.option("--set", "fixed", multiple=True, metavar="KEY=VALUE", help="A setting that all have.")
@click.option(
    "--measure", default="f1", help="How a text is compared with the answer: f1, exact, same."
)
@click.option(
    "--loss",
    type=FiniteRange(min=0, max=1),
    default=0.01,
    help="Quality that may be lost against one place a step.",
)
@click.option("--name", default="tuned", help="Of the preset.")
@click.option(
    "--write",
    "is_written",
    is_flag=True,
    help="Leave the preset at the checkpoint: whoever asks this model then writes by it.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Of draws and intervals.")
@click.option("--model-is", multiple=True, metavar="KEY=VALUE", help="What is known of the model.")
@click.option("--out", type=existing_path, required=True, help="The folder of the report.")
@json_option
@job_options
def command(
    checkpoint: str,
    records: Path,
    split: str,
    most: int,
    tried: tuple[str, ...],
    fixed: tuple[str, ...],
    measure: str,
    loss: float,
    name: str,
    is_written: bool,
    seed: int,
    model_is: tuple[str, ...],
    out: Path,
    as_json: bool,
    resume: bool,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Measure quality against readings and seconds, and write the best settings as a preset.

    Every setting of a grid (threshold x block x cache x order, or what --try says) writes the
    answers of the records, beside one place a step with nothing kept. Printed is what nothing else
    beats; output/preset.yaml is the cheapest that loses at most --loss. With --write, serve, synth,
    rag and evaluate write by it, and completions name it.
    """
    from stillroom.cli.diffusion_words import open_model
    from stillroom.cli.judged import align_columns
    from stillroom.cli.options import print_json
    from stillroom.diffusion.presets import PRESET_FILE, write_preset
    from stillroom.diffusion.tuning_job import TunePlan, tune_decoding
    from stillroom.jobs import choose_reporter

    if is_written and not Path(checkpoint).is_dir():
        raise click.UsageError("--write leaves a preset in the checkpoint's folder: give its path")
    model = open_model(checkpoint, model_is)
    plan = TunePlan(checkpoint, records, split, most, tried, fixed, measure, loss, name, seed)
    artifact, report, preset = tune_decoding(
        model,
        plan,
        out,
        resume=resume,
        overwrite=overwrite,
        reporter=choose_reporter(quiet=quiet),
    )
    if is_written:
        write_preset(Path(checkpoint) / PRESET_FILE, preset)
    if as_json:
        told = {"digest": artifact.digest, "preset": preset.model_dump(mode="json")}
        print_json({"out": str(out), **told, **report.to_json()})
        return
    click.echo(report.summary)
    front = report.sections[0].table
    if front is not None:
        click.echo(f"\n{report.sections[0].title}, {front.caption} (* is the preset):")
        click.echo(align_columns([front.columns, *front.rows]))
    click.echo(f"\npreset   {out / 'output' / 'preset.yaml'}")
    click.echo(f"report   {out / 'output' / 'report.html'}")
    click.echo(f'use      stillroom diffusion sample {checkpoint} "..." --preset {out}')
