"""Analyzer: text to terms, the same way for an index and for a query.

Text is normalized (NFKC), case-folded and cut into words. A compound (``foo_bar``, ``camelCase``,
``3.11.7``, ``CVE-2024-1``, ``C++``) gives itself whole and its parts; Chinese, Japanese and Korean
runs give bigrams; plain words are stemmed by Snowball. Stop words (English only) stay in the index
but count neither for a passage's length nor for a query that has any other term.

Does not know: Thai, Lao and Khmer word borders (a run is one term), synonyms, spelling.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from typing import Literal, get_args

from stillroom.provenance import digest_json

__all__ = ["ANALYZER_VERSION", "Analyzer", "Stemming"]

ANALYZER_VERSION = 1
Stemming = Literal[
    "none",
    "arabic",
    "danish",
    "dutch",
    "english",
    "finnish",
    "french",
    "german",
    "greek",
    "hindi",
    "hungarian",
    "indonesian",
    "irish",
    "italian",
    "lithuanian",
    "norwegian",
    "porter",
    "portuguese",
    "romanian",
    "russian",
    "spanish",
    "swedish",
    "tamil",
    "turkish",
]
_MAX_TERM = 64
_ENGLISH_WORDS = (
    "a an and are as at be but by for if in into is it no not of on or such that the their then "
    "there these they this to was will with"
)
_ENGLISH = frozenset(_ENGLISH_WORDS.split())
_PROBE = "The quick-witted C++ runners' CamelCase v3.11.7 running naïve 日本語テキスト foo_bar"
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_JOINERS = re.compile(r"[_.\-@:/+#&]")
_OTHER = re.compile(r"[\d_.\-@:/+#&]")
_CJK = re.compile("[぀-ヿ㐀-䶿一-鿿가-힯豈-﫿\U00020000-\U0003ffff]+")


class Analyzer:
    """Cuts text into terms; equal settings give equal terms."""

    def __init__(self, stemming: Stemming = "english") -> None:
        """Analyze with the Snowball stemmer of a language, or with none."""
        self.stemming = stemming
        self.stop_words = _ENGLISH if stemming in {"english", "porter"} else frozenset()
        self._stem = _stemmer(stemming)

    @property
    def fingerprint(self) -> str:
        """A digest of the version, the settings and what they make of a fixed text."""
        return digest_json([ANALYZER_VERSION, self.stemming, self.terms(_PROBE)])

    def terms(self, text: str) -> list[str]:
        """Return the terms of a text in order, stop words included."""
        found: list[str] = []
        text = unicodedata.normalize("NFKC", text).replace("’", "'")
        for match in _word_pattern().finditer(text):
            found.extend(self._analyze(match.group()))
        return found

    def content_terms(self, text: str) -> list[str]:
        """Return the terms without stop words; all of them where there are only stop words."""
        terms = self.terms(text)
        return [term for term in terms if term not in self.stop_words] or terms

    def _analyze(self, word: str) -> Iterator[str]:
        if _CJK.search(word):
            yield from self._analyze_cjk(word)
            return
        parts = [part for part in _parts(word) if part]
        whole = _fold(word)
        if len(parts) == 1 and _is_plain(whole):
            yield whole if whole in self.stop_words else self._stem(whole)
            return
        yield whole
        for part in parts:
            folded = _fold(part)
            if folded != whole:
                yield self._stem(folded) if _is_plain(folded) else folded

    def _analyze_cjk(self, word: str) -> Iterator[str]:
        last = 0
        for match in _CJK.finditer(word):
            if match.start() > last:
                yield from self._analyze(word[last : match.start()])
            run = match.group()
            if len(run) == 1:
                yield run
            yield from (run[index : index + 2] for index in range(len(run) - 1))
            last = match.end()
        if last < len(word):
            yield from self._analyze(word[last:])


def _fold(word: str) -> str:
    return word.casefold()[:_MAX_TERM]


def _is_plain(word: str) -> bool:
    """Return whether a word holds letters (with their marks) alone, so that it can be stemmed."""
    return not _OTHER.search(word)


def _parts(word: str) -> Iterator[str]:
    for piece in _JOINERS.split(word):
        trimmed = piece.strip("'")
        if trimmed:
            yield from _HUMP.split(trimmed)


@lru_cache(maxsize=1)
def _word_pattern() -> re.Pattern[str]:
    r"""Return words with their joiners; marks go with their letters, unlike in ``\w``."""
    marks, start = [], -1
    for point in range(0x300, 0x11000):
        is_mark = unicodedata.category(chr(point)) in {"Mn", "Mc"}
        if is_mark and start < 0:
            start = point
        elif not is_mark and start >= 0:
            marks.append(f"{chr(start)}-{chr(point - 1)}")
            start = -1
    letter = rf"[\w{''.join(marks)}]"
    return re.compile(rf"{letter}+(?:[.\-'@:/+#&]{letter}+)*(?:\+\+|#)?")


@lru_cache(maxsize=8)
def _make_stemmer(language: str) -> object:
    import snowballstemmer

    return snowballstemmer.stemmer(language)


class _Stemmer:
    """A Snowball stemmer that remembers the words it has seen."""

    def __init__(self, language: str) -> None:
        import threading

        self._engine = _make_stemmer(language)
        self._lock = threading.Lock()
        self._known: dict[str, str] = {}

    def __call__(self, word: str) -> str:
        known = self._known.get(word)
        if known is None:
            with self._lock:
                known = str(self._engine.stemWord(word))  # type: ignore[attr-defined]
            if len(self._known) > 500_000:
                self._known.clear()
            self._known[word] = known
        return known


@lru_cache(maxsize=8)
def _stemmer(stemming: Stemming) -> _Stemmer | type[str]:
    if stemming not in get_args(Stemming):
        raise ValueError(stemming)
    return str if stemming == "none" else _Stemmer(stemming)
