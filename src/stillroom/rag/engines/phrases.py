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
        ends = _join(found)
        if not len(ends):
            break
    return np.zeros(0, dtype=np.int64) if ends is None else np.unique(ends >> 32)


def _follow_chain(
    chain: Chain, ends: NDArray[np.int64] | None, occurrences: Occurrences
) -> NDArray[np.int64]:
    """Return where a chain ends that goes on from one of ``ends``: row << 32 | position."""
    for spellings in chain:
        held = [(rows << 32) + places for rows, places in map(occurrences, spellings)]
        keys = _join(held)
        ends = keys if ends is None else keys[_goes_on(keys, ends)]
        if not len(ends):
            break
    return np.zeros(0, dtype=np.int64) if ends is None else ends


def _join(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Return ascending numbers as one array of them, ascending; one alone is not sorted again."""
    if len(parts) == 1:
        return parts[0]
    return np.unique(np.concatenate(parts)) if parts else np.zeros(0, dtype=np.int64)


def _goes_on(keys: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which places stand right after an end, in a compound or at the next word's beginning.

    Looks back from each place, by bisection: what follows a common word is never spelled out.
    """
    is_last = ends % 2 == _LAST
    words = ends[is_last] // _WORD
    parts = ends[~is_last & ((ends % _WORD) >> 1 > 0)]
    begins = (keys % _WORD) >> 1 <= 1
    found = np.empty(len(keys), dtype=np.bool_)
    found[begins] = _holds(words, keys[begins] // _WORD - 1)
    found[~begins] = _holds(parts, keys[~begins] - keys[~begins] % 2 - 2)
    return found


def _holds(ascending: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which of the wanted numbers are among ascending ones."""
    if not len(ascending):
        return np.zeros(len(wanted), dtype=np.bool_)
    at = np.searchsorted(ascending, wanted)
    at[at == len(ascending)] = 0
    held: NDArray[np.bool_] = ascending[at] == wanted
    return held
