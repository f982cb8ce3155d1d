"""Openings: how a question about a statement may begin, so that the teacher only goes on with it.

A small teacher that may say anything asks about anything. Given ``What is the "@" operator`` it has
to ask about the subject of the statement. English only; other statements get no opening and the
teacher begins by itself.

Knows word order, not grammar: a statement is read as subject, verb, rest, or as condition and
consequence. What does not look like either gives nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from stillroom.synth.wording import FUNCTION_WORDS, collapse, stem
from stillroom.text.normalize import words

__all__ = ["ENDINGS", "PREPOSITIONS", "VERBS", "Opening", "find_openings", "fits_opening"]

_BE = frozenset({"is", "are", "was", "were"})
_MODAL = frozenset({"can", "may", "must", "should", "will", "cannot"})
VERBS = frozenset(
    str.split(
        """accept access act add affect allow apply appear arise ask assign associate assume attach
        attempt avoid become begin behave belong bind bring build call carry cause change check
        combine come compare compute connect consist contain continue contribute control convert
        copy correspond cost count cover create decide declare define delay delete deliver
        depend derive describe determine disable display divide do emit enable encode end
        enforce ensure enter establish evaluate exceed execute exist expect export express
        extend fall fetch find finish flow follow force form format forward generate get give
        govern grant group grow guarantee handle hold identify implement imply import include
        increase indicate inherit initialize insert install introduce invoke iterate join jump
        keep lead leave let lie limit list live load lock look lose maintain make manage map
        mark match mean measure meet merge modify move need obey occur offer open operate
        override own pass pay perform permit place point prevent print process produce prohibit
        protect prove provide raise reach read receive record reduce refer release remain remove
        rename render repeat replace report represent require reserve resolve respond restrict
        result return rise rotate run save say search see select send separate serve set share
        show sit skip sort specify split stand start state stay stop store supply support
        suppress switch take tell terminate test throw trace transfer translate treat trigger
        turn understand unpack update use vary verify wait walk want wear work wrap write yield"""
    )
)
"""Verbs that are known, without endings."""
_DO = {"has": "does", "have": "do", "does": "does", "do": "do"}
_CONDITION = re.compile(r"^(?P<word>if|when|whenever|after|before|while)\s+(?P<rest>.+)$", re.I)
_HOW = re.compile(r"\b(?:by|using|through|via|with the help of)\b", re.IGNORECASE)
_WHEN = re.compile(r"\b(?:when|whenever|only if|if|until|before|after|during|as soon as)\b", re.I)
_REFERRING = re.compile(
    r"\b(?:this|that|these|those|it|its|they|them|which|who|he|she|we|you)\b", re.I
)
_LOWERED = frozenset(
    str.split(
        """the a an all any each every some most many few both no several two three four five one
        other another"""
    )
)
_ADVERBS = frozenset(
    str.split(
        """then also always often usually only now still first normally typically generally
        already just even again both all sometimes"""
    )
)
_PARTICIPLES = ("ed", "wn", "ught", "ound", "elt", "ept", "itten", "iven", "aken", "osen", "oken")
_NO_PARTICIPLES = frozenset({"need", "own", "down", "unknown", "around", "bound", "indeed"})
PREPOSITIONS = frozenset(str.split("to into from for by with as of on in at within through using"))
"""Behind a verb, what it asks for is behind them, not behind the verb."""
ENDINGS = PREPOSITIONS - {"using"} | {"about", "like", "between", "among"}
"""Prepositions that a question may end in: what it asks for is what stands behind them."""
_PARTICLES = frozenset(str.split("back out up down off over away forth together apart"))
_PRO_VERBS = frozenset({"do", "done", "have", "make", "give", "get", "use", "used"})
_ASKING = frozenset(str.split("what how when why who which where"))
_NEGATION = re.compile(r"(?:\w+ ){0,2}?(?:not|never|no longer|hardly|rarely|seldom)\b")
_DETERMINERS = frozenset(str.split("a an the any all each every some both no its their such"))
_GOVERNED = frozenset({"of", "to", "for", "from", "with", "on"})
_QUALITIES = tuple(str.split("able ible ful less ous ive ic al ent ant"))
_SET_PHRASES = re.compile(
    r"(?:in (?:the case|terms|order|addition|general|particular)|at (?:the level|runtime|least|"
    r"most)|by (?:means|default)|with respect|from left|as (?:well|soon|long|if)|on the other)\b"
)
"""Prepositions with words of their own: nothing is asked for by the first word alone."""
_NO_OBJECTS = frozenset({"effect", "place", "part", "no"})
"""What stands behind a verb and is not asked for ("take effect", "make no")."""
_NOUN_ENDINGS = ("s", "ing", "tion", "ment", "ity", "ness", "ance", "ence")
_MAX_SUBJECT = 9
_MIN_REST = 3
_OPEN, _CLOSE = "([“«", ")]”»"


@dataclass(frozen=True, slots=True)
class Opening:
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


def find_openings(statement: str, passage: str = "") -> list[Opening]:
    """Return the beginnings of questions that a statement answers; none where it is not plain.

    Args:
        statement: One sentence.
        passage: Its surroundings, which tell names from words that are capitalized by place.
    """
    line = collapse(statement)
    if not line.isprintable() or line[-1:] != ".":
        return []
    line = line[:-1]
    condition = _CONDITION.match(line)
    if condition is not None:
        clause = _clause(condition["rest"])
        word = "when" if condition["word"].lower() == "whenever" else condition["word"].lower()
        return [Opening(f"What happens {word} {clause}", is_whole=True)] if clause else []
    return _subject_openings(line, passage)


def fits_opening(opening: Opening, question: str, statement: str) -> bool:
    """Return whether the teacher's words after an opening ask, instead of telling the statement on.

    A question that goes on with three or more words of the statement (two, after a verb) holds its
    own answer; one that ends before the statement's preposition asks for nothing. One that ends
    in another preposition asks for what the statement says behind it.
    """
    tail = [stem(word) for word in words(question[len(opening.text) :])]
    has_verb = opening.has_verb
    if not has_verb and opening.verb and tail[:1] == [stem(opening.verb)]:
        tail, has_verb = tail[1:], True
    if not tail:
        is_object = has_verb and bool(opening.next) and opening.next not in PREPOSITIONS
        return opening.is_whole or is_object
    if tail[0] in _BE or tail[0] in _MODAL or (opening.verb == "have" and has_verb):
        return False
    if has_verb and len(tail) == 1:
        is_bare = opening.strands or opening.next not in PREPOSITIONS
        return tail[0] in PREPOSITIONS and (is_bare or (opening.verb, tail[0]) == ("used", "for"))
    if opening.leads_on and tail[0] == "to":
        return tail[1:] == ["be"] or _asks_with(tail[1:], statement, 1)
    if has_verb and opening.strands and tail[0] != opening.next and tail[-1] not in ENDINGS:
        return False
    return _asks_with(tail, statement, 1 if has_verb or opening.is_whole else 2)


def _asks_with(tail: list[str], statement: str, longest: int) -> bool:
    """Return whether a question may go on with words: not with more of the statement's in a row."""
    if tail[-1:] and tail[-1] in ENDINGS:
        tail = tail[:-1]
    if _ASKING.intersection(tail) or FUNCTION_WORDS.difference(_PRO_VERBS).intersection(tail[-1:]):
        return False
    told = [stem(word) for word in words(statement)]
    return not any(
        tail[start : start + longest + 1] == told[place : place + longest + 1]
        for start in range(len(tail) - longest)
        for place in range(len(told) - longest)
    )


