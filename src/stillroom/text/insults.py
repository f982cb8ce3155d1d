"""Insults, threats and slurs by their words and form; English, no model.

Letters written as digits or signs, stretched, or parted by dots are read as they are meant. Kinds:
``profanity`` (words that are rude wherever they stand), ``insult`` (words that are rude of a
person, beside one), ``threat`` (harm announced or wished to a person) and ``slur``. Does not know:
irony, contempt in clean words, other languages, what a quotation is for. It is a fall-back: a
classifier knows more.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from stillroom.text.normalize import fold_text

__all__ = ["Insult", "find_insults"]

InsultKind = Literal["profanity", "insult", "threat", "slur"]


@dataclass(frozen=True, slots=True)
class Insult:
    """What was found, and of which kind."""

    kind: InsultKind
    text: str


_LEET = str.maketrans(
    {"0": "o", "1": "i", "3": "e", "4": "a", "5": "s", "7": "t", "@": "a", "$": "s", "!": "i"}
)
_WRITTEN = re.compile(r"(?=[\w@$!]*[a-z])(?=[\w@$!]*[0-9@$!])[\w@$!]{3,}")
_PARTED = re.compile(r"\b(?:[a-z][.\-*_ ]){2,}[a-z]\b")
_STRETCHED = re.compile(r"([a-z])\1{2,}")
_PERSON = (
    r"(?:you(?:'?re| are)?|your|ur|u|he(?:'?s| is)?|she(?:'?s| is)?|they(?:'?re| are)?|him|her|"
    r"them|those|these|that|this|people|man|woman|guy|kid|boss|teacher|neighbo?u?r)"
)
_THREAT = (
    r"\b(?:i|we|someone|somebody)(?:'?ll| will| am going to|'?m going to| gonna|'?m gonna| should|"
    r" ought to| want to| wanna)?\s(?:kill|murder|stab|shoot|strangle|beat|burn|hurt|slit|gut|bury|"
    r"break)\b[^.!?\n]{0,20}\b(?:you|him|her|them|your|his|their|u)\b|"
    r"\b(?:kill|hang|shoot|drown) (?:your|him|her|them)sel(?:f|ves)\b|"
    r"\b(?:hope|wish) (?:you|he|she|they)(?:'d| would)? (?:all )?(?:die|get (?:killed|shot|raped|"
    r"cancer)|burn|rot|suffer)\b|\bgo (?:and )?die\b|\bdrop dead\b|"
    r"\byou(?:'?re| are) (?:a )?dead (?:man|woman|meat)\b|"
    r"\b(?:should|deserves? to) (?:all )?be (?:shot|hanged|killed|exterminated|gassed|lynched)\b"
)
_SLUR = (
    r"\b(?:nigg(?:er|a)s?|kikes?|spics?|chinks?|gooks?|wetbacks?|ragheads?|towelheads?|fagg?ots?|"
    r"fags|dykes?|trann(?:y|ies)|retards?)\b"
)
_PROFANITY = (
    r"\b(?:(?:mother)?fuck\w*|(?:bull|horse|dip)?shit(?:s|ty|ter|head|hole|bag)?|assholes?|"
    r"arseholes?|c[u]nts?|twats?|wankers?|bitch(?:es|y)?|bastards?|dickheads?|douche(?:bag)?s?|"
    r"cocksuckers?|sluts?|whores?|jackass(?:es)?|dumbass(?:es)?)\b"
)
_RUDE = (
    r"(?:idiots?|morons?|imbeciles?|cretins?|dimwits?|stupid|dumb|worthless|pathetic|disgusting|"
    r"subhuman|scum|vermin|filth|trash|garbage|losers?|freaks?|pigs?|cockroach(?:es)?|brainless|"
    r"ugly|fat (?:cow|pig|slob)|parasites?)"
)
_INSULT = (
    rf"\b{_PERSON}\b[^.!?\n]{{0,30}}\b{_RUDE}\b|"
    r"\b(?:shut up|shut your mouth|get lost|go to hell|screw you|piss off),? "
    r"(?:you|idiot|moron|loser)\b|\b(?:stupid|dumb|worthless|pathetic|filthy|brainless) "
    r"(?:idiot|moron|fool|loser|animal|pig|cow|bitch|people|woman|women|man|men)\b"
)
_KINDS: tuple[tuple[InsultKind, re.Pattern[str]], ...] = (
    ("threat", re.compile(_THREAT)),
    ("slur", re.compile(_SLUR)),
    ("profanity", re.compile(_PROFANITY)),
    ("insult", re.compile(_INSULT)),
)


def find_insults(text: str) -> list[Insult]:
    """Return what is found, threats first, at most one of each kind."""
    plain = _read(text)
    found = []
    for kind, pattern in _KINDS:
        match = pattern.search(plain)
        if match is not None:
            found.append(Insult(kind, match.group()))
    return found


def _read(text: str) -> str:
    """Return the text as it is meant: signs for letters, parted and stretched words undone."""
    plain = fold_text(text).replace("’", "'")
    plain = _WRITTEN.sub(lambda match: match.group().translate(_LEET), plain)
    plain = _PARTED.sub(lambda match: re.sub(r"[.\-*_ ]", "", match.group()), plain)
    return _STRETCHED.sub(r"\1", plain)
