"""Fidelity metrics (KL, top-1 agreement) of a student against its teacher on held-out records.

Both models read the same tokens; only the assistant's tokens are counted. Per-record values are
kept, so that they can be resampled. The teacher, the initial student, the student and the baseline
are measured by the same code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
import numpy.typing as npt

from stillroom.evaluate import bootstrap
from stillroom.evaluate.lm.divergence import DistributionMetrics, compare_distributions
from stillroom.evaluate.metrics.calibration import NUM_BINS
from stillroom.models.tokenization.assistant_mask import encode_conversations
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
    "summarize_models",
]

R = TypeVar("R")


@dataclass(frozen=True)
class RecordMetrics(Generic[R]):
    """Rows of metrics, one per record; subclasses define the row and its metrics.

    ``measures`` maps each metric to its unit and to the field of a row that weights it. ``lines``
    are shown in a report: label, the student's metric and the teacher's, either of which may be
    empty. ``nearness`` is the metric that measures the distance to the teacher.
    """

    rows: tuple[R, ...]

    row: ClassVar[type[Any]]
    measures: ClassVar[Mapping[str, tuple[str, str]]]
    lines: ClassVar[tuple[tuple[str, str, str], ...]] = ()
    nearness: ClassVar[str] = "kl"

    def mean(self, name: str) -> float:
        """Return the weighted mean of a metric; 0 without any weight."""
        by = self.measures[name][1]
        total = sum(getattr(row, by) for row in self.rows)
        summed = sum(getattr(row, name) * getattr(row, by) for row in self.rows)
        return float(summed / total) if total else 0.0

    def summarize(self, seed: int = 0) -> dict[str, Any]:
        """Return means with 95 % bootstrap intervals over records, and the counts.

        An interval bound that cannot be computed is None.
        """
        counted = {by for _, by in self.measures.values()}
        full = [row for row in self.rows if any(getattr(row, by) for by in counted)]
        summary: dict[str, Any] = {"records": len(full)}
        summary |= {by: sum(getattr(row, by) for row in full) for by in sorted(counted)}
        for name, (unit, by) in self.measures.items():
            rows = [row for row in self.rows if getattr(row, by)]
            metric = bootstrap(
                [float(getattr(row, name)) for row in rows],
                weights=[getattr(row, by) for row in rows],
                seed=seed,
                name=name,
                unit=unit,
            ).to_json()
            summary[name] = {key: metric[key] for key in ("value", "low", "high")}
        return summary

    def to_json(self) -> list[dict[str, Any]]:
        """Return one JSON object per record."""
        return [asdict(row) for row in self.rows]  # type: ignore[call-overload]  # R is a dataclass

    @classmethod
    def from_json(cls, rows: Sequence[Mapping[str, Any]]) -> Self:
        """Build from the output of ``to_json``."""
        return cls(tuple(cls.row(**row) for row in rows))


def summarize_models(models: Mapping[str, RecordMetrics[Any]], seed: int) -> dict[str, Any]:
    """Return the rows of each model and, if there are any, the models' summaries."""
    values: dict[str, Any] = {name: metrics.to_json() for name, metrics in models.items()}
    if any(metrics.rows for metrics in models.values()):
        values["summary"] = {name: metrics.summarize(seed) for name, metrics in models.items()}
    return values


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
"""Per-record metrics and their units."""


@dataclass(frozen=True, slots=True)
class RecordFidelity:
    """One record: means over its assistant tokens, in nats per token; shares have no unit.

    ``agreement`` is that of the most likely token, ``top5_overlap`` that of the five most likely,
    ``brier`` the squared distance to the record's token.
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
        """Student's entropy minus the teacher's; negative if the student is more confident."""
        return self.entropy - self.teacher_entropy

    @classmethod
    def of(cls, record: Record, metrics: DistributionMetrics) -> RecordFidelity:
        """Build the row of a record from its comparison."""
        names = (column.name for column in fields(cls) if column.name != "record")
        return cls(record.id, **{name: getattr(metrics, name) for name in names})


class Fidelity(RecordMetrics[RecordFidelity]):
    """KL(teacher || student), KL(student || teacher), agreement and cross-entropy by record."""

    row = RecordFidelity
    measures: ClassVar = {name: (unit, "tokens") for name, unit in METRIC_UNITS.items()}


@dataclass(frozen=True, slots=True)
class TemperatureScaled:
    """One record held out of the temperature fit, before and after scaling.

    Args:
        tokens: Number of counted tokens.
        loss: After scaling, in nats per token.
        brier: After scaling.
        bins: ``bin_by_position`` after scaling, (3, BINS).
        plain_bins: ``bin_by_position`` before scaling, (3, BINS).
    """

    tokens: int
    loss: float
    brier: float
    bins: tuple[tuple[float, ...], ...]
    plain_bins: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class GeneratedAnswer:
    """A model's greedy answer to one record, with its reference."""

    record: str
    text: str
    reference: str
    ids: tuple[int, ...]
    has_ended: bool


@dataclass(frozen=True)
class ModelFidelity:
    """All measurements of one model; text fields stay empty if none was generated.

    Args:
        fidelity: Metrics by record.
        bins: ``bin_by_position`` of each record with tokens, (records, 3, BINS).
        temperature: Fitted on every second record; None if it could not be fitted.
        scaled: Results on the other records.
        answers: Greedy answers.
        sampled: Token ids of text sampled from the full distribution.
        free: KL(teacher || model) at each depth of ``sampled``, by record.
        forced: KL(teacher || model) on the teacher's samples after the same prompts.
        depth: KL(teacher || model) by the number of preceding counted tokens: sum and token count
            for each power of two (``bin_by_position``).
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
        """Return the measurements as JSON values."""
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
        """Build from the output of ``to_json``."""
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
    """Return sums and counts of values by position in a row, binned by powers of two.

    The first bin holds the first value of each row, the second the second, then the third and
    fourth, the next four, and so on.

    Args:
        rows: One value per position, (n,) each.
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
) -> Fidelity:
    """Compare a student with its teacher on held-out records.

    Args:
        student: Causal language model in memory.
        teacher: Causal language model with the same tokenizer.
        tokenizer: Tokenizer of both.
        records: Records not used in training.
        max_tokens: Maximum tokens read from the start of a record.
    """
    encoded = encode_conversations(tokenizer, records, max_tokens=max_tokens)
    comparisons, _ = compare_distributions(student, teacher, encoded)
    return Fidelity(tuple(map(RecordFidelity.of, records, comparisons)))


BASELINE = "baseline"
TEACHER = "teacher"
