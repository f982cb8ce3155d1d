"""How much of a text repeats itself: the measures of Gopher's repetition rules.

Shares of characters count the words' own characters, so that neither spaces nor punctuation move
them. Knows words, lines and paragraphs, no language.

Source: Rae et al. 2021, arXiv:2112.11446, table A1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from stillroom.text.normalize import words

__all__ = ["GOPHER_LIMITS", "measure_loops"]

GOPHER_LIMITS = {
    "duplicate lines": 0.30,
    "duplicate paragraphs": 0.30,
    "characters in duplicate lines": 0.20,
    "characters in duplicate paragraphs": 0.20,
    "characters in the commonest 2-gram": 0.20,
    "characters in the commonest 3-gram": 0.18,
    "characters in the commonest 4-gram": 0.16,
    "characters in duplicate 5-grams": 0.15,
    "characters in duplicate 6-grams": 0.14,
    "characters in duplicate 7-grams": 0.13,
    "characters in duplicate 8-grams": 0.12,
    "characters in duplicate 9-grams": 0.11,
    "characters in duplicate 10-grams": 0.10,
}
"""The paper's bounds, by what is measured."""
_COMMON, _DUPLICATE = (2, 3, 4), (5, 6, 7, 8, 9, 10)


def measure_loops(text: str) -> dict[str, float]:
    """Return every measure of ``GOPHER_LIMITS`` for a text, from 0 to 1."""
    found: dict[str, float] = {}
    for name, mark in (("lines", "\n"), ("paragraphs", "\n\n")):
        parts = [part.strip() for part in text.split(mark) if part.strip()]
        repeats = _repeats(parts)
        found[f"duplicate {name}"] = len(repeats) / max(len(parts), 1)
        size = max(sum(map(len, parts)), 1)
        found[f"characters in duplicate {name}"] = sum(map(len, repeats)) / size
    told = words(text)
    total = max(sum(map(len, told)), 1)
    for n in _COMMON:
        grams = Counter(zip(*(told[at:] for at in range(n)), strict=False))
        most = max(
            (sum(map(len, gram)) * count for gram, count in grams.items() if count > 1), default=0
        )
        found[f"characters in the commonest {n}-gram"] = min(most / total, 1.0)
    for n in _DUPLICATE:
        found[f"characters in duplicate {n}-grams"] = _covered(told, n) / total
    return found


def _repeats(parts: Sequence[str]) -> list[str]:
    """Return every part that stood before already."""
    seen: set[str] = set()
    again = []
    for part in parts:
        if part in seen:
            again.append(part)
        seen.add(part)
    return again


def _covered(told: Sequence[str], n: int) -> int:
    """Return how many characters lie in n-grams that stood before; none is counted twice."""
    seen: set[tuple[str, ...]] = set()
    covered, at = 0, 0
    while at + n <= len(told):
        gram = tuple(told[at : at + n])
        if gram in seen:
            covered += sum(map(len, gram))
            at += n
        else:
            seen.add(gram)
            at += 1
    return covered
