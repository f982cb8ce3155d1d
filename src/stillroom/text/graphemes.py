"""Where a text may be cut without tearing a character a person sees.

Source: Unicode Standard Annex 29 (grapheme clusters), in the part that matters for cutting:
combining marks, joiners, variation selectors, skin tones, tags, flags, CR LF, Hangul syllables.
"""

from __future__ import annotations

import unicodedata

__all__ = ["is_safe_cut", "safe_cut"]

_LONGEST = 64  # longer clusters are no writing; they may be cut
_JOINER = "\u200d"
_HANGUL = range(0x1160, 0x1200)
_INDICATORS = range(0x1F1E6, 0x1F200)
_TONES = range(0x1F3FB, 0x1F400)
_TAGS = range(0xE0020, 0xE0080)


def is_safe_cut(text: str, position: int) -> bool:
    """Say whether text may be cut before ``position``."""
    if position <= 0 or position >= len(text):
        return True
    before, after = text[position - 1], text[position]
    if before == "\r" and after == "\n":
        return False
    if before.isascii() and after.isascii():
        return True
    if before.isspace():  # white space ends a passage, whatever mark leans on it
        return True
    code = ord(after)
    if before == _JOINER or after == _JOINER or code in _TONES or code in _TAGS or code in _HANGUL:
        return False
    if unicodedata.category(after)[0] == "M":
        return False
    if code in _INDICATORS and ord(before) in _INDICATORS:
        start = position
        while start > 0 and ord(text[start - 1]) in _INDICATORS and position - start < _LONGEST:
            start -= 1
        return (position - start) % 2 == 0
    return True


def safe_cut(text: str, position: int, low: int) -> int:
    """Return the last safe cut at or before ``position`` but after ``low``.

    When there is none, the first safe cut after it; a cluster of more than 64 code points is cut.
    """
    back = position
    while back > low and position - back < _LONGEST:
        if is_safe_cut(text, back):
            return back
        back -= 1
    forward = position
    while forward < len(text) and forward - low < _LONGEST:
        if is_safe_cut(text, forward):
            return forward
        forward += 1
    return max(forward, low + 1)