def _clause(rest: str) -> str:
    """Return a condition up to the comma that ends it, if it is short and names its things."""
    for place, depth in _outside(rest):
        if rest[place] == "," and not depth:
            clause = rest[:place].strip()
            following = rest[place + 1 :].strip()
            is_list = following.split(" ", 1)[0] in {"and", "or", "but"}
            is_plain = 3 <= len(clause.split()) <= 2 * _MAX_SUBJECT
            is_plain = is_plain and len(following.split()) >= _MIN_REST
            return "" if is_list or not is_plain or _REFERRING.search(clause) else clause
    return ""


def _subject_openings(line: str, passage: str) -> list[Opening]:
    places = [place for place, depth in _outside(line) if line[place] == " " and not depth]
    for number, place in enumerate(places[: _MAX_SUBJECT + 1]):
        end = places[number + 1] if number + 1 < len(places) else len(line)
        subject, rest = line[:place], line[end:].strip()
        kind = _kind_of(line[place + 1 : end])
        if not kind or not _ends_as_subject(subject, kind):
            continue
        if not _is_subject(subject) or len(rest.split()) < _MIN_REST or _NEGATION.match(rest):
            return []
        verb = line[place + 1 : end]
        return _word_openings(kind, _lower(_without_adverb(subject), passage), verb, rest)
    return []


