"""English verb forms and the main verb of a statement.

Words are told by their form and by their neighbours: "stores" is a verb in "the server stores rows"
and a noun in "department stores are", "said" is one and "the values returned by it" is none. Of a
statement in which two words may be its verb nothing is said.

A list, not a dictionary: what is not in it is taken for no verb, and what begins questions goes
without. Words that are nouns as often ("stores", "forces") are in it; who reads a sentence has to
tell which they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from stillroom.synth.lexical_overlap import FUNCTION_WORDS

__all__ = [
    "ADVERBS",
    "BE",
    "DETERMINERS",
    "HAVE",
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


class _Candidate(NamedTuple):
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
    found: list[_Candidate] = []
    for word in _iter_clause_words(line):
        one = _classify_word(word)
        if one is None or (found and word.before in _JOINING):
            continue
        if one.form == "bare" and one.is_loose and not found:
            continue
        if one.form == "sure":
            return _find_before_auxiliary(found, one.verb)
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


def _find_before_auxiliary(found: list[_Candidate], sure: Verb) -> Verb | None:
    """Return the verb where "is" or "may" follows others that may be it: those are to be none."""
    for place, one in enumerate(found):
        if one.leads and one.form != "past":
            return one.verb if not place else None
        is_beside = one.verb.end + 1 == sure.start
        is_noun = one.form != "past" and (is_beside or one.after == "of" or one.is_loose)
        if not is_noun and not (one.form == "past" and (one.is_loose or _is_quality(one))):
            return None
    return sure


def _is_quality(one: _Candidate) -> bool:
    """Return whether a past may be said of the noun behind it ("acquired resistance")."""
    return one.is_regular and not one.leads and one.after[:1].islower()


def _classify_word(word: _Word) -> _Candidate | None:
    """Return what verb a word may be, told by its form and its neighbours."""
    text, end, after = word.text, word.start + len(word.text), word.after
    if text in BE or text in MODAL:
        return _Candidate(
            Verb(word.start, end, text, is_past=text in {"was", "were"}), "sure", after
        )
    if text in _KINDS:
        base = "have" if text in HAVE else "do"
        verb = Verb(word.start, end, _KINDS[text], base, text in {"had", "did"})
        return _Candidate(verb, "sure", after)
    before = word.before.casefold()
    if not before or before in (FUNCTION_WORDS - _PRONOUNS) | NUMBERS or before.endswith("est"):
        return None
    leads, base, past = after in _BEHIND_VERB, find_base_form(text), find_base_of_past(text)
    if base and base != text:
        return _Candidate(Verb(word.start, end, "does", base), "s", after, leads)
    if base:
        is_plural = _is_plural(before)
        if not is_plural and not leads and not after[:1].isupper() and after[:1] not in _OPENING:
            return None
        kind = "did" if past == base and not is_plural else "do"
        return _Candidate(Verb(word.start, end, kind, base), "bare", after, leads, not is_plural)
    is_object = after in _ARTICLES or after in NUMBERS or after[:1].isdigit()
    if is_object and text.islower() and _is_plural(text):
        return _Candidate(
            Verb(word.start, end, "does", _strip_third_person(text)), "s", after, leads=True
        )
    if past or (text.endswith("ed") and len(text) > 4 and text.islower()):
        is_regular = text.endswith("ed")
        is_loose = after in _BEHIND_PARTICIPLE and (is_regular or is_participle(text))
        verb = Verb(word.start, end, "did", past, is_past=True)
        return _Candidate(verb, "past", after, leads, is_loose, is_regular)
    return None


def _strip_third_person(verb: str) -> str:
    """Return a verb that is not known without the ending of its present."""
    if verb.endswith("ies") and len(verb) > 4:
        return f"{verb[:-3]}y"
    return verb[:-2] if verb.endswith(("shes", "ches", "sses", "xes", "zes")) else verb[:-1]


def _is_plural(word: str) -> bool:
    return word.endswith("s") and not word.endswith(("ss", "is", "us", "'s", "’s"))


def _iter_clause_words(line: str) -> Iterator[_Word]:
    """Yield the words of the first clause: up to a comma, or to what opens another one."""
    spaces = [
        place for place, depth in get_bracket_depths(line) if line[place] == " " and not depth
    ]
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


def get_bracket_depths(line: str) -> list[tuple[int, int]]:
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


BE = frozenset({"is", "are", "was", "were"})
HAVE = frozenset({"has", "have", "had"})
MODAL = frozenset({"can", "may", "must", "should", "will", "cannot"})

_REGULAR = frozenset(
    str.split(
        """accept access accuse achieve acquire act adapt add adopt advance affect allow announce
        appear apply appoint approve argue arrest arrive ask assert assign associate assume
        attach attack attempt attend attract avoid behave belong call capture carry cause
        celebrate change check claim collapse collect combine compare compete complete compute
        conduct confirm connect conquer consider consist constitute construct contain continue
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
"""Base, past and participle of what has no ending of its own."""

_IRREGULAR = {
    base: (past, participle)
    for base, past, participle in (triple.split() for triple in _TRIPLES.split(","))
}

VERBS = _REGULAR | frozenset(_IRREGULAR) | {"do"}
"""Verbs that are known, without endings."""

INTRANSITIVE = frozenset(
    str.split(
        """appear arise arrive collapse come die emerge evolve exist explode fail fall go happen
        lie live migrate occur remain resign rise seem sit stand stay struggle succeed surrender
        survive travel wait walk"""
    )
)
"""Verbs of which nobody asks what they did."""

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
    """Return a verb of the present without its ending, or nothing where it is no known verb."""
    if verb in {"has", "have"}:
        return "have"
    stems = (verb, verb.removesuffix("s"), verb.removesuffix("es"), verb.removesuffix("ies") + "y")
    return next((stem for stem in stems if stem in VERBS), "")


def find_base_of_past(word: str) -> str:
    """Return the base of a known verb whose past a word is, or nothing."""
    if word in _PASTS:
        return _PASTS[word]
    if not word.endswith("ed"):
        return ""
    short = word[:-2]
    stems = [f"{short}e", short]
    if word.endswith("ied"):
        stems.append(f"{word[:-3]}y")
    if short[-1:] == short[-2:-1]:
        stems.append(short[:-1])
    return next((stem for stem in stems if stem in VERBS), "")


def is_participle(word: str) -> bool:
    """Return whether a word may be the form of a verb that passives take."""
    return word in _PARTICIPLES or (
        word.endswith("ed") and len(word) > 3 and word not in _NO_PARTICIPLES
    )
