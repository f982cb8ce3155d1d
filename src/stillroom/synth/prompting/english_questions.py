"""Rule-based question generation from the form of an English statement, without a model.

Purposes and conditions ("To restore a file, run ...", "You may copy it, provided that ...") have a
question of their own, and so has what a person did: of "Mr. Weston was a native of Highbury" it is
who was, since "What did Emma allow?" fits half the pages of a novel. Of things the subject is not
asked for: "What reaches 27 % on high-pressure engines?" is a riddle, since a statement tells about
a subject that its reader knows. Other statements are left to ``question_templates``.

Own method; the answer is selected before its question as in Alberti et al. 2019, arXiv:1906.05416.
"""

from __future__ import annotations

import re

from stillroom.synth.lexical_overlap import (
    FUNCTION_WORDS,
    collapse_whitespace,
    extract_content_words,
    word_set,
)
from stillroom.synth.prompting.english_verbs import (
    BE,
    INDEFINITE,
    MODAL,
    find_base_of_past,
    find_verb,
    is_participle,
)

__all__ = [
    "DEFINITION",
    "GOVERNING",
    "happens",
    "name_subject",
    "simplify_statement",
    "write_english_questions",
]

_REFERRING = re.compile(
    r"\b(?:this|that|these|those|its?|they|them|their|he|she|him|we|us|our|you|your|i|me|my|here|"
    r"there|such|so|another|others?|former|latter|above|below|following|same|then|now|herein|"
    r"hereby|"
    r"thereof|hereunder|section|chapter|clause|paragraph|corresponding|resulting|respective|"
    r"remaining|aforementioned|said|instead)\b",
    re.IGNORECASE,
)
_ASIDE = re.compile(r" ?\((?!s\))[^()]{2,80}\)")
_FRONTED = re.compile(
    r"^(?:By default|In (?:general|addition|particular|practice|principle|fact)|For example|"
    r"Usually|"
    r"Optionally|Normally|Sometimes|Typically|Generally|Often|Today|Originally|Traditionally|Now|"
    r"(?:In|On|During|Since|By|For|At|Under|Among|Within|Throughout|From|Due to|According to|"
    r"As of) "
    r"[^,;:]{3,60}), (?=[A-Za-z])"
)
_PURPOSE = re.compile(
    r"^(?:In order to|To|If (?:you|one) (?:want|wish|need|would like|intend)s? to) "
    r"(?P<verb>[a-z]+)(?P<rest> [^,;:]+), (?:then )?(?P<main>.+)$"
)
_DIRECTION = re.compile(
    r"(?:you|one|use|run|set|add|call|type|click|select|choose|open|press|enter|go|see|simply|just|"
    r"please|it is (?:enough|necessary)|do|make|create|specify|the user|users)\b",
    re.IGNORECASE,
)
_TOOL = re.compile(
    r"^(?:You (?:can|may|should|must|need to|have to) )?(?:use|run|call|type|set|enable|add|"
    r"specify|"
    r"choose|select|click|press|open|configure|install) [^,;:]+? (?:in order )?to "
    r"(?P<act>[a-z]+ [^,;:]+)$",
    re.IGNORECASE,
)
_MEANS = re.compile(
    r"^You (?:can|may|should) "
    r"(?P<act>(?!(?:combine|compare|replace|mix|merge|pair|associate|link|share)\b)"
    r"[a-z]+ [^,;:]+?),? "
    r"(?:by \w+ing|using|with the|via|through) .+$"
)
_CONDITION = re.compile(
    r"^(?P<word>If|When|Whenever|Unless|Once) (?P<clause>[^,;:]+), (?P<main>.+)$"
)
_NO_CLAUSE = re.compile(
    r"(?:and|or|but|nor|however|though|not|even|as|with|without|in|on|at|of|to|for|by|which|who|that|"
    r"where|when|if|especially|particularly|including|such|like|whether)\b"
)
"""Words after the comma of a condition that go on with it, so that it would be cut."""

