"""Where the verb of an English statement stands, if that is plain.

Words are told by their form and by their neighbours: "stores" is a verb in "the server stores rows"
and a noun in "department stores are", "said" is one and "the values returned by it" is none. Of a
statement in which two words may be its verb nothing is said.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from stillroom.synth.verbs import BE, HAVE, MODAL, base_of, is_participle, past_of
from stillroom.synth.wording import FUNCTION_WORDS

__all__ = ["ADVERBS", "DETERMINERS", "NUMBERS", "Verb", "find_verb", "is_adverb", "outside"]

ADVERBS = frozenset(
    str.split(
        """then also always often usually only now still first normally typically generally
        already just even again both all sometimes thus later twice never ever"""
    )
)

DETERMINERS = frozenset(
    str.split("a an the any all each every some both no its their his her such this that these")
)
NUMBERS = frozenset(
    str.split(
        """two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
        sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety
        hundred thousand million billion several many few most"""
    )
)
_BEHIND_PARTICIPLE = frozenset(
    str.split(
        """by in to from with on at for as during between under into through of using over within
        after before without across against among about"""
    )
)
_PRONOUNS = frozenset({"he", "she", "it", "they", "we"})
_PASSIVE = frozenset({"use", "dedicate", "base", "locate", "intend", "associate"})
"""Verbs that are hardly said of what does them."""
_BEHIND_PASSIVE = frozenset({"by", "for"})
_BEHIND_VERB = frozenset(str.split("the a an all any each every its their his her no both that"))
_ARTICLES = frozenset({"a", "an", "the", "its", "their"})
_STOPS = frozenset(
    str.split(
        """that which who whom whose where when while whenever because if unless until although
        though since so whereas how why what whether as than"""
    )
)
_JOINING = frozenset({"and", "or", "but", "nor"})
_KINDS = {"has": "does", "have": "do", "had": "did", "does": "does", "do": "do", "did": "did"}
_OPENING = frozenset("\"“‘'`«")
_ENDING_LIKE_ADVERBS = frozenset(
    str.split("family assembly supply reply anomaly italy july monopoly ally rally apply multiply")
)
_OPEN, _CLOSE = "([“«", ")]”»"


class Verb(NamedTuple):
    """A statement's verb: its place in the line, what a question moves ahead, and its base.

    ``kind`` is the verb itself where that moves ("is", "may"), or a form of "do". ``base`` is empty
    for those and for verbs that are not known.
    """

    start: int
    end: int
    kind: str
    base: str = ""
    is_past: bool = False


class _Word(NamedTuple):
    """A word, and those beside it; adverbs do not count as the one before."""

    text: str
    start: int
    before: str
    after: str


class _Found(NamedTuple):
    """A word that may be the verb.

    ``form`` is "sure", "s", "bare" or "past". ``leads`` says that what stands behind is an object;
    ``is_loose`` that it may be a participle, or a noun; ``is_regular`` that it ends in "ed".
    """

    verb: Verb
    form: str
    after: str
    leads: bool = False
    is_loose: bool = False
    is_regular: bool = False


def find_verb(line: str) -> Verb | None:
    """Return the verb of a statement's first clause; none where two may be it, or none is known."""
    found: list[_Found] = []
    for word in _words(line):
        one = _read(word)
        if one is None or (found and word.before in _JOINING):
            continue
        if one.form == "bare" and one.is_loose and not found:
            continue
        if one.form == "sure":
            return _before_sure(found, one.verb)
        found.append(one)
    if not found:
        return None
    first = found[0]
    if len(found) == 1:
        is_passive = first.after in _BEHIND_PASSIVE or first.verb.base in _PASSIVE
        return None if first.is_loose and is_passive else first.verb
    if first.leads and not first.is_loose:
        return first.verb
    if first.form == "bare" and not first.is_loose and found[1].form == "s":
        found = [first, *found[2:]]  # what a plural does to other things: "lists", "stores"
    sure = [one for one in found if not one.is_loose]
    if len(sure) != 1 or any(one.form == "bare" and one.is_loose for one in found):
        return None
    (only,) = sure
    return None if first.is_loose and " and " in line[: only.verb.start] else only.verb


def is_adverb(word: str) -> bool:
    """Return whether a word may stand between a subject and its verb."""
    is_like = word.endswith("ly") and len(word) > 4 and word not in _ENDING_LIKE_ADVERBS
    return word in ADVERBS or is_like


