"""Who does what to whom: claims that exchange the subject and the object of a passage's verb.

A sentence made of a passage's words in another order or voice shares all of its words ("Italy was
defeated by Brazil", "Italy defeated Brazil"). Each content word that is not capitalized is taken
for a verb, the nearest content word on its left for its subject and that on its right for its
object; a form of "be" before and "by" after it turn them round. A claim reverses a passage if what
does something in one has it done in the other, and no sentence of the passage has either word in
the claim's role. English only: other languages put objects first without "by".

Source: no paper; a parser's roles would need a model. Verbs that say the same both ways ("Anna
married Ben") are left out. Measured in ``benchmarks/rag/exchanged_roles.py``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stillroom.rag.analysis.stop_words import STOP_WORDS
from stillroom.text.language import split_sentences

__all__ = ["VerbRoles", "find_roles", "is_english", "reverses_roles"]

_TOKEN = re.compile(r"\w+(?:['’]\w+)?")
_PASSIVE = frozenset("is are was were be been being am get gets got".split())  # noqa: SIM905
_MAX_BEFORE, _MAX_BY = 3, 8  # words from a form of "be" to its verb, and on to "by"
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
    words = _TOKEN.findall(sentence)
    plain = [word.casefold() for word in words]
    terms = [stem(word) for word in words]
    places = [place for place, term in enumerate(terms) if term]
    roles = []
    for number, place in enumerate(places):
        if not number or words[place][0].isupper() or _MUTUAL.match(plain[place]):
            continue
        left, right = places[number - 1], places[number + 1 : number + 2]
        by = plain[place + 1 : place + 1 + _MAX_BY]
        if "by" in by and not _PASSIVE.isdisjoint(plain[max(place - _MAX_BEFORE, 0) : place]):
            after = place + 1 + by.index("by")
            doers = [other for other in places[number + 1 :] if other > after][:1]
            roles.append(VerbRoles(terms[place], _first(terms, doers), terms[left]))
        else:
            roles.append(VerbRoles(terms[place], terms[left], _first(terms, right)))
    return roles


def _first(terms: Sequence[str], places: Sequence[int]) -> str:
    return terms[places[0]] if places else ""


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
