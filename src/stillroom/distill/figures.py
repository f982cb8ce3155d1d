"""``Figures``: what was measured of each record, its means over all, and their intervals.

Knows names and units of figures, not what they mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Generic, Self, TypeVar

from stillroom.evaluate import bootstrap

__all__ = ["Figures"]

R = TypeVar("R")


@dataclass(frozen=True)
class Figures(Generic[R]):
    """Rows of figures, one a record; subclasses say what a row is and what is told of it.

    ``measures`` gives each figure's unit, and the field of a row that it is counted by. ``lines``
    are those that a report shows: in words, the student's figure and the teacher's own, either of
    which may be absent. ``nearness`` is the figure that says how far the teacher is.
    """

    rows: tuple[R, ...]

    row: ClassVar[type[Any]]
    measures: ClassVar[Mapping[str, tuple[str, str]]]
    lines: ClassVar[tuple[tuple[str, str, str], ...]] = ()
    nearness: ClassVar[str] = "kl"

    def mean(self, name: str) -> float:
        """Return one figure's mean over all that it is counted by; 0 where there is nothing."""
        by = self.measures[name][1]
        total = sum(getattr(row, by) for row in self.rows)
        summed = sum(getattr(row, name) * getattr(row, by) for row in self.rows)
        return float(summed / total) if total else 0.0

    def summarize(self, seed: int = 0) -> dict[str, Any]:
        """Return each mean with its 95 % bootstrap interval over records, n, and what was counted.

        An end of an interval that cannot be given is null.
        """
        counted = {by for _, by in self.measures.values()}
        full = [row for row in self.rows if any(getattr(row, by) for by in counted)]
        found: dict[str, Any] = {"records": len(full)}
        found |= {by: sum(getattr(row, by) for row in full) for by in sorted(counted)}
        for name, (unit, by) in self.measures.items():
            rows = [row for row in self.rows if getattr(row, by)]
            metric = bootstrap(
                [float(getattr(row, name)) for row in rows],
                weights=[getattr(row, by) for row in rows],
                seed=seed,
                name=name,
                unit=unit,
            ).to_json()
            found[name] = {key: metric[key] for key in ("value", "low", "high")}
        return found

    def to_json(self) -> list[dict[str, Any]]:
        """Return one plain row a record."""
        return [asdict(row) for row in self.rows]  # type: ignore[call-overload]  # R is a dataclass

    @classmethod
    def from_json(cls, rows: Sequence[Mapping[str, Any]]) -> Self:
        """Read what ``to_json`` wrote."""
        return cls(tuple(cls.row(**row) for row in rows))
