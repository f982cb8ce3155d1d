"""Analyzer: text to terms, the same way for an index and for a query.

Text is normalized (NFKC), case-folded and cut into words. A compound (``foo_bar``, ``camelCase``,
``3.11.7``, ``CVE-2024-1``, ``C++``) gives itself whole and its parts; Chinese, Japanese and Korean
runs give bigrams, and in an index single characters too, for those who ask for one; plain words are
stemmed by Snowball. Stop words stay in the index but count neither for a passage's length nor for a
query that has any other term.

With ``auto`` each document is stemmed as its language asks, and its terms are marked with it
(``de:haus``); a query's words are looked up in every language. So a word meets its inflections in
documents of any language, and what is a stop word in one (``die``) counts in another.

Does not know: Thai, Lao and Khmer word borders (a run is one term), synonyms, spelling.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import Literal, get_args

from stillroom.provenance import digest_json
from stillroom.rag.stop_words import LANGUAGES, STOP_WORDS

__all__ = ["ANALYZER_VERSION", "Analyzer", "Stemming"]

ANALYZER_VERSION = 2
Stemming = Literal[
    "none",
    "auto",
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
_DEFAULT = "english"  # of a text whose language nobody knows
_PROBE = "The quick-witted C++ runners' CamelCase v3.11.7 running naïve 日本語テキスト foo_bar"
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_JOINERS = re.compile(r"[_.\-@:/+#&]")
_OTHER = re.compile(r"[\d_.\-@:/+#&]")
_CJK = re.compile("[぀-ヿ㐀-䶿一-鿿가-힯豈-﫿\U00020000-\U0003ffff]+")


class Analyzer:
    """Cuts text into terms; equal settings give equal terms."""

    def __init__(self, stemming: Stemming = "english") -> None:
        """Analyze with the Snowball stemmer of a language, with each text's own, or with none."""
        self.stemming = stemming
        self._tongues = (
            {name: _Tongue(name, f"{code}:") for code, name in LANGUAGES.items()}
            if stemming == "auto"
            else {}
        )
        self._tongue = self._tongues.get(_DEFAULT) or _Tongue(stemming)
        every = self._tongues.values() or [self._tongue]
        self.stop_words = frozenset(word for tongue in every for word in tongue.marked_stop_words)

    @property
    def _codes(self) -> list[str]:
        return list(LANGUAGES) if self._tongues else []

    @property
    def fingerprint(self) -> str:
        """A digest of the version, the settings and what they make of a fixed text."""
        probed = [self.index_terms(_PROBE, code) for code in ("", *self._codes)]
        return digest_json([ANALYZER_VERSION, self.stemming, probed])

    def terms(self, text: str, language: str = "") -> list[str]:
        """Return the terms of a text in order, stop words included.

        Args:
            text: Any text.
            language: Its ISO 639-1 code, which only ``auto`` looks at.
        """
        return self._terms(text, self._tongue_of(language))

    def index_terms(self, text: str, language: str = "") -> list[str]:
        """Return the terms that an index keeps: also single Chinese, Japanese, Korean letters."""
        runs = _CJK.findall(_normalize(text))
        return [*self.terms(text, language), *(one for run in runs if len(run) > 1 for one in run)]

    def query_terms(self, text: str) -> list[str]:
        """Return what is looked up for a query, each word in every language that there may be.

        Stop words are left out where there is anything else.
        """
        if not self._tongues:
            return self.content_terms(text)
        found: Counter[str] = Counter()
        for tongue in self._tongues.values():
            found |= Counter(self._terms(text, tongue))
        every = list(found.elements())
        return [term for term in every if term not in self.stop_words] or every

    def phrases(self, text: str) -> list[list[str]]:
        """Return the terms of a phrase in order, once for each language that they differ in."""
        tongues = self._tongues.values() or [self._tongue]
        found = {tuple(self._terms(text, tongue)) for tongue in tongues}
        return sorted(list(terms) for terms in found if terms)

    def content_terms(self, text: str) -> list[str]:
        """Return the terms without stop words; all of them where there are only stop words."""
        terms = self.terms(text)
        return [term for term in terms if term not in self.stop_words] or terms

    def _tongue_of(self, language: str) -> _Tongue:
        return self._tongues.get(LANGUAGES.get(language, ""), self._tongue)

    def _terms(self, text: str, tongue: _Tongue) -> list[str]:
        found: list[str] = []
        for match in _word_pattern().finditer(_normalize(text)):
            found.extend(self._analyze(match.group(), tongue))
        return found

    def _analyze(self, word: str, tongue: _Tongue) -> Iterator[str]:
        if _CJK.search(word):
            yield from self._analyze_cjk(word, tongue)
            return
        parts = [part for part in _parts(word) if part]
        whole = _fold(word)
        if len(parts) == 1 and _is_plain(whole):
            yield tongue.stem(whole)
            return
        yield whole
        for part in parts:
            folded = _fold(part)
            if folded != whole:
                yield tongue.stem(folded) if _is_plain(folded) else folded

    def _analyze_cjk(self, word: str, tongue: _Tongue) -> Iterator[str]:
        last = 0
        for match in _CJK.finditer(word):
            if match.start() > last:
                yield from self._analyze(word[last : match.start()], tongue)
            run = match.group()
            if len(run) == 1:
                yield run
            yield from (run[index : index + 2] for index in range(len(run) - 1))
            last = match.end()
        if last < len(word):
            yield from self._analyze(word[last:], tongue)


class _Tongue:
    """One language's stemmer and stop words, and the mark that its terms carry."""

    def __init__(self, stemming: str, mark: str = "") -> None:
        self._stem = _stemmer(stemming)
        self._mark = mark
        self._stop = STOP_WORDS.get("english" if stemming == "porter" else stemming, frozenset())
        self.marked_stop_words = frozenset(mark + word for word in self._stop)

    def stem(self, word: str) -> str:
        return self._mark + (word if word in self._stop else self._stem(word))


def _normalize(text: str) -> str:
    return unicodedata.normalize("NFKC", text).replace("’", "'")


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


@lru_cache(maxsize=64)
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


@lru_cache(maxsize=64)
def _stemmer(stemming: str) -> _Stemmer | type[str]:
    if stemming not in get_args(Stemming):
        raise ValueError(stemming)
    return str if stemming == "none" else _Stemmer(stemming)
