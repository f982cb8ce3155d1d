"""Question prefixes derived from a statement.

A small teacher that may say anything asks about anything. Given ``What is the "@" operator`` it has
to ask about the subject of the statement. English only; other statements get no opening and the
teacher begins by itself.

Knows word order, not grammar: a statement is read as subject, verb, rest, or as condition and
consequence. What does not look like either gives nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from stillroom.synth.lexical_overlap import (
    FUNCTION_WORDS,
    collapse_whitespace,
    stem,
)
from stillroom.synth.prompting.english_verbs import (
    BE,
    DETERMINERS,
    INTRANSITIVE,
    MODAL,
    NUMBERS,
    VERBS,
    Verb,
    find_base_form,
    find_verb,
    get_bracket_depths,
    is_adverb,
    is_participle,
)
from stillroom.text.unicode import split_words

__all__ = [
    "ENDINGS",
    "PREPOSITIONS",
    "QuestionPrefix",
    "find_question_prefixes",
    "fits_question_prefix",
]


_CONDITION = re.compile(r"^(?P<word>if|when|whenever|after|before|while)\s+(?P<rest>.+)$", re.I)
_HOW = re.compile(r"\b(?:by|using|through|via|with the help of)\b", re.IGNORECASE)
_AGENT = re.compile(r"by (?:the |an? )?(?!\w+ing\b)[A-Z]")
"""Someone: nobody asks how, and a name may be a person's or a thing's."""

_MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"

_TIME = re.compile(
    r"\b(?:when|whenever|only if|if|until|before|after|during|as soon as|"
    rf"(?:in|on|by|since|from|around) (?:the )?(?:early |late |mid-?)?(?:{_MONTHS}|\d{{4}}s?\b|"
    r"\d{1,2}(?:st|nd|rd|th)[ -]century|\d{1,2} (?:" + _MONTHS + r")))\b"
)
"""Conditions and dates."""

_REFERRING = re.compile(
    r"\b(?:this|that|these|those|it|its|they|them|which|who|he|she|we|you)\b", re.I
)

_LOWERED = frozenset(
    str.split(
        """the a an all any each every some most many few both several two three four five one
        other another various such major new old modern early late first second third"""
    )
)

PREPOSITIONS = frozenset(str.split("to into from for by with as of on in at within through using"))
"""Behind a verb, what it asks for is behind them, not behind the verb."""

ENDINGS = PREPOSITIONS - {"using"} | {"about", "like", "between", "among"}
"""Prepositions that a question may end in: what it asks for is what stands behind them."""

_PARTICLES = frozenset(str.split("back out up down off over away forth together apart"))
_PRO_VERBS = frozenset({"do", "done", "have", "make", "give", "get", "use", "used"})
_ASKING = frozenset(str.split("what how when why who which where"))
_NEGATION = re.compile(r"(?:\w+ ){0,2}?(?:not|never|no longer|hardly|rarely|seldom)\b")
_GOVERNED = frozenset({"of", "to", "for", "from", "with", "on"})
_QUALITIES = tuple(str.split("able ible ful less ous ive ic al ent ant"))

_SET_PHRASES = re.compile(
    r"(?:in (?:the case|terms|order|addition|general|particular)|at (?:the level|runtime|least|"
    r"most)|by (?:means|default)|with respect|from left|as (?:well|soon|long|if)|on the other)\b"
)
"""Prepositions with words of their own: nothing is asked for by the first word alone."""

_NO_OBJECTS = frozenset(
    str.split(
        """effect place part no because against over under above below toward towards across along
        until since so like than between among beyond behind beside near"""
    )
)
"""What stands behind a verb and is not asked for ("take effect", "make no")."""

_NAMING = frozenset(str.split("named called titled entitled dubbed nicknamed renamed termed"))
_NEEDED = frozenset(str.split("to from with of for as into"))
_NEEDING = frozenset({"result", "consist", "participate", "engage"})
"""What says nothing without what stands behind it."""

_REPORTING = frozenset(str.split("said believed thought reported"))
_NOUN_ENDINGS = ("s", "ing", "tion", "ment", "ity", "ness", "ance", "ence")
_GOING_ON = frozenset(str.split("and or but which who whose where"))
"""What shows that the comma before ends no condition."""

_PEOPLES = tuple(
    str.split(
        """ese french british english german american african asian european russian italian
        spanish greek roman arab jewish christian catholic muslim indian canadian australian
        mexican egyptian persian mongol turkish irish scottish swedish dutch polish"""
    )
)
"""How words end that are made of names."""

_MAX_SUBJECT, _MAX_BETWEEN = 9, 4
_MIN_REST = 3


@dataclass(frozen=True, slots=True)
class QuestionPrefix:
    """How a question begins.

    ``is_whole`` says that it may end there. ``verb`` is the statement's verb without its ending,
    ``has_verb`` whether the opening holds it already; ``next`` is the statement's word after it.
    ``strands`` says that the question may end in ``next``, a preposition; ``leads_on`` that
    ``next`` is the "to" of a verb, which is what the question has to go on with.
    """

    text: str
    is_whole: bool = False
    verb: str = ""
    has_verb: bool = False
    next: str = ""
    strands: bool = False
    leads_on: bool = False


def find_question_prefixes(statement: str, passage: str = "") -> list[QuestionPrefix]:
    """Return the beginnings of questions that a statement answers; none where it is not plain.

    Args:
        statement: One sentence.
        passage: Its surroundings, which tell names from words that are capitalized by place.
    """
    line = collapse_whitespace(statement)
    if not line.isprintable() or line[-1:] != ".":
        return []
    line = line[:-1]
    condition = _CONDITION.match(line)
    if condition is not None:
        word = "when" if condition["word"].lower() == "whenever" else condition["word"].lower()
        clause, told = _clause(word, condition["rest"])
        happens = "happened" if _is_past(clause, told) else "happens"
        return [QuestionPrefix(f"What {happens} {word} {clause}", is_whole=True)] if clause else []
    return _subject_prefixes(line, passage)


def fits_question_prefix(opening: QuestionPrefix, question: str, statement: str) -> bool:
    """Return whether the teacher's words after an opening ask, instead of telling the statement on.

    A question that goes on with three or more words of the statement (two, after a verb) holds its
    own answer; one that ends before the statement's preposition asks for nothing. One that ends
    in another preposition asks for what the statement says behind it.
    """
    tail = [stem(word) for word in split_words(question[len(opening.text) :])]
    has_verb = opening.has_verb
    if not has_verb and opening.verb and tail[:1] == [stem(opening.verb)]:
        tail, has_verb = tail[1:], True
    if not tail:
        is_object = has_verb and bool(opening.next) and opening.next not in PREPOSITIONS
        return opening.is_whole or is_object
    if tail[0] in BE or tail[0] in MODAL or (opening.verb == "have" and has_verb):
        return False
    if has_verb and len(tail) == 1:
        is_bare = opening.strands or opening.next not in PREPOSITIONS
        return tail[0] in PREPOSITIONS and (is_bare or (opening.verb, tail[0]) == ("used", "for"))
    if opening.leads_on and tail[0] == "to":
        return tail[1:] == ["be"] or _is_question_tail(tail[1:], statement, 1)
    if has_verb and opening.strands and tail[0] != opening.next and tail[-1] not in ENDINGS:
        return False
    return _is_question_tail(tail, statement, 1 if has_verb or opening.is_whole else 2)


def _is_question_tail(tail: list[str], statement: str, longest: int) -> bool:
    """Return whether a question may go on with words: not with more of the statement's in a row."""
    if tail[-1:] and tail[-1] in ENDINGS:
        tail = tail[:-1]
    if _ASKING.intersection(tail) or FUNCTION_WORDS.difference(_PRO_VERBS).intersection(tail[-1:]):
        return False
    told = [stem(word) for word in split_words(statement)]
    return not any(
        tail[start : start + longest + 1] == told[place : place + longest + 1]
        for start in range(len(tail) - longest)
        for place in range(len(told) - longest)
    )


