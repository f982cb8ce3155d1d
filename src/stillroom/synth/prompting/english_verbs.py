"""English verb forms and the main verb of a statement.

Verbs are recognized by their form and context: "stores" is a verb in "the server stores rows" and a
noun in "department stores are"; a past form is a verb by itself, but not in "the values returned by
it". A statement in which two words may be the verb is left undecided.

The verbs are a list, not a dictionary: an unknown word is not taken for a verb, and questions are
not started with it. Words that are as often nouns ("stores", "forces") are included; the context
must decide.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from stillroom.synth.lexical_overlap import FUNCTION_WORDS, word_set

__all__ = [
    "ADVERBS",
    "BE",
    "DETERMINERS",
    "HAVE",
    "INDEFINITE",
    "INTRANSITIVE",
    "MODAL",
    "NUMBERS",
    "VERBS",
    "Verb",
    "find_base_form",
    "find_base_of_past",
    "find_verb",
    "get_bracket_depths",
    "is_adverb",
    "is_participle",
]

ADVERBS = word_set(
    """then also always often usually only now still first normally typically generally
    already just even again both all sometimes thus later twice never ever"""
)

DETERMINERS = word_set(
    "a an the any all each every some both no its their his her such this that these"
)

NUMBERS = word_set(
    """two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
    sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety
    hundred thousand million billion several many few most"""
)

_BEHIND_PARTICIPLE = word_set(
    """by in to from with on at for as during between under into through of using over within
    after before without across against among about"""
)

_PRONOUNS = frozenset({"he", "she", "it", "they", "we"})
_PASSIVE = frozenset({"use", "dedicate", "base", "locate", "intend", "associate"})
"""Verbs that rarely have an agent as their subject."""

_BEHIND_PASSIVE = frozenset({"by", "for"})
_BEHIND_VERB = word_set("the a an all any each every its their his her no both that")
_ARTICLES = frozenset({"a", "an", "the", "its", "their"})

_STOPS = word_set(
    """that which who whom whose where when while whenever because if unless until although
    though since so whereas how why what whether as than"""
)

_JOINING = frozenset({"and", "or", "but", "nor"})
_KINDS = {"has": "does", "have": "do", "had": "did", "does": "does", "do": "do", "did": "did"}
_OPENING = frozenset("\"“‘'`«")

_SIBILANT = re.compile(r"(?:sh|(?<!ca)ch|ss|x|zz)es$")
"""Endings of a third person with "es": "pushes", but "caches", "sizes"."""

_ENDING_LIKE_ADVERBS = word_set(
    "family assembly supply reply anomaly italy july monopoly ally rally apply multiply"
)

_OPEN, _CLOSE = "([“«", ")]”»"


class Verb(NamedTuple):
    """A statement's verb: its position in the line, the auxiliary of its question, and its base.

    ``kind`` is the verb itself if a question moves it ("is", "may"), otherwise a form of "do".
    ``base`` is empty for the former and for unknown verbs.
    """

    start: int
    end: int
    kind: str
    base: str = ""
    is_past: bool = False


class _Word(NamedTuple):
    """A word with its neighbors; adverbs are skipped before it."""

    text: str
    start: int
    before: str
    after: str


class _Candidate(NamedTuple):
    """A word that may be the verb.

    ``form`` is "sure", "s", "bare" or "past". ``leads``: an object follows; ``is_loose``: it may be
    a participle, or a noun; ``is_regular``: it ends in "ed".
    """

    verb: Verb
    form: str
    after: str
    leads: bool = False
    is_loose: bool = False
    is_regular: bool = False


def find_verb(line: str) -> Verb | None:
    """Return the verb of a statement's first clause; None if it is ambiguous or unknown."""
    candidates: list[_Candidate] = []
    for clause_word in _iter_clause_words(line):
        candidate = _classify_word(clause_word)
        if candidate is None or (candidates and clause_word.before in _JOINING):
            continue
        if candidate.form == "bare" and candidate.is_loose and not candidates:
            continue
        if candidate.form == "sure":
            return _find_before_auxiliary(candidates, candidate.verb)
        candidates.append(candidate)
    if not candidates:
        return None
    first = candidates[0]
    if len(candidates) == 1:
        is_passive = first.after in _BEHIND_PASSIVE or first.verb.base in _PASSIVE
        return None if first.is_loose and is_passive else first.verb
    if first.leads and not first.is_loose:
        return first.verb
    if first.form == "bare" and not first.is_loose and candidates[1].form == "s":
        candidates = [
            first,
            *candidates[2:],
        ]  # the verb of a plural subject before ambiguous nouns: "lists", "stores"
    sure = [candidate for candidate in candidates if not candidate.is_loose]
    if len(sure) != 1 or any(
        candidate.form == "bare" and candidate.is_loose for candidate in candidates
    ):
        return None
    (sure_candidate,) = sure
    return (
        None
        if first.is_loose and " and " in line[: sure_candidate.verb.start]
        else sure_candidate.verb
    )