def _ends_as_subject(subject: str, kind: str) -> bool:
    """Return whether a verb may follow: after a noun, and after a plural where the verb is bare."""
    last = _without_adverb(subject).rsplit(" ", 1)[-1]
    if last.casefold() in FUNCTION_WORDS:
        return False
    return kind != "do" or (last.endswith("s") and not last.endswith(("ss", "is", "us")))


def _is_subject(subject: str) -> bool:
    first = subject.split(" ", 1)[0].strip("\"“‘'`*").casefold()
    starts_as_noun = first not in FUNCTION_WORDS or first in _LOWERED or first in {"no", "its"}
    is_verb = first.endswith("ed") or (bool(_bare(first)) and " " in subject)
    is_plain = not any(mark in subject for mark in (",", ":", ";", " A ", " An ", " The "))
    is_plain = is_plain and not _REFERRING.search(subject)
    return starts_as_noun and not is_verb and is_plain


def _without_adverb(subject: str) -> str:
    head, _, last = subject.rpartition(" ")
    return head if head and (last in _ADVERBS or last.endswith("ly")) else subject


def _kind_of(verb: str) -> str:
    """Return the word that a question moves before the subject, or nothing for other words."""
    if verb in _BE or verb in _MODAL:
        return verb
    if verb in _DO:
        return _DO[verb]
    if verb in VERBS:
        return "do"
    return "does" if verb.endswith("s") and _bare(verb) else ""


def _bare(verb: str) -> str:
    """Return a known verb without its ending, or nothing."""
    if verb in _DO:
        return "have" if verb.startswith("ha") else ""
    stems = (verb, verb.removesuffix("s"), verb.removesuffix("es"), verb.removesuffix("ies") + "y")
    return next((stem for stem in stems if stem in VERBS), "")


def _word_openings(kind: str, subject: str, verb: str, rest: str) -> list[Opening]:
    after = [word.strip(",") for word in rest.split()]
    after = [word for word in after if word not in _ADVERBS and word[-2:] != "ly"]
    begun = f"{kind} {subject}"
    if kind in _MODAL and after[:1] == ["be"]:
        begun, after = f"{begun} be", after[1:]
    if begun.endswith(" be") or kind in _BE:
        return _state_openings(begun, subject, after, rest)
    done = _bare(verb)
    if kind in _MODAL:
        done, after = _bare(after[0]) if after else "", after[1:]
    if not done:
        return [Opening(f"What {begun}")]
    return _verb_openings(begun, done, after, rest)


