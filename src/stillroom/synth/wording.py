"""Words that carry meaning, and whether one text is supported by another.

Lexical only: it knows which words occur where, not what they mean. The word lists are English; in
other languages every word counts as content, which makes the filters stricter, not looser.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from stillroom.text.normalize import words

__all__ = [
    "FRAMES",
    "FUNCTION_WORDS",
    "collapse",
    "content_stems",
    "content_words",
    "names_and_numbers",
    "share_supported",
    "stem",
]

FUNCTION_WORDS = frozenset(
    str.split(
        """a about above after again against all also although always am an and any are as at be
        because been before being below between both but by can cannot could did do does doing
        done down during each either else etc even ever every few for from further get gets give
        given gives had has have having he her here hers him his how however i if in instead
        into is it its itself just like made make makes many may me might more most much must my
        neither no nor not now of off often on once one only onto or other others our out over
        own per rather same shall she should since so some such than that the their them then
        there therefore these they this those though through thus to too under unless until up
        upon us use used uses using very via was we well were what when where whether which
        while who whom whose why will with within without would yes yet you your"""
    )
)
FRAMES = frozenset(
    str.split(
        """called difference differ explain happen happens mean meaning means name purpose role
        describe type kind way work works main following"""
    )
)
"""Words that frame a question and need not stand in the text that answers it."""

_SUFFIXES = (
    "ations",
    "ation",
    "ions",
    "ion",
    "ings",
    "ing",
    "ied",
    "ies",
    "ed",
    "es",
    "ly",
    "e",
    "y",
    "s",
)
_MIN_STEM = 4
_NAME = re.compile(r"(?<=[^.!?:\n]\s)[“‘\"'(]?([A-Z][\w.'’-]*\w)")
_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d[\d.,:/]*\d|\d)(?:(?:st|nd|rd|th|s)\b)?")
_SPACE = re.compile(r"\s+")


def collapse(text: str) -> str:
    """Return the text on one line, with single spaces."""
    return _SPACE.sub(" ", text).strip()


def stem(word: str) -> str:
    """Return a word without its commonest English endings, so that forms of it compare equal."""
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= _MIN_STEM:
            return word[: -len(suffix)]
    return word[:-1] if word.endswith("s") and len(word) > _MIN_STEM - 1 else word


def content_words(text: str, *, frames: bool = True) -> list[str]:
    """Return the words that carry meaning, in order, question ``frames`` included."""
    return [
        word
        for word in words(text)
        if word not in FUNCTION_WORDS
        and not (len(word) == 1 and word.isascii() and word.isalpha())
        and (frames or word not in FRAMES)
    ]


def content_stems(text: str, *, frames: bool = True) -> list[str]:
    """Return the stems of ``content_words``, in order."""
    return [stem(word) for word in content_words(text, frames=frames)]


def share_supported(stems: Iterable[str], source: Collection[str]) -> float:
    """Return which share of the distinct stems is in the source; 1.0 when there are none."""
    wanted = set(stems)
    return len(wanted.intersection(source)) / len(wanted) if wanted else 1.0


def names_and_numbers(text: str) -> list[str]:
    """Return names (capitalized within a sentence) and numbers, as normalized words.

    These must be in a passage word for word for an answer to be supported by it.
    """
    found = [*_NAME.findall(text), *_NUMBER.findall(text)]
    return [word for item in found for word in words(item) if word not in FUNCTION_WORDS]