_WISH = re.compile(r"\b(?:wish|wishes|want|wants|would like|prefer|prefers|intend|intends)\b")
_LICENSE = re.compile(
    r"^(?:You|Anyone|Any person) (?P<modal>may|can|are permitted to) (?!not)(?P<act>[^;:]+?),? "
    r"(?:provided(?: that)?|only if|if|as long as|on condition that|under the terms) "
    r"(?!(?:it is |that is )?(?:necessary|needed|possible|required|desired|appropriate|"
    r"important.*|"
    r"you (?:\w+ )?(?:wish|want|like|prefer|choose|need)(?: to)?)$).+$"
)
"""A permission with a condition that says more than "if necessary"."""

_PERSON = (
    r"(?:(?:Mr|Mrs|Ms|Dr|St|Capt|Col)\.|Miss|Master|Sir|Lady|Lord|Captain|Colonel|General|"
    r"King|Queen|Prince|Princess|Emperor|Empress|Pope|President|Saint|Professor|Doctor|Aunt|Uncle)"
    r"(?: [A-Z][\w'’-]+){1,3}"
)
_SPOKE = "said|replied|cried|answered|asked|smiled|exclaimed|observed"
_DOER = re.compile(
    rf"^(?P<name>{_PERSON}|[A-Z][a-z’'-]+(?: (?:[A-Z]\.|de|von|van|[A-Z][a-z’'-]+)){{0,3}})"
    r"(?P<aside>, [^,;]{3,60},)?(?: (?:\w+ly|soon|then|also|still|never|always|now|only))? "
    r"(?P<predicate>(?P<verb>[a-z]+)\b.*)$"
)
_AUXILIARY = word_set("was had is has could would did might must should will can does")
_HE, _SHE = re.compile(r"\b(?:he|his|him|himself)\b"), re.compile(r"\b(?:she|hers?|herself)\b")
_MEN = re.compile(r"^(?:Mr|Sir|Lord|Captain|Colonel|King|Prince|Emperor|Pope|Uncle|Master)\b")
_WOMEN = re.compile(r"^(?:Mrs|Ms|Miss|Lady|Queen|Princess|Empress|Aunt)\b")
_OTHERS = re.compile(
    r"\b(?:this|these|those|it|its|they|them|their|we|us|our|you|your|i|me|my|here|there|so|"
    r"above|below|following|section|chapter)\b",
    re.IGNORECASE,
)
_PERSONAL = re.compile(
    r"\b(?:born|married|wife|husband|daughter|son|mother|father|brother|sister|friend)\b"
)
_UNASKED = re.compile(
    r"^(?:is|was|has been|had been) (?:between|in|on|at|to|from|about|around|during)\b|\bnot only\b"
)
"""Predicates that tell when, where or for what, and unfinished ones."""

_CUT = re.compile(
    r"[;:—]|--|, (?:and|but|who|which|for|as|that|though|although|where|when|while|so|because|"
    r"with|including|such)\b|,? (?:but|because|although|though|whereas)\b"
)
_DONE_BY_PEOPLE = word_set(
    """admire ask believe born compose cry decide deny die discover dream feel forget hate hear
    hope invent invite know laugh learn love marry paint persuade propose regret remember
    resolve say sit smile speak study suspect teach tell think visit walk weep wish write"""
)
_UNTOLD = re.compile(
    r"^(?:\w+ )?(?:not|never|hardly|scarcely|no longer)\b|\b(?:therefore|thus|hence|"
    r"still|again|also|"
    r"too|however|once more|instead|accordingly|as well|besides)\b"
)
"""Predicates that deny, or that join their sentence to another."""

GOVERNING = re.compile(
    r"(?:depend|rely|based|focus\w*) on|(?:consist|composed|made|capable|consisting|made up) of|"
    r"(?:belong|lead|refer|apply|correspond|contribute|respond|relate|related|subject|linked|due|"
    r"converted|connected|similar|equivalent|attributed|relevant|entitled|"
    r"according) to|(?:used|responsible|"
    r"known|famous|intended|suitable|required|needed|stand|designed|account) for|result in|"
    r"(?:derived?|differ|protect|protected|suffer|originate|prevent|made) from|"
    r"(?:associated|compatible|deal|equipped|concerned|replaced?|combined|interact) with|"
    r"(?:known|classified|regarded) as|divided into"
)
"""Words with the preposition that belongs to them: only there may a question end in one."""

