"""Paraphrase detection of test items (semantic decontamination): embeddings, names and numbers.

The score is cosine + 0.2 * the share of the item's names and numbers that the text has too, each
weighted by its information. Cosine alone cannot separate a reworded question from another question
of the same kind: on grade-school problems reworded by hand it finds half at the false-alarm rate
at which the sum finds five sixths (docs/explanation/lab-notebook.md). Numbers in English words
count as their digits.

A question about other people and things, or in another language, keeps little but its numbers: the
same numbers in the same order count by their information and replace names where they score more.
An item with neither names nor numbers is decided by cosine, above a lower bound.

Siblings are other items of one template ("List three advantages", "disadvantages"; other numbers,
another name). A text that repeats most of a short item's words in order and exchanges some of its
content words is decided by cosine alone, above a higher bound: names and numbers of the common
words are the template's. Other numbers in place of half of an item's, or a word and its opposite,
count as a different answer. Code has neither names nor numbers that tell anything. If the caller
knows the answers, a common answer counts for a match and a different one against it: two questions
about one passage share its names but not their answers.

Reading comprehension joins a passage of a hundred words and a question of ten. As whole texts, two
questions about one passage are nine tenths alike, so passage and question are split by form
(labels, blank lines, a closing question), independent of language except for the labels.

Source: Yang et al. 2023, arXiv:2311.04850 (rephrased samples, found by embeddings and a judge).
Differs: names and numbers are added to the cosine; a judge decides only uncertain pairs.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np
import numpy.typing as npt

from stillroom.text.code import is_mostly_code
from stillroom.text.language import split_sentences
from stillroom.text.unicode import split_words

__all__ = [
    "ParaphraseIndex",
    "ParaphraseScore",
    "QuestionParts",
    "find_anchors",
    "find_numbers",
    "is_asking",
    "is_opposite",
    "split_question",
]


Vectors = npt.NDArray[np.float32]
_ANCHOR_WEIGHT = 0.2
_NO_ANCHOR_SCORE = 0.3
"""The share of an item without names and numbers: neutral."""
_FULL_SHARE = 2 / 3
"""Fraction of the information of an unseen word; an item with less cannot reach a full share."""
_ORDER_WEIGHT = 0.05
"""Weight of a nat of numbers in order; with the next three chosen on hand-made rewordings."""
_MIN_ORDER, _MAX_ORDER = 5.0, 13.0
_ANSWER_WEIGHT = 0.11
"""Weight of a common answer; chosen on hand-made rewordings of other items."""
_NEGATION_WEIGHT = 0.25
"""Weight of answers without a common word; chosen on pairs of questions about one passage."""
_TEMPLATE_WEIGHT = 0.05
"""Weight of a common template: of pairs of questions with a word exchanged by hand, 18 of 20 with a
synonym have a cosine of .91 or more, and none of 20 with another word.
"""
_MAX_TEMPLATE_WORDS, _TEMPLATE_SHARE = 20, 0.6
_DETERMINERS = frozenset(
    "a an the this that these those my your all any some every each me us it what which why how"  # noqa: SIM905
    " whether if for".split()
)
"""Words that follow an imperative at the start of a sentence and no name."""
_FUNCTION_WORDS = _DETERMINERS | frozenset(
    "of in on at to by from with about into as and or is are was were be been being am do does did"  # noqa: SIM905
    " has have had can could may might will would shall should must who whom whose when where there"
    " their its his her our i you he she we they not".split()
)
_OPPOSITES = [
    set(pair.split("/"))
    for pair in (  # noqa: SIM905
        "largest/smallest biggest/smallest highest/lowest longest/shortest oldest/youngest"
        " first/last most/least best/worst maximum/minimum max/min odd/even before/after"
        " positive/negative ascending/descending upper/lower uppercase/lowercase start/end"
        " causes/consequences causes/effects rise/fall encode/decode encrypt/decrypt pros/cons"
        " north/south east/west"
    ).split()
]
_NEGATING = ("dis", "un", "in", "im", "ir", "il", "non", "de")
_MIN_ORDER_SIMILARITY = 0.7
_MAX_CANDIDATES = 5
_COMMON_SHARE = 0.01
"""Maximum document frequency of a capitalized word that counts as a name."""
_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
)

_TENS = "thirty forty fifty sixty seventy eighty ninety"

_NUMBERS = (
    {word: str(number) for number, word in enumerate(_UNITS.split())}
    | {word: str(10 * number) for number, word in enumerate(_TENS.split(), 3)}
    | {"dozen": "12", "hundred": "100", "thousand": "1000"}
)

_NUMBER_WORDS = {number: word for word, number in _NUMBERS.items() if word != "dozen"}
_UNINFORMATIVE_NUMBERS = frozenset({"0", "1", "2"})
_TOKEN = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+")
_SENTENCE_START = re.compile(r"(?:^|[.!?:]\s+)(\w+)\W*(\w*)")


@dataclass(frozen=True, slots=True)
class ParaphraseScore:
    """Similarity of a text to an item.

    ``cosine`` of their vectors; ``anchors``, the share of the item's names and numbers that the
    text has too, less where all of them are common; ``order``, the nats of the numbers that both
    have in the same order, 0 where these are fewer than seven tenths of all; ``is_answered``,
    whether both have the same answer; ``is_denied``, whether both have answers without a common
    word, other numbers or opposites; ``is_template``, whether they share a template.
    """

    item: int
    cosine: float
    anchors: float
    order: float = 0.0
    is_answered: bool = False
    is_denied: bool = False
    is_template: bool = False

    @property
    def score(self) -> float:
        """The value compared with thresholds."""
        anchors = max(_ANCHOR_WEIGHT * self.anchors, _ORDER_WEIGHT * self.order)
        anchors = -_TEMPLATE_WEIGHT if self.is_template else anchors
        answers = _ANSWER_WEIGHT * self.is_answered - _NEGATION_WEIGHT * self.is_denied
        return self.cosine + anchors + answers


def find_anchors(
    text: str, frequency: Mapping[str, int] | None = None, texts: int = 0
) -> frozenset[str]:
    """Return the names and numbers of a text, lower case.

    ``frequency`` is the document frequency of each lower-case word over ``texts`` texts: the first
    word of a sentence is a name only where it is rare in them.
    """
    if is_mostly_code(text):
        return frozenset()
    known = frequency or {}
    begins: set[str] = set()
    commands: set[str] = set()
    for first, second in _SENTENCE_START.findall(text):
        begins.add(first)
        if second.lower() in _DETERMINERS or _parse_number_word(second):
            commands.add(first)
    anchors = set()
    for token in _TOKEN.findall(text):
        low, number = token.lower(), _parse_number_word(token)
        if number:
            anchors.add(number)
        elif (
            token[0].isupper()
            and token not in commands
            and (token not in begins or known.get(low, 0) < _COMMON_SHARE * texts)
        ):
            anchors.add(low)
    return frozenset(anchors - _UNINFORMATIVE_NUMBERS)


def find_numbers(text: str) -> list[str]:
    """Return the numbers of a text in order, as digits, including those in English words."""
    return [number for token in _TOKEN.findall(text) if (number := _parse_number_word(token))]


def _replaces_numbers(item: Sequence[str], text: Sequence[str]) -> bool:
    """Return whether a text has other numbers in place of at least half of an item's."""
    missing, others = Counter(item) - Counter(text), Counter(text) - Counter(item)
    return 0 < len(item) <= 2 * missing.total() and others.total() >= missing.total()