def is_adverb(token: str) -> bool:
    """Return whether a word may occur between a subject and its verb."""
    is_like = token.endswith("ly") and len(token) > 4 and token not in _ENDING_LIKE_ADVERBS
    return token in ADVERBS or is_like


def _find_before_auxiliary(candidates: list[_Candidate], sure: Verb) -> Verb | None:
    """Return an auxiliary that follows other candidates, provided that none of those is a verb."""
    for index, candidate in enumerate(candidates):
        if candidate.leads and candidate.form != "past":
            return candidate.verb if not index else None
        is_beside = candidate.verb.end + 1 == sure.start
        is_noun = candidate.form != "past" and (
            is_beside or candidate.after == "of" or candidate.is_loose
        )
        if not is_noun and not (
            candidate.form == "past" and (candidate.is_loose or _is_quality(candidate))
        ):
            return None
    return sure


def _is_quality(candidate: _Candidate) -> bool:
    """Return whether a past form may modify the following noun ("acquired resistance")."""
    return candidate.is_regular and not candidate.leads and candidate.after[:1].islower()


def _classify_word(clause_word: _Word) -> _Candidate | None:
    """Return the verb that a word may be, judged by its form and its neighbors."""
    token = clause_word.text
    end = clause_word.start + len(clause_word.text)
    after = clause_word.after
    if token in BE or token in MODAL:
        return _Candidate(
            Verb(clause_word.start, end, token, is_past=token in {"was", "were"}), "sure", after
        )
    if token in _KINDS:
        base = "have" if token in HAVE else "do"
        verb = Verb(clause_word.start, end, _KINDS[token], base, token in {"had", "did"})
        return _Candidate(verb, "sure", after)
    before = clause_word.before.casefold()
    if not before or before in (FUNCTION_WORDS - _PRONOUNS) | NUMBERS or before.endswith("est"):
        return None
    leads, base, past = after in _BEHIND_VERB, find_base_form(token), find_base_of_past(token)
    if base and base != token:
        return _Candidate(Verb(clause_word.start, end, "does", base), "s", after, leads)
    if base:
        is_plural = _is_plural(before)
        if not is_plural and not leads and not after[:1].isupper() and after[:1] not in _OPENING:
            return None
        kind = "did" if past == base and not is_plural else "do"
        return _Candidate(
            Verb(clause_word.start, end, kind, base), "bare", after, leads, not is_plural
        )
    is_object = after in _ARTICLES or after in NUMBERS or after[:1].isdigit()
    if is_object and token.islower() and _is_plural(token):
        return _Candidate(
            Verb(clause_word.start, end, "does", _strip_third_person(token)), "s", after, leads=True
        )
    if past or (token.endswith("ed") and len(token) > 4 and token.islower()):
        is_regular = token.endswith("ed")
        is_loose = after in _BEHIND_PARTICIPLE and (is_regular or is_participle(token))
        verb = Verb(clause_word.start, end, "did", past, is_past=True)
        return _Candidate(verb, "past", after, leads, is_loose, is_regular)
    return None


def _strip_third_person(verb: str) -> str:
    """Remove the third-person ending of an unknown verb."""
    if verb.endswith("ies") and len(verb) > 4:
        return f"{verb[:-3]}y"
    return verb[:-2] if _SIBILANT.search(verb) else verb[:-1]


