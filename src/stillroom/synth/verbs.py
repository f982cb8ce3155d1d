"""English verbs: their forms, and what a word may be a form of.

A list, not a dictionary: what is not in it is taken for no verb, and what begins questions goes
without. Words that are nouns as often ("stores", "forces") are in it; who reads a sentence has to
tell which they are.
"""

from __future__ import annotations

__all__ = ["BE", "HAVE", "INTRANSITIVE", "MODAL", "VERBS", "base_of", "is_participle", "past_of"]

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


def base_of(verb: str) -> str:
    """Return a verb of the present without its ending, or nothing where it is no known verb."""
    if verb in {"has", "have"}:
        return "have"
    stems = (verb, verb.removesuffix("s"), verb.removesuffix("es"), verb.removesuffix("ies") + "y")
    return next((stem for stem in stems if stem in VERBS), "")


def past_of(word: str) -> str:
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
