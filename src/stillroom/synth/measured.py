"""Measured: filters whose verdict stands on a measure that costs something, as a model's.

The measure is a function of the record alone, so it can be taken of many records at once, kept in a
journal, and never be taken twice; the verdict on it is free. What could not be measured is dropped
as that: a filter that fails never calls a record good.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from typing_extensions import override

from stillroom.errors import BackendError
from stillroom.models import ConcurrentModel, TextModel
from stillroom.records import Record
from stillroom.synth.method import Context, Filter, Verdict

__all__ = ["LOST", "UNMEASURED", "Measured", "Meter", "concurrency_of", "each_by_itself"]

UNMEASURED = "could not be measured"
_OWN_FAULTS = {
    "backend.context",
    "backend.schema",
    "backend.refused",
    "backend.malformed",
    "backend.answer",
}
"""Errors that are one record's own; any other is the model's and ends the job."""
_UNANSWERED = {"backend.timeout", "backend.broken", "backend.unavailable"}
"""Errors of a server that may answer the next time: that record's own, while others are answered.
"""
LOST = "unanswered"
"""Key of a value that failed so: it is not kept, so that the next run asks again."""


class Meter(ABC):
    """A measured filter at work: ``measure`` costs, ``weigh`` does not."""

    fingerprint: str = ""
    """What values depend on beside the record: the models and the settings that were used."""
    concurrency: int = 1
    """How many records it gains by measuring at once, each on a thread of its own."""

    @abstractmethod
    def measure(self, records: Sequence[Record]) -> list[Any]:
        """Return one plain JSON value for each record; ``{"failed": why}`` where there is none.

        Raises:
            BackendError: If a model fails as a whole.
        """

    @abstractmethod
    def weigh(self, record: Record, value: Any) -> Verdict:
        """Return the verdict on a record whose measure is known."""

    def judge(self, record: Record) -> Verdict:
        """Measure one record and weigh it."""
        return self.decide(record, self.measure([record])[0])

    def decide(self, record: Record, value: Any) -> Verdict:
        """Return the verdict on a value; what failed is dropped as unmeasured."""
        if isinstance(value, Mapping) and "failed" in value:
            return Verdict(False, UNMEASURED, 0.0, told={"why": str(value["failed"])})
        return self.weigh(record, value)

    def admit(self, record: Record) -> None:  # noqa: B027  # nothing is a sound default
        """Remember nothing: a measure does not depend on what was kept."""

    def lessons(self) -> Sequence[Record]:
        """Return records that people have scored, which are measured before any is judged."""
        return ()

    def learn(self, values: Sequence[Any]) -> None:  # noqa: B027  # likewise
        """Learn from the values of the lessons, in their order."""

    def summarize(self, values: Sequence[Any]) -> Mapping[str, Any]:
        """Return what is to be said of all values together; nothing by default."""
        return {}


class Measured(Filter, ABC):
    """A filter that measures with a model; without one (outside of a run) it keeps everything."""

    paper: ClassVar[str] = ""
    remembers: ClassVar[bool] = False

    @override
    def judge(self, record: Record) -> Verdict:
        return Verdict(True)

    @override
    @abstractmethod
    def begin(self, context: Context) -> Meter:
        """Return what measures the records of one split."""


def concurrency_of(models: Sequence[TextModel]) -> int:
    """Return how many requests models take at once; 1 where none is a server's."""
    return max(
        (model.concurrency for model in models if isinstance(model, ConcurrentModel)), default=1
    )


def each_by_itself(records: Sequence[Record], measure: Callable[[Record], Any]) -> list[Any]:
    """Measure records one after another; a fault of one record's own is that record's value.

    So is it that a server did not answer; the panel ends the job where that happens in a row.

    Raises:
        BackendError: If the model fails as a whole.
    """
    values: list[Any] = []
    for record in records:
        try:
            values.append(measure(record))
        except BackendError as error:
            if error.code not in _OWN_FAULTS | _UNANSWERED:
                raise
            failed = {"failed": error.problems[0].what}
            values.append(failed | ({LOST: error.code} if error.code in _UNANSWERED else {}))
    return values
