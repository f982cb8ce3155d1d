"""Fidelity metrics of a student against its teacher on held-out records.

Both read the same tokens; the assistant's alone are counted. Per-record values are kept, so that
anyone can resample them. A side is all that was measured of one model: teacher, start, student or
control, each by the same code. Knows nothing of how they are shown.

Knows names and units of figures, not what they mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
import numpy.typing as npt

from stillroom.evaluate import bootstrap
from stillroom.evaluate.lm.divergence import DistributionMetrics, compare_distributions
from stillroom.evaluate.lm.loss import encode_records
from stillroom.evaluate.metrics.calibration import NUM_BINS
from stillroom.records import Record

__all__ = [
    "BASELINE",
    "METRIC_UNITS",
    "TEACHER",
    "Fidelity",
    "GeneratedAnswer",
    "ModelFidelity",
    "RecordFidelity",
    "RecordMetrics",
    "TemperatureScaled",
    "bin_by_position",
    "measure_fidelity",
]


R = TypeVar("R")


@dataclass(frozen=True)
class RecordMetrics(Generic[R]):
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


Floats = npt.NDArray[np.float64]


METRIC_UNITS = {
    "kl": "nats/token",
    "reverse_kl": "nats/token",
    "agreement": "",
    "top5_overlap": "",
    "loss": "nats/token",
    "entropy": "nats/token",
    "entropy_gap": "nats/token",
    "brier": "",
}


"""What is told of each record, and its unit."""


@dataclass(frozen=True, slots=True)
class RecordFidelity:
    """One record: means over its assistant tokens, in nats a token; shares have no unit.

    ``agreement`` is that of the likeliest token, ``top5_overlap`` that of the five likeliest,
    ``brier`` the squared distance to the record's own token.
    """

    record: str
    kl: float
    reverse_kl: float
    agreement: float
    loss: float
    tokens: int
    top5_overlap: float = 0.0
    entropy: float = 0.0
    teacher_entropy: float = 0.0
    brier: float = 0.0

    @property
    def entropy_gap(self) -> float:
        """The student's entropy less the teacher's; below 0 it is surer than its teacher."""
        return self.entropy - self.teacher_entropy

    @classmethod
    def of(cls, record: Record, found: DistributionMetrics) -> RecordFidelity:
        """Return what was compared on a record, under its id."""
        return cls(
            record.id,
            found.kl,
            found.reverse_kl,
            found.agreement,
            found.loss,
            found.tokens,
            found.top5_overlap,
            found.entropy,
            found.teacher_entropy,
            found.brier,
        )


class Fidelity(RecordMetrics[RecordFidelity]):
    """KL(teacher || student), KL(student || teacher), agreement, cross-entropy, by record."""

    row = RecordFidelity
    measures: ClassVar = {name: (unit, "tokens") for name, unit in METRIC_UNITS.items()}


@dataclass(frozen=True, slots=True)
class TemperatureScaled:
    """One record that the temperature was not fitted on, before and after it.

    Args:
        tokens: How many count.
        loss: After scaling, nats a token.
        brier: After scaling.
        bins: ``bin_positions`` after scaling, (3, BINS).
        plain_bins: The same before.
    """

    tokens: int
    loss: float
    brier: float
    bins: tuple[tuple[float, ...], ...]
    plain_bins: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class GeneratedAnswer:
    """One record's likeliest answer by a model, beside its reference."""

    record: str
    text: str
    reference: str
    ids: tuple[int, ...]
    has_ended: bool


@dataclass(frozen=True)
class ModelFidelity:
    """All that was measured of one model; lists of text stay empty where none was written.

    Args:
        fidelity: By record.
        bins: ``bin_positions`` of each record with tokens, (records, 3, BINS).
        temperature: Fitted on every second record; None where that could not be.
        scaled: The other records.
        answers: The likeliest answers.
        sampled: Token ids of what it wrote by sampling from its whole distribution.
        free: KL(teacher || it) at each depth of ``sampled``, by record.
        forced: The same on what the teacher sampled after the same prompts.
        depth: KL(teacher || it) by how many of a record's counted tokens stand before: sums and
            numbers of tokens, one pair for each power of two (``bin_by_position``).
    """

    fidelity: Fidelity
    bins: Floats
    temperature: float | None = None
    scaled: tuple[TemperatureScaled, ...] = ()
    answers: tuple[GeneratedAnswer, ...] = ()
    sampled: tuple[tuple[int, ...], ...] = ()
    free: tuple[Floats, ...] = ()
    forced: tuple[Floats, ...] = ()
    depth: tuple[tuple[float, float], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "rows": self.fidelity.to_json(),
            "bins": self.bins.tolist(),
            "temperature": self.temperature,
            "scaled": [asdict(row) for row in self.scaled],
            "answers": [asdict(row) for row in self.answers],
            "sampled": [list(row) for row in self.sampled],
            "free": [row.tolist() for row in self.free],
            "forced": [row.tolist() for row in self.forced],
            "depth": [list(pair) for pair in self.depth],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ModelFidelity:
        """Read what ``to_json`` wrote."""
        return cls(
            Fidelity.from_json(data["rows"]),
            np.asarray(data["bins"], dtype=np.float64).reshape(-1, 3, NUM_BINS),
            data["temperature"],
            tuple(TemperatureScaled(**row) for row in data["scaled"]),
            tuple(GeneratedAnswer(**{**row, "ids": tuple(row["ids"])}) for row in data["answers"]),
            tuple(tuple(row) for row in data["sampled"]),
            tuple(np.asarray(row, dtype=np.float64) for row in data["free"]),
            tuple(np.asarray(row, dtype=np.float64) for row in data["forced"]),
            tuple((float(total), float(count)) for total, count in data.get("depth", ())),
        )


def bin_by_position(rows: Sequence[Floats]) -> tuple[tuple[float, float], ...]:
    """Return sums and numbers of values by their place in a row, joined by powers of two.

    The first pair holds the first value of each row, the second the second, then the third and
    fourth, the next four, and so on.

    Args:
        rows: One value a place, (n,) each.
    """
    longest = max((len(row) for row in rows), default=0)
    pairs, start, end = [], 0, 1
    while start < longest:
        parts = [row[start:end] for row in rows]
        count = float(sum(len(part) for part in parts))
        pairs.append((float(sum(part.sum() for part in parts)), count))
        start, end = end, 2 * end
    return tuple(pairs)


def measure_fidelity(
    student: Any,
    teacher: Any,
    tokenizer: Any,
    records: Sequence[Record],
    *,
    max_tokens: int = 512,
    on_truncated: Callable[[int, int], None] | None = None,
) -> Fidelity:
    """Compare a student with its teacher on held-out records.

    Args:
        student: A causal model in memory.
        teacher: Another with the same tokenizer.
        tokenizer: The tokenizer of both.
        records: Never learned from.
        max_tokens: Tokens of a record that are read, from its start.
        on_truncated: Hears the index of each record that was cut and how many tokens fell off.
    """
    encoded = encode_records(tokenizer, records, max_tokens=max_tokens, on_truncated=on_truncated)
    found, _ = compare_distributions(student, teacher, encoded)
    return Fidelity(tuple(map(RecordFidelity.of, records, found)))


BASELINE = "control"


TEACHER = "teacher"
