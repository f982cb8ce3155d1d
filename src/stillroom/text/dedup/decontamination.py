"""Benchmark decontamination (contamination): verbatim, near and shuffled test items in texts.

An item is searched for in a window of the text not much longer than itself. The score is the share
of its words found there, each weighted by its information (rare words more); *in order*, it is the
share of the longest common subsequence of words. Short items, whose words are common, must occur
word for word, and items of up to three words must be a whole message or record. Of items of up
to a dozen words all names and numbers must occur, since the same question about another place is
another question; of longer ones, less than half of the numbers may have another in their place, and
of up to twenty words none its opposite. Code repeats few words and must have nearly all of them. A
question matches a text without questions only where nearly all of its words occur, since an answer
repeats most of them.

Source: the failures of n-gram overlap (Brown et al. 2020, arXiv:2005.14165, appendix C) described
by Yang et al. 2023, arXiv:2311.04850. Differs: weighted words instead of n-grams, so that short
items and items with one word in six changed are found too; paraphrases need an embedder.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal, TypeAlias

from stillroom.text.code import is_mostly_code
from stillroom.text.dedup.paraphrases import find_anchors, find_numbers, is_asking, is_opposite
from stillroom.text.language import split_sentences
from stillroom.text.unicode import split_words

__all__ = [
    "BenchmarkIndex",
    "ContaminationMatch",
    "MatchKind",
    "count_document_frequencies",
    "is_short_item",
]

MatchKind = Literal["whole", "verbatim", "near", "shuffled", "rephrased"]
_MAX_WHOLE_TEXT_WORDS = 3
"""Items of at most this many words match a whole text only."""


def is_short_item(text: str) -> bool:
    """Return whether an item has so few words that it matches a whole text only."""
    return len(split_words(text)) <= _MAX_WHOLE_TEXT_WORDS


_MAX_VERBATIM_WORDS = 6
"""Items of at most this many words must occur word for word."""
_MAX_SHORT_WORDS = 12
_NEAR_SHORT_SHARE = 0.85
"""Minimum share for code and for items of at most ``_MAX_SHORT_WORDS`` words: each word weighs
much.
"""
_NEAR_STATED_SHARE = 0.95
"""Minimum share of a question, in order, in a text that asks nothing."""
_WINDOW_ROOM = 1.5
_WINDOW_SPARE = 4
_FREQUENT_SHARE = 0.5
"""Most of the information wanted of a window that frequent words are taken to give."""
_ROUNDING = 1e-9
_Places: TypeAlias = Mapping[str, Sequence[int]]


@dataclass(frozen=True, slots=True)
class ContaminationMatch:
    """An item found in a text: its index, kind of match, and share of information found."""

    item: int
    kind: MatchKind
    share: float


def count_document_frequencies(texts: Iterable[str]) -> tuple[Counter[str], int]:
    """Return the number of texts that contain each word, and the number of texts."""
    counts: Counter[str] = Counter()
    total = 0
    for text in texts:
        counts.update(set(split_words(text)))
        total += 1
    return counts, total


class BenchmarkIndex:
    """Benchmark items to be searched for in many texts."""

    def __init__(
        self,
        items: Sequence[str],
        *,
        frequency: Mapping[str, int] | None = None,
        texts: int = 0,
        near: float = 0.65,
        shuffled: float = 0.9,
        cut: Callable[[str], list[str]] = split_words,
    ) -> None:
        """Index the items.

        ``frequency`` is the document frequency of words over ``texts`` texts, by default over the
        items. ``near`` and ``shuffled`` are minimum shares of an item's information, found in order
        and in any order. ``cut`` splits a text into words, or code into tokens.
        """
        self.near, self.shuffled, self._cut = near, shuffled, cut
        self._items = [cut(item) for item in items]
        self._asks = [
            cut is split_words and is_asking(item) and len(split_sentences(item)) == 1
            for item in items
        ]
        is_prose = cut is split_words
        self._is_code = [is_prose and is_mostly_code(item) for item in items]
        within = Counter(word for item in self._items for word in set(item))
        total = texts + len(items) + 1
        known = frequency or {}
        self._weight = {
            word: math.log(total / (count + known.get(word, 0)) + 0.1)
            for word, count in within.items()
        }
        self._whole: dict[tuple[str, ...], int] = {}
        self._holders: dict[str, list[int]] = {}
        self._names = [
            find_anchors(text, known, texts) & set(item)
            if len(item) <= _MAX_SHORT_WORDS
            else frozenset()
            for text, item in zip(items, self._items, strict=True)
        ]
        self._totals = [sum(self._weight[word] for word in set(item)) for item in self._items]
        for number, item in enumerate(self._items):
            if item:
                self._whole.setdefault(tuple(item), number)
            for word in set(item) if len(item) > _MAX_WHOLE_TEXT_WORDS else ():
                self._holders.setdefault(word, []).append(number)

    def find(self, text: str) -> ContaminationMatch | None:
        """Return the best match in a text, or None."""
        return max(self.matches(text), key=lambda match: (match.share, -match.item), default=None)

    def matches(self, text: str, *, may_state: bool = True) -> Iterator[ContaminationMatch]:
        """Yield every item found in a text; if one is the whole text, only that.

        Where ``may_state``, a text without a question mark counts as a statement.
        """
        words = self._cut(text)
        number = self._whole.get(tuple(words))
        if number is not None:
            yield ContaminationMatch(number, "whole", 1.0)
            return
        is_stated = may_state and not is_asking(text)
        places = _list_places(words)
        for number in self._candidates(places):
            match = self._match_item(number, words, places, is_stated=is_stated)
            if match is not None:
                yield match

    def information(self, number: int) -> float:
        """Return the information of an item's words, in nats."""
        return self._totals[number]

    def question_share(self, number: int, text: str, question: str, passage: str) -> float:
        """Return the share of an item's question in a text, without the words of its passage.

        The larger of the shares by words and by information: in a short question one rare word is
        most of the information.
        """
        wanted_words, used = Counter(self._cut(question)), Counter(self._cut(passage))
        words, best = self._cut(text), 0.0
        information = sum(self._weight[word] * count for word, count in wanted_words.items())
        item = self._items[number]
        stretches = self._stretches(item, words, _list_places(words)) if information else []
        for start, stop in stretches:
            here = (Counter(words[start:stop]) - used) & wanted_words
            shared = sum(self._weight[word] * count for word, count in here.items())
            best = max(best, shared / information, here.total() / wanted_words.total())
        return best

    def _candidates(self, words: Iterable[str]) -> list[int]:
        """Return the items with enough of the distinct words of a text anywhere in it."""
        held: dict[int, float] = {}
        for word in words:
            for number in self._holders.get(word, ()):
                held[number] = held.get(number, 0.0) + self._weight[word]
        least = min(self.near, self.shuffled) * (1 - _ROUNDING)
        return [number for number, sum_ in held.items() if sum_ >= least * self._totals[number]]

    def _match_item(
        self, number: int, words: Sequence[str], places: _Places, *, is_stated: bool
    ) -> ContaminationMatch | None:
        item = self._items[number]
        if _contains_run(words, places, item):
            return ContaminationMatch(number, "verbatim", 1.0)
        if len(item) <= _MAX_VERBATIM_WORDS or not self._names[number] <= places.keys():
            return None
        is_strict = len(item) <= _MAX_SHORT_WORDS or self._is_code[number]
        near = max(self.near, _NEAR_SHORT_SHARE) if is_strict else self.near
        shuffled = self.shuffled
        if is_stated and self._asks[number]:
            near, shuffled = max(near, _NEAR_STATED_SHARE), math.inf
        best: ContaminationMatch | None = None
        for start, stop in self._stretches(item, words, places):
            stretch = words[start:stop]
            in_order = self._common(item, stretch) / sum(self._weight[word] for word in item)
            is_near = in_order >= near
            if is_near and (_replaces_numbers(item, stretch) or is_opposite(item, stretch)):
                continue
            if is_near and (best is None or in_order > best.share):
                best = ContaminationMatch(number, "near", in_order)
            elif best is None:
                any_order = self._shared(item, stretch)
                if any_order >= shuffled:
                    best = ContaminationMatch(number, "shuffled", any_order)
        return best

    def _stretches(
        self, item: Sequence[str], words: Sequence[str], places: _Places
    ) -> list[tuple[int, int]]:
        """Return the windows of the text, sized by the item, that hold most of it."""
        size = int(_WINDOW_ROOM * len(item)) + _WINDOW_SPARE
        if len(words) <= size:
            return [(0, len(words))]
        step = max(1, len(item) // 4)
        least = min(self.near, self.shuffled)
        starts = range(0, len(words) - size + step, step)
        hopeful = sorted(self._iter_hopeful(item, places, least, (size, step)))
        spans = [(start, min(start + size, len(words))) for start in hopeful if start in starts]
        return [span for span in spans if self._shared(item, words[slice(*span)]) >= least]

    def _iter_hopeful(
        self, item: Sequence[str], places: _Places, least: float, window: tuple[int, int]
    ) -> Iterator[int]:
        """Yield the starts of windows that may hold enough of the item, by its rarer words.

        The words that are most frequent in the text are taken to be in every window.
        """
        size, step = window
        counts = Counter(item)
        wanted = least * sum(self._weight[word] for word in item) * (1 - _ROUNDING)
        frequent = 0.0
        held: dict[int, float] = defaultdict(float)
        for word in sorted(counts, key=lambda word: -len(places.get(word, ()))):
            weight = self._weight[word] * counts[word]
            if frequent + weight < wanted * _FREQUENT_SHARE:
                frequent += weight
                continue
            for place in places.get(word, ()):
                first = max(0, -(-(place - size + 1) // step) * step)
                for start in range(first, place + 1, step):
                    held[start] += self._weight[word]
        yield from (start for start, weight in held.items() if frequent + weight >= wanted)

    def _shared(self, item: Sequence[str], stretch: Sequence[str]) -> float:
        """Return the share of the item's information in the window, with multiplicity."""
        here = Counter(item) & Counter(stretch)
        total = sum(self._weight[word] for word in item)
        return sum(self._weight[word] * count for word, count in here.items()) / total

    def _common(self, item: Sequence[str], stretch: Sequence[str]) -> float:
        """Return the weight of the heaviest common subsequence."""
        row = [0.0] * (len(stretch) + 1)
        for word in item:
            weight = self._weight[word]
            before = 0.0
            for column, candidate in enumerate(stretch, 1):
                above = row[column]
                row[column] = before + weight if candidate == word else max(above, row[column - 1])
                before = above
        return row[-1]


def _replaces_numbers(item: Sequence[str], words: Sequence[str]) -> bool:
    """Return whether at least half of an item's numbers have another in their place."""
    count = len(find_numbers(" ".join(item)))
    if not count:
        return False
    edits = SequenceMatcher(None, item, words, autojunk=False).get_opcodes()
    replaced = sum(
        min(len(find_numbers(" ".join(part))) for part in (item[a:b], words[c:d]))
        for kind, a, b, c, d in edits
        if kind == "replace"
    )
    return 2 * replaced >= count


def _list_places(words: Sequence[str]) -> _Places:
    """Return where each word occurs."""
    places: dict[str, list[int]] = {}
    for index, word in enumerate(words):
        places.setdefault(word, []).append(index)
    return places


def _contains_run(words: Sequence[str], places: _Places, item: Sequence[str]) -> bool:
    """Return whether the words of the item occur in the text in sequence."""
    size = len(item)
    return any(words[index : index + size] == item for index in places.get(item[0], ()))
