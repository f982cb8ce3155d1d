"""Running statistics of accepted and rejected records, and diversity against the seeds.

Memory grows with the kinds of things there are (documents, reasons, beginnings of questions), never
with the number of records.

The figures are those of the collapse monitor, at equal budgets of words. What was started from is
known from the beginning: it is measured while records are still asked for, as soon as so many words
are made that the budget is known. What was made is measured while it is forced to disk. A figure
does not depend on when it was taken.
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
"""Where the bins of answers by their words begin, but for the first, which begins at 0."""

SAMPLE_SIZE = 1000
"""How many texts variety is measured on."""

_RECORD_EXAMPLES = 6
_REASON_EXAMPLES = 3
_MAX_MATCHES = 10
_OPENING_WORDS = 3
T = TypeVar("T")


class BottomK(Generic[T]):
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


class TextSample:
    """At most a thousand of any number of texts, drawn by hash, cut into words as they come."""

    def __init__(self) -> None:
        """Begin with none."""
        self._lowest: BottomK[tuple[str, npt.NDArray[np.int32]]] = BottomK(SAMPLE_SIZE)
        self._lexicon = WordVocabulary()
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
        numbers = self._lexicon.number(split_words(text) if said is None else said)
        self.words += len(numbers)
        left = self._lowest.add(key, (text, numbers))
        self.words -= len(left[1]) if left is not None else 0

    def drawn(self) -> tuple[list[str], TokenizedTexts]:
        """Return the texts and their words: as they came where there were no more, else by hash."""
        held = self._lowest.drawn()
        return [text for text, _ in held], TokenizedTexts(self._lexicon, [cut for _, cut in held])


class RecordStats:
    """What is counted of records, and the few that are shown."""

    def __init__(self) -> None:
        """Begin with none."""
        self.count = 0
        self.kinds: Counter[str] = Counter()
        self.licenses: Counter[str] = Counter()
        self.examples: BottomK[Record] = BottomK(_RECORD_EXAMPLES)
        self.documents: Counter[str] = Counter()
        """Of synthetic records, as are the lengths and the openings."""
        self.lengths: Counter[int] = Counter()
        self.openings: Counter[str] = Counter()
        self.made = TextSample()
        """Texts that models made."""
        self._others: BottomK[str] = BottomK(SAMPLE_SIZE)
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
        text = get_full_text(record)
        if record.origin.kind != "synthetic":
            self._others.add(derive_seed(text), text)
            return
        answer = get_last_answer(record)
        said = split_words(answer)
        self.made.add(text, said if text == answer else None)
        self.documents[str(record.fields.get("document_id", record.id))] += 1
        self.lengths[find_length_bin(len(said))] += 1
        opening = " ".join(get_last_instruction(record).split()[:_OPENING_WORDS])
        if opening:
            self.openings[opening] += 1

    @property
    def sample(self) -> TextSample:
        """At most a thousand texts of those that models made; of all where none did."""
        return self.made or TextSample.of(self._others.drawn())

    @property
    def origins(self) -> list[Origin]:
        """One origin of each kind and license."""
        return list(self._origins.values())


class RejectionStats:
    """What is counted of rows that fell, and the few that are shown."""

    def __init__(self) -> None:
        """Begin with none."""
        self.counts: Counter[str] = Counter()
        self.found: list[RejectedRecord] = []
        """The first that held a held-out or named test item."""
        self.held_out = 0
        self._examples: dict[str, BottomK[RejectedRecord]] = {}

    @classmethod
    def of(cls, rows: Iterable[RejectedRecord]) -> Self:
        """Return the tally of rows."""
        falls = cls()
        for row in rows:
            falls.add(row)
        return falls

    def add(self, row: RejectedRecord) -> None:
        """Count one."""
        name = label_rejection(row)
        self.counts[name] += 1
        shown = self._examples.setdefault(name, BottomK(_REASON_EXAMPLES))
        shown.add(derive_seed(row.unit, summarize_rejected(row)), row)
        if row.filter in {"decontaminate", "reworded"}:
            self.held_out += 1
            if len(self.found) < _MAX_MATCHES:
                self.found.append(row)

    def examples(self, name: str) -> list[RejectedRecord]:
        """Return at most three rows that fell for one reason, drawn by hash."""
        return self._examples[name].ranked()


def find_length_bin(count: int) -> int:
    """Return which of the bins of ``LENGTH_BINS`` a number of words is in, from 0."""
    return sum(count >= edge for edge in LENGTH_BINS)


def label_rejection(row: RejectedRecord) -> str:
    """Return the step, the method and the reason that a row fell for."""
    return f"{f'{row.step} / ' if row.step else ''}{row.filter}: {row.reason}"


def summarize_rejected(row: RejectedRecord) -> str:
    """Return what a dropped row says, on one line if its messages do."""
    if row.record is None:
        return row.text
    return " | ".join(one.content for one in row.record.messages)


R = TypeVar("R")
MIN_DIVERSITY_WORDS = 200
_BUDGET = 5000
_LOOKAHEAD_WORDS = 11_000
"""Words made, of which half is more than the budget, whichever texts are still drawn or leave."""

_DRAWS = 10
_TEXTS_PER_REST = 8
_REST_S = 0.0005


@dataclass(frozen=True, slots=True)
class DiversityMetrics:
    """What is measured of each side, by figure, and of draws of how many words."""

    budget: int
    sides: Mapping[str, Mapping[str, Metric]]


@dataclass(frozen=True, slots=True)
class _SeedMetrics:
    """What is measured of texts that were started from, and which words are rare there."""

    budget: int
    figures: Mapping[str, Metric] = field(default_factory=dict)
    tail: frozenset[str] = frozenset()
    mass: float = 0.0


class DiversityComparison:
    """Compares what is made with the texts that a run starts from."""

    def __init__(self, seeds: Sequence[str] = ()) -> None:
        """Take the texts; none of them is read yet."""
        self._seeds = seeds
        self._ahead: Future[tuple[TextSample, _SeedMetrics]] | None = None
        self._begun: tuple[TextSample, Future[DiversityMetrics | None]] | None = None

    def look_ahead(self, made: TextSample) -> None:
        """Begin to measure what was started from, once enough is made to know the budget."""
        if self._ahead is None and self._seeds and made.words >= _LOOKAHEAD_WORDS:
            self._ahead = _submit(self._measure_ahead)

    def begin(self, made: TextSample) -> None:
        """Begin to measure both sides; nothing more may be added to what is made."""
        self._begun = made, _submit(partial(self._measure, made))

    def measure(self, made: TextSample) -> DiversityMetrics | None:
        """Return the figures of both sides; None where there are too few words to say anything."""
        if self._begun is not None and self._begun[0] is made:
            return self._begun[1].result()
        return self._measure(made)

    def _measure(self, made: TextSample) -> DiversityMetrics | None:
        seeds, start = self._ahead.result() if self._ahead is not None else (None, None)
        if seeds is None and self._seeds:
            seeds = TextSample.of(self._seeds)
        least = min(made.words, seeds.words) if seeds is not None else made.words
        if least < MIN_DIVERSITY_WORDS:
            return None
        budget = _choose_budget(least)
        if start is None or start.budget != budget:
            start = _measure_seeds(seeds, budget) if seeds is not None else _SeedMetrics(budget)
        sides: dict[str, Mapping[str, Metric]] = {"made": _measure_texts(*made.drawn(), start)}
        if seeds is not None:
            sides["started from"] = start.figures
        return DiversityMetrics(budget, sides)

    def _measure_ahead(self) -> tuple[TextSample, _SeedMetrics]:
        """Measure in pieces, between which those who ask and answer come to the processor."""
        seeds = TextSample()
        for at, text in enumerate(self._seeds):
            seeds.add(text)
            if not at % _TEXTS_PER_REST:
                _yield_processor()
        budget = _choose_budget(seeds.words)
        if seeds.words < MIN_DIVERSITY_WORDS:
            return seeds, _SeedMetrics(budget)
        return seeds, _measure_seeds(seeds, budget, _yield_processor)


def _submit(work: Callable[[], R]) -> Future[R]:
    """Do work on a thread of its own."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="stillroom-compare")
    begun = pool.submit(work)
    pool.shutdown(wait=False)
    return begun


def _yield_processor() -> None:
    time.sleep(_REST_S)


def _choose_budget(least: int) -> int:
    """Return how many words are drawn where the smaller side has so many."""
    return min(_BUDGET, int(0.5 * least))


def _measure_seeds(
    seeds: TextSample, budget: int, pause: Callable[[], None] | None = None
) -> _SeedMetrics:
    """Measure what was started from; its own share of rare words is that of one half of it."""
    texts, cut = seeds.drawn()
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
    start: _SeedMetrics,
    pause: Callable[[], None] | None = None,
) -> dict[str, Metric]:
    return measure_diversity(
        texts,
        budget=start.budget,
        tail=start.tail,
        tail_mass=start.mass,
        draws=_DRAWS,
        cut=cut,
        pause=pause,
    )
