"""Synonyms and antonyms: English words that paraphrase or contradict each other.

Verbs are listed in their base form and inflected here. A word belongs to its first group.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from stillroom.rag.groundedness.substitutions import ANTONYMS

__all__ = ["find_opposites", "find_strangers", "find_synonyms"]

_VERBS = (
    "use employ|begin start|delete remove erase|create make produce|show display present"
    "|allow permit|stop halt end|change modify alter|get obtain|choose select pick|help assist"
    "|check verify|keep retain|build construct|repair fix|give provide supply|happen occur"
    "|store save|send transmit|contain include|describe explain|avoid prevent|improve enhance"
    "|return yield|combine merge|copy duplicate|insert add|run execute|open|close|read|write"
    "|load|ignore disregard|receive accept|reject refuse|compare|replace substitute"
    "|connect join|separate split divide|raise increase|lower reduce decrease|test examine"
    "|print|enable activate|disable deactivate|install|define|discuss|suggest recommend"
    "|guarantee ensure|restrict limit|cause|fail|convert transform|determine decide|represent"
    "|affect influence|belong|expire|wait|block|measure|convey|move"
)
_NOUNS = (
    "error fault|folder directory|speed pace|way method|kind type sort|beginning start|task job"
    "|part portion|goal aim purpose|problem issue|example instance|limit bound|place location"
    "|result outcome|reason cause|picture image|computer machine|user|file document|server"
    "|client|password|key|table|row|column|index|query|function|object|string|number|list"
    "|process|thread|module|package|network|disk|memory|line|page|name|version|backup|archive"
    "|repository|database|request|response|header|message|cache|rule|model|class|field|program"
    "|script|command"
)
_OTHERS = (
    "big large|small little|fast quick rapid|important significant|correct right"
    "|wrong incorrect|simple easy|several multiple various|many numerous"
    "|additional extra further|necessary required|usual normal common|current present"
    "|certain particular|difficult hard|main principal chief|complete full whole"
    "|equal identical|enough sufficient|different distinct|previous earlier|following next"
    "|usually normally generally typically|often frequently|quickly rapidly"
    "|therefore thus hence|because since|although though|only solely|approximately roughly"
    "|almost nearly|immediately instantly|automatically|manually|explicitly|locally|remotely"
    "|available accessible|useful helpful|possible|safe secure|empty blank|unique|separate"
    "|single|optional|entire|valid|invalid|existing|internal|external|global|local|temporary"
    "|permanent|static|dynamic|remote|private|public"
)
_OPPOSITES = (
    "must may|required optional|always never|all no|every no|at least~at most|with without"
    "|before after|more less|most few|both neither|first last|above below|older newer|old new"
    "|can cannot|is~is not|are~are not|can~cannot|should~should not|must~must not|may~may not"
    "|will~will not|does~does not|do~do not|has~has not|was~was not|were~were not"
    "|would~would not|only also|input output|client server|read write|open close|start stop"
    "|add remove|include exclude|enabled disabled|true false|automatically manually"
    "|explicitly implicitly|locally remotely|local remote|local global|global private"
    "|temporary permanent|static dynamic|valid invalid|safe unsafe|unique duplicate|empty full"
    "|single multiple|absolute relative|encrypted unencrypted|compressed uncompressed"
    "|synchronous asynchronous|increase decrease|increases decreases|increased decreased"
    "|maximum minimum|up down|left right|same different|internal external|upper lower"
    "|larger smaller|largest smallest|longer shorter|faster slower|better worse|higher lower"
    "|possible impossible|usually rarely|often seldom|everything nothing|any no|until after"
    "|during after|inside outside|success failure|succeeds fails|accept reject|accepts rejects"
    "|allow forbid|allows forbids|allowed forbidden|enable disable|enables disables|load unload"
    "|lock unlock|known unknown|supported unsupported|cheap expensive|simple complex|few many"
    "|fewer more|earlier later|early late|strong weak|positive negative|ascending descending"
    "|explicit implicit|visible hidden|mutable immutable|parent child|source target|begin end"
    "|beginning end|front back|top bottom|horizontal vertical|physical virtual|manual automatic"
    "|public private|online offline|incoming outgoing|forward backward|import export"
    "|encode decode|push pull|attach detach|mount unmount|install uninstall|commit rollback"
    "|sender receiver|half all|some all|none all|one two|two three|once twice|daily weekly"
    "|hours minutes|seconds minutes|bytes megabytes|days years|not~|never~|cannot can"
    "|without with|unless if"
)
_ES = ("s", "x", "z", "ch", "sh")
_VOWELS = "aeiou"
_IRREGULAR = {
    "make": ("makes", "made", "making"), "begin": ("begins", "began", "beginning"),
    "show": ("shows", "showed", "showing"), "get": ("gets", "got", "getting"),
    "choose": ("chooses", "chose", "choosing"), "keep": ("keeps", "kept", "keeping"),
    "build": ("builds", "built", "building"), "give": ("gives", "gave", "giving"),
    "send": ("sends", "sent", "sending"), "find": ("finds", "found", "finding"),
    "run": ("runs", "ran", "running"), "read": ("reads", "read", "reading"),
    "write": ("writes", "wrote", "writing"), "split": ("splits", "split", "splitting"),
    "occur": ("occurs", "occurred", "occurring"), "stop": ("stops", "stopped", "stopping"),
    "permit": ("permits", "permitted", "permitting"), "transmit": ("transmits", "transmitted",
    "transmitting"),
}  # fmt: skip


def find_synonyms(word: str) -> tuple[str, ...]:
    """Return words that mean the same in most sentences, in the same inflection."""
    return _index_synonyms().get(word.casefold(), ())


def find_strangers(word: str) -> tuple[str, ...]:
    """Return words of the same class and inflection that mean something else."""
    known = _index_classes()
    label = known.get(word.casefold())
    if label is None:
        return ()
    same = {word.casefold(), *find_synonyms(word)}
    return tuple(one for one in _list_class(label) if one not in same)


def find_opposites(phrase: str) -> tuple[str, ...]:
    """Return words or phrases that contradict one; empty strings stand for its removal."""
    return _index_opposites().get(phrase.casefold(), ())


def _inflect(verb: str) -> tuple[str, str, str, str]:
    if verb in _IRREGULAR:
        return (verb, *_IRREGULAR[verb])
    if verb.endswith("e"):
        return verb, f"{verb}s", f"{verb}d", f"{verb[:-1]}ing"
    if verb.endswith("y") and verb[-2] not in _VOWELS:
        return verb, f"{verb[:-1]}ies", f"{verb[:-1]}ied", f"{verb}ing"
    return verb, f"{verb}{'es' if verb.endswith(_ES) else 's'}", f"{verb}ed", f"{verb}ing"


@cache
def _list_groups() -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return (class, words) for every group in every inflection."""
    groups = []
    for group in _VERBS.split("|"):
        forms = zip(*map(_inflect, group.split()), strict=True)
        groups += [(f"verb{place}", form) for place, form in enumerate(forms)]
    for group in _NOUNS.split("|"):
        words = group.split()
        groups.append(("noun", tuple(words)))
        plurals = (
            f"{word[:-1]}ies" if word[-1] == "y" and word != "key" else _inflect(word)[1]
            for word in words
        )
        groups.append(("nouns", tuple(plurals)))
    for group in _OTHERS.split("|"):
        words = group.split()
        groups.append(("adverb" if words[0].endswith("ly") else "adjective", tuple(words)))
    return tuple(groups)


@cache
def _index_synonyms() -> Mapping[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for _, words in _list_groups():
        for word in words:
            found.setdefault(word, tuple(other for other in words if other != word))
    return found


@cache
def _index_classes() -> Mapping[str, str]:
    found: dict[str, str] = {}
    for label, words in _list_groups():
        for word in words:
            found.setdefault(word, label)
    return found


@cache
def _list_class(label: str) -> tuple[str, ...]:
    return tuple(word for word, other in sorted(_index_classes().items()) if other == label)


@cache
def _index_opposites() -> Mapping[str, tuple[str, ...]]:
    found: dict[str, set[str]] = {word: set(others) for word, others in ANTONYMS.items()}
    for group in _OPPOSITES.split("|"):
        one, other = group.split("~") if "~" in group else group.split()
        found.setdefault(one, set()).add(other)
        if other:
            found.setdefault(other, set()).add(one)
    return {word: tuple(sorted(others)) for word, others in found.items()}
