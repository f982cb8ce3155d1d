"""Resource estimates of jobs, machine resources and process rank.

``accelerate launch`` and ``torchrun`` start one command several times; the environment variables
are theirs. Needs no torch, so that a command can check before it loads anything.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from stillroom.errors import Problem, RecipeError, ResourceError

__all__ = [
    "Estimate",
    "Machine",
    "check_fits",
    "count_processes",
    "describe_machine",
    "format_size",
    "get_process_rank",
    "require_single_process",
]


@dataclass(frozen=True, slots=True)
class Estimate:
    """Peak memory, disk to write and time of a job, with the settings that lower each.

    ``basis`` is the basis of the figures in one line. Times are accurate within a factor of three.
    """

    memory_bytes: int = 0
    disk_bytes: int = 0
    seconds: float = 0.0
    memory_knob: str = ""
    disk_knob: str = ""
    basis: str = ""

    def __add__(self, other: Estimate) -> Estimate:
        """Combine the estimates of sequential jobs: peak memory, summed disk and time."""
        return Estimate(
            max(self.memory_bytes, other.memory_bytes),
            self.disk_bytes + other.disk_bytes,
            self.seconds + other.seconds,
            self.memory_knob if self.memory_bytes >= other.memory_bytes else other.memory_knob,
            self.disk_knob if self.disk_bytes >= other.disk_bytes else other.disk_knob,
            "; ".join(part for part in (self.basis, other.basis) if part),
        )


@dataclass(frozen=True, slots=True)
class Machine:
    """Free memory and disk, and the number of cores."""

    memory_bytes: int
    disk_bytes: int
    cores: int


def describe_machine(out: Path) -> Machine:
    """Return free memory (with cgroup limits) and free disk space at ``out``."""
    import psutil

    memory = int(psutil.virtual_memory().available)
    limit = Path("/sys/fs/cgroup/memory.max")
    used = Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and (text := limit.read_text().strip()).isdigit():
        memory = min(memory, max(int(text) - int(used.read_text()), 0))
    folder = out.absolute()
    while not folder.exists():
        folder = folder.parent
    return Machine(memory, shutil.disk_usage(folder).free, os.cpu_count() or 1)


def check_fits(estimate: Estimate, machine: Machine, where: str) -> None:
    """Check that a job fits the machine.

    Raises:
        ResourceError: If memory or disk is insufficient, with the size and the setting to change.
    """
    problems = []
    if estimate.memory_bytes > machine.memory_bytes:
        problems.append(
            Problem(
                f"the job needs about {format_size(estimate.memory_bytes)} of memory",
                "resource.memory",
                where,
                f"at most the {format_size(machine.memory_bytes)} that are free",
                estimate.memory_knob or "use a machine with more memory",
            )
        )
    if estimate.disk_bytes > machine.disk_bytes:
        problems.append(
            Problem(
                f"the job writes about {format_size(estimate.disk_bytes)} to disk",
                "resource.disk",
                where,
                f"at most the {format_size(machine.disk_bytes)} that are free",
                f"free some space, choose another --out, or {estimate.disk_knob or 'make less'}",
            )
        )
    if problems:
        raise ResourceError(problems)


def format_size(count: int) -> str:
    """Format a number of bytes for a person."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


def count_processes() -> int:
    """Return the number of processes of this job; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def get_process_rank() -> int:
    """Return this process's rank, from 0; rank 0 writes the output."""
    return int(os.environ.get("RANK", "0")) if count_processes() > 1 else 0


def require_single_process(task: str) -> None:
    """Refuse a single-process job under a multi-process launcher.

    Raises:
        RecipeError: If there are several.
    """
    if count_processes() > 1:
        raise RecipeError(
            f"{task} is done by one process, and {count_processes()} were started",
            code="job.one-process",
            expected="a distillation in one vocabulary, the training of a diffusion model, or no "
            "launcher",
            next="run stillroom without accelerate launch or torchrun",
        )