DEFINITION = re.compile(
    r"(?:an? (?!(?:\w+ )?(?:matter|question|lot|number|part|result|reason|thing|point|"
    r"issue|problem|"
    r"exception|alternative|example|good|bad|little|few|bit|case|sign|source|way|cause|topic|time|success|failure|member|variety|"
    r"great|long|more|most|mile|must|favou?rite|concern)\b)\w+|(?:the|any) \w+(?: \w+)? "
    r"(?:of|that|which|for|between|used|by which)\b|one of the \w+)"
)
"""What says what something is: a kind of thing, or the one that is described."""

_LONGEST, _SHORTEST = 24, 5
_MIN_CONTENT = 3


def write_english_questions(statement: str, passage: str = "") -> list[str]:
    """Return the questions that a statement answers by its form; empty if it fits none.

    Args:
        statement: One sentence.
        passage: Its context, which tells persons from other names.
    """
    line = collapse_whitespace(statement)
    if not line.isprintable() or line[-1:] != ".":
        return []
    line = line[:-1]
    questions = [_ask_how(line), _ask_condition(line), _ask_permission(line)]
    if not any(questions):
        questions = [_ask_who(line, passage)]
    return [question for question in questions if question]


def simplify_statement(line: str) -> str:
    """Return a statement without what stands in brackets, or before its subject."""
    bare = _ASIDE.sub("", line)
    match = _FRONTED.match(bare)
    rest = bare[match.end() :] if match is not None else bare
    return rest[:1].upper() + rest[1:]


def _ask_how(line: str) -> str:
    match = _PURPOSE.match(line)
    if match is not None:
        act = match["verb"] + match["rest"] if _DIRECTION.match(match["main"]) else ""
    else:
        match = _TOOL.match(line) or _MEANS.match(line)
        act = match["act"] if match is not None else ""
    is_verb = act.split(" ")[0] not in FUNCTION_WORDS - {"use", "make", "get", "give", "do"}
    return f"How can one {act}?" if act and is_verb and _is_bound(act) else ""


def _ask_condition(line: str) -> str:
    match = _CONDITION.match(line)
    if match is None:
        return ""
    verb, clause = find_verb(match["clause"]), match["clause"]
    if verb is None or verb.is_past or verb.kind == "did" or not _is_bound(clause):
        return ""
    if _NO_CLAUSE.match(match["main"]) or _WISH.search(clause):
        return ""
    word, lowered = match["word"].lower(), _lower(clause)
    allowed = re.match(r"you (may|can)\b", match["main"])
    if allowed is not None:
        return f"What {allowed[1]} one do {word} {lowered}?"
    if _DIRECTION.match(match["main"]):
        return f"What should one do {word} {lowered}?"
    return f"What happens {word} {lowered}?" if happens(match["main"]) else ""


def happens(main: str) -> bool:
    """Return whether a main clause tells what happens: no duty, and no state without a change."""
    verb = find_verb(main)
    if verb is None:  # a verb that is not listed: at least none that is no event
        return not (BE | MODAL | {"has", "have"}).intersection(main.split())
    if verb.is_past or (verb.kind in MODAL and verb.kind != "will"):
        return False
    after = main[verb.end :].split()
    return verb.kind not in BE or any(is_participle(token) for token in after[:3])


def _ask_permission(line: str) -> str:
    match = _LICENSE.match(line)
    if match is None or not _is_bound(match["act"]):
        return ""
    modal = match["modal"] if match["modal"] in {"may", "can"} else "may"
    return f"On what condition {modal} one {match['act'].strip(', ')}?"


