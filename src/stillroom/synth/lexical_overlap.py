"""Lexical overlap of texts: content words, support, ROUGE-L novelty and chrF.

Purely lexical: word occurrences, not meaning. Function words are listed for English and, where the
caller gives the language, for German, French, Spanish and Chinese; in other languages every word
counts as a content word, which makes the filters stricter, not looser.

``NoveltyPool`` decides as a comparison with every text of the pool would, but most pairs are never
compared: F1 is at most 2 min(shared words) / (all words), which an inverted index yields for the
whole pool at once. In scripts without spaces every character is a word. chrF uses character n-grams
to 6, beta 2, without spaces, averaged over the orders that both texts have.

Source: Lin 2004 (ROUGE-L, F1 of the longest common subsequence of words); Popović 2015 (chrF).
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from stillroom.text.unicode import split_words

__all__ = [
    "FUNCTION_WORDS",
    "QUESTION_FRAMES",
    "NoveltyPool",
    "are_balanced",
    "chrf",
    "collapse_whitespace",
    "compute_support",
    "extract_content_stems",
    "extract_content_words",
    "extract_names_and_numbers",
    "rouge_l",
    "stem",
    "word_set",
]


def word_set(text: str) -> frozenset[str]:
    """Return the words of a text, such as a list of words."""
    return frozenset(text.split())


FUNCTION_WORDS = word_set(
    """a about above after again against all also although always am an and any are as at be
    because been before being below between both but by can cannot could did do does doing
    done down during each either else etc even ever every few for from further get gets give
    given gives had has have having he her here hers him his how however i if in instead
    into is it its itself just like made make makes many may me might more most much must my
    neither no nor not now of off often on once one only onto or other others our out over
    own per rather same shall she should since so some such than that the their them then
    there therefore these they this those though through thus to too under unless until up
    upon us use used uses using very via was we well were what when where whether which
    while who whom whose why will with within without would yes yet you your"""
)

_FUNCTION_WORDS_OF = {
    language: word_set(words)
    for language, words in {
        "de": """ab aber alle als am an andere auch auf aus bei beim bis da dann das dass dem den
        denn der des die diese durch ein eine einem einen einer eines er es falls für hat haben ich
        ihr im in indem ist kann können man mit muss müssen nach nicht noch nur ob oder sein sich
        sie sind so sobald sofern sollten sollte sowie um und uns unter vom von vor war waren was
        wenn wer werden wie wird wo womit wodurch wofür woraus worauf wovon worin wozu wurde wurden
        wann während zu zum zur über geschieht gilt tun welche welcher welches welchem""",
        "fr": """a à afin alors au aux avec car ce ces cet cette chaque comme comment d dans de des
        donc du elle en est et être fait faire faut il ils j je l la le les leur leurs lui mais même
        n ne nos nous on ont ou où par pas passe peut plus pour qu quand que quel quelle quelles
        quels qui quoi s sa sans se ses si son sont sous sur t tous tout un une vers vous y""",
        "es": """a al algo ante como cómo con cual cuál cuáles cuando cuándo de debe del desde
        donde dónde e el ella ellos en entre era es esa ese esta está están este fue ha hacer han
        hasta hay la las le les lo los más no o ocurre para pero por porque puede que qué quien
        quién se ser si sin sobre son su sus también u un una unas uno unos y ya""",
        "zh": """的 了 和 是 在 与 或 会 该 应 做 需 要 哪 里 么 什 怎 样 如 果 当 时 为
        吗 才 能 及 而 则""",
    }.items()
}
"""Function words and the words that frame a question, by ISO 639-1 code."""

QUESTION_FRAMES = word_set(
    """called difference differ explain happen happens happened mean meaning means name purpose
    role describe type kind way work works main following"""
)
"""Words that frame a question and need not occur in the text that answers it."""

_SUFFIXES = (
    "ations",
    "ation",
    "ions",
    "ion",
    "ings",
    "ing",
    "ied",
    "ies",
    "ed",
    "es",
    "ly",
    "e",
    "y",
    "s",
)

_MIN_STEM = 4
_NAME = re.compile(r"(?<=[^.!?:\n]\s)[“‘\"'(]?([A-Z][\w.'’-]*\w)")
_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d[\d.,:/]*\d|\d)(?:(?:st|nd|rd|th|s)\b)?")
_SPACE = re.compile(r"\s+")
_PAIRS = ("()", "[]", "«»", "（）", "《》", "「」")


def are_balanced(text: str) -> bool:
    """Return whether every kind of bracket and paired quote opens as often as it closes."""
    low, left, right = (text.count(mark) for mark in "„“”")
    is_quoted = low == left + right if low else left == right  # „so“, “so”
    return is_quoted and all(text.count(pair[0]) == text.count(pair[1]) for pair in _PAIRS)


def collapse_whitespace(text: str) -> str:
    """Return the text on one line, with single spaces."""
    return _SPACE.sub(" ", text).strip()


def stem(token: str) -> str:
    """Remove the commonest English suffix of a word, so that its forms compare equal."""
    for suffix in _SUFFIXES:
        if token.endswith(suffix) and len(token) - len(suffix) >= _MIN_STEM:
            return token[: -len(suffix)]
    return token[:-1] if token.endswith("s") and len(token) > _MIN_STEM - 1 else token


def extract_content_words(text: str, *, frames: bool = True, language: str = "") -> list[str]:
    """Return the content words in order, including question ``frames``.

    Args:
        text: The text.
        frames: Whether English words that frame a question count.
        language: ISO 639-1 code of the text's language, to leave out its function words too.
    """
    function_words = _FUNCTION_WORDS_OF.get(language, FUNCTION_WORDS)
    return [
        token
        for token in split_words(text)
        if token not in function_words
        and not (len(token) == 1 and token.isascii() and token.isalpha())
        and (frames or token not in QUESTION_FRAMES)
    ]


def extract_content_stems(text: str, *, frames: bool = True, language: str = "") -> list[str]:
    """Return the stems of ``extract_content_words``, in order."""
    words = extract_content_words(text, frames=frames, language=language)
    return [stem(token) for token in words]


def compute_support(stems: Iterable[str], source: Collection[str]) -> float:
    """Return the share of distinct stems that are in the source; 1.0 without stems."""
    distinct = set(stems)
    return len(distinct.intersection(source)) / len(distinct) if distinct else 1.0


def extract_names_and_numbers(text: str) -> list[str]:
    """Return names (capitalized within a sentence) and numbers, as normalized words.

    A passage must contain all of them verbatim to support an answer.
    """
    matches = [*_NAME.findall(text), *_NUMBER.findall(text)]
    return [token for item in matches for token in split_words(item) if token not in FUNCTION_WORDS]


_ASCII_WORD = re.compile(r"[a-z0-9]+")


def rouge_l(first: str, second: str) -> float:
    """Return ROUGE-L: F1 of the longest common subsequence of two texts' words, from 0 to 1.

    For a few pairs, as of turns or answers; many texts are compared by ``NoveltyPool.max_rouge_l``.
    """
    first_tokens, second_tokens = _tokens(first), _tokens(second)
    total = len(first_tokens) + len(second_tokens)
    return (
        2 * _lcs_length(first_tokens, second_tokens) / total
        if first_tokens and second_tokens
        else 0.0
    )


class NoveltyPool:
    """Pool of texts (Self-Instruct's task pool) with the ROUGE-L of a new text to the nearest."""

    def __init__(self, limit: float = 0.7) -> None:
        """Create an empty pool; a ROUGE-L up to ``limit`` is reported as 0."""
        self.limit = limit
        self._texts: list[list[str]] = []
        self._lengths = array("l")
        self._indices: dict[str, array[int]] = {}
        self._counts: dict[str, array[int]] = {}

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, text: str) -> None:
        """Add a text."""
        tokens = _tokens(text)
        for token, count in Counter(tokens).items():
            self._indices.setdefault(token, array("l")).append(len(self._texts))
            self._counts.setdefault(token, array("l")).append(count)
        self._texts.append(tokens)
        self._lengths.append(len(tokens))

    def max_rouge_l(self, text: str) -> float:
        """Return the greatest ROUGE-L with any text of the pool if above the limit, else 0."""
        tokens = _tokens(text)
        if not tokens or not self._texts:
            return 0.0
        shared = np.zeros(len(self._texts), dtype=np.int64)
        for token, count in Counter(tokens).items():
            if token in self._indices:
                indices = np.frombuffer(self._indices[token], dtype=np.int_)
                shared[indices] += np.minimum(np.frombuffer(self._counts[token], np.int_), count)
        totals = np.frombuffer(self._lengths, dtype=np.int_) + len(tokens)
        bounds = 2 * shared / totals
        best = 0.0
        for index in np.argsort(-bounds, kind="stable"):
            if bounds[index] <= max(self.limit, best):
                break
            common = _lcs_length(tokens, self._texts[index])
            best = max(best, 2 * common / int(totals[index]))
        return best if best > self.limit else 0.0


