"""Who does what to whom: claims that exchange the subject and the object of a passage's verb.

A sentence made of a passage's words in another order or voice shares all of its words ("Italy was
defeated by Brazil", "Italy defeated Brazil"). Each content word that is not capitalized, and has no
article before it, is taken for a verb, the nearest content word on its left for its subject and
that on its right for its object, both within its clause and its part of a list; a form of "be"
before and "by" after it turn them round. A claim reverses a passage if what does something in one
has it done in the other, and no sentence of the passage has either word in the claim's role.
English only: other languages put objects first without "by".

Source: no paper; a parser's roles would need a model. Verbs that say the same both ways ("Anna
married Ben") are left out. Measured in ``benchmarks/rag/exchanged_roles.py``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from stillroom.rag.analysis.stop_words import STOP_WORDS
from stillroom.text.language import split_sentences

__all__ = ["VerbRoles", "find_roles", "is_english", "reverses_roles"]

_TOKEN = re.compile(r"\w+(?:['’]\w+)?")
_PASSIVE = frozenset("is are was were be been being am get gets got".split())  # noqa: SIM905
_MAX_BEFORE, _MAX_BY = 3, 8  # words from a form of "be" to its verb, and on to "by"
_ADVERB = re.compile(r"\w+ly|later|often|never|always|first|soon|then")
_DETERMINERS = frozenset("the a an its his their our my your this these each every".split())  # noqa: SIM905
_BREAK = re.compile(r"[,;:()–—]")
_BREAKING = frozenset(
    "and or nor but when while if because once unless until whereas although though".split()  # noqa: SIM905
)
_MUTUAL = re.compile(
    r"(?:marr|met\b|meet|equal|resembl|match|border|adjoin|join|intersect|touch|accompan|differ|"
    r"corresponds?\b|neighbou?r|overlap|compet|cooperat|collaborat|divorc)"
)


@dataclass(frozen=True, slots=True)
class VerbRoles:
    """A verb's term with the term of what does it and of what it is done to; empty if none."""

    verb: str
    subject: str
    object: str


def find_roles(text: str, stem: Callable[[str], str]) -> list[VerbRoles]:
    """Return the roles at each word of a text that may be a verb.

    Args:
        text: Sentences in English.
        stem: Returns the term of a word; empty for stop words.
    """
    return [found for start, end in split_sentences(text) for found in _read(text[start:end], stem)]


def _read(sentence: str, stem: Callable[[str], str]) -> list[VerbRoles]:
    tokens = list(_TOKEN.finditer(sentence))
    words = [token[0] for token in tokens]
    plain = [word.casefold() for word in words]
    terms = [stem(word) for word in words]
    # Of the clause or part of a list that each word is in: others have no role at its verb.
    parts = list(accumulate(_list_breaks(sentence, tokens, plain)))
    places = [place for place, term in enumerate(terms) if term]
    roles = []
    for number, place in enumerate(places):
        is_noun = place and plain[place - 1] in _DETERMINERS
        if is_noun or words[place][0].isupper() or _MUTUAL.match(plain[place]):
            continue
        near = [other for other in places if parts[other] == parts[place]]
        left, right = _first(terms, places[:number][-1:], near), places[number + 1 : number + 2]
        by = plain[place + 1 : place + 1 + _MAX_BY]
        if _is_passive(plain, terms, place) and "by" in by:
            after = place + 1 + by.index("by")
            doers = [other for other in places[number + 1 :] if other > after][:1]
            roles.append(VerbRoles(terms[place], _first(terms, doers, near), left))
        elif by[:1] != ["by"]:  # "won by three goals" or "the bridge designed by Anna"
            roles.append(VerbRoles(terms[place], left, _first(terms, right, near)))
    return roles


def _list_breaks(
    sentence: str, tokens: Sequence[re.Match[str]], plain: Sequence[str]
) -> Iterator[bool]:
    """Yield whether each word begins another clause or another part of a list."""
    end = 0
    for token, word in zip(tokens, plain, strict=True):
        yield word in _BREAKING or _BREAK.search(sentence, end, token.start()) is not None
        end = token.end()


def _is_passive(plain: Sequence[str], terms: Sequence[str], place: int) -> bool:
    """Return whether a form of "be" is before a word, with at most adverbs between them."""
    for word, term in zip(
        reversed(plain[max(place - _MAX_BEFORE, 0) : place]),
        reversed(terms[max(place - _MAX_BEFORE, 0) : place]),
        strict=True,
    ):
        if word in _PASSIVE:
            return True
        if term and not _ADVERB.fullmatch(word):
            return False
    return False


def _first(terms: Sequence[str], places: Sequence[int], near: Sequence[int]) -> str:
    return terms[places[0]] if places and places[0] in near else ""


def reverses_roles(claim: Sequence[VerbRoles], passage: Sequence[VerbRoles]) -> bool:
    """Return whether a claim exchanges the subject and the object of a verb of a passage."""
    for said in claim:
        there = [roles for roles in passage if roles.verb == said.verb]
        if not said.subject or not said.object:
            continue
        if any(said.subject == one.subject or said.object == one.object for one in there):
            continue
        if any(said.subject == one.object or said.object == one.subject for one in there):
            return True
    return False


def is_english(text: str, *, least: int = 1) -> bool:
    """Return whether a text has as many stop words of English as of each other language.

    Args:
        text: Of any length; few words may have none.
        least: Number of stop words below which it is no English.
    """
    words = [word.casefold() for word in _TOKEN.findall(text)]
    counts = {name: sum(word in stop for word in words) for name, stop in STOP_WORDS.items()}
    english = counts.pop("english")
    return english >= max(least, *counts.values())
