"""Preflight: memory and disk that a job needs, against the machine (``check_fits``); findings.

A finding has one of four levels: ``ok``, ``note`` (handled, worth knowing), ``warning``
(continues, but is probably unintended) and ``error`` (stops, with the code of the job's error).
Free resources vary, so ``preflight.json`` is written next to the output, not into it.

``accelerate launch`` and ``torchrun`` start one command several times; the environment variables
are theirs. Needs no torch, so that a command can check before it loads anything.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from stillroom.errors import Problem, RecipeError, ResourceError, StillroomError
from stillroom.jobs.progress import MessageLog
from stillroom.objects.disk import atomic_write

__all__ = [
    "Estimate",
    "Level",
    "Machine",
    "PreflightFinding",
    "PreflightReport",
    "check_fits",
    "count_processes",
    "describe_machine",
    "format_size",
    "get_process_rank",
    "require_single_process",
]


Level = Literal["ok", "note", "warning", "error"]


_LEVELS: tuple[Level, ...] = ("ok", "note", "warning", "error")


_FILE = "preflight.json"


@dataclass(frozen=True, slots=True)
class PreflightFinding:
    """Result of one check.

    Args:
        level: Severity.
        check: Name of the check.
        what: One sentence, with numbers.
        next: Suggested action, if there is one.
        error: Error that stops the job, at level ``error``.
    """

    level: Level
    check: str
    what: str
    next: str = ""
    error: StillroomError | None = None

    @classmethod
    def of_error(cls, check: str, error: StillroomError) -> PreflightFinding:
        """Build the finding of a ``StillroomError``."""
        problem = error.problems[0]
        return cls("error", check, f"{problem.what} [{problem.code}]", problem.next, error)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values, including the codes of an error's problems."""
        codes = [problem.code for problem in self.error.problems] if self.error else []
        return {
            "level": self.level,
            "check": self.check,
            "what": self.what,
            "next": self.next,
            **({"codes": codes} if codes else {}),
        }


@dataclass
class PreflightReport:
    """The findings of all checks, in order."""

    findings: list[PreflightFinding] = field(default_factory=list)

    @property
    def level(self) -> Level:
        """Highest level of the findings; ``ok`` without any."""
        return max((finding.level for finding in self.findings), key=_LEVELS.index, default="ok")

    def add(self, check: str, look: Callable[[], Sequence[PreflightFinding]]) -> None:
        """Run one check; a ``StillroomError`` becomes a finding, so that later checks still run."""
        try:
            self.findings += look()
        except StillroomError as error:
            self.findings.append(PreflightFinding.of_error(check, error))

    def raise_errors(self) -> None:
        """Raise the errors of all findings.

        Raises:
            StillroomError: Of the class of the first error, with the problems of all.
        """
        errors = [finding.error for finding in self.findings if finding.error is not None]
        if errors:
            raise type(errors[0])([problem for error in errors for problem in error.problems])

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {"level": self.level, "findings": [finding.to_json() for finding in self.findings]}

    def write(self, folder: Path) -> None:
        """Write preflight.json to ``folder``."""
        with atomic_write(folder / _FILE) as file:
            json.dump(self.to_json(), file, ensure_ascii=False, indent=1)
            file.write("\n")

    def log(self, log: MessageLog) -> None:
        """Log the notes and warnings; errors are raised by ``raise_errors``."""
        for finding in self.findings:
            line = f"{finding.check}: {finding.what}"
            if finding.level == "warning":
                log.warn(f"{line}; {finding.next}" if finding.next else line)
            elif finding.level == "note":
                log.say(f"note: {line}")

    def lines(self) -> list[str]:
        """Return the findings as a table, each followed by its action."""
        width = max((len(finding.check) for finding in self.findings), default=0)
        lines = []
        for finding in self.findings:
            lines.append(f"{finding.level:8}{finding.check:{width + 2}}{finding.what}")
            if finding.next and finding.level != "ok":
                lines.append(f"{'':{width + 10}}next: {finding.next}")
        return lines


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
