"""Gopher quality: heuristics for running prose.

Source: Rae et al. 2021, arXiv:2112.11446, section A1.1 (quality filtering). Differs: the word
bounds are set for records, not for web pages, and stop words are required in English only.
"""

from __future__ import annotations

import re
from typing import ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.records import Record
from stillroom.synth.interfaces import Filter, FilterResult
from stillroom.synth.prompting.conversation import get_last_answer
from stillroom.text.language import detect_language
from stillroom.text.unicode import split_words

__all__ = ["GopherQuality"]

_STOP_WORDS = frozenset("the be to of and that have with".split())  # noqa: SIM905
_SYMBOL = re.compile(r"#|\.\.\.|…")
_BULLET = re.compile(r"^\s*[•\-*‣▪●]")
_LETTER = re.compile(r"[^\W\d_]")
_LONG = 50


class GopherQuality(Filter):
    """Drop answers of symbols, bullets, ellipses or no words."""

    paper: ClassVar[str] = "arXiv:2112.11446"
    accepts_passages: ClassVar[bool] = True

    min_words: int = Field(3, ge=0, description="minimum words of an answer (the paper: 50)")
    max_words: int = Field(100_000, ge=1, description="maximum words of an answer")
    min_mean_length: float = Field(
        3.0, ge=0, description="minimum mean length of a word, in characters"
    )
    max_mean_length: float = Field(
        10.0, gt=0, description="maximum mean length of a word, in characters"
    )
    max_symbols: float = Field(
        0.1, ge=0, description="maximum ratio of hashes and ellipses to words"
    )
    max_bullets: float = Field(
        0.9, ge=0, le=1, description="maximum share of lines that start with a bullet"
    )
    max_ellipses: float = Field(
        0.3, ge=0, le=1, description="maximum share of lines that end in an ellipsis"
    )
    min_alphabetic: float = Field(
        0.8, ge=0, le=1, description="minimum share of words that contain a letter"
    )
    min_stop_words: int = Field(
        2, ge=0, description="minimum of eight English stop words, in English of 50 words or more"
    )

    @override
    def judge(self, record: Record) -> FilterResult:
        text = get_last_answer(record)
        words = split_words(text)
        if not self.min_words <= len(words) <= self.max_words:
            bound = self.min_words if len(words) < self.min_words else self.max_words
            return FilterResult(False, "too few or too many words", float(len(words)), float(bound))
        lines = [line for line in text.splitlines() if line.strip()]
        return self._weigh_words(text, words) or self._weigh_lines(lines) or FilterResult(True)

    def _weigh_words(self, text: str, words: list[str]) -> FilterResult | None:
        if not words:
            return None
        mean = sum(map(len, words)) / len(words)
        # scripts without spaces have other word lengths
        is_spaced = len(text.split()) > len(words) / 2
        if is_spaced and mean < self.min_mean_length:
            return FilterResult(False, "words too short on average", mean, self.min_mean_length)
        if mean > self.max_mean_length:
            return FilterResult(False, "words too long on average", mean, self.max_mean_length)
        symbols = len(_SYMBOL.findall(text)) / len(words)
        if symbols > self.max_symbols:
            return FilterResult(False, "too many symbols", symbols, self.max_symbols)
        tokens = [token for token in text.split() if not _BULLET.fullmatch(token)]
        letters = sum(bool(_LETTER.search(token)) for token in tokens) / max(len(tokens), 1)
        if letters < self.min_alphabetic:
            return FilterResult(False, "too few words with letters", letters, self.min_alphabetic)
        if len(words) >= _LONG and self.min_stop_words and detect_language(text) == "en":
            stops = len(_STOP_WORDS.intersection(words))
            if stops < self.min_stop_words:
                bound = float(self.min_stop_words)
                return FilterResult(False, "too few stop words", float(stops), bound)
        return None

    def _weigh_lines(self, lines: list[str]) -> FilterResult | None:
        count = max(len(lines), 1)
        bullets = sum(bool(_BULLET.match(line)) for line in lines) / count
        if bullets > self.max_bullets and len(lines) > 1:
            return FilterResult(False, "nothing but bullets", bullets, self.max_bullets)
        ends = sum(line.rstrip().endswith(("...", "…")) for line in lines) / count
        if ends > self.max_ellipses and len(lines) > 1:
            return FilterResult(False, "lines end in ellipses", ends, self.max_ellipses)
        return None
