"""Rule-based question generation from a plain English clause, without a model.

A statement is read as subject, verb, remainder, or as condition and consequence; what stands behind
the verb is asked for: of "The @ operator multiplies matrices" it is "What does the @ operator
multiply?". Statements of any other form yield nothing.

Based on word order, not grammar. Own method.
"""

from __future__ import annotations

import re

from stillroom.synth.lexical_overlap import (
    FUNCTION_WORDS,
    collapse_whitespace,
    extract_content_stems,
    word_set,
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

__all__ = ["PREPOSITIONS", "write_clause_questions"]

_CONDITION = re.compile(r"^(?P<word>if|when|whenever|after|before|while)\s+(?P<rest>.+)$", re.I)
_HOW = re.compile(r"\b(?:by|(?<!from )using|through|via|with the help of)\b", re.IGNORECASE)
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

_LOWERED = word_set(
    """the a an all any each every some most many multiple few both several two three four five one
    other another various such major new old modern early late first second third"""
)

PREPOSITIONS = word_set("to into from for by with as of on in at within through using")
"""Prepositions after a verb: the object of the question follows them, not the verb."""

_PARTICLES = word_set("back out up down off over away forth together apart")
_PRO_VERBS = frozenset({"do", "done", "have", "make", "give", "get", "use", "used"})
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

_NO_OBJECTS = word_set(
    """effect place part no because against over under above below toward towards across along
    until since so like than between among beyond behind beside near better worse well"""
)
"""Words after a verb that cannot be asked about ("take effect", "make no")."""

_NAMING = word_set("named called titled entitled dubbed nicknamed renamed termed")
_NEEDED = word_set("to from with of for as into")
_NEEDING = frozenset({"result", "consist", "participate", "engage"})
"""Verbs that are incomplete without a complement."""

_REPORTING = word_set("said believed thought reported")
_NOUN_ENDINGS = ("s", "ing", "tion", "ment", "ity", "ness", "ance", "ence")
_GOING_ON = word_set("and or but which who whose where")
"""Words after a comma that does not end the condition."""

_CAUSING = word_set("allow enable let permit cause force require make lead encourage")
_LIGHT = word_set("have take become say tell turn get go come see")
"""Verbs that tell nothing without their object: "What does Walter take?" """

_MEASURING = word_set("last reach cost weigh measure number span total exceed kill")
_BEGINNING = word_set("begin start stop continue keep avoid finish")
_OBJECTS = word_set("you us them him her it me one users people users, someone")
"""Objects of a verb whose sentence goes on with what they do."""

_ADDED = re.compile(r"^[^,;:]*\balso\b")
"""A clause that adds to one before it, so that neither tells all that a question asks for."""

_VAGUE = re.compile(
    r"(?:(?:some|certain|several|various|additional|many|further|other)\b|"
    r"an? (?:\w+ )?(?:lot|number|variety|range) of |a lot |an? (?:\w+ )?few |a very \w+ )"
    r"(?!.*(?::|—|such as|like|include|including|for example|e\.g\.|that|which|\d))"
)
"""Objects that say only that there are some."""

_RUN_IN = re.compile(
    r" [—–-]+ |(?<!\b[Tt]he) "  # "The No button" has a name
    r"(?:A|An|The|Some|Many|Most|All|Each|Every|Various|Several|Any|No|If|When|In|You)\b|"
    r"\b(?!of\b|the\b)(\w{2,})\b(?! (?:to|by|and|for|after|in) \1\b)(?: .*)? \1\b"
)
"""Subjects before which a heading or a term stands, without a mark between."""

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
_MIN_WORDS, _MIN_NEW = 4, 2
_DETERMINED = DETERMINERS | word_set("your our one two several certain other")


def write_clause_questions(statement: str, passage: str = "") -> list[str]:
    """Return the questions that a statement answers; empty if it is not plain.

    Args:
        statement: One sentence.
        passage: Its context, which distinguishes names from words capitalized by position.
    """
    line = collapse_whitespace(statement)
    if not line.isprintable() or line[-1:] != ".":
        return []
    line = line[:-1]
    if line.split(" ", 1)[0].casefold() in INDEFINITE or _ADDED.match(line):
        return []
    line = re.sub(r"(?<=\w) by default (?=\w)", " ", line)
    condition = _CONDITION.match(line)
    if condition is None:
        bodies = _subject_questions(line, passage)
    else:
        bodies = _condition_questions(condition["word"].lower(), condition["rest"])
    stems = set(extract_content_stems(line))
    return [f"{body}?" for body in bodies if _is_asked(body, stems)]


def _is_asked(body: str, stems: set[str]) -> bool:
    """Return whether a question is of some length, and leaves its statement something to tell."""
    asked = set(extract_content_stems(body, frames=False))
    return (
        len(body.split()) >= _MIN_WORDS
        and len(stems - asked) >= _MIN_NEW
        and body.count('"') % 2 == 0
        and body.count("(") == body.count(")")
    )


def _condition_questions(word: str, rest: str) -> list[str]:
    conjunction = "when" if word == "whenever" else word
    clause, main_clause = _clause(conjunction, rest)
    is_told = bool(clause) and conjunction != "while" and happens(main_clause)
    if not is_told or not _is_plain_present(clause):
        return []
    return [f"What happens {conjunction} {clause}"]


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


def _subject_questions(line: str, passage: str) -> list[str]:
    verb = find_verb(line)
    if verb is None or verb.kind == "cannot":
        return []
    subject, predicate = line[: verb.start].strip(), line[verb.end :].strip()
    if not _is_subject(subject) or len(predicate.split()) < _MIN_REST or _NEGATION.match(predicate):
        return []
    return _word_questions(verb, _lower(_without_adverb(subject), passage), predicate)


def _is_subject(subject: str) -> bool:
    """Return whether the words before a verb name one subject."""
    first, last = subject.split(" ", 1)[0], _without_adverb(subject).rsplit(" ", 1)[-1]
    first = first.strip("\"“‘'`*").casefold()
    starts_as_noun = first not in FUNCTION_WORDS or first in _LOWERED or first == "its"
    is_verb = (
        first.endswith("ed")
        or first in {"following", "despite", "upon", "unlike"}
        or (bool(find_base_form(first)) and " " in subject)
    )
    is_plain = not any(mark in subject for mark in (",", ":", ";")) and not _RUN_IN.search(subject)
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


def _word_questions(verb: Verb, subject: str, predicate: str) -> list[str]:
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
        if subject.split(" ", 1)[0].endswith("ing") and " " in subject:
            return []  # "Managing a register is the first step" tells no kind of thing
        return _state_questions(verb, subject, prefix, after)
    if kind in MODAL:
        base, after = find_base_form(after[0]) if after else "", after[1:]
        if base == "mean":  # "shall mean" defines
            prefix = f"does {subject}"
    if not base or base == "do" or (base == "have" and _is_perfect(after)):
        return []
    return _verb_questions(prefix, base, after)


def _is_perfect(after: list[str]) -> bool:
    """Return whether "have" is only an auxiliary of the perfect tense."""
    return bool(after) and is_participle(after[0])


def _verb_questions(prefix: str, base: str, after: list[str]) -> list[str]:
    """Return questions for what a subject does."""
    follows = after[0] if after else ""
    predicate = " ".join(after)
    is_number = follows[:1].isdigit() or follows in NUMBERS or re.match(r"some \d", predicate)
    is_measure = is_number and base in _MEASURING
    is_going_on = follows in {"and", "or"} or (base in _BEGINNING and follows.endswith("ing"))
    if is_measure or is_going_on:
        return []  # "lasts three years" is no object, and "translated and ..." has none yet
    if _VAGUE.match(predicate) or (base == "mean" and follows == "to"):
        return []
    if follows in _PARTICLES or base == "help" or (base in _CAUSING and follows in _OBJECTS):
        return []
    questions = []
    is_time = bool(_TIME.match(predicate))
    if follows and base not in INTRANSITIVE and not follows.endswith("ed") and not is_time:
        is_object = follows not in PREPOSITIONS | _NO_OBJECTS
        ending = "" if is_object else _find_ending(base, after)
        if (is_object or ending) and base not in _LIGHT:
            questions.append(f"What {prefix} {base}{ending}")
    is_bare = not follows or (follows in PREPOSITIONS - _NEEDED and base not in _NEEDING)
    if _HOW.match(predicate) or (is_bare and _search(_HOW, predicate)):
        questions.append(f"How {prefix} {base}")
    if is_time or (is_bare and _search(_TIME, predicate)):
        questions.append(f"When {prefix} {base}")
    return questions


def _search(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """Return the first match outside of brackets, which tell of something else."""
    depths = dict(get_bracket_depths(text))
    return next((match for match in pattern.finditer(text) if not depths[match.start()]), None)


def _state_questions(verb: Verb, subject: str, prefix: str, after: list[str]) -> list[str]:
    """Return questions for what something is, or what is done to it."""
    if not after or not is_participle(after[0]):
        return _quality_questions(prefix, after)
    participle, words_after = after[0], after[1:]
    if participle in _NAMING and words_after and _is_name(words_after[0]):
        return [f"What {prefix} {participle}"]
    if participle in _REPORTING and words_after[:1] != ["as"]:
        return []
    if words_after[:1] and words_after[0] in _PARTICLES:
        participle, words_after = f"{participle} {words_after[0]}", words_after[1:]
    if participle == "referred" and words_after[:2] == ["to", "as"]:
        return [f"What {prefix} referred to as"]
    text_after = " ".join(words_after)
    is_agent = bool(_AGENT.match(text_after))
    may_continue = not is_agent and not _TIME.match(text_after) and participle != "born"
    ending = _find_ending(participle, words_after) if may_continue else ""
    questions = [f"What {prefix} {participle}{ending}"] if ending else []
    for question_word, pattern in (("How", _HOW), ("When", _TIME)):
        match = _search(pattern, text_after)
        if match is not None and not _AGENT.match(text_after, match.start()):
            between = _complement(participle, words_after, text_after[: match.start()].split())
            if between is not None:
                questions.append(" ".join((question_word, prefix, participle, *between)))
    return questions


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


def _quality_questions(prefix: str, after: list[str]) -> list[str]:
    """Return questions for what something is: a thing, or a quality ("capable of")."""
    first, follows = after[0] if after else "", " ".join(after[1:2])
    if first in PREPOSITIONS - {"to"} or first in NUMBERS:
        return []
    is_word = first.isalpha() and first.islower() and first not in FUNCTION_WORDS | _LOWERED
    if is_word and follows in _GOVERNED and not first.endswith("s"):
        ending = _find_ending(first, after[1:])
        return [f"What {prefix} {first}{ending}"] if ending else []
    is_quality = first.endswith(_QUALITIES) and (not follows or follows in FUNCTION_WORDS)
    is_quality = is_quality or follows in PREPOSITIONS - {"using"} | {"about", "like", "between"}
    if prefix.endswith(" be") or (is_word and is_quality):
        return []
    if not DEFINITION.match(" ".join(after)):
        return []  # a quality, a name, or a judgement: it does not say what something is
    return [f"What {prefix}"]


def _find_ending(word: str, after: list[str]) -> str:
    """Return what completes a question after a word: its preposition, "to" and a verb, or ""."""
    strands, leads_on = _way_on(after)
    if strands and _VAGUE.match(" ".join(after[1:])):
        return ""
    if strands and GOVERNING.fullmatch(f"{word} {after[0]}"):
        return f" {after[0]}"
    if not leads_on or len(after) < 3:
        return ""
    led, behind = after[1:3]
    if _VAGUE.match(" ".join(after[2:])):
        return ""
    has_object = behind.lower() in _DETERMINED or (
        behind.endswith("s") and len(behind) > 3 and behind not in FUNCTION_WORDS
    )
    return f" to {led}" if has_object and led not in FUNCTION_WORDS - _PRO_VERBS else ""


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
        or remainder.lstrip("([")[:1].isupper()
        or remainder[:1].isdigit()
        or re.search(r"\b(?:and|or) [A-Z]", remainder) is not None
        or (re.match(r"of [A-Z]", remainder) is not None and not first.endswith("s"))
    )
    if not is_name and not re.search(rf"(?<![\w.]){re.escape(lowered)}(?!\w)", passage):
        is_name = bool(re.search(rf"[\w,;:)] {re.escape(first)}(?!\w)", passage))
        is_name = is_name or not (remainder or lowered.endswith(_NOUN_ENDINGS))
    return f"{first if is_name else lowered} {remainder}".strip()