def _clause(word: str, rest: str) -> tuple[str, str]:
    """Return a condition up to the comma that ends it, and what is told of it.

    Both are empty where it is long, does not name its things, or may not end there.
    """
    for place, depth in get_bracket_depths(rest):
        if rest[place] == "," and not depth:
            clause = rest[:place].strip()
            following = rest[place + 1 :].strip()
            first = following.split(" ", 1)[0]
            is_noun = word in {"after", "before"} and "," in following
            goes_on = first in _GOING_ON or (is_noun and find_verb(following) is None)
            is_plain = 3 <= len(clause.split()) <= 2 * _MAX_SUBJECT
            is_plain = is_plain and len(following.split()) >= _MIN_REST
            is_sound = is_plain and not goes_on and not _REFERRING.search(clause)
            return (clause, following) if is_sound else ("", "")
    return "", ""


def _is_past(clause: str, told: str) -> bool:
    """Return whether something happened, rather than happens."""
    verb = find_verb(clause)
    if verb is None or verb.kind not in BE:
        verb = find_verb(told) or verb
    return verb is not None and verb.is_past


def _subject_prefixes(line: str, passage: str) -> list[QuestionPrefix]:
    verb = find_verb(line)
    if verb is None or verb.kind == "cannot":
        return []
    subject, rest = line[: verb.start].strip(), line[verb.end :].strip()
    if not _is_subject(subject) or len(rest.split()) < _MIN_REST or _NEGATION.match(rest):
        return []
    return _word_prefixes(verb, _lower(_without_adverb(subject), passage), rest)


