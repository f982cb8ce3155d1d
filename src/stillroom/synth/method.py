"""``Generator`` and ``Filter``: what the methods of this room are given and must give back.

A generator is given seeds (a passage, a split, a number to draw by) and gives one draft for each;
a filter is given one record and gives a verdict. Neither reads files nor knows the job.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from stillroom.provenance import digest_json
from stillroom.records import Passage, Record
from stillroom.registry import Method, Seam

if TYPE_CHECKING:
    from stillroom.models import TextModel

__all__ = [
    "FILTERS",
    "GENERATORS",
    "Context",
    "Draft",
    "Failure",
    "Filter",
    "Generator",
    "Judge",
    "Seed",
    "Split",
    "Verdict",
    "derive_seed",
]

Split = Literal["train", "held_out"]
_SEED_BITS = 31


def derive_seed(*parts: object) -> int:
    """Return a number below 2**31 that follows from the parts alone."""
    return int(digest_json(parts)[:16], 16) % (1 << _SEED_BITS)


@dataclass(frozen=True, slots=True)
class Seed:
    """One unit of work: a passage, on which side of the split it is, and which attempt this is.

    Whatever is drawn for it follows from ``seed`` (the recipe's), the passage's id and the attempt:
    never from what was drawn before.
    """

    passage: Passage
    split: Split
    attempt: int = 0
    seed: int = 0

    @property
    def key(self) -> str:
        """The unit's name in the journal."""
        return f"{self.passage.id}#{self.attempt}"

    def derive(self, *purpose: object) -> int:
        """Return a sampling seed for one ask of this unit."""
        return derive_seed(self.seed, self.passage.id, self.attempt, *purpose)

    def make_rng(self, *purpose: object) -> random.Random:
        """Return a generator of random numbers that is the same for every attempt."""
        return random.Random(derive_seed(self.seed, self.passage.id, *purpose))


@dataclass(frozen=True, slots=True)
class Failure:
    """An ask that gave no record: why, and what the teacher said."""

    reason: str
    text: str = ""


@dataclass(frozen=True, slots=True)
class Draft:
    """What one unit gave, before any filter."""

    key: str
    records: tuple[Record, ...] = ()
    failures: tuple[Failure, ...] = ()
    asked: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, for the journal."""
        return {
            "key": self.key,
            "records": [record.to_json() for record in self.records],
            "failures": [[failure.reason, failure.text] for failure in self.failures],
            "asked": self.asked,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Draft:
        """Read what ``to_json`` wrote."""
        return cls(
            data["key"],
            tuple(Record.from_json(record) for record in data["records"]),
            tuple(Failure(*failure) for failure in data["failures"]),
            data["asked"],
            data["prompt_tokens"],
            data["completion_tokens"],
        )


class Generator(Method, ABC):
    """Asks a teacher for records about passages."""

    paper: ClassVar[str] = ""

    @property
    @abstractmethod
    def asks(self) -> int:
        """How many asks one passage costs, at most."""

    @property
    @abstractmethod
    def longest(self) -> int:
        """How many tokens one ask may generate."""

    @abstractmethod
    def generate(self, seeds: Sequence[Seed], model: TextModel) -> Iterator[Draft]:
        """Yield one draft for each seed, in order.

        A draft depends on its seed and the model alone, not on the seeds beside it; seeds come in
        groups only so that the teacher is kept busy.

        Raises:
            BackendError: If the teacher fails.
        """


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a record is kept; ``reason`` is a short fixed phrase, ``score`` its measure."""

    keep: bool
    reason: str = ""
    score: float = 1.0


@dataclass(frozen=True, slots=True)
class Context:
    """What a filter may know beside the record.

    ``passages`` by id; ``frequency`` counts the passages each word occurs in; ``held_out`` are the
    records already kept for evaluation (empty while those are judged).
    """

    passages: Mapping[str, Passage] = field(default_factory=dict)
    frequency: Mapping[str, int] = field(default_factory=dict)
    held_out: Sequence[Record] = ()


class Judge(Protocol):
    """A filter at work on one split: it may remember what was admitted."""

    def judge(self, record: Record) -> Verdict:
        """Return the verdict on one record, given those admitted before."""

    def admit(self, record: Record) -> None:
        """Learn that every filter kept the record."""


class Filter(Method, ABC):
    """Judges records one by one, in a fixed order; total: any record gets a verdict, none raises.

    A filter that needs no memory overrides ``judge`` only. One that compares records overrides
    ``begin`` and returns a Judge that remembers.
    """

    paper: ClassVar[str] = ""
    judges_passages: ClassVar[bool] = False
    """Whether plain-text records of passages are judged too."""

    @abstractmethod
    def judge(self, record: Record) -> Verdict:
        """Return the verdict on a record by itself."""

    def admit(self, record: Record) -> None:
        """Learn that every filter kept the record; nothing to remember here."""

    def begin(self, context: Context) -> Judge:
        """Return what judges one split."""
        return self


GENERATORS = Seam("stillroom.synth.generators", Generator)
FILTERS = Seam("stillroom.synth.filters", Filter)