def is_opposite(item: Sequence[str], text: Sequence[str]) -> bool:
    """Return whether one of two short texts has the opposite of a word that only the other has.

    Of an item of more than 20 words no opposite is looked for.
    """
    if len(item) > _MAX_TEMPLATE_WORDS:
        return False
    own = set(item) - set(text) - _FUNCTION_WORDS
    others = set(text) - set(item) - _FUNCTION_WORDS  # "into" is not the opposite of "to"
    return any(
        {one, other} in _OPPOSITES
        or any(f"{prefix}{one}" == other or one == f"{prefix}{other}" for prefix in _NEGATING)
        for one in own
        for other in others
    )


def _is_template(item: Sequence[str], text: Sequence[str]) -> bool:
    """Return whether two short texts are the same but for content words in the same places."""
    longest = max(len(item), len(text))
    if not 0 < longest <= _MAX_TEMPLATE_WORDS:
        return False
    edits = SequenceMatcher(None, item, text, autojunk=False).get_opcodes()
    kept = sum(end - start for kind, start, end, *_ in edits if kind == "equal")
    return kept >= _TEMPLATE_SHARE * longest and any(
        kind == "replace" and set(item[a:b]) - _FUNCTION_WORDS and set(text[c:d]) - _FUNCTION_WORDS
        for kind, a, b, c, d in edits
    )


def _is_question(item: str) -> bool:
    """Return whether an item is one question, alone or after a passage."""
    part = split_question(item)
    question = part.question if part.is_apart else item
    return is_asking(question) and len(split_sentences(question)) == 1


