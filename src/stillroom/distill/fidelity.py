"""How near a student is to its teacher on held-out records: what ``fidelity.json`` holds.

Both read the same tokens; the assistant's alone are counted. Per-record values are kept, so that
anyone can resample them. Knows nothing of which answers are right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from stillroom.evaluate import bootstrap, held_out_loss, kl_and_agreement
from stillroom.records import Record

__all__ = ["Fidelity", "RecordFidelity", "measure_fidelity"]


@dataclass(frozen=True, slots=True)
class RecordFidelity:
    """One record: means over its assistant tokens, in nats a token; agreement is a share."""

    record: str
    kl: float
    reverse_kl: float
    agreement: float
    loss: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Fidelity:
    """KL(teacher || student), KL(student || teacher), top-1 agreement and cross-entropy."""

    rows: tuple[RecordFidelity, ...]

    def mean(self, name: str) -> float:
        """Return the mean of one value over all tokens; 0 where there are none."""
        tokens = sum(row.tokens for row in self.rows)
        total = sum(float(getattr(row, name)) * row.tokens for row in self.rows)
        return total / tokens if tokens else 0.0

    def summarize(self, seed: int = 0) -> dict[str, Any]:
        """Return each mean with its 95 % bootstrap interval over records, n and tokens."""
        rows = [row for row in self.rows if row.tokens]
        weights = [row.tokens for row in rows]
        units = {
            "kl": "nats/token",
            "reverse_kl": "nats/token",
            "agreement": "",
            "loss": "nats/token",
        }
        found: dict[str, Any] = {"records": len(rows), "tokens": sum(weights)}
        for name, unit in units.items():
            values = [float(getattr(row, name)) for row in rows]
            metric = bootstrap(values, weights=weights, seed=seed, name=name, unit=unit)
            found[name] = {"value": metric.value, "low": metric.low, "high": metric.high}
        return found

    def to_json(self) -> list[dict[str, Any]]:
        """Return one plain row a record."""
        return [asdict(row) for row in self.rows]

    @classmethod
    def from_json(cls, rows: Sequence[dict[str, Any]]) -> Fidelity:
        """Read what ``to_json`` wrote."""
        return cls(tuple(RecordFidelity(**row) for row in rows))


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
    near = kl_and_agreement(
        student, teacher, tokenizer, records, max_tokens=max_tokens, on_truncated=on_truncated
    )
    losses = held_out_loss(student, tokenizer, records, max_tokens=max_tokens)
    return Fidelity(
        tuple(
            RecordFidelity(
                record.id,
                found.kl,
                found.reverse_kl,
                found.agreement,
                nats / tokens if tokens else 0.0,
                found.tokens,
            )
            for record, found, (nats, tokens) in zip(records, near, losses, strict=True)
        )
    )
