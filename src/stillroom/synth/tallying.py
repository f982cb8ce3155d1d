"""Tallies: what a page says of records and of rows that fell, gathered as they come.

Memory grows with the kinds of things there are (documents, reasons, beginnings of questions), never
with the number of records.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Generic, Self, TypeVar

from stillroom.evaluate.ngrams import CutTexts, Lexicon
from stillroom.records import Origin, Record
from stillroom.synth.method import derive_seed
from stillroom.synth.turns import answer_of, instruction_of, whole_text
from stillroom.text.normalize import words

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from stillroom.synth.harvest import Dropped

__all__ = [
    "LENGTHS",
    "SAMPLE",
    "Falls",
    "Lowest",
    "Sample",
    "Tally",
    "bin_of",
    "says_of",
    "who_and_why",
]

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

    def add(self, key: int, value: T) -> T | None:
        """Look at one more; return what had to leave for it."""
        entry = (-key, -self.seen, value)
        self.seen += 1
        if len(self._heap) < self._most:
            heapq.heappush(self._heap, entry)
        elif entry[:2] > self._heap[0][:2]:
            return heapq.heapreplace(self._heap, entry)[2]
        return None

    def takes(self, key: int) -> bool:
        """Return whether a value that comes now with this key would be kept."""
        return len(self._heap) < self._most or (-key, -self.seen) > self._heap[0][:2]

    def ranked(self) -> list[T]:
        """Return them by their keys."""
        return [value for _, _, value in sorted(self._heap, key=lambda one: (-one[0], -one[1]))]

    def drawn(self) -> list[T]:
        """Return them as they came where there were no more, else by their keys."""
        if self.seen > self._most:
            return self.ranked()
        return [value for _, _, value in sorted(self._heap, key=lambda one: -one[1])]


class Sample:
    """At most a thousand of any number of texts, drawn by hash, cut into words as they come."""

    def __init__(self) -> None:
        """Begin with none."""
        self._lowest: Lowest[tuple[str, npt.NDArray[np.int32]]] = Lowest(SAMPLE)
        self._lexicon = Lexicon()
        self.words = 0
        """Of the texts held."""

    @classmethod
    def of(cls, texts: Iterable[str]) -> Self:
        """Return the sample of texts."""
        sample = cls()
        for text in texts:
            sample.add(text)
        return sample

    def __bool__(self) -> bool:
        """Return whether any text came."""
        return bool(self._lowest.seen)

    def add(self, text: str, said: Sequence[str] | None = None) -> None:
        """Look at one more text; ``said`` is its words, where they are at hand."""
        key = derive_seed(text)
        if not self._lowest.takes(key):
            self._lowest.seen += 1
            return
        numbers = self._lexicon.number(words(text) if said is None else said)
        self.words += len(numbers)
        left = self._lowest.add(key, (text, numbers))
        self.words -= len(left[1]) if left is not None else 0

    def drawn(self) -> tuple[list[str], CutTexts]:
        """Return the texts and their words: as they came where there were no more, else by hash."""
        held = self._lowest.drawn()
        return [text for text, _ in held], CutTexts(self._lexicon, [cut for _, cut in held])


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
        self.made = Sample()
        """Texts that models made."""
        self._others: Lowest[str] = Lowest(SAMPLE)
        self._origins: dict[tuple[str, str], Origin] = {}

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
        self._origins.setdefault((record.origin.kind, record.origin.license), record.origin)
        text = whole_text(record)
        if record.origin.kind != "synthetic":
            self._others.add(derive_seed(text), text)
            return
        answer = answer_of(record)
        said = words(answer)
        self.made.add(text, said if text == answer else None)
        self.documents[str(record.fields.get("document_id", record.id))] += 1
        self.lengths[bin_of(len(said))] += 1
        opening = " ".join(instruction_of(record).split()[:_OPENING_WORDS])
        if opening:
            self.openings[opening] += 1

    @property
    def sample(self) -> Sample:
        """At most a thousand texts of those that models made; of all where none did."""
        return self.made or Sample.of(self._others.drawn())

    @property
    def origins(self) -> list[Origin]:
        """One origin of each kind and license."""
        return list(self._origins.values())


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
