"""Which of several processes this one is, by the environment that a launcher set.

``accelerate launch`` and ``torchrun`` start one command several times; the variables are theirs.
Needs no torch, so that a command can ask before it loads anything.
"""

from __future__ import annotations

import os

from stillroom.errors import RecipeError

__all__ = ["count_processes", "process_rank", "refuse_several"]


def count_processes() -> int:
    """Return how many processes do this job together; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_rank() -> int:
    """Return this process's number among them, from 0; 0 is the one that writes."""
    return int(os.environ.get("RANK", "0")) if count_processes() > 1 else 0


def refuse_several(what: str) -> None:
    """Refuse a job that one process does, where a launcher started several.

    Raises:
        RecipeError: If there are several.
    """
    if count_processes() > 1:
        raise RecipeError(
            f"{what} is done by one process, and {count_processes()} were started",
            code="job.one-process",
            expected="a distillation in one vocabulary, the training of a diffusion model, or no "
            "launcher",
            next="run stillroom without accelerate launch or torchrun",
        )
