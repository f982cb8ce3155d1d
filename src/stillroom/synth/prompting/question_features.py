"""Features of a question, its answer and their passage, which a small model joins to one score.

All are counted from words, so that a thousand candidates take a second: how well the question picks
its passage out of the folder, what it shares with its answer and with the title, whether its
subject is definite, what is asked, and what answer and passage are like. Lists of words are given
for English and German; in other languages those features are 0.

Own method; asking whether the question finds its own passage is the round trip of Alberti et al.
2019, arXiv:1906.05416, by words in common in place of a model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from functools import cached_property

from stillroom.records import Passage
from stillroom.synth.lexical_overlap import (
    FUNCTION_WORDS,
    collapse_whitespace,
    extract_content_stems,
    extract_names_and_numbers,
    word_set,
)
from stillroom.synth.prompting.english_clauses import PREPOSITIONS
from stillroom.synth.prompting.question_topics import find_topic, name_topic, strip_topic
from stillroom.text.unicode import split_words

__all__ = ["FolderWords", "asks_of_all", "measure_question"]

_KINDS = {
    "defines": r"what (?:is|are|was|were) [^?]*\?|was (?:ist|sind) (?!zu tun)[^?]*\?",
    "means": r"what do(?:es)? .* mean\?|was (?:bedeutet|heißt)\b",
    "acts": r"what (?:does|do|did)\b|"
    r"was (?!ist|sind|gilt|geschieht|kann|können|sollten?|muss)\w+t\b",
    "may": r"what (?:can|may|must|should|shall|will|might|could)\b|was (?:kann|können|muss|darf)\b",
    "how_to": r"how can one\b|wie (?:kann|können|lässt)\b",
    "to_do": r"what should one do\b|was (?:ist zu tun|sollten? (?:sie|man) tun)\b",
    "happens": r"what happens\b|was (?:geschieht|gilt)\b",
    "who": r"who\b|wer\b",
    "when": r"when\b|wann\b",
    "how": r"how (?!can one)|wie (?!kann|können|lässt)",
}
_KIND_PATTERNS = {name: re.compile(text, re.IGNORECASE) for name, text in _KINDS.items()}
_SUBJECT = re.compile(
    r"^(?:what|how|when|where|who|why|was|wie|wann|wo\w*|wer|womit) "
    r"(?:is|are|was|were|does|do|did|can|may|must|should|shall|will|\w+(?: sich)?) (?P<first>\S+)",
    re.IGNORECASE,
)
_DEFINITE = re.compile(r"\b(?:the|der|die|das|den|dem|des)\b", re.IGNORECASE)
_BOUND = re.compile(
    r"\b(?:the|der|die|das|den|dem|des) (?:[\w-]+ ){1,3}"
    r"(?:of|for|in|that|which|des|der|von|für|im)\b",
    re.IGNORECASE,
)
_POINTING = re.compile(
    r"\b(?:this|that|these|those|it|its|they|them|their|he|she|him|his|her|here|such|so|also|"
    r"other|another|same|then|dies\w*|jen\w+|ihn|ihm|sein\w*|solch\w*|dort|hier\w*|da(?:mit|für|zu|"
    r"von|rin|rauf|bei|durch)|auch|andere\w*|er|sie|es|wir|uns\w*|our|we|us)\b"
)
_PAST = re.compile(r"\b(?:was|were|did|had|wurden?|waren?|hatten?)\b")
_CONDITION = re.compile(r"\b(?:if|when|once|unless|wenn|falls|sobald|sofern|solange)\b")
_ADDRESS = re.compile(r"\b(?:you|your|one|Sie|Ihr\w*|man)\b")
_LIGHT = word_set(
    """have make use give take get do contain include provide allow become need require want
    say know see find think feel show lead offer"""
)
_SPEECH = re.compile(r"\b(?:said|cried|replied|Mr|Mrs|Miss|he|she|her|his|him)\b")
_CODE = re.compile(r"[_/\\<>{}|=$@#*]|\w\.\w|\w\(\)")

_DEED = re.compile(
    r"^What (?:does|do|did|can|may|must|should|will|shall|would|could|might) "
    r"(?!an? )(?P<subject>.+?) (?:be )?[a-z]+"
    r"(?: to [a-z]+| (?:to|for|on|of|from|with|in|into|as))?\?$"
)
_COMMON = 0.2
"""Share of a folder's passages from which on a word's subject is that of the folder."""

_MIN_FOLDER = 200
"""Passages that a smaller folder counts as, so that its words are not all common."""


class FolderWords:
    """Word stems of all passages of a folder."""

    def __init__(self, passages: Iterable[Passage]) -> None:
        self._passages = list(passages)
        self.size = max(len(self._passages), _MIN_FOLDER)

    @cached_property
    def _found(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for passage in self._passages:
            for token in self.stems_of(passage):
                found.setdefault(token, set()).add(passage.id)
        return found

    @staticmethod
    def stems_of(passage: Passage) -> set[str]:
        """Return the content stems of a passage and of its headings."""
        text = " ".join((passage.text, *passage.headings, passage.title))
        return set(extract_content_stems(text, language=passage.language))

    def weigh(self, token: str) -> float:
        """Return a stem's inverse document frequency in nats."""
        return math.log((self.size + 1) / (len(self._found.get(token, ())) + 0.5))

    def get_share(self, stems: Iterable[str]) -> float:
        """Return the share of the passages that hold all of the stems."""
        found = [self._found.get(token, set()) for token in stems]
        return len(set.intersection(*found)) / self.size if found else 0.0

    def rank(self, stems: Iterable[str], passage: Passage) -> tuple[int, float, int]:
        """Return how a question finds its passage: its rank from 0, its lead and its equals.

        The lead is the share by which the passage scores more than the best other one, below 0 if
        it scores less; equals are the passages that hold every stem that it holds.
        """
        scores: dict[str, float] = {}
        for token in set(stems):
            for name in self._found.get(token, ()):
                scores[name] = scores.get(name, 0.0) + self.weigh(token)
        own = scores.pop(passage.id, 0.0)
        others = sorted(scores.values(), reverse=True)
        best = others[0] if others else 0.0
        equal = sum(score >= own - 1e-9 for score in others)
        return equal, (own - best) / max(own, best, 1e-9), sum(score > own for score in others)


