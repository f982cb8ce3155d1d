"""Training options of the synth commands that train small students."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from stillroom.cli.options import FiniteFloat
from stillroom.cli.output import print_json

if TYPE_CHECKING:
    from stillroom.jobs import Estimate
    from stillroom.synth.experiments.students import StudentSettings

__all__ = ["build_student_settings", "print_estimate", "student_options"]

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


def student_options(function: CommandT) -> CommandT:
    """Add the options of the student and its training."""
    for option in (
        click.option("--threads", type=int, default=0, help="CPU threads; 0 takes all cores."),
        click.option(
            "--learning-rate",
            type=FiniteFloat(),
            default=4e-3,
            show_default=True,
            help="Peak learning rate.",
        ),
        click.option(
            "--batch-size", type=int, default=16, show_default=True, help="Records in a batch."
        ),
        click.option(
            "--steps",
            type=int,
            default=120,
            show_default=True,
            help="Optimizer steps of a student.",
        ),
        click.option(
            "--epochs",
            type=FiniteFloat(),
            default=0.0,
            help="Passes over the training data, in place of --steps: more records, more steps.",
        ),
        click.option(
            "--lora-rank", type=int, default=0, help="Rank of LoRA; 0 trains all weights."
        ),
        click.option(
            "--max-tokens", type=int, default=96, show_default=True, help="Maximum tokens a record."
        ),
        click.option(
            "--vocabulary",
            type=int,
            default=768,
            show_default=True,
            help="Vocabulary of a fresh student.",
        ),
        click.option(
            "--hidden",
            type=int,
            default=96,
            show_default=True,
            help="Hidden size of a fresh student.",
        ),
        click.option(
            "--layers", type=int, default=2, show_default=True, help="Layers of a fresh student."
        ),
        click.option(
            "--student",
            "start",
            default="fresh",
            show_default=True,
            help="Initial weights of students: 'fresh' for random weights, or a checkpoint.",
        ),
    ):
        function = option(function)
    return function


def build_student_settings(
    *,
    start: str,
    layers: int,
    hidden: int,
    vocabulary: int,
    max_tokens: int,
    lora_rank: int,
    steps: int,
    epochs: float,
    batch_size: int,
    learning_rate: float,
    threads: int,
) -> StudentSettings:
    """Return the settings that the options give.

    Raises:
        RecipeError: If one is out of range.
    """
    from pydantic import ValidationError

    from stillroom.errors import RecipeError
    from stillroom.synth.experiments.students import StudentSettings
    from stillroom.train import LoraSettings, TrainSettings

    try:
        return StudentSettings(
            start=start,
            layers=layers,
            hidden=hidden,
            vocabulary=vocabulary,
            max_tokens=max_tokens,
            train=TrainSettings(
                steps=None if epochs else steps,
                epochs=epochs or 1.0,
                batch_size=batch_size,
                learning_rate=learning_rate,
                threads=threads,
                log_every=max(steps // 4, 1),
                micro_tokens=4096 if start == "fresh" else 1024,
                precision="float32" if start == "fresh" else "auto",
                lora=LoraSettings(rank=lora_rank, alpha=2.0 * lora_rank) if lora_rank else None,
            ),
        )
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][-1]).replace("_", "-") if first["loc"] else "steps"
        raise RecipeError(
            f"--{name}: {first['msg']}",
            code="synth.student",
            expected="a value in range",
            next="see --help",
        ) from error


def print_estimate(
    estimate: Estimate, out: Path, *, as_json: bool, only: bool, quiet: bool
) -> None:
    """Print the estimate of a job: on stdout if requested, else on stderr before the job."""
    if only and as_json:
        print_json(
            {
                "out": str(out),
                "memory_bytes": estimate.memory_bytes,
                "disk_bytes": estimate.disk_bytes,
                "seconds": round(estimate.seconds, 1),
                "basis": estimate.basis,
            }
        )
    elif only or not quiet:
        minutes = estimate.seconds / 60
        click.echo(
            f"about {minutes:.0f} minutes (within a factor of three), "
            f"{estimate.memory_bytes / 1e9:.1f} GB of memory: {estimate.basis}",
            err=not only,
        )