def _is_subject(subject: str) -> bool:
    """Return whether words before a verb are one thing that is named by them."""
    first, last = subject.split(" ", 1)[0], _without_adverb(subject).rsplit(" ", 1)[-1]
    first = first.strip("\"“‘'`*").casefold()
    starts_as_noun = first not in FUNCTION_WORDS or first in _LOWERED or first == "its"
    is_verb = first.endswith("ed") or (bool(find_base_form(first)) and " " in subject)
    is_plain = not any(mark in subject for mark in (",", ":", ";", " A ", " An ", " The "))
    is_plain = (
        is_plain and not _REFERRING.search(subject) and (first in _LOWERED or not is_adverb(first))
    )
    is_plain = is_plain and last.casefold() not in FUNCTION_WORDS
    is_short = sum(
        1 for place, depth in get_bracket_depths(subject) if subject[place] == " " and not depth
    )
    return starts_as_noun and not is_verb and is_plain and is_short <= _MAX_SUBJECT


def _without_adverb(subject: str) -> str:
    head, _, last = subject.rpartition(" ")
    return head if head and is_adverb(last) else subject


def _word_prefixes(verb: Verb, subject: str, rest: str) -> list[QuestionPrefix]:
    rest = next(
        (
            rest[:place]
            for place, depth in get_bracket_depths(rest)
            if rest[place] == "," and not depth
        ),
        rest,
    )
    after = [word for word in rest.split() if not is_adverb(word)]
    kind, done = verb.kind, verb.base
    begun = f"{kind} {subject}"
    if kind in MODAL and after[:1] == ["be"]:
        begun, after = f"{begun} be", after[1:]
    if begun.endswith(" be") or kind in BE:
        return _state_prefixes(verb, subject, begun, after)
    if kind in MODAL:
        done, after = find_base_form(after[0]) if after else "", after[1:]
        if not done:
            return [QuestionPrefix(f"What {begun}")]
    if not done or done == "do" or (done == "have" and _is_perfect(after)):
        return []
    return _verb_prefixes(begun, done, after)


def _is_perfect(after: list[str]) -> bool:
    """Return whether "have" only says when something was done."""
    return bool(after) and is_participle(after[0])


def _verb_prefixes(begun: str, done: str, after: list[str]) -> list[QuestionPrefix]:
    """Return openings for what a subject does."""
    follows = after[0] if after else ""
    said = " ".join(after)
    openings = []
    if follows in _PARTICLES:
        return []
    strands, leads_on = _way_on(after)
    asks_on = strands or leads_on or follows not in PREPOSITIONS | _NO_OBJECTS
    asks_on = asks_on and done not in INTRANSITIVE and not follows.endswith("ed")
    is_time = bool(_TIME.match(said))
    if follows and asks_on and not is_time:
        for text, has_verb in ((f"What {begun}", False), (f"What {begun} {done}", True)):
            openings.append(QuestionPrefix(text, False, done, has_verb, follows, strands, leads_on))
    is_bare = not follows or (follows in PREPOSITIONS - _NEEDED and done not in _NEEDING)
    if _HOW.match(said) or (is_bare and _HOW.search(said)):
        openings.append(QuestionPrefix(f"How {begun} {done}", is_whole=True))
    if is_time or (is_bare and _TIME.search(said)):
        openings.append(QuestionPrefix(f"When {begun} {done}", is_whole=True))
    return openings