def _is_plural(token: str) -> bool:
    return token.endswith("s") and not token.endswith(("ss", "is", "us", "'s", "’s"))


def _iter_clause_words(line: str) -> Iterator[_Word]:
    """Yield the words of the first clause: up to a comma, or to a word that opens another one."""
    spaces = [
        index for index, depth in get_bracket_depths(line) if line[index] == " " and not depth
    ]
    starts = [0, *(index + 1 for index in spaces)]
    texts = [line[start:end] for start, end in zip(starts, [*spaces, len(line)], strict=True)]
    before = ""
    for index, (text, start) in enumerate(zip(texts, starts, strict=True)):
        bare = text.rstrip(",;:")
        if bare in _STOPS:
            return
        lookahead = [following for following in texts[index + 1 : index + 3] if bare == text]
        after = next(
            (following.rstrip(",;:") for following in lookahead if not is_adverb(following)), ""
        )
        yield _Word(bare, start, before, after)
        if bare != text:
            return
        if not is_adverb(bare) and bare[:1] not in _OPEN:
            before = bare


def get_bracket_depths(line: str) -> list[tuple[int, int]]:
    """Return every index of a line with its nesting depth in brackets or straight quotes."""
    depths, depth, quoted = [], 0, False
    for index, character in enumerate(line):
        if character == '"':
            quoted = not quoted
        elif character in _OPEN:
            depth += 1
        elif character in _CLOSE:
            depth = max(depth - 1, 0)
        depths.append((index, depth + quoted))
    return depths


INDEFINITE = word_set(
    """everybody everyone everything somebody someone something anybody anyone anything nobody
    nothing none people others each many few several all both neither either some"""
)
"""Subjects that name nothing; no question asks about them."""

BE = frozenset({"is", "are", "was", "were"})
HAVE = frozenset({"has", "have", "had"})
MODAL = word_set("can may must shall should will cannot could might would")

_REGULAR = word_set(
    """accept access accuse achieve acquire act adapt add adopt advance affect allow announce
    appear apply appoint approve argue arrest arrive ask assert assign associate assume
    attach attack attempt attend attract avoid behave belong call capture carry cause
    celebrate change check claim collapse collect combine compare compete complete compute
    conduct configure confirm connect conquer consider consist constitute construct contain continue
    contribute control convert copy correspond count cover create criticize cross decide
    declare decline decrease dedicate defeat define delay delete deliver demonstrate
    denounce depend derive describe destroy determine develop die differ disable discover
    display divide dominate earn eliminate emerge emit employ enable encode encourage end
    enforce enlist ensure enter escape establish estimate evaluate evolve exceed execute
    exist expand expect explain explode explore export express extend face fail favor fetch
    finish flow follow force form format forward found gain generate govern grant group
    guarantee handle happen help identify implement imply import improve include increase
    indicate influence inherit initialize insert inspire install intend introduce invade
    invent invite invoke involve iterate join jump kill last launch limit list live load
    locate lock look lower maintain manage map mark marry match matter measure mention merge
    migrate modify move murder need obey observe occupy occur offer open operate oppose
    order organize originate override own participate pass pay perform permit persuade place
    plan point possess predict prefer prepare present preserve prevent print process produce
    prohibit promote propose protect prove provide publish purchase raise reach realize
    receive recognize recommend record recover reduce refer reflect reform refuse regain
    regard reject relate release remain remove rename render renounce repeat replace report
    represent require rescue reserve resign resolve respond restore restrict result retain
    retire return reveal review rotate save search seem select separate serve settle share
    skip sort specify sponsor start state stay stop store strengthen struggle succeed suffer
    suggest supply support suppress surrender survive switch talk terminate test threaten
    trace train transfer transform translate travel treat trigger turn unify unpack update
    urge use vary verify visit wait walk want warn work wrap yield"""
)

