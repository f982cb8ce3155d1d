"""Preflight: what would go wrong in a distillation, found before it starts.

Each check gives findings of four levels: ``ok``, ``note`` (handled, worth knowing), ``warning``
(goes on, probably not what you want) and ``error`` (stops, with the code that the job would stop
with later). What is free on the machine changes, so ``preflight.json`` lies beside the output.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stillroom.errors import StillroomError
from stillroom.evaluate import paired_difference, say_few
from stillroom.jobs import atomic_write

if TYPE_CHECKING:
    from stillroom.distill.fidelity import Fidelity

__all__ = ["Finding", "Level", "Preflight", "judge_teacher"]

Level = Literal["ok", "note", "warning", "error"]
_LEVELS: tuple[Level, ...] = ("ok", "note", "warning", "error")
_FILE = "preflight.json"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Args:
        level: How bad it is.
        check: What was looked at.
        what: One sentence, with its numbers.
        next: What helps, where something does.
        error: What stops the job, at level ``error``.
    """

    level: Level
    check: str
    what: str
    next: str = ""
    error: StillroomError | None = None

    @classmethod
    def of_error(cls, check: str, error: StillroomError) -> Finding:
        """Return the finding of a deliberate error."""
        problem = error.problems[0]
        return cls("error", check, f"{problem.what} [{problem.code}]", problem.next, error)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; the codes of an error's problems among them."""
        codes = [problem.code for problem in self.error.problems] if self.error else []
        return {
            "level": self.level,
            "check": self.check,
            "what": self.what,
            "next": self.next,
            **({"codes": codes} if codes else {}),
        }


@dataclass
class Preflight:
    """The findings of all checks, in order."""

    findings: list[Finding] = field(default_factory=list)

    @property
    def level(self) -> Level:
        """The worst level found; ``ok`` where nothing was."""
        return max((one.level for one in self.findings), key=_LEVELS.index, default="ok")

    def add(self, check: str, look: Callable[[], Sequence[Finding]]) -> None:
        """Run one check; a deliberate error becomes a finding, so that the others still run."""
        try:
            self.findings += look()
        except StillroomError as error:
            self.findings.append(Finding.of_error(check, error))

    def raise_errors(self) -> None:
        """Stop where anything was found that cannot go well.

        Raises:
            StillroomError: The first error found, of its own class, with the problems of all.
        """
        errors = [one.error for one in self.findings if one.error is not None]
        if errors:
            raise type(errors[0])([problem for error in errors for problem in error.problems])

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"level": self.level, "findings": [one.to_json() for one in self.findings]}

    def write(self, folder: Path) -> None:
        """Write preflight.json into ``folder``."""
        with atomic_write(folder / _FILE) as file:
            json.dump(self.to_json(), file, ensure_ascii=False, indent=1)
            file.write("\n")

    def lines(self, *, least: Level = "ok") -> list[str]:
        """Return the findings as a table, from a level upwards; what helps stands below."""
        shown = [one for one in self.findings if _LEVELS.index(one.level) >= _LEVELS.index(least)]
        width = max((len(one.check) for one in shown), default=0)
        lines = []
        for one in shown:
            lines.append(f"{one.level:8}{one.check:{width + 2}}{one.what}")
            if one.next and one.level != "ok":
                lines.append(f"{'':{width + 10}}next: {one.next}")
        return lines


def judge_teacher(teacher: Fidelity, student: Fidelity, *, seed: int = 0) -> Finding:
    """Say whether the teacher is better than the student on these records' own tokens.

    Args:
        teacher: Its loss by record.
        student: The student's, before training, on the same records.
        seed: Of the bootstrap.
    """
    pairs = [
        (one.loss, other.loss, one.tokens)
        for one, other in zip(teacher.rows, student.rows, strict=True)
        if one.tokens
    ]
    check = "teacher on this data"
    if len(pairs) < 2:
        return Finding("note", check, say_few(len(pairs), "held-out records"), "hold more out")
    gap = paired_difference(
        [one for one, _, _ in pairs],
        [other for _, other, _ in pairs],
        weights=[tokens for _, _, tokens in pairs],
        seed=seed,
    )
    said = (
        f"its loss less the student's is {gap.value:+.3f} nats a token (95 % {gap.low:+.3f} to "
        f"{gap.high:+.3f}) on {gap.n} held-out records"
    )
    if gap.is_few:
        few = say_few(gap.n, "held-out records").rstrip(".")
        return Finding("note", check, f"{few}: {said}", "hold more records out")
    if gap.side() > 0:
        return Finding(
            "warning",
            check,
            f"the teacher is worse than the student: {said}",
            "choose a teacher that knows this kind of text, or fine-tune it on the records first",
        )
    if not gap.side():
        return Finding("note", check, f"no difference can be told: {said}", "hold more records out")
    return Finding("ok", check, f"the teacher is better: {said}")