def _parse_number_word(token: str) -> str:
    if token[:1].isdigit():
        return token.replace(",", "").removesuffix(".00").removesuffix(".0")
    return _NUMBERS.get(token.lower(), "")


class ParaphraseIndex:
    """Items with their vectors, for comparison with many texts."""

    def __init__(
        self,
        items: Sequence[str],
        vectors: Vectors,
        *,
        frequency: Mapping[str, int] | None = None,
        texts: int = 0,
    ) -> None:
        """Index the items.

        Vectors are L2-normalized, (N, D), one for each item; ``frequency`` is the document
        frequency of each lower-case word over ``texts`` texts.
        """
        self._vectors = vectors
        self._frequency, self._texts = frequency or {}, texts
        self._is_question = np.array([_is_question(item) for item in items], dtype=bool)
        self._anchors = [find_anchors(item, self._frequency, texts) for item in items]
        self._numbers = [[] if is_mostly_code(item) else find_numbers(item) for item in items]
        self._words = [split_words(item) for item in items]
        self._holders: dict[str, list[int]] = {}
        for index, numbers in enumerate(self._numbers):
            for number in set(numbers):
                self._holders.setdefault(number, []).append(index)

    def find(
        self,
        text: str,
        vector: npt.NDArray[np.float32],
        answered: Collection[int] = (),
        *,
        is_stated: bool = False,
        denied: Callable[[int], bool] = lambda item: False,
    ) -> ParaphraseScore | None:
        """Return the item most similar to a text; None where there are no items.

        ``answered`` are items with the text's answer, where that answer is informative; ``denied``
        tells whether an item's answer is known and different. A text with ``is_stated`` asks
        nothing, and is not compared with bare questions.
        """
        cosines = self._vectors @ vector
        if is_stated:
            cosines = np.where(self._is_question, -1.0, cosines)
        nearest = np.argsort(-cosines, kind="stable")[:_MAX_CANDIDATES].tolist()
        here, numbers = find_anchors(text, self._frequency, self._texts), find_numbers(text)
        orders = {item: self._order(item, numbers) for item in self._sharing(numbers)}
        words = split_words(text)

        def is_denied(item: int) -> bool:
            return (
                denied(item)
                or (item not in answered and _replaces_numbers(self._numbers[item], numbers))
                or is_opposite(self._words[item], words)
            )

        scores = [
            ParaphraseScore(
                item,
                float(cosines[item]),
                self._share(item, here),
                orders.get(item, 0.0),
                item in answered,
                is_denied(item),
                _is_template(self._words[item], words),
            )
            for item in {*nearest, *(item for item, order in orders.items() if order)}
        ]
        return max(scores, key=lambda score: (score.score, -score.item), default=None)

    def _share(self, item: int, here: frozenset[str]) -> float:
        weights = {anchor: self._weigh(anchor) for anchor in self._anchors[item]}
        total = sum(weights.values())
        held = sum(weights[anchor] for anchor in weights if anchor in here)
        full = _FULL_SHARE * math.log(self._texts + 2)
        return held / max(total, full) if total else _NO_ANCHOR_SCORE

    def _weigh(self, word: str) -> float:
        """Return the information of a name or a number, in nats."""
        count = self._frequency.get(word, 0) + self._frequency.get(_NUMBER_WORDS.get(word, ""), 0)
        return max(0.0, math.log((self._texts + 2) / (1 + count)))

    def _sharing(self, numbers: Sequence[str]) -> list[int]:
        """Return the items that may share enough numbers with a text."""
        shared: dict[int, float] = {}
        for number in numbers:  # repeated numbers may count twice
            for item in self._holders.get(number, ()):
                shared[item] = shared.get(item, 0.0) + self._weigh(number)
        return [item for item, nats in shared.items() if nats >= _MIN_ORDER]

    def _order(self, item: int, numbers: Sequence[str]) -> float:
        """Return the nats of the longest common subsequence of numbers, times its share.

        The share is of all numbers of both; 0 below the minimum of either.
        """
        item_numbers = self._numbers[item]
        row = [0.0] * (len(numbers) + 1)
        for number in item_numbers:
            above, row = row, [0.0]
            nats = self._weigh(number)
            for column, candidate in enumerate(numbers):
                same = above[column] + nats if candidate == number else 0.0
                row.append(max(above[column + 1], row[column], same))
        common = row[-1]
        total = sum(map(self._weigh, item_numbers)) + sum(map(self._weigh, numbers)) - common
        if common < _MIN_ORDER or common < _MIN_ORDER_SIMILARITY * total:
            return 0.0
        return min(common, _MAX_ORDER) * common / total


