"""Search of texts for the code of benchmark items, by its structure (token trigrams)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from stillroom.text.code import extract_token_trigrams
from stillroom.text.dedup.decontamination import BenchmarkIndex, ContaminationMatch

__all__ = ["CodeFinder"]

_MIN_TRIGRAMS, _SHORT_TRIGRAMS = 20, 30
"""Token trigrams of the shortest code that is searched for, about four lines; and of that which a
less similar one is taken for: short functions resemble each other."""
_MIN_COUNTED_TEXTS = 50  # with code, to estimate trigram frequencies
_NEAR, _NEAR_SHORT, _SHUFFLED = 0.6, 0.8, 0.85
"""Information share of the trigrams, in order and in any order; chosen on functions of Python's
standard library, renamed and reordered.
"""


class CodeFinder:
    """Search for the code of items, or of their answers, by its structure (token trigrams)."""

    def __init__(self, items: Iterable[tuple[str, str]]) -> None:
        """Index the items with their answers; short code is left out, as it often coincides."""
        self._items: list[int] = []
        self._texts: list[str] = []
        for item, texts in enumerate(items):
            code = next(
                (text for text in texts if len(extract_token_trigrams(text)) >= _MIN_TRIGRAMS),
                "",
            )
            if code:
                self._items.append(item)
                self._texts.append(code)
        self._counts: Counter[str] = Counter()
        self._counted = 0
        self._index: BenchmarkIndex | None = None

    def count(self, text: str) -> str:
        """Count the token trigrams of a text's code for frequency weights; return the text."""
        trigrams = extract_token_trigrams(text) if self._items else ()
        if trigrams:
            self._counts.update(set(trigrams))
            self._counted += 1
        return text

    def find(self, text: str) -> Iterator[ContaminationMatch]:
        """Yield the items whose code is in a text, under any identifiers; call ``count`` first."""
        if not self._items or len(extract_token_trigrams(text)) < _MIN_TRIGRAMS // 2:
            return
        if self._index is None:
            are_enough = self._counted >= _MIN_COUNTED_TEXTS
            self._index = BenchmarkIndex(
                self._texts,
                frequency=self._counts if are_enough else None,
                texts=self._counted if are_enough else 0,
                near=_NEAR,
                shuffled=_SHUFFLED,
                cut=extract_token_trigrams,
            )
        for match in self._index.matches(text):
            size = len(extract_token_trigrams(self._texts[match.item]))
            if size >= _SHORT_TRIGRAMS or match.share >= _NEAR_SHORT:
                yield ContaminationMatch(self._items[match.item], "rephrased", match.share)
