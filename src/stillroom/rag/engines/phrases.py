"""Phrases: where the words of a text stand, and which rows hold some one after another.

A word has a number in its field. What stands for all of it (each of its spellings) is at slot 0,
the parts of a compound at the slots after, so that ``e-mail address`` is found where ``email
address`` stands, and ``user name`` within ``userName``. A position is one integer of the three.

Does not know: how texts are cut, or where occurrences lie.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Chain", "PhraseWord", "Placed", "find_phrase", "place"]

Chain = tuple[tuple[str, ...], ...]
"""What must stand in slots or words one after another; each any one of several spellings."""
PhraseWord = tuple[Chain, ...]
"""A word of a phrase: any one of these chains stands for it."""
Placed = list[tuple[str, int]]
"""The terms of a field with their positions, ascending."""
Occurrences = Callable[[str], "tuple[NDArray[np.int64], NDArray[np.int64]]"]

_SLOT_BITS = 4
_LAST = 1
_WORD = 1 << (_SLOT_BITS + 1)
_MOST_PARTS = (1 << _SLOT_BITS) - 1


def place(word: int, slot: int = 0, *, is_last: bool = True) -> int:
    """Return the position of a slot of a word; parts beyond the fifteenth share its slot."""
    return word * _WORD + (min(slot, _MOST_PARTS) << 1) + is_last


def find_phrase(words: Sequence[PhraseWord | str], occurrences: Occurrences) -> NDArray[np.int64]:
    """Return the rows that hold words one after another, ascending.

    Args:
        words: As the analyzer cuts the phrase, stop words included; a string is a word with one
            spelling. None find nothing.
        occurrences: Gives the rows and positions of a term, both ascending.
    """
    ends: NDArray[np.int64] | None = None
    for word in words:
        chains = (((word,),),) if isinstance(word, str) else word
        found = [_follow_chain(chain, ends, occurrences) for chain in chains]
        ends = np.unique(np.concatenate(found)) if found else np.zeros(0, dtype=np.int64)
        if not len(ends):
            break
    return np.zeros(0, dtype=np.int64) if ends is None else np.unique(ends >> 32)


def _follow_chain(
    chain: Chain, ends: NDArray[np.int64] | None, occurrences: Occurrences
) -> NDArray[np.int64]:
    """Return where a chain ends that goes on from one of ``ends``: row << 32 | position."""
    for spellings in chain:
        held = [(rows << 32) + places for rows, places in map(occurrences, spellings)]
        keys = np.unique(np.concatenate(held))
        ends = keys if ends is None else keys[np.isin(keys, _next_places(ends))]
        if not len(ends):
            break
    return np.zeros(0, dtype=np.int64) if ends is None else ends


def _next_places(ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return what may follow: the next part of a compound, or the beginning of the next word."""
    slots = (ends % _WORD) >> 1
    parts = ends[(slots > 0) & (ends % 2 != _LAST)]
    wholes = ends[ends % 2 == _LAST]
    first = wholes - wholes % _WORD + _WORD
    after = parts - parts % 2 + 2
    return np.concatenate([after, after + _LAST, first + _LAST, first + 2, first + 2 + _LAST])
