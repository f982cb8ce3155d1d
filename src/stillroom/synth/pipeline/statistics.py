"""Running statistics of accepted and rejected records, and diversity against the seeds.

Memory grows with the number of distinct values (documents, reasons, question openings), not with
the number of records.

The metrics of diversity are those of the monitor, at equal word budgets.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Generic, Self, TypeVar

from stillroom.evaluate.metrics.bootstrap import Metric
from stillroom.evaluate.metrics.diversity import find_rare_words, measure_diversity
from stillroom.records import Origin, Record
from stillroom.synth.prompting.conversation import (
    get_full_text,
    get_last_answer,
    get_last_instruction,
)
from stillroom.synth.types import derive_seed
from stillroom.text.unicode import split_words

if TYPE_CHECKING:
    from stillroom.synth.types import RejectedRecord

__all__ = [
    "LENGTH_BINS",
    "MIN_DIVERSITY_WORDS",
    "SAMPLE_SIZE",
    "BottomK",
    "DiversityMetrics",
    "RecordStats",
    "RejectionStats",
    "compare_diversity",
    "find_length_bin",
    "label_rejection",
    "summarize_rejected",
]

LENGTH_BINS = (8, 16, 32, 64, 128, 256, 512)
"""Lower bounds of the answer length bins in words; the first bin starts at 0."""

SAMPLE_SIZE = 1000
"""Number of texts on which diversity is measured."""

_RECORD_EXAMPLES = 6
_REASON_EXAMPLES = 3
_MAX_MATCHES = 10
_OPENING_WORDS = 3
T = TypeVar("T")


class BottomK(Generic[T]):
    """The values with the lowest keys among all added, ties by order of arrival."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._heap: list[tuple[int, int, T]] = []
        self.seen = 0

    def add(self, key: int, value: T) -> T | None:
        """Add a value; return the value it replaced, if any."""
        entry = (-key, -self.seen, value)
        self.seen += 1
        if len(self._heap) < self._most:
            heapq.heappush(self._heap, entry)
        elif entry[:2] > self._heap[0][:2]:
            return heapq.heapreplace(self._heap, entry)[2]
        return None

    def get_sorted(self) -> list[T]:
        """Return the values by key."""
        return [
            value for _, _, value in sorted(self._heap, key=lambda entry: (-entry[0], -entry[1]))
        ]

    def get_sample(self) -> list[T]:
        """Return the values in order of arrival if all were kept, else by key."""
        if self.seen > self._most:
            return self.get_sorted()
        return [value for _, _, value in sorted(self._heap, key=lambda entry: -entry[1])]


class RecordStats:
    """Counts and examples of records."""

    def __init__(self) -> None:
        self.count = 0
        self.kinds: Counter[str] = Counter()
        self.licenses: Counter[str] = Counter()
        self.examples: BottomK[Record] = BottomK(_RECORD_EXAMPLES)
        self.documents: Counter[str] = Counter()
        """Records per document; synthetic records only, as for the lengths and openings."""
        self.lengths: Counter[int] = Counter()
        self.openings: Counter[str] = Counter()
        self._synthetic: BottomK[str] = BottomK(SAMPLE_SIZE)
        self._others: BottomK[str] = BottomK(SAMPLE_SIZE)
        self._origins: dict[tuple[str, str], Origin] = {}

    @classmethod
    def of(cls, records: Iterable[Record]) -> Self:
        """Return the statistics of given records."""
        stats = cls()
        for _ in stats.watch(records):
            pass
        return stats

    def watch(self, records: Iterable[Record]) -> Iterator[Record]:
        """Yield records and count each, so that a file need not be read again."""
        for record in records:
            self.add(record)
            yield record

    def add(self, record: Record) -> None:
        """Count a record."""
        self.count += 1
        self.kinds[record.origin.kind] += 1
        self.licenses[record.origin.license or "nobody tells"] += 1
        self.examples.add(derive_seed(record.id), record)
        self._origins.setdefault((record.origin.kind, record.origin.license), record.origin)
        text = get_full_text(record)
        if record.origin.kind != "synthetic":
            self._others.add(derive_seed(text), text)
            return
        self._synthetic.add(derive_seed(text), text)
        self.documents[str(record.fields.get("document_id", record.id))] += 1
        self.lengths[find_length_bin(len(split_words(get_last_answer(record))))] += 1
        opening = " ".join(get_last_instruction(record).split()[:_OPENING_WORDS])
        if opening:
            self.openings[opening] += 1

    @property
    def sample(self) -> list[str]:
        """At most a thousand synthetic texts, chosen by hash; of all texts if none is synthetic."""
        return (self._synthetic if self._synthetic.seen else self._others).get_sample()

    @property
    def origins(self) -> list[Origin]:
        """One origin of each kind and license."""
        return list(self._origins.values())