def asks_of_all(question: str, folder: FolderWords) -> bool:
    """Return whether an English question asks what the subject of the whole folder does.

    "What does HiveBook support?" has an answer on each page of a manual of HiveBook.
    """
    match = _DEED.match(strip_topic(question))
    stems = extract_content_stems(match["subject"], frames=False) if match is not None else ()
    return bool(stems) and folder.get_share(stems) > _COMMON


def measure_question(
    question: str, answer: str, passage: Passage, folder: FolderWords
) -> Mapping[str, float]:
    """Return the features by name.

    Args:
        question: The question, with or without the topic named before it.
        answer: The sentence that answers it.
        passage: Where the answer stands.
        folder: All passages among which the question is to find its own.
    """
    bare, language = strip_topic(question), passage.language
    asked = extract_content_stems(bare, frames=False, language=language)
    answered = extract_content_stems(answer, language=language)
    return {
        **_measure_search(question, set(asked), passage, folder),
        **_measure_overlap(bare, asked, answered, answer),
        **_measure_form(question, bare, passage),
        **_measure_answer(answer, passage),
    }


def _measure_search(
    question: str, asked: set[str], passage: Passage, folder: FolderWords
) -> dict[str, float]:
    whole = set(extract_content_stems(question, frames=False, language=passage.language))
    equal, lead, above = folder.rank(whole, passage)
    weights = sorted((folder.weigh(token) for token in asked), reverse=True) or [0.0]
    title = set(extract_content_stems(" ".join((*passage.headings, passage.title))))
    return {
        "equal": math.log1p(equal),
        "above": math.log1p(above),
        "is_found": float(equal == 0),
        "lead": lead,
        "rarest": weights[0],
        "second": weights[1] if len(weights) > 1 else 0.0,
        "commonest": weights[-1],
        "weight": sum(weights),
        "in_title": len(asked & title) / max(len(asked), 1),
        "title_words": float(bool(asked & title)),
        "stems": float(len(asked)),
        "log_folder": math.log1p(folder.size),
    }


