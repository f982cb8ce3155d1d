"""Language identification, and sentence segmentation by rule (sentence splitter).

For prose, not source code (DocumentLanguageClassifier, TextLanguageRouter). py3langid was chosen
over lingua (whose wheel is 96 MB against its 5) and fastText (whose model must be downloaded).

Sentence rules use abbreviations of several languages and no grammar. Linear time, exact offsets.
"""

from __future__ import annotations

import io
import re
from array import array
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, cast

__all__ = [
    "detect_language",
    "guess_language",
    "is_other_language",
    "select_language",
    "split_sentences",
    "split_windows",
]


_SAMPLE_CHARACTERS = 2000
_LETTERS = re.compile(r"[^\W\d_]")
_CJK_LETTERS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_MIN_LETTERS = 20
_MIN_CONFIDENCE = 0.95
_MIN_LETTERS_OF_GUESS = 8
_MIN_CONFIDENCE_OF_GUESS = 0.7
_MIN_LETTERS_OF_OTHER = 10
_OTHER_RATIO = 300  # calls 26 of 10,229 English questions and answers foreign, most of them names
_MIN_LETTERS_OF_QUESTION = 6
_ENGLISH_RATIO = 10  # calls none of 5,373 English questions German, French or Spanish; 3 calls two
_NO_LANGUAGE = "zxx"


class _LanguageIdentifier(Protocol):
    def classify(self, text: str) -> tuple[str, float]: ...
    def rank(self, text: str) -> list[tuple[str, float]]: ...


def detect_language(text: str) -> str:
    """Return the ISO 639-1 code of a text's language, or an empty string when unsure.

    Unsure means fewer than 20 letters (7 in Chinese, Japanese and Korean), or a confidence below
    0.95. Samples from the start and the middle of the text are classified.
    """
    return _most_likely(text, _MIN_LETTERS, _MIN_CONFIDENCE)


def guess_language(text: str) -> str:
    """Return the likely language of a short text, such as a question; empty when unsure.

    Unsure means fewer than 8 letters (3 in Chinese, Japanese or Korean), or confidence below 0.7.
    """
    return _most_likely(text, _MIN_LETTERS_OF_GUESS, _MIN_CONFIDENCE_OF_GUESS)


def is_other_language(text: str, allowed: Collection[str]) -> bool:
    """Return whether a text is in none of some languages, whichever its own is.

    Another language must be 300 times as likely as each of them, on 10 letters or more. Of strings
    of 10 to 60 letters in six languages it recognizes 84 % as not English, ``detect_language``
    42 %, since related languages need not be distinguished.
    """
    sample, letters = _sample(text)
    if letters < _MIN_LETTERS_OF_OTHER:
        return False
    likelihood = dict(_load_identifier().rank(sample))
    if not likelihood.keys() & set(allowed):  # of languages that the identifier does not know
        return detect_language(text) not in {"", *allowed}
    nearest = max(likelihood.get(code, 0.0) for code in allowed)
    return max(likelihood.values()) > _OTHER_RATIO * nearest


def select_language(question: str, codes: Collection[str]) -> str:
    """Return the most likely language of a question if it is among some, ``en`` otherwise.

    A language must be ten times as likely as English, on 6 letters or more.
    """
    sample, letters = _sample(question)
    if letters < _MIN_LETTERS_OF_QUESTION:
        return "en"
    likelihood = dict(_load_identifier().rank(sample))
    best = max(likelihood, key=lambda code: likelihood[code])
    is_sure = best in codes and likelihood[best] > _ENGLISH_RATIO * likelihood["en"]
    return best if is_sure else "en"


def _most_likely(text: str, min_letters: int, min_confidence: float) -> str:
    sample, letters = _sample(text)
    if letters < min_letters:
        return ""
    code, confidence = _load_identifier().classify(sample)
    return code if confidence >= min_confidence and len(code) == 2 else ""


def _sample(text: str) -> tuple[str, int]:
    """Return what is classified of a text, and its number of letters; a CJK letter counts as 3."""
    sample = text[:_SAMPLE_CHARACTERS]
    if len(text) > 4 * _SAMPLE_CHARACTERS:
        middle = len(text) // 2
        sample += " " + text[middle : middle + _SAMPLE_CHARACTERS]
    letters = len(_LETTERS.findall(sample)) + 2 * len(_CJK_LETTERS.findall(sample))
    return sample.encode("utf-8", "replace").decode("utf-8"), letters


@lru_cache(maxsize=1)
def _load_identifier() -> _LanguageIdentifier:
    from py3langid.langid import MODEL_DIR, MODEL_FILE, LanguageIdentifier

    try:
        identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    except OSError:  # it unpacks into a temporary file, and no folder takes one
        identifier = _unpack_identifier(LanguageIdentifier, MODEL_DIR / MODEL_FILE)
    codes = [code for code in identifier.labels if len(code) == 2 or code == _NO_LANGUAGE]
    identifier.set_languages(codes)
    return cast("_LanguageIdentifier", identifier)


def _unpack_identifier(make: Any, path: Path) -> Any:
    """Return py3langid's identifier of a model that is unpacked in memory."""
    import lzma

    import numpy as np

    with lzma.open(path) as packed, np.load(io.BytesIO(packed.read())) as model:
        moves, rows = (array(model[key].dtype.char, model[key].tobytes())
                       for key in ("nextmove", "nextmove_row"))  # fmt: skip
        classes, output = (model[key].tolist() for key in ("classes", "out_feat"))
        return make(model["ptc"], model["pc"], classes, moves, output, True, tk_row=rows)


_ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof sr jr st rev hon gen col capt lt sgt maj adm gov sen rep pres"  # noqa: SIM905
    " inc ltd co corp llc dept univ assn bros est"
    " vs etc al ca cf viz approx resp eq eqs fig figs sec ch chap vol no nos nr pp pg ed eds ref"
    " refs art par tab thm lem prop def ex app min max avg e.g i.e"
    " jan feb mar apr jun jul aug sep sept oct nov dec mon tue wed thu fri sat sun"
    " bzw usw ggf evtl zzgl inkl sog str abs hr fr dipl"
    " env mme mlle bd av sra srta ud uds vd ing arq".split()
)

_DOTTED_ABBREVIATION = re.compile(r"(?:[^\W\d_]\.){1,}[^\W\d_]?$")  # e.g, U.S, z.B
_CLOSERS = "\"'”’»)\\]}）」』】〉》"
_WIDE_STOPS = "。！？｡؟۔।॥።"
_NOTE_DIGITS = "⁰¹²³⁴⁵⁶⁷⁸⁹"  # of footnotes, which belong to the sentence before, as "[1]" does


# The sentence end comes first in the pattern, so that the search skips all other characters; a
# run of stops matches whole, so that it is scanned once.
_SENTENCE_END = re.compile(
    rf"[.!?…{_WIDE_STOPS}\r\n](?:(?<=[.!?…])[.!?…]*+[{_CLOSERS}]*+(?:\[\d{{1,3}}\])*+"
    rf"[{_NOTE_DIGITS}]*+|(?<=[{_WIDE_STOPS}])[{_CLOSERS}]*+"
    r"|(?:(?<=\n)|(?<=\r)\n)[ \t]*(?:\r?\n[ \t]*)+)"
)

_LAST_WORD = re.compile(r"\n?([^\s(\[\"'“‘«]{1,40})")  # before a stop, read backwards
_NEXT_CHARACTER = re.compile(r"\s*([\"'“‘«(\[]*)(\S?)")
_MAX_NUMBER_LENGTH = 5  # of a list item: xviii
_ENUMERATION = re.compile(r"(?:^|\n)[ \t]*(?:\d{1,3}|[a-zA-Z]|[ivxIVX]{1,5})\.$")


def split_sentences(text: str) -> list[tuple[int, int]]:
    """Return the spans of the sentences of a text, in order.

    Spans have no white space at their ends; only white space lies between them. An empty line
    always ends a sentence; a single line break never does.
    """
    spans: list[tuple[int, int]] = []
    start = 0
    for match in _SENTENCE_END.finditer(text):
        if match.group()[0] in ".!?…" and not _is_sentence_end(text, match.start(), match.end()):
            continue
        _append_span(text, start, match.end(), spans)
        start = match.end()
    _append_span(text, start, len(text), spans)
    return spans


def split_windows(text: str, size: int) -> list[str]:
    """Return windows of ``size`` sentences, each starting in the middle of the previous one."""
    spans = split_sentences(text)
    if not spans:
        return []
    step = max(1, size // 2)
    starts = [0, *range(step, max(len(spans) - size + step, 1), step)]
    return [text[spans[index][0] : spans[min(index + size, len(spans)) - 1][1]] for index in starts]


def _append_span(text: str, start: int, end: int, spans: list[tuple[int, int]]) -> None:
    piece = text[start:end]
    short = piece.strip()
    if short:
        begin = start + len(piece) - len(piece.lstrip())
        spans.append((begin, begin + len(short)))


def _is_sentence_end(text: str, start: int, end: int) -> bool:
    if end < len(text) and not text[end].isspace():
        return False
    following = _NEXT_CHARACTER.match(text, end, end + 64)
    character = following.group(2) if following else ""
    if character and character.islower():
        return False
    if text[start:end].rstrip(_CLOSERS + _NOTE_DIGITS + "0123456789[") != ".":
        return True
    before = text[max(start - 48, 0) : start]
    match = _LAST_WORD.match(before[::-1])
    if match is None:
        return True
    last = match.group(1)[::-1]
    if last.lower().strip("([\"'") in _ABBREVIATIONS:
        return False
    if len(last) <= _MAX_NUMBER_LENGTH and _ENUMERATION.search(before + "."):
        return False
    if len(last) == 1 and last.isupper() and last != "I":
        return False  # an initial
    if last.isdecimal() and len(last) <= 2 and _ORDINAL_NOUN.match(text, end):
        return False  # "31. März"
    return not (
        _DOTTED_ABBREVIATION.fullmatch(last)
        and character.isalnum()
        and not _starts_sentence(text, end)
    )


_SENTENCE_STARTERS = frozenset(
    [
        "the",
        "this",
        "that",
        "these",
        "it",
        "he",
        "she",
        "we",
        "they",
        "in",
        "on",
        "at",
        "a",
        "an",
        "but",
        "and",
        "however",
    ]
)


# Nouns that a German ordinal number, which ends with a full stop, often comes before.
_ORDINAL_NOUN = re.compile(
    r"\s+(?:Januar|Jänner|Februar|März|April|Mai|Juni|Juli|August|September|Oktober|November"
    r"|Dezember|Jahrhunderts?|Jahrtausends?|Weltkriegs?|Lebensjahr(?:es|s)?|Auflage|Kapitels?"
    r"|Absatz(?:es)?|Abschnitts?|Geburtstags?|Tag(?:es|s)?|Monats?|Platz(?:es)?|Klasse|Stock)\b"
)
_FIRST_WORD = re.compile(r"\s*([^\W\d_]+)")


def _starts_sentence(text: str, end: int) -> bool:
    """Return whether the word after a dotted abbreviation is a typical sentence start."""
    match = _FIRST_WORD.match(text, end, end + 64)
    return bool(
        match and match.group(1)[0].isupper() and match.group(1).lower() in _SENTENCE_STARTERS
    )