class RejectionStats:
    """Counts and examples of rejected rows."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.found: list[RejectedRecord] = []
        """The first rows that contained a held-out or named test item."""
        self.held_out = 0
        self._examples: dict[str, BottomK[RejectedRecord]] = {}

    @classmethod
    def of(cls, rows: Iterable[RejectedRecord]) -> Self:
        """Return the statistics of given rows."""
        stats = cls()
        for row in rows:
            stats.add(row)
        return stats

    def add(self, row: RejectedRecord) -> None:
        """Count a row."""
        name = label_rejection(row)
        self.counts[name] += 1
        shown = self._examples.setdefault(name, BottomK(_REASON_EXAMPLES))
        shown.add(derive_seed(row.unit, summarize_rejected(row)), row)
        if row.filter in {"decontaminate", "reworded"}:
            self.held_out += 1
            if len(self.found) < _MAX_MATCHES:
                self.found.append(row)

    def examples(self, name: str) -> list[RejectedRecord]:
        """Return at most three rows rejected for a reason, selected by hash."""
        return self._examples[name].get_sorted()


def find_length_bin(count: int) -> int:
    """Return the index of the bin of ``LENGTH_BINS`` for a number of words, from 0."""
    return sum(count >= edge for edge in LENGTH_BINS)


def label_rejection(row: RejectedRecord) -> str:
    """Return step, method and reason of a rejected row, as text."""
    return f"{f'{row.step} / ' if row.step else ''}{row.filter}: {row.reason}"


def summarize_rejected(row: RejectedRecord) -> str:
    """Return the text of a rejected row; messages are joined on one line."""
    if row.record is None:
        return row.text
    return " | ".join(message.content for message in row.record.messages)


MIN_DIVERSITY_WORDS = 200
_BUDGET = 5000
_DRAWS = 10


@dataclass(frozen=True, slots=True)
class DiversityMetrics:
    """Metrics of each side, by name, and the number of words per sample."""

    budget: int
    sides: Mapping[str, Mapping[str, Metric]]


def compare_diversity(generated: Sequence[str], seeds: Iterable[str]) -> DiversityMetrics | None:
    """Measure generated texts, and a thousand of the seed texts, at one budget of words.

    Returns:
        The metrics of ``generated`` and, with seeds, of ``seeds``, whose tail is that of one half
        of them; None if a side has too few words.
    """
    sample: BottomK[str] = BottomK(SAMPLE_SIZE)
    for text in seeds:
        sample.add(derive_seed(text), text)
    seed_texts = sample.get_sample()
    sides = {"generated": generated, **({"seeds": seed_texts} if seed_texts else {})}
    least = min(sum(len(split_words(text)) for text in texts) for texts in sides.values())
    if least < MIN_DIVERSITY_WORDS:
        return None
    tail, mass = find_rare_words(seed_texts)
    measure = partial(
        measure_diversity, budget=min(_BUDGET, least // 2), tail=tail, tail_mass=mass, draws=_DRAWS
    )
    metrics = {side: measure(texts) for side, texts in sides.items()}
    if "tail" in metrics.get("seeds", {}):
        metrics["seeds"]["tail"] = measure(seed_texts[1::2])["tail"]
    return DiversityMetrics(min(_BUDGET, least // 2), metrics)