def _state_prefixes(verb: Verb, subject: str, begun: str, after: list[str]) -> list[QuestionPrefix]:
    """Return openings for what something is, or what is done to it."""
    if not after or not is_participle(after[0]):
        return _quality_prefixes(begun, after)
    done, behind = after[0], after[1:]
    if done in _NAMING and behind and _is_name(behind[0]):
        return [QuestionPrefix(f"What {begun} {done}", is_whole=True)]
    if done in _REPORTING and behind[:1] != ["as"]:
        return []
    if behind[:1] and behind[0] in _PARTICLES:
        done, behind = f"{done} {behind[0]}", behind[1:]
    if done == "referred" and behind[:2] == ["to", "as"]:
        return [QuestionPrefix(f"What {begun} referred to as", is_whole=True)]
    said = " ".join(behind)
    is_agent = bool(_AGENT.match(said))
    asks_on = not is_agent and not _TIME.match(said) and done != "born"
    openings = _governed_prefixes(begun, done, behind) if asks_on else []
    for asks, told in (("How", _HOW), ("When", _TIME)):
        found = told.search(said)
        if found is not None and not _AGENT.match(said, found.start()):
            between = _complement(done, behind, said[: found.start()].split())
            if between is not None:
                text = " ".join((asks, begun, done, *between))
                openings.append(QuestionPrefix(text, is_whole=True))
    if openings or is_agent or " ".join(behind[:1]) in PREPOSITIONS:
        return openings
    happens = "What happened to" if verb.is_past else "What happens to"
    is_said = not behind or behind[0] in FUNCTION_WORDS - {"like"}
    return [QuestionPrefix(f"{happens} {subject}", is_whole=True)] if is_said else []


def _complement(done: str, behind: list[str], between: list[str]) -> list[str] | None:
    """Return the words before a time or a means that a participle needs; none if they are many.

    "Declared the winner" is nothing without them, "opened in Paris" is.
    """
    if len(between) > _MAX_BETWEEN:
        return None
    is_free = not between or done == "born" or between[0] in PREPOSITIONS
    return [] if is_free and not _way_on(behind)[1] else between


def _is_name(word: str) -> bool:
    return word in {"a", "an", "the"} or not word[:1].isalpha() or word[:1].isupper()


def _quality_prefixes(begun: str, after: list[str]) -> list[QuestionPrefix]:
    """Return openings for what something is: a thing, or of a quality ("capable of")."""
    first, follows = after[0] if after else "", " ".join(after[1:2])
    if first in PREPOSITIONS - {"to"} or first in NUMBERS:
        return []
    is_word = first.isalpha() and first.islower() and first not in FUNCTION_WORDS | _LOWERED
    if is_word and follows in _GOVERNED and not first.endswith("s"):
        return _governed_prefixes(begun, first, after[1:])
    is_quality = first.endswith(_QUALITIES) and (not follows or follows in FUNCTION_WORDS)
    is_quality = is_quality or follows in ENDINGS
    if begun.endswith(" be") or (is_word and is_quality):
        return []
    return [QuestionPrefix(f"What {begun}", is_whole=True)]


def _governed_prefixes(begun: str, done: str, behind: list[str]) -> list[QuestionPrefix]:
    """Return the opening that asks for what stands behind a word and its preposition."""
    strands, leads_on = _way_on(behind)
    if not strands and not leads_on:
        return []
    return [QuestionPrefix(f"What {begun} {done}", False, done, True, behind[0], strands, leads_on)]


def _way_on(follows: list[str]) -> tuple[bool, bool]:
    """Return whether a question may end in the preposition that comes next, or needs its verb."""
    if not follows or follows[0] not in PREPOSITIONS or _SET_PHRASES.match(" ".join(follows)):
        return False, False
    if follows[0] != "to":
        return True, False
    word, behind = " ".join(follows[1:2]), " ".join(follows[2:3])
    if word == "have" and is_participle(behind):
        return False, False
    is_verb = word in VERBS or word in {"be", "have"} or word.endswith(("ize", "ise", "ify"))
    if is_verb or (word not in FUNCTION_WORDS | _LOWERED and behind in DETERMINERS):
        return False, True
    is_name = not word.isalpha() or not word.islower() or word.endswith(("s", "ing"))
    return bool(word) and (is_name or word in FUNCTION_WORDS | _LOWERED), False


def _lower(subject: str, passage: str) -> str:
    """Return a subject as it stands within a sentence: without a capital it owes to its place."""
    first, _, rest = subject.partition(" ")
    low = first[:1].lower() + first[1:]
    if low in _LOWERED:
        return f"{low} {rest}".strip()
    is_name = (
        not low[1:].islower()
        or low.endswith(("'s", "’s", *_PEOPLES))
        or rest[:1].isupper()
        or rest[:1].isdigit()
    )
    if not is_name and not re.search(rf"(?<![\w.]){re.escape(low)}(?!\w)", passage):
        is_name = bool(re.search(rf"[\w,;:)] {re.escape(first)}(?!\w)", passage))
        is_name = is_name or not (rest or low.endswith(_NOUN_ENDINGS))
    return f"{first if is_name else low} {rest}".strip()
