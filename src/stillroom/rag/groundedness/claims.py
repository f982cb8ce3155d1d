"""What one text states: its names, numbers and negations, and what its stop words add.

Names are capitalized words within a sentence; where all nouns are capitalized, as in German, they
are not distinguished. English number words up to twelve are read as digits.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from stillroom.rag.analysis.stop_words import STOP_WORDS
from stillroom.rag.groundedness.substitutions import NUMBER_WORDS
from stillroom.text.language import split_sentences

__all__ = [
    "BULLET",
    "capitalizes_nouns",
    "extract_all_numbers",
    "extract_names",
    "extract_numbers",
    "find_informative_stop_words",
    "is_negated",
    "is_open_question",
    "split_clauses",
]

BULLET = re.compile(r"\A\s*(?:\d{1,2}[.)]|[-*•])(?:\s+|$)")
_WORD = re.compile(r"\w+")
_NAME = re.compile(r"(?<![\w'’.-])[^\W\d_][\w-]*\w")
_QUOTES = " \t\n\"'“”‘’(*-•"
_MAX_NAME_SHARE = 0.15
_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
_NEGATION = re.compile(
    r"\b(?:not|no|never|none|nobody|nothing|neither|nor|cannot|without)\b|n['’]t\b", re.IGNORECASE
)
_CLAUSE_BREAK = re.compile(
    r"[,;:()–—]|\b(?:and|but|since|because|while|although|though|whereas|unless)\b", re.IGNORECASE
)
_QUESTION_WORDS = frozenset(
    "who whom whose what which when where why how"  # noqa: SIM905
    " wer wen wem wessen welche welcher welches wann wo warum wie wieviel"
    " qui quel quelle quels quelles quand où pourquoi comment combien"
    " quién quiénes qué cuál cuáles cuándo dónde cómo cuánto cuántos"
    " chi quale quali quando dove perché quanto quanti"
    " quem qual quais onde quantos".split()
)
_REQUEST = re.compile(
    r"\s*(?:please\W+)?(?:(?:can|could|would) you\W+(?:please\W+)?)?"
    r"(?:name|list|give|tell|state|describe|explain|identify|mention)\b",
    re.IGNORECASE,
)
_CHOICE_WORDS = frozenset({"or", "oder", "ou", "o"})
_CAPITALS = re.compile(r"(?<![\w'’.-])[A-Z]+(?![\w'’-])")
_BEFORE_SENTENCE = frozenset({"", ".", "!", "?"})  # "vitamin B. A carrot" is split as one sentence
_CONTENT_PREPOSITIONS = frozenset(
    "up down off over under above below before after during between against all both few".split()  # noqa: SIM905
)
"""Stop words that may be an entire answer."""


def extract_names(text: str) -> list[str]:
    """Return the capitalized words that do not begin a sentence."""
    sentence_starts = [start for start, _ in split_sentences(text)]
    names = []
    for match in _NAME.finditer(text):
        if not match.group()[0].isupper():
            continue
        start = max((start for start in sentence_starts if start <= match.start()), default=0)
        if text[start : match.start()].strip(_QUOTES):
            names.append(match.group())
    return names


def capitalizes_nouns(text: str) -> bool:
    """Return whether a text capitalizes all nouns, as German does."""
    words = [word.casefold() for word in _WORD.findall(text)]
    german, english = (
        sum(word in STOP_WORDS[language] for word in words) for language in ("german", "english")
    )
    return german > english and len(extract_names(text)) > _MAX_NAME_SHARE * len(words)


def extract_numbers(text: str) -> frozenset[str]:
    """Return the numbers of a text, without thousands separators."""
    return frozenset(number.replace(",", "") for number in _NUMBER.findall(text))


def extract_all_numbers(text: str) -> frozenset[str]:
    """Return the numbers of a text, including number words as digits."""
    words = (word.casefold() for word in _WORD.findall(text))
    digits_of_words = {"one": "1", **NUMBER_WORDS}
    return extract_numbers(text) | {
        digits_of_words[word] for word in words if word in digits_of_words
    }


def is_negated(text: str) -> bool:
    """Return whether a text contains a negation."""
    return bool(_NEGATION.search(text))


def split_clauses(sentence: str) -> list[str]:
    """Split a sentence at punctuation and conjunctions."""
    return [clause for clause in _CLAUSE_BREAK.split(sentence) if clause.strip()]


def is_open_question(question: str) -> bool:
    """Return whether the answer to a question cannot be one of its own words."""
    words = set(_WORD.findall(question.casefold()))
    is_open = bool(words & _QUESTION_WORDS) or _REQUEST.match(question) is not None
    return is_open and not words & _CHOICE_WORDS


def find_informative_stop_words(text: str, stem: Callable[[str], str]) -> frozenset[str]:
    """Return the stop words that may answer: a few prepositions, and capitals as in "vitamin A".

    ``stem`` returns the term of a word, empty for a stop word.
    """
    words = {
        word for word in map(str.casefold, _WORD.findall(text)) if word in _CONTENT_PREPOSITIONS
    }
    if text.upper() != text:
        words.update(
            match.group()
            for start, end in split_sentences(text)
            for match in _CAPITALS.finditer(text, start, end)
            if match.group() != "I"
            and text[start : match.start()].rstrip(_QUOTES)[-1:] not in _BEFORE_SENTENCE
            and not stem(match.group())
        )
    return frozenset(words)