def _verb_openings(begun: str, done: str, after: list[str], rest: str) -> list[Opening]:
    """Return openings for what a subject does."""
    follows = after[0] if after else ""
    said = " ".join(after)
    openings = []
    if follows in _PARTICLES:
        return []
    strands, leads_on = _way_on(after)
    asks_on = strands or leads_on or follows not in PREPOSITIONS | _NO_OBJECTS
    if follows and asks_on and not _WHEN.match(said) and not follows.endswith("ed"):
        for text, has_verb in ((f"What {begun}", False), (f"What {begun} {done}", True)):
            openings.append(Opening(text, False, done, has_verb, follows, strands, leads_on))
    is_bare = follows in PREPOSITIONS or not follows
    if _HOW.match(said) or (is_bare and _HOW.search(rest)):
        openings.append(Opening(f"How {begun} {done}", is_whole=True))
    if _WHEN.match(said) or (is_bare and _WHEN.search(rest)):
        openings.append(Opening(f"When {begun} {done}", is_whole=True))
    return openings


def _state_openings(begun: str, subject: str, after: list[str], rest: str) -> list[Opening]:
    """Return openings for what something is, or what is done to it."""
    is_passive = bool(after) and after[0].endswith(_PARTICIPLES) and after[0] not in _NO_PARTICIPLES
    if not is_passive:
        return _quality_openings(begun, after)
    done = f"{begun} {after[0]}"
    openings = _governed_openings(begun, after)
    if _HOW.search(rest):
        openings.append(Opening(f"How {done}", is_whole=True))
    if _WHEN.search(rest):
        openings.append(Opening(f"When {done}", is_whole=True))
    if openings or " ".join(after[1:2]) in PREPOSITIONS:
        return openings
    return [Opening(f"What happens to {subject}", is_whole=True)]


def _quality_openings(begun: str, after: list[str]) -> list[Opening]:
    """Return openings for what something is: a thing, or of a quality ("capable of")."""
    first, follows = after[0] if after else "", " ".join(after[1:2])
    if first in PREPOSITIONS - {"to"}:
        return []
    is_word = first.isalpha() and first.islower() and first not in FUNCTION_WORDS | _LOWERED
    if is_word and follows in _GOVERNED and not first.endswith("s"):
        return _governed_openings(begun, after)
    is_quality = first.endswith(_QUALITIES) and (not follows or follows in FUNCTION_WORDS)
    if begun.endswith(" be") or (is_word and is_quality):
        return []
    return [Opening(f"What {begun}", is_whole=True)]


def _governed_openings(begun: str, after: list[str]) -> list[Opening]:
    """Return the opening that asks for what stands behind a word and its preposition."""
    strands, leads_on = _way_on(after[1:])
    if not strands and not leads_on:
        return []
    text = f"What {begun} {after[0]}"
    return [Opening(text, False, after[0], True, after[1], strands, leads_on)]


def _way_on(follows: list[str]) -> tuple[bool, bool]:
    """Return whether a question may end in the preposition that comes next, or needs its verb."""
    if not follows or follows[0] not in PREPOSITIONS or _SET_PHRASES.match(" ".join(follows)):
        return False, False
    if follows[0] != "to":
        return True, False
    word, behind = " ".join(follows[1:2]), " ".join(follows[2:3])
    is_verb = word in VERBS or word in {"be", "have"} or word.endswith(("ize", "ise", "ify"))
    if is_verb or (word not in FUNCTION_WORDS | _LOWERED and behind in _DETERMINERS):
        return False, True
    is_name = not word.isalpha() or not word.islower() or word.endswith(("s", "ing"))
    return bool(word) and (is_name or word in FUNCTION_WORDS | _LOWERED), False


def _lower(subject: str, passage: str) -> str:
    """Return a subject as it stands within a sentence: without a capital it owes to its place."""
    first, _, rest = subject.partition(" ")
    low = first[:1].lower() + first[1:]
    is_word = (
        low in _LOWERED
        or low.endswith(_NOUN_ENDINGS)
        or re.search(rf"(?<![\w.]){re.escape(low)}(?!\w)", passage)
    )
    is_name = re.search(rf"[\w,;:)] {re.escape(first)}(?!\w)", passage) or not low[1:].islower()
    leads = bool(rest) and not rest[0].isupper() and not rest[0].isdigit()
    return f"{low if is_word or (leads and not is_name) else first} {rest}".strip()


def _outside(line: str) -> list[tuple[int, int]]:
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
