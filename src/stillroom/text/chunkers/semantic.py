"""Semantic chunking: splits between sentences with the largest embedding distance.

Each sentence is embedded together with ``buffer`` sentences on both sides. Text is split where the
cosine distance between neighbors is above the document's ``percentile``. Parts below ``min_size``
are joined to the nearer neighbor; parts above ``size`` are split again at their greatest distance,
so the size is a hard limit. Costs one vector for each sentence in addition to those of the
passages.

Source: Kamradt 2023, "5 Levels of Text Splitting", level 4, with the defaults of LlamaIndex (buffer
1, percentile 95). Differs: sizes are bounded. The splits depend on the embedder in use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field
from typing_extensions import override

from stillroom.records import Document
from stillroom.text.chunking.boundaries import Span
from stillroom.text.chunking.sections import split_sentence_units
from stillroom.text.chunking.tokens import TokenRuler
from stillroom.text.interfaces import Chunker, TextEmbedder

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Semantic"]

_Span = tuple[int, int]
_MAX_TRIES = 64


class Semantic(Chunker):
    """Splits between sentences with distant embeddings."""

    paper: ClassVar[str] = ""
    needs_embedder: ClassVar[bool] = True
    percentile: float = Field(
        default=95.0, ge=0, le=100, description="percentile of distances above which text is split"
    )
    buffer: int = Field(
        default=1, ge=0, le=16, description="sentences on both sides embedded with each sentence"
    )
    min_size: int = Field(
        default=32, ge=0, description="parts below this size are joined to the nearer neighbor"
    )

    @property
    @override
    def reading_passes(self) -> int:
        return 2 * self.buffer + 1

    @override
    def split(
        self, document: Document, ruler: TokenRuler, embed: TextEmbedder | None
    ) -> list[Span]:
        units = split_sentence_units(document, ruler, self.size, min_size=min(8, self.size // 2))
        distances = self._measure(units, ruler, embed)
        row = _UnitSequence(units, distances, ruler, self.size, self.min_size)
        cuts = row.cut(self.percentile / 100) if units else []
        return [row.span(first, last) for first, last in cuts]

    def _measure(
        self, units: Sequence[Span], ruler: TokenRuler, embed: TextEmbedder | None
    ) -> NDArray[np.float64]:
        """Return the cosine distance of each unit to the next, (units - 1,)."""
        if embed is None or len(units) < 2:
            return np.zeros(0)
        texts = [self._surround(index, units, ruler) for index in range(len(units))]
        rows = np.asarray(embed(texts), dtype=np.float64)
        distances: NDArray[np.float64] = 1.0 - (rows[:-1] * rows[1:]).sum(axis=1)
        return distances

    def _surround(self, index: int, units: Sequence[Span], ruler: TokenRuler) -> str:
        """Return a unit with its neighbors on both sides, as far as they fit."""
        for buffer in range(self.buffer, 0, -1):
            start = units[max(index - buffer, 0)][0]
            end = units[min(index + buffer, len(units) - 1)][1]
            if ruler.excess(start, end, self.size) <= 1:
                return ruler.text[start:end]
        return ruler.text[slice(*units[index])]


@dataclass(frozen=True)
class _UnitSequence:
    """A sequence of units, the distance of each to the next, and the maximum size of a part."""

    units: Sequence[Span]
    distances: NDArray[np.float64]
    ruler: TokenRuler
    size: int
    min_size: int

    def span(self, first: int, last: int) -> Span:
        return self.units[first][0], self.units[last - 1][1]

    def cut(self, share: float) -> list[_Span]:
        """Return (first, last + 1) of the units in each passage."""
        limit = np.quantile(self.distances, share) if len(self.distances) else 0.0
        turns = [int(index) + 1 for index in np.flatnonzero(self.distances > limit)]
        waiting = self._join_small(list(pairwise([0, *turns, len(self.units)])))[::-1]
        cuts: list[_Span] = []
        while waiting:
            first, last = waiting.pop()
            if last - first == 1 or self._fits(first, last):
                cuts.append((first, last))
                continue
            middle = self._divide(first, last)
            waiting += [(middle, last), (first, middle)]
        return cuts

    def _join_small(self, parts: list[_Span]) -> list[_Span]:
        """Return the parts; each below ``min_size`` is joined to the nearer neighbor."""
        joined: list[_Span] = []
        for number, (first, last) in enumerate(parts):
            if joined and joined[-1][1] > first:  # already joined to the previous part
                continue
            part = first, last
            if self._size(first, last) < self.min_size:
                back = joined[-1] if joined else None
                ahead = parts[number + 1] if number + 1 < len(parts) else None
                part = self._join(part, back, ahead)
            if joined and part[0] < first:
                joined.pop()
            joined.append(part)
        return joined

    def _join(self, part: _Span, back: _Span | None, ahead: _Span | None) -> _Span:
        """Join a small part to the nearer neighbor; oversized results are split later."""
        first, last = part
        choices = []
        if back:
            choices.append((self.distances[first - 1], (back[0], last)))
        if ahead:
            choices.append((self.distances[last - 1], (first, ahead[1])))
        return min(choices)[1] if choices else part

    def _divide(self, first: int, last: int) -> int:
        """Return the unit at which an oversized part is split: the one of greatest distance.

        Neither side may be below ``min_size`` where that is possible; of equal distances the one in
        the middle wins.
        """
        inner = self.distances[first : last - 1].round(6)
        order = np.lexsort((np.abs(np.arange(len(inner)) - len(inner) / 2), -inner))
        for index in order[:_MAX_TRIES]:
            middle = first + int(index) + 1
            if min(self._size(first, middle), self._size(middle, last)) >= self.min_size:
                return middle
        return first + int(order[0]) + 1

    def _fits(self, first: int, last: int) -> bool:
        span = self.span(first, last)
        is_near = self.ruler.measure(*span) <= 2 * self.size  # counting costs more than measuring
        return is_near and self.ruler.excess(*span, self.size) <= 1

    def _size(self, first: int, last: int) -> float:
        return self.ruler.measure(*self.span(first, last))
