"""Running statistics of accepted and rejected records, and diversity against the seeds.

Memory grows with the number of distinct values (documents, reasons, question openings), not with
the number of records.

The metrics are those of the diversity monitor, at equal word budgets. The seeds are known from the
beginning: they are measured while records are still being generated, as soon as there are enough
words to fix the budget. The generated texts are measured while the records are synced to disk. A
metric does not depend on when it was computed.
"""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Generic, Self, TypeVar

from stillroom.evaluate.metrics.bootstrap import Metric
from stillroom.evaluate.metrics.diversity import find_rare_words, measure_diversity
from stillroom.evaluate.metrics.ngrams import TokenizedTexts, WordVocabulary
from stillroom.records import Origin, Record
from stillroom.synth.prompting.conversation import (
    get_full_text,
    get_last_answer,
    get_last_instruction,
)
from stillroom.synth.types import derive_seed
from stillroom.text.unicode import split_words

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from stillroom.synth.types import RejectedRecord

__all__ = [
    "LENGTH_BINS",
    "MIN_DIVERSITY_WORDS",
    "SAMPLE_SIZE",
    "BottomK",
    "DiversityComparison",
    "DiversityMetrics",
    "RecordStats",
    "RejectionStats",
    "TextSample",
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
        """Keep at most ``most`` values."""
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

    def takes(self, key: int) -> bool:
        """Return whether a value with this key would be kept now."""
        return len(self._heap) < self._most or (-key, -self.seen) > self._heap[0][:2]

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


class TextSample:
    """A sample of at most a thousand texts, selected by hash and tokenized on arrival."""

    def __init__(self) -> None:
        """Create an empty sample."""
        self._lowest: BottomK[tuple[str, npt.NDArray[np.int32]]] = BottomK(SAMPLE_SIZE)
        self._lexicon = WordVocabulary()
        self.words = 0
        """Number of words of the sampled texts."""

    @classmethod
    def of(cls, texts: Iterable[str]) -> Self:
        """Return the sample of given texts."""
        sample = cls()
        for text in texts:
            sample.add(text)
        return sample

    def __bool__(self) -> bool:
        """Return whether any text was added."""
        return bool(self._lowest.seen)

    def add(self, text: str, words: Sequence[str] | None = None) -> None:
        """Add a text; ``words`` are its words, if already known."""
        key = derive_seed(text)
        if not self._lowest.takes(key):
            self._lowest.seen += 1
            return
        numbers = self._lexicon.number(split_words(text) if words is None else words)
        self.words += len(numbers)
        evicted = self._lowest.add(key, (text, numbers))
        self.words -= len(evicted[1]) if evicted is not None else 0

    def get_sample(self) -> tuple[list[str], TokenizedTexts]:
        """Return the texts and their words: in order of arrival if all were kept, else by hash."""
        held = self._lowest.get_sample()
        return [text for text, _ in held], TokenizedTexts(self._lexicon, [cut for _, cut in held])


class RecordStats:
    """Counts and examples of records."""

    def __init__(self) -> None:
        """Start with no records."""
        self.count = 0
        self.kinds: Counter[str] = Counter()
        self.licenses: Counter[str] = Counter()
        self.examples: BottomK[Record] = BottomK(_RECORD_EXAMPLES)
        self.documents: Counter[str] = Counter()
        """Records per document; synthetic records only, as for the lengths and openings."""
        self.lengths: Counter[int] = Counter()
        self.openings: Counter[str] = Counter()
        self.synthetic_texts = TextSample()
        """Texts generated by models."""
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
        answer = get_last_answer(record)
        words = split_words(answer)
        self.synthetic_texts.add(text, words if text == answer else None)
        self.documents[str(record.fields.get("document_id", record.id))] += 1
        self.lengths[find_length_bin(len(words))] += 1
        opening = " ".join(get_last_instruction(record).split()[:_OPENING_WORDS])
        if opening:
            self.openings[opening] += 1

    @property
    def sample(self) -> TextSample:
        """A sample of at most a thousand synthetic texts; of all texts if none is synthetic."""
        return self.synthetic_texts or TextSample.of(self._others.get_sample())

    @property
    def origins(self) -> list[Origin]:
        """One origin of each kind and license."""
        return list(self._origins.values())


class RejectionStats:
    """Counts and examples of rejected rows."""

    def __init__(self) -> None:
        """Start with no rows."""
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


R = TypeVar("R")
MIN_DIVERSITY_WORDS = 200
_BUDGET = 5000
_LOOKAHEAD_WORDS = 11_000
"""Generated words of which half exceeds the budget, whichever texts are sampled later."""

_DRAWS = 10
_TEXTS_PER_REST = 8
_REST_S = 0.0005


@dataclass(frozen=True, slots=True)
class DiversityMetrics:
    """Metrics of each side, by name, and the number of words per sample."""

    budget: int
    sides: Mapping[str, Mapping[str, Metric]]


@dataclass(frozen=True, slots=True)
class _SeedMetrics:
    """Metrics of the seed texts, and their rare words."""

    budget: int
    figures: Mapping[str, Metric] = field(default_factory=dict)
    tail: frozenset[str] = frozenset()
    mass: float = 0.0


class DiversityComparison:
    """Comparison of the diversity of generated texts with that of the seeds."""

    def __init__(self, seeds: Sequence[str] = ()) -> None:
        """Store the seed texts without reading them."""
        self._seeds = seeds
        self._ahead: Future[tuple[TextSample, _SeedMetrics]] | None = None
        self._running: tuple[TextSample, Future[DiversityMetrics | None]] | None = None

    def look_ahead(self, synthetic: TextSample) -> None:
        """Start measuring the seeds once there are enough generated words to fix the budget."""
        if self._ahead is None and self._seeds and synthetic.words >= _LOOKAHEAD_WORDS:
            self._ahead = _submit(self._measure_ahead)

    def start(self, synthetic: TextSample) -> None:
        """Start measuring both sides; no text may be added from now on."""
        self._running = synthetic, _submit(partial(self._measure, synthetic))

    def measure(self, synthetic: TextSample) -> DiversityMetrics | None:
        """Return the metrics of both sides; None if there are too few words."""
        if self._running is not None and self._running[0] is synthetic:
            return self._running[1].result()
        return self._measure(synthetic)

    def _measure(self, synthetic: TextSample) -> DiversityMetrics | None:
        seeds, seed_metrics = self._ahead.result() if self._ahead is not None else (None, None)
        if seeds is None and self._seeds:
            seeds = TextSample.of(self._seeds)
        least = min(synthetic.words, seeds.words) if seeds is not None else synthetic.words
        if least < MIN_DIVERSITY_WORDS:
            return None
        budget = _choose_budget(least)
        if seed_metrics is None or seed_metrics.budget != budget:
            seed_metrics = (
                _measure_seeds(seeds, budget) if seeds is not None else _SeedMetrics(budget)
            )
        sides: dict[str, Mapping[str, Metric]] = {
            "made": _measure_texts(*synthetic.get_sample(), seed_metrics)
        }
        if seeds is not None:
            sides["started from"] = seed_metrics.figures
        return DiversityMetrics(budget, sides)

    def _measure_ahead(self) -> tuple[TextSample, _SeedMetrics]:
        """Measure in steps, and yield the processor to other threads between them."""
        seeds = TextSample()
        for index, text in enumerate(self._seeds):
            seeds.add(text)
            if not index % _TEXTS_PER_REST:
                _yield_processor()
        budget = _choose_budget(seeds.words)
        if seeds.words < MIN_DIVERSITY_WORDS:
            return seeds, _SeedMetrics(budget)
        return seeds, _measure_seeds(seeds, budget, _yield_processor)


def _submit(work: Callable[[], R]) -> Future[R]:
    """Run a function on its own thread."""
    executor = ThreadPoolExecutor(1, thread_name_prefix="stillroom-compare")
    future = executor.submit(work)
    executor.shutdown(wait=False)
    return future


def _yield_processor() -> None:
    time.sleep(_REST_S)


def _choose_budget(least: int) -> int:
    """Return the words per sample, given the words of the smaller side."""
    return min(_BUDGET, int(0.5 * least))


def _measure_seeds(
    seeds: TextSample, budget: int, pause: Callable[[], None] | None = None
) -> _SeedMetrics:
    """Measure the seed texts; their tail is that of one half of them."""
    texts, cut = seeds.get_sample()
    tail, mass = find_rare_words(cut=cut)
    figures = _measure_texts(texts, cut, _SeedMetrics(budget, {}, tail, mass), pause)
    if "tail" in figures:
        figures |= measure_diversity(
            texts[1::2],
            budget=budget,
            tail=tail,
            tail_mass=mass,
            draws=_DRAWS,
            only=frozenset({"tail"}),
            cut=cut[1::2],
            pause=pause,
        )
    return _SeedMetrics(budget, figures, tail, mass)


def _measure_texts(
    texts: Sequence[str],
    cut: TokenizedTexts,
    seed_metrics: _SeedMetrics,
    pause: Callable[[], None] | None = None,
) -> dict[str, Metric]:
    return measure_diversity(
        texts,
        budget=seed_metrics.budget,
        tail=seed_metrics.tail,
        tail_mass=seed_metrics.mass,
        draws=_DRAWS,
        cut=cut,
        pause=pause,
    )