_TRIPLES = """
    arise arose arisen, bear bore borne, beat beat beaten, become became become, begin began
    begun, bind bound bound, bite bit bitten, blow blew blown, break broke broken, bring brought
    brought, build built built, burn burnt burnt, buy bought bought, catch caught caught, choose
    chose chosen, come came come, cost cost cost, cut cut cut, deal dealt dealt, dig dug dug, draw
    drew drawn, drink drank drunk, drive drove driven, eat ate eaten, fall fell fallen, feed fed
    fed, feel felt felt, fight fought fought, find found found, flee fled fled, fly flew flown,
    forbid forbade forbidden, foresee foresaw foreseen, forget forgot forgotten, freeze froze
    frozen, get got got, give gave given, go went gone, grow grew grown, hang hung hung, hear
    heard heard, hide hid hidden, hit hit hit, hold held held, hurt hurt hurt, keep kept kept,
    know knew known, lay laid laid, lead led led, leave left left, lend lent lent, let let let,
    lie lay lain, lose lost lost, make made made, mean meant meant, meet met met, overcome
    overcame overcome, override overrode overridden, overthrow overthrew overthrown, pay paid
    paid, put put put, read read read, rebind rebound rebound, rebuild rebuilt rebuilt, redo redid
    redone, remake remade remade, rewrite rewrote rewritten, rise rose risen, run ran run, say
    said said, see saw seen, seek sought sought, sell sold sold, send sent sent, set set set,
    shake shook shaken, shoot shot shot, show showed shown, shut shut shut, sing sang sung, sink
    sank sunk, sit sat sat, sleep slept slept, speak spoke spoken, spend spent spent, split split
    split, spread spread spread, stand stood stood, steal stole stolen, stick stuck stuck, strike
    struck struck, swear swore sworn, sweep swept swept, swim swam swum, take took taken, teach
    taught taught, tear tore torn, tell told told, think thought thought, throw threw thrown,
    undergo underwent undergone, understand understood understood, undo undid undone, uphold
    upheld upheld, wear wore worn, weave wove woven, win won won, wind wound wound, withdraw
    withdrew withdrawn, withhold withheld withheld, write wrote written
"""
"""Base, past and participle of irregular verbs."""

_IRREGULAR = {
    base: (past, participle)
    for base, past, participle in (triple.split() for triple in _TRIPLES.split(","))
}

VERBS = _REGULAR | frozenset(_IRREGULAR) | {"do"}
"""Base forms of the known verbs."""

INTRANSITIVE = word_set(
    """appear arise arrive collapse come die emerge evolve exist explode fail fall go happen
    lie live migrate occur remain resign rise seem sit stand stay struggle succeed surrender
    survive travel wait walk"""
)
"""Verbs without an object: questions never ask what they did."""

_PASTS = {past: base for base, (past, _) in _IRREGULAR.items()}

_PARTICIPLES = frozenset(participle for _, participle in _IRREGULAR.values()) | {
    "done",
    "been",
    "born",
}

_NO_PARTICIPLES = frozenset(
    {"need", "embed", "red", "bed", "hundred", "indeed", "speed", "seed", "feed", "breed", "shed"}
)


def find_base_form(verb: str) -> str:
    """Return the base form of a present-tense verb, or "" if it is unknown."""
    if verb in {"has", "have"}:
        return "have"
    stems = (verb, verb.removesuffix("s"), verb.removesuffix("es"), verb.removesuffix("ies") + "y")
    return next((stem for stem in stems if stem in VERBS), "")


def find_base_of_past(token: str) -> str:
    """Return the base form of the verb whose past a word is, or "" if it is unknown."""
    if token in _PASTS:
        return _PASTS[token]
    if not token.endswith("ed"):
        return ""
    short = token[:-2]
    stems = [f"{short}e", short]
    if token.endswith("ied"):
        stems.append(f"{token[:-3]}y")
    if short[-1:] == short[-2:-1]:
        stems.append(short[:-1])
    return next((stem for stem in stems if stem in VERBS), "")


def is_participle(token: str) -> bool:
    """Return whether a word may be a past participle."""
    return token in _PARTICIPLES or (
        token.endswith("ed") and len(token) > 3 and token not in _NO_PARTICIPLES
    )
