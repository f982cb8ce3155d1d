"""Tallies: what a page says of records and of rows that fell, gathered in one pass over them.

Memory grows with the kinds of things there are (documents, reasons, beginnings of questions), never
with the number of records.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Generic, Self, TypeVar

from stillroom.records import Record
from stillroom.synth.harvest import Dropped
from stillroom.synth.method import derive_seed
from stillroom.synth.turns import answer_of, instruction_of, whole_text
from stillroom.text.normalize import words

__all__ = ["LENGTHS", "SAMPLE", "Falls", "Lowest", "Tally", "bin_of", "says_of", "who_and_why"]

LENGTHS = (8, 16, 32, 64, 128, 256, 512)
"""Where the bins of answers by their words begin, but for the first, which begins at 0."""

SAMPLE = 1000
"""How many texts variety is measured on."""
_KEPT_EXAMPLES = 6
_EXAMPLES = 3
_FOUND = 10
_OPENING_WORDS = 3

T = TypeVar("T")


class Lowest(Generic[T]):
    """The values of the lowest keys among any number, ties by their coming."""

    def __init__(self, most: int) -> None:
        """Keep ``most`` of them."""
        self._most = most
        self._heap: list[tuple[int, int, T]] = []
        self.seen = 0

    def add(self, key: int, value: T) -> None:
        """Look at one more."""
        entry = (-key, -self.seen, value)
        self.seen += 1
        if len(self._heap) < self._most:
            heapq.heappush(self._heap, entry)
        elif entry[:2] > self._heap[0][:2]:
            heapq.heapreplace(self._heap, entry)

    def ranked(self) -> list[T]:
        """Return them by their keys."""
        return [value for _, _, value in sorted(self._heap, key=lambda one: (-one[0], -one[1]))]

    def drawn(self) -> list[T]:
        """Return them as they came where there were no more, else by their keys."""
        if self.seen > self._most:
            return self.ranked()
        return [value for _, _, value in sorted(self._heap, key=lambda one: -one[1])]


class Tally:
    """What is counted of records, and the few that are shown."""

    def __init__(self) -> None:
        """Begin with none."""
        self.count = 0
        self.kinds: Counter[str] = Counter()
        self.licenses: Counter[str] = Counter()
        self.examples: Lowest[Record] = Lowest(_KEPT_EXAMPLES)
        self.documents: Counter[str] = Counter()
        """Of synthetic records, as are the lengths and the openings."""
        self.lengths: Counter[int] = Counter()
        self.openings: Counter[str] = Counter()
        self._made: Lowest[str] = Lowest(SAMPLE)
        self._all: Lowest[str] = Lowest(SAMPLE)

    @classmethod
    def of(cls, records: Iterable[Record]) -> Self:
        """Return the tally of records."""
        tally = cls()
        for _ in tally.watch(records):
            pass
        return tally

    def watch(self, records: Iterable[Record]) -> Iterator[Record]:
        """Yield records as they come, and count each: a file is not read again for it."""
        for record in records:
            self.add(record)
            yield record

    def add(self, record: Record) -> None:
        """Count one."""
        self.count += 1
        self.kinds[record.origin.kind] += 1
        self.licenses[record.origin.license or "nobody tells"] += 1
        self.examples.add(derive_seed(record.id), record)
        text = whole_text(record)
        if record.origin.kind != "synthetic":
            self._all.add(derive_seed(text), text)
            return
        self._made.add(derive_seed(text), text)
        self.documents[str(record.fields.get("document_id", record.id))] += 1
        self.lengths[bin_of(len(words(answer_of(record))))] += 1
        opening = " ".join(instruction_of(record).split()[:_OPENING_WORDS])
        if opening:
            self.openings[opening] += 1

    @property
    def texts(self) -> list[str]:
        """At most a thousand texts of those that models made; of all where none did."""
        return (self._made if self._made.seen else self._all).drawn()


class Falls:
    """What is counted of rows that fell, and the few that are shown."""

    def __init__(self) -> None:
        """Begin with none."""
        self.counts: Counter[str] = Counter()
        self.found: list[Dropped] = []
        """The first that held a held-out or named test item."""
        self.held_out = 0
        self._examples: dict[str, Lowest[Dropped]] = {}

    @classmethod
    def of(cls, rows: Iterable[Dropped]) -> Self:
        """Return the tally of rows."""
        falls = cls()
        for row in rows:
            falls.add(row)
        return falls

    def add(self, row: Dropped) -> None:
        """Count one."""
        name = who_and_why(row)
        self.counts[name] += 1
        shown = self._examples.setdefault(name, Lowest(_EXAMPLES))
        shown.add(derive_seed(row.unit, says_of(row)), row)
        if row.filter in {"decontaminate", "reworded"}:
            self.held_out += 1
            if len(self.found) < _FOUND:
                self.found.append(row)

    def examples(self, name: str) -> list[Dropped]:
        """Return at most three rows that fell for one reason, drawn by hash."""
        return self._examples[name].ranked()


def bin_of(count: int) -> int:
    """Return which of the bins of ``LENGTHS`` a number of words is in, from 0."""
    return sum(count >= edge for edge in LENGTHS)


def who_and_why(row: Dropped) -> str:
    """Return the step, the method and the reason that a row fell for."""
    return f"{f'{row.step} / ' if row.step else ''}{row.filter}: {row.reason}"


def says_of(row: Dropped) -> str:
    """Return what a dropped row says, on one line if its messages do."""
    if row.record is None:
        return row.text
    return " | ".join(one.content for one in row.record.messages)
