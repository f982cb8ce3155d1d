"""Generators side by side: what each kept, what fell and why, how long and how varied it writes."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise

from stillroom.records import Record
from stillroom.serve.reviews import Review
from stillroom.serve.views.records import RecordSet, open_set
from stillroom.serve.views.sources import Sources

__all__ = ["Generated", "compare_generators"]

_WORD = re.compile(r"\w+")
_SHOWN = 3
_NONE = "no generator"


@dataclass
class Generated:
    """What one generator left in one artifact.

    ``words_asked`` and ``words_answered`` are means; ``distinct`` is the share of pairs of words in
    what is asked that differ (distinct-2); ``rejected`` counts a person's decisions.
    """

    name: str
    generator: str
    kept: int = 0
    dropped: int = 0
    rejected: int = 0
    words_asked: float = 0.0
    words_answered: float = 0.0
    distinct: float = 0.0
    reasons: list[tuple[str, int]] = field(default_factory=list)
    examples: list[tuple[tuple[str, str], ...]] = field(default_factory=list)

    @property
    def share(self) -> float:
        """The share of what was written that was kept."""
        written = self.kept + self.dropped
        return self.kept / written if written else 0.0


def compare_generators(sources: Sources, name: str, review: Review) -> list[Generated]:
    """Return what each generator of an artifact left, and what was taken without any.

    Dropped rows without a record count for the generator that the artifact's others name, where
    there is only one.

    Raises:
        DataError: If it is no artifact of records, or not shown to the asker.
    """
    with open_set(sources, name) as opened:
        return _compare(opened, name, review)


def _compare(opened: RecordSet, name: str, review: Review) -> list[Generated]:
    told: dict[str, _Tally] = {}
    for record in opened.records():
        decision, _ = review.latest(record.id)
        is_rejected = decision is not None and decision.action == "reject"
        told.setdefault(_generator_of(record), _Tally()).keep(record, is_rejected=is_rejected)
    fallen: Counter[tuple[str, str]] = Counter()
    for _, _, row in opened.dropped():
        data = row.get("record")
        is_whole = isinstance(data, dict) and "messages" in data
        generator = _generator_of(Record.from_json(data or {})) if is_whole else ""
        fallen[generator, str(row.get("reason", ""))] += 1
    named = [generator for generator in told if generator != _NONE]
    only = named[0] if len(named) == 1 else _NONE
    for (generator, reason), count in fallen.items():
        told.setdefault(generator or only, _Tally()).reasons[reason] += count
    return [tally.sum_up(name, generator) for generator, tally in sorted(told.items())]


class _Tally:
    def __init__(self) -> None:
        self.kept = self.rejected = self.asked = self.answered = self.pairs = 0
        self.seen: set[tuple[str, str]] = set()
        self.reasons: Counter[str] = Counter()
        self.examples: list[tuple[tuple[str, str], ...]] = []

    def keep(self, record: Record, *, is_rejected: bool) -> None:
        self.kept += 1
        self.rejected += is_rejected
        turns = [(one.role, one.content) for one in record.messages]
        asked = [word for role, text in turns if role == "user" for word in _words(text)]
        self.asked += len(asked)
        self.answered += sum(len(_words(text)) for role, text in turns if role == "assistant")
        pairs = list(pairwise(asked))
        self.pairs += len(pairs)
        self.seen.update(pairs)
        if len(self.examples) < _SHOWN:
            self.examples.append(tuple(turns))

    def sum_up(self, name: str, generator: str) -> Generated:
        count = self.kept or 1
        return Generated(
            name,
            generator,
            self.kept,
            sum(self.reasons.values()),
            self.rejected,
            self.asked / count,
            self.answered / count,
            len(self.seen) / self.pairs if self.pairs else 0.0,
            self.reasons.most_common(_SHOWN),
            self.examples,
        )


def _generator_of(record: Record) -> str:
    chain = [link.method for link in record.origin.chain if "generators" in link.method]
    return chain[-1] if chain else _NONE


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())