def name_subject(sentence: str, following: str, passage: str) -> bool:
    """Return whether the one person that a sentence names is who the next one calls he or she.

    Args:
        sentence: A sentence that starts with a person's name.
        following: The sentence after it, which starts with "He" or "She".
        passage: Their context.
    """
    match = _DOER.match(sentence)
    if match is None or match["name"].split()[0].casefold() in FUNCTION_WORDS:
        return False
    name, verb = match["name"], match["verb"]
    rest = sentence[len(name) :]
    if re.search(r"(?<=[a-z,;] )(?:Mr|Mrs|Miss|Dr|Sir|Lady|Lord)\b|(?<=[a-z] )[A-Z][a-z]+", rest):
        return False
    is_she = following.startswith("She ")
    wrong, other = (_MEN, _HE) if is_she else (_WOMEN, _SHE)
    is_known = _is_person(name, verb, match["predicate"], passage)
    return is_known and not wrong.match(name) and not other.search(rest)


def _ask_who(line: str, passage: str) -> str:
    """Return who did what the statement says; empty unless its subject is a person."""
    before, _, following = line.rpartition(". ")
    if before and following.startswith(("He ", "She ")):
        name, predicate = following.split(" ", 1)
        verb = predicate.split(" ", 1)[0]
        head = _cut(predicate)
        is_verb = verb in _AUXILIARY or bool(find_base_of_past(verb)) or verb.endswith("ed")
        is_mixed = (_HE if name == "She" else _SHE).search(head) is not None
        is_asked = head and is_verb and not is_mixed and not _OTHERS.search(head)
        is_asked = is_asked and not _UNTOLD.search(head)
        return f"Who {head}?" if is_asked else ""
    match = _DOER.match(line)
    if match is None or (match["aside"] and " and " in match["aside"]):
        return ""
    if match["name"].casefold() in INDEFINITE or _UNTOLD.search(match["predicate"]):
        return ""
    name, verb, predicate = match["name"], match["verb"], match["predicate"]
    if name.split()[0].casefold() in FUNCTION_WORDS:
        return ""
    is_verb = verb in _AUXILIARY or bool(find_base_of_past(verb)) or verb.endswith("ed")
    if not is_verb or not _is_person(name, verb, predicate, passage):
        return ""
    head = _cut(predicate)
    is_man, is_woman = _MEN.match(name) is not None, _WOMEN.match(name) is not None
    he, she = _HE.search(head) is not None, _SHE.search(head) is not None
    is_mixed = (he and (she or is_woman)) or (she and is_man)
    return f"Who {head}?" if head and not is_mixed and not _OTHERS.search(head) else ""


def _is_person(name: str, verb: str, predicate: str, passage: str) -> bool:
    """Return whether a name is a person's: by its title, its verb, or its context."""
    if _MEN.match(name) or _WOMEN.match(name) or re.match(_PERSON, name):
        return True
    first = re.escape(name.split()[0])
    spoke = (
        rf"\b(?:(?:{_SPOKE}) {first}|{first} (?:{_SPOKE})|(?:Miss|Mrs?\.|Dr\.) (?:\w+ )?{first})\b"
    )
    done = find_base_of_past(verb) in _DONE_BY_PEOPLE
    return (
        done
        or bool(_PERSONAL.search(predicate[:60]) or re.search(spoke, passage))
        or (bool(_HE.search(predicate)) or bool(_SHE.search(predicate)))
    )


def _cut(predicate: str) -> str:
    """Return the first clause of a predicate; empty if it is short, long or says little."""
    head = _CUT.split(predicate)[0].rstrip(", ")
    words = head.split()
    is_sized = _SHORTEST <= len(words) <= _LONGEST and words[-1] not in FUNCTION_WORDS
    is_even = head.count("(") == head.count(")") and head.count('"') % 2 == 0
    is_told = len(extract_content_words(head)) >= _MIN_CONTENT and not _UNASKED.search(head)
    # what stands behind another comma may be the last item of a list, or another sentence
    return head if is_sized and is_even and is_told and "," not in head else ""


def _is_bound(text: str) -> bool:
    """Return whether a part of a statement refers to nothing outside of it."""
    return _REFERRING.search(text) is None and len(extract_content_words(text)) > 1


def _lower(clause: str) -> str:
    first = clause.split(" ", 1)[0].lower()
    return clause[:1].lower() + clause[1:] if first in FUNCTION_WORDS else clause