def _tokens(text: str) -> list[str]:
    return _ASCII_WORD.findall(text.lower()) if text.isascii() else split_words(text)


def _lcs_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest common subsequence (bit-parallel, Hyyrö 2004)."""
    bits: dict[str, int] = {}
    for bit, token in enumerate(first):
        bits[token] = bits.get(token, 0) | 1 << bit
    mask = (1 << len(first)) - 1
    row = mask
    for token in second:
        matched = row & bits.get(token, 0)
        row = ((row + matched) | (row - matched)) & mask
    return len(first) - row.bit_count()


_ORDERS = 6
_BETA = 2.0


def chrf(text: str, reference: str) -> float:
    """Return chrF of a text against a reference, from 0 to 1; two empty texts are equal."""
    candidate, target = "".join(text.split()), "".join(reference.split())
    if not candidate or not target:
        return float(candidate == target)
    precisions, recalls = [], []
    for order in range(1, _ORDERS + 1):
        candidate_ngrams = _count_ngrams(candidate, order)
        reference_ngrams = _count_ngrams(target, order)
        if not candidate_ngrams or not reference_ngrams:
            continue
        same = sum((candidate_ngrams & reference_ngrams).values())
        precisions.append(same / candidate_ngrams.total())
        recalls.append(same / reference_ngrams.total())
    precision = sum(precisions) / len(precisions)
    recall = sum(recalls) / len(recalls)
    if not precision or not recall:
        return 0.0
    weight = _BETA**2
    return (1 + weight) * precision * recall / (weight * precision + recall)


def _count_ngrams(text: str, order: int) -> Counter[str]:
    return Counter(text[start : start + order] for start in range(len(text) - order + 1))