def _before_sure(found: list[_Found], sure: Verb) -> Verb | None:
    """Return the verb where "is" or "may" follows others that may be it: those are to be none."""
    for place, one in enumerate(found):
        if one.leads and one.form != "past":
            return one.verb if not place else None
        is_beside = one.verb.end + 1 == sure.start
        is_noun = one.form != "past" and (is_beside or one.after == "of" or one.is_loose)
        if not is_noun and not (one.form == "past" and (one.is_loose or _is_quality(one))):
            return None
    return sure


def _is_quality(one: _Found) -> bool:
    """Return whether a past may be said of the noun behind it ("acquired resistance")."""
    return one.is_regular and not one.leads and one.after[:1].islower()


def _read(word: _Word) -> _Found | None:
    """Return what verb a word may be, told by its form and its neighbours."""
    text, end, after = word.text, word.start + len(word.text), word.after
    if text in BE or text in MODAL:
        return _Found(Verb(word.start, end, text, is_past=text in {"was", "were"}), "sure", after)
    if text in _KINDS:
        base = "have" if text in HAVE else "do"
        verb = Verb(word.start, end, _KINDS[text], base, text in {"had", "did"})
        return _Found(verb, "sure", after)
    before = word.before.casefold()
    if not before or before in (FUNCTION_WORDS - _PRONOUNS) | NUMBERS or before.endswith("est"):
        return None
    leads, base, past = after in _BEHIND_VERB, base_of(text), past_of(text)
    if base and base != text:
        return _Found(Verb(word.start, end, "does", base), "s", after, leads)
    if base:
        is_plural = _is_plural(before)
        if not is_plural and not leads and not after[:1].isupper() and after[:1] not in _OPENING:
            return None
        kind = "did" if past == base and not is_plural else "do"
        return _Found(Verb(word.start, end, kind, base), "bare", after, leads, not is_plural)
    is_object = after in _ARTICLES or after in NUMBERS or after[:1].isdigit()
    if is_object and text.islower() and _is_plural(text):
        return _Found(Verb(word.start, end, "does", _without_s(text)), "s", after, leads=True)
    if past or (text.endswith("ed") and len(text) > 4 and text.islower()):
        is_regular = text.endswith("ed")
        is_loose = after in _BEHIND_PARTICIPLE and (is_regular or is_participle(text))
        verb = Verb(word.start, end, "did", past, is_past=True)
        return _Found(verb, "past", after, leads, is_loose, is_regular)
    return None


def _without_s(verb: str) -> str:
    """Return a verb that is not known without the ending of its present."""
    if verb.endswith("ies") and len(verb) > 4:
        return f"{verb[:-3]}y"
    return verb[:-2] if verb.endswith(("shes", "ches", "sses", "xes", "zes")) else verb[:-1]


def _is_plural(word: str) -> bool:
    return word.endswith("s") and not word.endswith(("ss", "is", "us", "'s", "’s"))


def _words(line: str) -> Iterator[_Word]:
    """Yield the words of the first clause: up to a comma, or to what opens another one."""
    spaces = [place for place, depth in outside(line) if line[place] == " " and not depth]
    starts = [0, *(place + 1 for place in spaces)]
    texts = [line[start:end] for start, end in zip(starts, [*spaces, len(line)], strict=True)]
    before = ""
    for place, (text, start) in enumerate(zip(texts, starts, strict=True)):
        bare = text.rstrip(",;:")
        if bare in _STOPS:
            return
        behind = [one for one in texts[place + 1 : place + 3] if bare == text]
        after = next((one.rstrip(",;:") for one in behind if not is_adverb(one)), "")
        yield _Word(bare, start, before, after)
        if bare != text:
            return
        if not is_adverb(bare) and bare[:1] not in _OPEN:
            before = bare


def outside(line: str) -> list[tuple[int, int]]:
    """Return every place of a line with how deep it stands in brackets or straight quotes."""
    places, depth, quoted = [], 0, False
    for place, letter in enumerate(line):
        if letter == '"':
            quoted = not quoted
        elif letter in _OPEN:
            depth += 1
        elif letter in _CLOSE:
            depth = max(depth - 1, 0)
        places.append((place, depth + quoted))
    return places
