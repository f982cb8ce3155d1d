"""Who does what to whom: claims that exchange the subject and the object of a passage's verb.

A sentence made of a passage's words in another order or voice shares all of its words ("Italy was
defeated by Brazil", "Italy defeated Brazil"). Each content word that is not capitalized, and has no
article before it, is taken for a verb, the nearest words on its left for its subject and those on
its right for its object, both within its clause and its part of a list; a form of "be" before and
"by" after it turn them round. Prepositions and adverbs are neither. A claim reverses a passage if
what does something in one has it done in the other, or if one does what another of the sentence
does there, and no sentence of the passage has either in the claim's role. English only: other
languages put objects first without "by".

A claim widens a passage if it says "all" or "always" where the sentence of the passage that has
most of its words says "some", "often" or another word of a part, and none of the whole.

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

__all__ = ["VerbRoles", "find_roles", "is_english", "reverses_roles", "widens_scope"]

_TOKEN = re.compile(r"\w+(?:['’]\w+)?")
_PASSIVE = frozenset("is are was were be been being am get gets got".split())  # noqa: SIM905
_MAX_BEFORE, _MAX_BY = 3, 8  # words from a form of "be" to its verb, and on to "by"
_SHORT_ADVERB = 4  # "July" and "fly" are none
_ADVERB = re.compile(r"\w+ly|later|often|never|always|first|soon|then")
_DETERMINERS = frozenset("the a an its his their our my your this these each every".split())  # noqa: SIM905
_BREAK = re.compile(r"[,;:()–—|]")  # a bar ends a cell of a table
_BREAKING = frozenset(
    "and or nor but when while if because once unless until whereas although though".split()  # noqa: SIM905
)
_PREPOSITIONS = frozenset("of in by to for at on with from".split())  # noqa: SIM905
_NO_PARTICIPANTS = frozenset(
    "upon from between through over under about after before during against among within without"  # noqa: SIM905
    " until since than per via toward towards onto off up out down back away around across along"
    " later often never always first soon also just even still only already once again not".split()
)
_WHOLE = frozenset(
    "all every always each entirely completely exclusively invariably everyone only".split()  # noqa: SIM905
)
_PART = frozenset(
    "some often mainly mostly most many much usually sometimes generally partly partially largely"  # noqa: SIM905
    " typically rarely occasionally frequently several few commonly primarily half".split()
)
_MUTUAL = re.compile(
    r"(?:marr|met\b|meet|equal|resembl|match|border|adjoin|join|intersect|touch|accompan|differ|"
    r"corresponds?\b|neighbou?r|overlap|compet|cooperat|collaborat|divorc)"
)


@dataclass(frozen=True, slots=True)
class VerbRoles:
    """A verb's term with the terms of what does it and of what it is done to.

    ``others`` are the remaining terms of the clause.
    """

    verb: str
    subject: frozenset[str]
    object: frozenset[str]
    others: frozenset[str]


def find_roles(text: str, stem: Callable[[str], str]) -> list[VerbRoles]:
    """Return the roles at each word of a text that may be a verb.

    ``stem`` returns the term of a word; empty for stop words. The text is in English.
    """
    return [found for start, end in split_sentences(text) for found in _read(text[start:end], stem)]


def _read(sentence: str, stem: Callable[[str], str]) -> list[VerbRoles]:
    tokens = list(_TOKEN.finditer(sentence))
    words = [token[0] for token in tokens]
    plain = [word.casefold() for word in words]
    terms = ["" if _is_no_participant(word) else stem(word) for word in words]
    # Of the clause or part of a list that each word is in: others have no role at its verb.
    parts = list(accumulate(_list_breaks(sentence, tokens, plain)))
    places = [place for place, term in enumerate(terms) if term]
    roles = []
    for number, place in enumerate(places):
        before = plain[place - 1] if place else ""
        is_noun = before in _DETERMINERS or before.isdecimal()  # "12,000 users", "$3 billion"
        if is_noun or words[place][0].isupper() or _MUTUAL.match(plain[place]):
            continue
        near = [other for other in places if parts[other] == parts[place] and other != place]
        left = _left_phrase(plain, terms, place, near)
        by = plain[place + 1 : place + 1 + _MAX_BY]
        if _is_passive(plain, terms, place) and "by" in by:
            after = place + 1 + by.index("by")
            doers = [other for other in places[number + 1 :] if other > after][:1]
            subject, done = _phrase(terms, doers, near, 1), left
        elif by[:1] != ["by"]:  # "won by three goals" or "the bridge designed by Anna"
            subject, done = left, _phrase(terms, places[number + 1 : number + 2], near, 1)
        else:
            continue
        if plain[place].endswith("ed") and by[:1] in (["in"], ["at"]):
            done = frozenset()  # "the bridge shown in the book", where the book shows the bridge
        others = frozenset(terms[other] for other in near) - subject - done
        roles.append(VerbRoles(terms[place], subject, done, others))
    return roles


def _is_no_participant(word: str) -> bool:
    plain = word.casefold()
    return (
        plain in _NO_PARTICIPANTS
        or plain.isdecimal()
        or (word[0].islower() and len(plain) > _SHORT_ADVERB and plain.endswith("ly"))
    )


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


def _left_phrase(
    plain: Sequence[str], terms: Sequence[str], place: int, near: Sequence[int]
) -> frozenset[str]:
    """Return the phrase before a word, with that before its preposition.

    What failed in "the system of records kept by Anna failed" may be any of them.
    """
    before = [other for other in near if other < place]
    phrase = _phrase(terms, before[-1:], near, -1)
    last = before[-1] if before else -1
    while last in near:
        last -= 1
    further = [other for other in before if other < last]
    is_joined = further and not _PREPOSITIONS.isdisjoint(plain[further[-1] + 1 : last + 1])
    return phrase | _phrase(terms, further[-1:], near, -1) if is_joined else phrase


def _phrase(
    terms: Sequence[str], places: Sequence[int], near: Sequence[int], step: int
) -> frozenset[str]:
    """Return the terms of a word and of those right next to it, going left (-1) or right (1)."""
    phrase: set[str] = set()
    place = places[0] if places else -1
    while place in near:
        phrase.add(terms[place])
        place += step
    return frozenset(phrase)


def reverses_roles(claim: Sequence[VerbRoles], passage: Sequence[VerbRoles]) -> bool:
    """Return whether a claim exchanges the participants of a verb of a passage."""
    for verb in claim:
        there = [roles for roles in passage if roles.verb == verb.verb]
        if not verb.subject or not verb.object:
            continue
        if any(verb.subject & one.subject for one in there):
            continue
        same_object = [one for one in there if verb.object & one.object]
        if same_object:
            if any(verb.subject & one.others and one.subject & verb.others for one in same_object):
                return True
            continue
        if any(verb.subject & one.object or verb.object & one.subject for one in there):
            return True
    return False


def widens_scope(claim: str, passage: str, stem: Callable[[str], str]) -> bool:
    """Return whether a claim says of all what the passage says of some.

    Both are in English; ``stem`` returns the term of a word, empty for stop words.
    """
    if not _WHOLE & _split(claim):
        return False
    terms = {stem(word) for word in _split(claim)} - {""}
    source = max(
        (_split(passage[start:end]) for start, end in split_sentences(passage)),
        key=lambda words: len(terms & {stem(word) for word in words}),
        default=frozenset(),
    )
    return bool(_PART & source) and not _WHOLE & source


def _split(text: str) -> frozenset[str]:
    return frozenset(word.casefold() for word in _TOKEN.findall(text))


def is_english(text: str, *, least: int = 1) -> bool:
    """Return whether a text has as many stop words of English as of each other language.

    A text with less than ``least`` stop words is no English.
    """
    words = [word.casefold() for word in _TOKEN.findall(text)]
    counts = {name: sum(word in stop for word in words) for name, stop in STOP_WORDS.items()}
    english = counts.pop("english")
    return english >= max(least, *counts.values())
