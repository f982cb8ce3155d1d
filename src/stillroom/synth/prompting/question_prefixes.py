"""Question prefixes derived from a statement, and trimming of completed questions.

Without guidance a small teacher asks about anything; given ``What is the "@" operator`` it has to
ask about the subject of the statement. English only; other statements get no prefix and the teacher
starts the question itself.

Based on word order, not grammar: a statement is parsed as subject, verb, remainder, or as condition
and consequence. Statements of any other form yield nothing.

A small teacher appends tails ("... in Python?"). A question that names only what its evidence
names, and does not answer itself, is left unchanged; any other is cut where the words before the
cut are complete without the rest. Words are never added.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from stillroom.synth.lexical_overlap import (
    FUNCTION_WORDS,
    collapse_whitespace,
    compute_support,
    extract_content_stems,
    stem,
)
from stillroom.synth.prompting.english_questions import DEFINITION, GOVERNING, happens
from stillroom.synth.prompting.english_verbs import (
    BE,
    DETERMINERS,
    INDEFINITE,
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
    "TrimmedQuestion",
    "find_question_prefixes",
    "fits_question_prefix",
    "trim_question",
]

_CONDITION = re.compile(r"^(?P<word>if|when|whenever|after|before|while)\s+(?P<rest>.+)$", re.I)
_HOW = re.compile(r"\b(?:by|using|through|via|with the help of)\b", re.IGNORECASE)
_AGENT = re.compile(r"by (?:the |an? )?(?!\w+ing\b)[A-Z]")
"""An agent: no question asks how, and a name may be a person's or a thing's."""

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
"""Prepositions after a verb: the object of the question follows them, not the verb."""

ENDINGS = PREPOSITIONS - {"using"} | {"about", "like", "between", "among"}
"""Prepositions that a question may end in: it asks for their object."""

_PARTICLES = frozenset(str.split("back out up down off over away forth together apart"))
_PRO_VERBS = frozenset({"do", "done", "have", "make", "give", "get", "use", "used"})
_ASKING = frozenset(str.split("what how when why who which where"))
_NEGATION = re.compile(r"(?:\w+ ){0,2}?(?:not|never|no longer|hardly|rarely|seldom)\b")
_GOVERNED = frozenset({"of", "to", "for", "from", "with"})
_QUALITIES = tuple(str.split("able ible ful less ous ive ic al ent ant"))

_SET_PHRASES = re.compile(
    r"(?:in (?:the case|terms|order|addition|general|particular)|at (?:the level|runtime|least|"
    r"most)|by (?:means|default)|with respect|from left|as (?:well|soon|long|if)|on the other)\b"
)
"""Set phrases that start with a preposition: their first word alone cannot be asked about."""

_PLACE_OR_TIME = re.compile(
    r"(?:(?:in|on|at|by|from|since) (?:the )?(?:early |late |mid-?|first |following |same )*(?:\d|"
    r"year|time|end|close|beginning|start|age|day|night|morning|century|summer|winter|spring|place|"
    rf"name|{_MONTHS})|at|(?:in|on) [A-Z])"
)
"""What follows a verb and is asked for by "where" or "when", not by "what ... in"."""

_NO_OBJECTS = frozenset(
    str.split(
        """effect place part no because against over under above below toward towards across along
        until since so like than between among beyond behind beside near"""
    )
)
"""Words after a verb that cannot be asked about ("take effect", "make no")."""

_NAMING = frozenset(str.split("named called titled entitled dubbed nicknamed renamed termed"))
_NEEDED = frozenset(str.split("to from with of for as into"))
_NEEDING = frozenset({"result", "consist", "participate", "engage"})
"""Verbs that are incomplete without a complement."""

_REPORTING = frozenset(str.split("said believed thought reported"))
_NOUN_ENDINGS = ("s", "ing", "tion", "ment", "ity", "ness", "ance", "ence")
_GOING_ON = frozenset(str.split("and or but which who whose where"))
"""Words after a comma that does not end the condition."""

_CAUSING = frozenset(str.split("allow enable let permit cause force require make lead encourage"))
_MEASURING = frozenset(str.split("last reach cost weigh measure number span total exceed kill"))
_BEGINNING = frozenset(str.split("begin start stop continue keep avoid finish"))
_OBJECTS = frozenset(str.split("you us them him her it me one users people users, someone"))
"""Objects of a verb whose sentence goes on with what they do."""

_PEOPLES = tuple(
    str.split(
        """ese french british english german american african asian european russian italian
        spanish greek roman arab jewish christian catholic muslim indian canadian australian
        mexican egyptian persian mongol turkish irish scottish swedish dutch polish"""
    )
)
"""Endings of words derived from names."""

_MAX_SUBJECT, _MAX_BETWEEN = 9, 4
_MIN_REST = 3


@dataclass(frozen=True, slots=True)
class QuestionPrefix:
    """The start of a question.

    ``is_whole``: the question may end there. ``verb`` is the statement's verb in its base form,
    ``has_verb`` whether the prefix contains it already; ``next`` is the statement's word after it.
    ``strands``: the question may end in ``next``, a preposition; ``leads_on``: ``next`` is the "to"
    of an infinitive, which the question must continue with.
    """

    text: str
    is_whole: bool = False
    verb: str = ""
    has_verb: bool = False
    next: str = ""
    strands: bool = False
    leads_on: bool = False


def find_question_prefixes(statement: str, passage: str = "") -> list[QuestionPrefix]:
    """Return the prefixes of questions that a statement answers; empty if it is not plain.

    Args:
        statement: One sentence.
        passage: Its context, which distinguishes names from words capitalized by position.
    """
    line = collapse_whitespace(statement)
    if not line.isprintable() or line[-1:] != ".":
        return []
    line = line[:-1]
    if line.split(" ", 1)[0].casefold() in INDEFINITE:
        return []
    condition = _CONDITION.match(line)
    if condition is not None:
        conjunction = (
            "when" if condition["word"].lower() == "whenever" else condition["word"].lower()
        )
        clause, main_clause = _clause(conjunction, condition["rest"])
        is_told = bool(clause) and conjunction != "while" and happens(main_clause)
        if not is_told or not _is_plain_present(clause):
            return []
        return [QuestionPrefix(f"What happens {conjunction} {clause}", is_whole=True)]
    return _subject_prefixes(line, passage)


def fits_question_prefix(opening: QuestionPrefix, question: str, statement: str) -> bool:
    """Return whether the text after a prefix is a question, not a continuation of the statement.

    A question that continues with three or more words of the statement (two, after a verb) contains
    its own answer; one that ends before the statement's preposition asks for nothing. One that ends
    in another preposition asks for the object of the statement's.
    """
    tail = [stem(token) for token in split_words(question[len(opening.text) :])]
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
    """Return whether a question may continue with these words, not copied from the statement."""
    if tail[-1:] and tail[-1] in ENDINGS:
        tail = tail[:-1]
    if _ASKING.intersection(tail) or FUNCTION_WORDS.difference(_PRO_VERBS).intersection(tail[-1:]):
        return False
    statement_stems = [stem(token) for token in split_words(statement)]
    return not any(
        tail[start : start + longest + 1] == statement_stems[position : position + longest + 1]
        for start in range(len(tail) - longest)
        for position in range(len(statement_stems) - longest)
    )


def _clause(conjunction: str, text: str) -> tuple[str, str]:
    """Split a condition at the comma that ends it from its consequence.

    Both are empty if it is long, does not name its subjects, or may not end there.
    """
    for index, depth in get_bracket_depths(text):
        if text[index] == "," and not depth:
            clause = text[:index].strip()
            following = text[index + 1 :].strip()
            first = following.split(" ", 1)[0]
            is_noun = conjunction in {"after", "before"} and "," in following
            goes_on = first in _GOING_ON or (is_noun and find_verb(following) is None)
            is_plain = 3 <= len(clause.split()) <= 2 * _MAX_SUBJECT
            is_plain = is_plain and len(following.split()) >= _MIN_REST
            is_sound = is_plain and not goes_on and not _REFERRING.search(clause)
            return (clause, following) if is_sound else ("", "")
    return "", ""


def _is_plain_present(clause: str) -> bool:
    """Return whether a condition is known to be in the present; the past has no such question."""
    verb = find_verb(clause)
    return verb is not None and not verb.is_past and verb.kind != "did"


def _subject_prefixes(line: str, passage: str) -> list[QuestionPrefix]:
    verb = find_verb(line)
    if verb is None or verb.kind == "cannot":
        return []
    subject, predicate = line[: verb.start].strip(), line[verb.end :].strip()
    if not _is_subject(subject) or len(predicate.split()) < _MIN_REST or _NEGATION.match(predicate):
        return []
    return _word_prefixes(verb, _lower(_without_adverb(subject), passage), predicate)


def _is_subject(subject: str) -> bool:
    """Return whether the words before a verb name one subject."""
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
        1 for index, depth in get_bracket_depths(subject) if subject[index] == " " and not depth
    )
    return starts_as_noun and not is_verb and is_plain and is_short <= _MAX_SUBJECT


def _without_adverb(subject: str) -> str:
    head, _, last = subject.rpartition(" ")
    return head if head and is_adverb(last) else subject


def _word_prefixes(verb: Verb, subject: str, predicate: str) -> list[QuestionPrefix]:
    predicate = next(
        (
            predicate[:index]
            for index, depth in get_bracket_depths(predicate)
            if predicate[index] == "," and not depth
        ),
        predicate,
    )
    after = [token for token in predicate.split() if not is_adverb(token)]
    kind, base = verb.kind, verb.base
    prefix = f"{kind} {subject}"
    if kind in MODAL and after[:1] == ["be"]:
        prefix, after = f"{prefix} be", after[1:]
    if prefix.endswith(" be") or kind in BE:
        return _state_prefixes(verb, subject, prefix, after)
    if kind in MODAL:
        base, after = find_base_form(after[0]) if after else "", after[1:]
        if base == "mean":  # "shall mean" defines
            prefix = f"does {subject}"
    if not base or base == "do" or (base == "have" and _is_perfect(after)):
        return []
    return _verb_prefixes(prefix, base, after)


def _is_perfect(after: list[str]) -> bool:
    """Return whether "have" is only an auxiliary of the perfect tense."""
    return bool(after) and is_participle(after[0])


def _verb_prefixes(prefix: str, base: str, after: list[str]) -> list[QuestionPrefix]:
    """Return prefixes for what a subject does."""
    follows = after[0] if after else ""
    predicate = " ".join(after)
    openings = []
    is_number = follows[:1].isdigit() or follows in NUMBERS or re.match(r"some \d", predicate)
    is_measure = is_number and base in _MEASURING
    is_going_on = follows in {"and", "or"} or (base in _BEGINNING and follows.endswith("ing"))
    if is_measure or is_going_on:
        return []  # "lasts three years" is no object, and "translated and ..." has none yet
    if follows in _PARTICLES or base == "help" or (base in _CAUSING and follows in _OBJECTS):
        return []
    strands, leads_on = _way_on(after)
    strands = strands and GOVERNING.fullmatch(f"{base} {follows}") is not None
    asks_on = strands or leads_on or follows not in PREPOSITIONS | _NO_OBJECTS
    asks_on = asks_on and base not in INTRANSITIVE and not follows.endswith("ed")
    is_time = bool(_TIME.match(predicate))
    if follows and asks_on and not is_time:
        for text, has_verb in ((f"What {prefix}", False), (f"What {prefix} {base}", True)):
            openings.append(QuestionPrefix(text, False, base, has_verb, follows, strands, leads_on))
    is_bare = not follows or (follows in PREPOSITIONS - _NEEDED and base not in _NEEDING)
    if _HOW.match(predicate) or (is_bare and _HOW.search(predicate)):
        openings.append(QuestionPrefix(f"How {prefix} {base}", is_whole=True))
    if is_time or (is_bare and _TIME.search(predicate)):
        openings.append(QuestionPrefix(f"When {prefix} {base}", is_whole=True))
    return openings


def _state_prefixes(
    verb: Verb, subject: str, prefix: str, after: list[str]
) -> list[QuestionPrefix]:
    """Return prefixes for what something is, or what is done to it."""
    if not after or not is_participle(after[0]):
        return _quality_prefixes(prefix, after)
    participle, words_after = after[0], after[1:]
    if participle in _NAMING and words_after and _is_name(words_after[0]):
        return [QuestionPrefix(f"What {prefix} {participle}", is_whole=True)]
    if participle in _REPORTING and words_after[:1] != ["as"]:
        return []
    if words_after[:1] and words_after[0] in _PARTICLES:
        participle, words_after = f"{participle} {words_after[0]}", words_after[1:]
    if participle == "referred" and words_after[:2] == ["to", "as"]:
        return [QuestionPrefix(f"What {prefix} referred to as", is_whole=True)]
    text_after = " ".join(words_after)
    is_agent = bool(_AGENT.match(text_after))
    may_continue = not is_agent and not _TIME.match(text_after) and participle != "born"
    openings = _governed_prefixes(prefix, participle, words_after) if may_continue else []
    for question_word, pattern in (("How", _HOW), ("When", _TIME)):
        match = pattern.search(text_after)
        if match is not None and not _AGENT.match(text_after, match.start()):
            between = _complement(participle, words_after, text_after[: match.start()].split())
            if between is not None:
                text = " ".join((question_word, prefix, participle, *between))
                openings.append(QuestionPrefix(text, is_whole=True))
    return openings


def _complement(participle: str, words_after: list[str], between: list[str]) -> list[str] | None:
    """Return the words a participle needs before a time or a means; None if too many.

    "Declared the winner" is incomplete without them, "opened in Paris" is complete.
    """
    if len(between) > _MAX_BETWEEN:
        return None
    is_free = not between or participle == "born" or between[0] in PREPOSITIONS
    needs_object = between[:1] == ["to"]  # "endeared to him by ..."
    return [] if is_free and not needs_object and not _way_on(words_after)[1] else between


def _is_name(token: str) -> bool:
    return token in {"a", "an", "the"} or not token[:1].isalpha() or token[:1].isupper()


def _quality_prefixes(prefix: str, after: list[str]) -> list[QuestionPrefix]:
    """Return prefixes for what something is: a thing, or a quality ("capable of")."""
    first, follows = after[0] if after else "", " ".join(after[1:2])
    if first in PREPOSITIONS - {"to"} or first in NUMBERS:
        return []
    is_word = first.isalpha() and first.islower() and first not in FUNCTION_WORDS | _LOWERED
    if is_word and follows in _GOVERNED and not first.endswith("s"):
        return _governed_prefixes(prefix, first, after[1:])
    is_quality = first.endswith(_QUALITIES) and (not follows or follows in FUNCTION_WORDS)
    is_quality = is_quality or follows in ENDINGS
    if prefix.endswith(" be") or (is_word and is_quality):
        return []
    if not DEFINITION.match(" ".join(after)):
        return []  # a quality, a name, or a judgement: it does not say what something is
    return [QuestionPrefix(f"What {prefix}", is_whole=True)]


def _governed_prefixes(prefix: str, word: str, words_after: list[str]) -> list[QuestionPrefix]:
    """Return the prefix that asks for the object of a word and its preposition."""
    strands, leads_on = _way_on(words_after)
    strands = strands and GOVERNING.fullmatch(f"{word} {words_after[0]}") is not None
    if not strands and not leads_on:
        return []
    return [
        QuestionPrefix(
            f"What {prefix} {word}", False, word, True, words_after[0], strands, leads_on
        )
    ]


def _way_on(follows: list[str]) -> tuple[bool, bool]:
    """Return whether a question may end in the next preposition, or needs its verb."""
    phrase = " ".join(follows)
    if not follows or follows[0] not in PREPOSITIONS or _SET_PHRASES.match(phrase):
        return False, False
    if _PLACE_OR_TIME.match(phrase):
        return False, False
    if follows[0] != "to":
        return True, False
    next_word, word_after = " ".join(follows[1:2]), " ".join(follows[2:3])
    if next_word == "have" and is_participle(word_after):
        return False, False
    is_verb = (
        next_word in VERBS
        or next_word in {"be", "have"}
        or next_word.endswith(("ize", "ise", "ify"))
    )
    if is_verb or (next_word not in FUNCTION_WORDS | _LOWERED and word_after in DETERMINERS):
        return False, True
    is_name = not next_word.isalpha() or not next_word.islower() or next_word.endswith(("s", "ing"))
    return bool(next_word) and (is_name or next_word in FUNCTION_WORDS | _LOWERED), False


def _lower(subject: str, passage: str) -> str:
    """Return a subject in lower case, as within a sentence, unless it is a name."""
    first, _, remainder = subject.partition(" ")
    lowered = first[:1].lower() + first[1:]
    if lowered in _LOWERED:
        return f"{lowered} {remainder}".strip()
    is_name = (
        not lowered[1:].islower()
        or lowered.endswith(("'s", "’s", *_PEOPLES))
        or remainder[:1].isupper()
        or remainder[:1].isdigit()
        or re.search(r"\b(?:and|or) [A-Z]", remainder) is not None
        or (re.match(r"of [A-Z]", remainder) is not None and not first.endswith("s"))
    )
    if not is_name and not re.search(rf"(?<![\w.]){re.escape(lowered)}(?!\w)", passage):
        is_name = bool(re.search(rf"[\w,;:)] {re.escape(first)}(?!\w)", passage))
        is_name = is_name or not (remainder or lowered.endswith(_NOUN_ENDINGS))
    return f"{first if is_name else lowered} {remainder}".strip()


_BOUNDARY = re.compile(
    r",?\s+(in|on|at|of|for|to|from|with|within|when|if|while|during|after|before|by|using|and|or|"
    r"as|that|which|where|because|without|between|among|through|inside|into|but)\b",
    re.IGNORECASE,
)

_CLAUSES = frozenset(
    str.split("when if while during after before by using that which where because without")
)
"""Words that open a clause, which is removed as a whole."""

_JOINING = frozenset({"and", "or", "but"})
_ASKED_TOO = re.compile(r"\s+(?:how|what|why|when|where|which|who)\b", re.IGNORECASE)
_STRANDED = re.compile(rf"\s*(?:{'|'.join(sorted(PREPOSITIONS - {'using'}))})\b")
_LED_ON = re.compile(r"\s+to\s+(?:\w+ly\s+)?(?P<verb>\w+)\b")
_DETERMINED = DETERMINERS | frozenset(str.split("your our one two several certain other"))

_TAKE_OBJECTS = frozenset({"do", "have", "make", "give", "get", "use"})
_MIN_WORDS = 4
_MIN_NEW = 2


class TrimmedQuestion(NamedTuple):
    """The trimmed question, or the reason why it was rejected."""

    question: str = ""
    reason: str = ""


def trim_question(question: str, opening: QuestionPrefix, evidence: str) -> TrimmedQuestion:
    """Return the question's longest prefix that fits and is a complete question.

    It fits if it names only what the evidence names, leaves the evidence something to answer, and
    continues its opening as ``fits_question_prefix`` requires. The opening is never cut.
    """
    reason = "question strays, or tells the statement on"
    body = question.rstrip("?？. ")
    if not question.startswith(opening.text) or len(body) < len(opening.text):
        # the opening itself may end in such a mark: not a question
        return TrimmedQuestion(reason=reason)
    evidence_stems = set(extract_content_stems(evidence))
    for end, is_sound in _ends(body, opening, evidence):
        if not _fits(body[:end], opening, evidence, evidence_stems):
            continue
        if is_sound:
            return TrimmedQuestion(f"{body[:end]}?")
        reason = "question strays where it cannot be cut"
    return TrimmedQuestion(reason=reason)


def _fits(part: str, opening: QuestionPrefix, evidence: str, evidence_stems: set[str]) -> bool:
    question_stems = set(extract_content_stems(part, frames=False))
    return (
        len(part.split()) >= _MIN_WORDS
        and compute_support(question_stems, evidence_stems) == 1.0
        and len(evidence_stems - question_stems) >= _MIN_NEW
        and part.count('"') % 2 == 0
        and part.count("(") == part.count(")")
        and fits_question_prefix(opening, part, evidence)
    )


def _ends(body: str, opening: QuestionPrefix, evidence: str) -> list[tuple[int, bool]]:
    """Return the possible ends of a question, last first, and whether a question remains."""
    least = len(opening.text)
    ends = dict(_cuts(body, opening))
    stranded = _STRANDED.match(body, least) if opening.strands else None
    if stranded is not None and opening.next in {stranded[0].strip(), "using"}:
        ends[stranded.end()] = True
    led_on = _LED_ON.match(body, least) if opening.leads_on else None
    led = collapse_whitespace(led_on[0]) if led_on is not None else ""
    if led_on is not None and (led == "to do" or _has_object(led, evidence)):
        ends[led_on.end()] = True
    if body[least : least + 1] in {"", " ", ","}:
        ends[least] = not (body[:least].endswith(" have") and body[least:].startswith(" to "))
    ends[len(body)] = True
    return sorted(ends.items(), reverse=True)


def _has_object(infinitive: str, evidence: str) -> bool:
    """Return whether the verb after "to" has its object behind it: not "bear in mind"."""
    follows = re.search(rf"{re.escape(infinitive)}\s+(\w+)", collapse_whitespace(evidence))
    if follows is None or follows[1] in FUNCTION_WORDS - _DETERMINED:
        return False
    return follows[1].lower() in _DETERMINED or (follows[1].endswith("s") and len(follows[1]) > 3)


def _cuts(body: str, opening: QuestionPrefix) -> Iterator[tuple[int, bool]]:
    """Yield the positions after the opening where a question may be cut.

    A preposition before another one, or before a clause, belongs to the words before it, and is
    kept with them ("what is it capable of | in winter"). No cut is made within a clause.
    """
    least, is_whole_clause = len(opening.text), True
    boundaries = list(_BOUNDARY.finditer(body, least))
    follows = {match.start() for match in boundaries}
    stranded = -1
    for match in boundaries:
        boundary, start = match[1].lower(), match.start()
        is_joining = boundary in _JOINING
        if start > least:
            is_sound = start == stranded or (
                match.end() not in follows
                and not opening.is_whole
                and (not is_joining or bool(_ASKED_TOO.match(body, match.end())))
                and _asks_before(body[least:start].lower().split(), boundary, opening)
            )
            yield start, is_sound and is_whole_clause
        if match.end() in follows and boundary in ENDINGS:
            stranded = match.end()
        behind = body[match.end() :].split(maxsplit=1)
        opens = boundary in _CLAUSES or (boundary == "to" and bool(behind) and behind[0] in VERBS)
        is_whole_clause = is_whole_clause and not opens


def _asks_before(tail: list[str], boundary: str, opening: QuestionPrefix) -> bool:
    """Return whether the words after an incomplete opening form a question without the rest.

    ``What`` must be the object of their verb; "of" never starts a removable part.
    """
    if boundary == "of" or not tail:
        return False
    if opening.has_verb and not opening.leads_on:
        return _BOUNDARY.fullmatch(f" {tail[0]}") is not None
    if opening.has_verb:
        return False  # only the verb that it leads to is kept
    verb, last = opening.verb, tail[-1]
    if last == verb:
        return opening.next not in PREPOSITIONS and (last, boundary) != ("have", "to")
    if last in _TAKE_OBJECTS:
        return (last, boundary) != ("have", "to")
    return last not in VERBS and (tail[0] == verb or tail[0] in _TAKE_OBJECTS)