_QUESTION_MARKS = re.compile(r"[?？؟]")
_QUESTION_END = re.compile(r"[?？؟][\s\"'”’)\]]*$")

_LABEL = re.compile(
    r"^[ \t>*#<]*(?:question|query|q|frage|pregunta|pergunta|domanda|вопрос|问题|問題|質問)"
    r"(?:[ \t]*\d+)?[ \t*]*(?:[:：.)>]|$)[\s*]*",
    re.IGNORECASE | re.MULTILINE,
)
"""A label before its question (``Question:``), a heading above it, or a tag around it."""
_CLOSING_TAG = re.compile(r"</\w+>\s*$")
_LINE = re.compile(".*")
_TO_MARK = re.compile(rf"(?:.*\n)*?.*{_QUESTION_MARKS.pattern}.*|.*")
"""Lines below a heading through the first with a question mark; one line if none has."""

_ANSWER = re.compile(
    r"\n[ \t>*#]*(?:answer|antwort|respuesta|resposta|réponse|risposta|ответ|答案|回答|"
    r"a(?=[ \t*]*[:：]))[ \t*]*[:：]?[ \t*]*$",
    re.IGNORECASE,
)

_PARAGRAPHS = re.compile(r"\n\s*\n")
_OPTION = re.compile(r"[ \t]*\(?[A-Ha-h1-9][).:]")
_BARE_QUESTION = re.compile(r"[^\n.!:;]{8,200}[^\W\d_]")
"""A closing line without a full stop: a question whose question mark is missing."""
_MIN_PASSAGE_WORDS = 25
"""Minimum words of a passage separated by a label or a line; at least twice the question's."""
_MIN_CHARACTERS = 60
"""Minimum characters of a text with a passage, in any script."""
_MIN_RUNNING_WORDS = 40
"""Minimum words of a passage with its question on the same line: shorter may be a problem."""


@dataclass(frozen=True, slots=True)
class QuestionParts:
    """A text split into ``question`` and ``passage``, empty where there is none.

    ``is_apart`` is whether form separates them: in running text the passage may also state the
    conditions of a problem, without which nobody could answer.
    """

    question: str
    passage: str = ""
    is_apart: bool = False


def is_asking(text: str) -> bool:
    """Return whether a text contains a question mark."""
    return bool(_QUESTION_MARKS.search(text))


def split_question(text: str) -> QuestionParts:
    """Split a text into passage and question; the whole text is the question where unsure."""
    body = _strip_options(_ANSWER.sub("", text.strip())).strip()
    if len(body) < _MIN_CHARACTERS:
        return QuestionParts(text)
    labels = list(_LABEL.finditer(body))
    if labels:
        label = labels[-1]
        below = next((_TO_MARK if "\n" in label[0] else _LINE).finditer(body, label.end()))
        question = _CLOSING_TAG.sub("", below[0])
        split = _check_parts(question, body[: label.start()] + body[below.end() :])
        if split is not None:
            return split
    for parts in (_PARAGRAPHS.split(body), body.split("\n")):
        blocks = [part for part in parts if part.strip()]
        for index in (-1, 0) if len(blocks) > 1 else ():
            remaining = blocks[:-1] if index else blocks[1:]
            is_bare = index == -1 and _BARE_QUESTION.fullmatch(blocks[index].strip())
            if _QUESTION_END.search(blocks[index]) or is_bare:
                split = _check_parts(blocks[index], "\n".join(remaining))
                if split is not None:
                    return split
    return _split_closing_question(body) or QuestionParts(text)


def _strip_options(text: str) -> str:
    """Return a text without the answer options at its end; its first line stays."""
    lines = text.rstrip().split("\n")
    end = len(lines)
    while end > 1 and _OPTION.match(lines[end - 1]):
        end -= 1
    return "\n".join(lines[:end])


def _split_closing_question(body: str) -> QuestionParts | None:
    """Return the closing question of a long text, if any."""
    if not _QUESTION_END.search(body):
        return None
    spans = split_sentences(body)
    if len(spans) < 3:
        return None
    start, end = spans[-1]
    passage = body[:start].strip()
    if len(split_words(passage)) < _MIN_RUNNING_WORDS:
        return None
    return QuestionParts(body[start:end].strip(), passage)


def _check_parts(question: str, passage: str) -> QuestionParts | None:
    size = len(split_words(question))
    if not size or len(split_words(passage)) < max(_MIN_PASSAGE_WORDS, 2 * size):
        return None
    return QuestionParts(question.strip(), passage.strip(), is_apart=True)