def _measure_overlap(
    bare: str, asked: list[str], answered: list[str], answer: str
) -> dict[str, float]:
    question_set, answer_set = set(asked), set(answered)
    shared = question_set & answer_set
    places = [index for index, token in enumerate(answered) if token in shared]
    return {
        "shared": len(shared) / max(len(question_set), 1),
        "covered": len(shared) / max(len(answer_set), 1),
        "new": math.log1p(len(answer_set - question_set)),
        "first_shared": places[0] / max(len(answered), 1) if places else 1.0,
        "after_shared": (len(answered) - 1 - places[-1]) / max(len(answered), 1) if places else 0.0,
        "answer_words": math.log1p(len(answer.split())),
        "question_words": math.log1p(len(bare.split())),
        "names_lost": float(len(set(extract_names_and_numbers(bare)) - set(split_words(answer)))),
    }


def _measure_form(question: str, bare: str, passage: Passage) -> dict[str, float]:
    match = _SUBJECT.match(bare)
    first = match["first"] if match is not None else ""
    words = bare.rstrip("?").split()
    last = words[-1].lower() if words else ""
    topic = find_topic(passage)
    names = extract_names_and_numbers(bare)
    definite, bound = len(_DEFINITE.findall(bare)), len(_BOUND.findall(bare))
    return {
        **{f"asks_{name}": float(bool(p.match(bare))) for name, p in _KIND_PATTERNS.items()},
        "subject_definite": float(bool(_DEFINITE.fullmatch(first))),
        "subject_indefinite": float(first.lower() in {"a", "an", "ein", "eine", "each", "every"}),
        "subject_name": float(first[:1].isupper()),
        "subject_quoted": float(first[:1] in "\"'`„«»“"),
        "definite": float(definite),
        "unbound": float(max(definite - bound, 0)),
        "pointing": float(len(_POINTING.findall(bare))),
        "past": float(bool(_PAST.search(bare))),
        "condition": float(bool(_CONDITION.search(bare))),
        "address": float(bool(_ADDRESS.search(bare))),
        "names": float(min(len(names), 4)),
        "code": float(bool(_CODE.search(bare))),
        "ends_in_preposition": float(last in PREPOSITIONS),
        "light": float(last in _LIGHT),
        "has_topic": float(question != bare),
        "topic_law": float(topic is not None and topic.kind == "law"),
        "topic_product": float(topic is not None and topic.kind == "product"),
        "stands_alone": float(bool(name_topic(bare, passage))),
        "german": float(passage.language == "de"),
        "foreign": float(passage.language not in {"", "en", "de"}),
        "long_word": float(max((len(word) for word in words), default=0)),
    }


def _measure_answer(answer: str, passage: Passage) -> dict[str, float]:
    text = collapse_whitespace(passage.text)
    count = max(len(text.split()), 1)
    place = text.find(answer[:30])
    opening = answer.split(" ", 1)[0].lower()
    return {
        "answer_pointing": float(len(_POINTING.findall(answer))),
        "answer_commas": float(answer.count(",")),
        "answer_breaks": float(len(re.findall(r"[;:()–—]|--", answer))),
        "answer_code": float(len(_CODE.findall(answer))),
        "answer_digits": float(bool(re.search(r"\d", answer))),
        "answer_names": float(min(len(extract_names_and_numbers(answer)), 6)),
        "answer_definite": float(len(_DEFINITE.findall(answer))),
        "answer_plain_start": float(opening not in FUNCTION_WORDS),
        "speech": len(_SPEECH.findall(text)) / count,
        "quotes": (text.count('"') + text.count("“")) / count,
        "passage_words": math.log1p(count),
        "place": max(place, 0) / max(len(text), 1),
        "is_first": float(0 <= place < 80),
    }
