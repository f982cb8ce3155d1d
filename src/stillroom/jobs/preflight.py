"""Findings of the checks that a job runs before it starts.

A finding has one of four levels: ``ok``, ``note`` (handled, worth knowing), ``warning``
(continues, but is probably unintended) and ``error`` (stops, with the code of the job's error).
Free resources vary, so ``preflight.json`` is written next to the output, not into it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from stillroom.errors import StillroomError
from stillroom.jobs.files import atomic_write

__all__ = ["Level", "PreflightFinding", "PreflightReport"]

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

    def lines(self, *, least: Level = "ok") -> list[str]:
        """Return the findings from a level upwards as a table, each followed by its action."""
        selected = [
            finding
            for finding in self.findings
            if _LEVELS.index(finding.level) >= _LEVELS.index(least)
        ]
        width = max((len(finding.check) for finding in selected), default=0)
        lines = []
        for finding in selected:
            lines.append(f"{finding.level:8}{finding.check:{width + 2}}{finding.what}")
            if finding.next and finding.level != "ok":
                lines.append(f"{'':{width + 10}}next: {finding.next}")
        return lines
