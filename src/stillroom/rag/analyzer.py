"""Analyzer: text to terms, the same way for an index and for a query.

Text is normalized (NFKC), case-folded and cut into words. A compound (``foo_bar``, ``camelCase``,
``e-mail``, ``3.11.7``, ``C++``) gives itself whole and its parts; the whole is written without the
marks that join letters, so that it meets its other spellings (``foobar``, ``email``). A word with
accents gives itself with and without them (``stillroom.rag.spelling``). Chinese, Japanese and
Korean runs give bigrams, and in an index single characters too, for those who ask for one; what
holds letters alone is stemmed by Snowball. Stop words stay in the index but count neither for a
passage's length nor for a query that has any other term.

With ``auto`` each document is stemmed as its language asks, and its terms are marked with it
(``de:haus``); a query's words are looked up in every language. So a word meets its inflections in
documents of any language, and what is a stop word in one (``die``) counts in another.

Does not know: Thai, Lao and Khmer word borders (a run is one term), synonyms, misspellings.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

from stillroom.provenance import digest_json
from stillroom.rag.engines.phrases import Chain, PhraseWord, Placed, place
from stillroom.rag.spelling import fold_marks, join_parts, normalize, plain_numbers, spell_out
from stillroom.rag.stop_words import LANGUAGES, STOP_WORDS

__all__ = ["ANALYZER_VERSION", "Analyzer", "Stemming"]

ANALYZER_VERSION = 3
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
_PROBE = (
    "The quick-witted C++ runners' CamelCase v3.11.7 running naïve 日本語テキスト foo_bar Müller "
    "1,234 1.234 3,5 O’Reilly ёлка"
)
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_JOINERS = re.compile(r"[_.\-@:/+#&]")
_OTHER = re.compile(r"[\d_.\-@:/+#&]")
_LASTING = re.compile(r"[@:/+#&]")  # joins what is not one word, or names something else
_FLAT = frozenset({"finnish", "hungarian", "turkish"})  # where nobody writes ae for ä
_ELIDING = frozenset({"french", "irish", "italian"})  # whose stemmers take l' off
_DOTTED = frozenset(
    "danish dutch german greek indonesian italian norwegian portuguese romanian spanish"  # noqa: SIM905
    " turkish".split()
)
_MOST_KNOWN = 200_000
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
        """Return the terms of a text in order, stop words and every spelling included.

        Args:
            text: Any text.
            language: Its ISO 639-1 code, which only ``auto`` looks at.
        """
        return self._terms(text, self._tongue_of(language))

    def index_terms(self, text: str, language: str = "") -> list[str]:
        """Return the terms that an index keeps: also single Chinese, Japanese, Korean letters."""
        return [term for term, _ in self.place_terms([text], language)[0]]

    def place_terms(self, texts: Sequence[str], language: str = "") -> tuple[Placed, int]:
        """Return what an index keeps of a field: its terms with their positions, and its length.

        Its length is how many terms there are, stop words and other spellings aside.

        Args:
            texts: One after another, as the headings of a path.
            language: Their ISO 639-1 code, which only ``auto`` looks at.
        """
        tongue, stop = self._tongue_of(language), self.stop_words
        placed: Placed = []
        length = number = 0
        for text in texts:
            for word in self._words(text, tongue):
                for slot, spellings in enumerate((word.spellings, *word.parts)):
                    is_last = slot in (0, len(word.parts))
                    spot = place(number, slot, is_last=is_last)
                    placed += [(term, spot) for term in spellings]
                    length += spellings[0] not in stop
                number += 1
        single = [
            one
            for text in texts
            for run in _CJK.findall(normalize(text))
            if len(run) > 1
            for one in run
        ]
        # Of no phrase: a letter stands in none of these places.
        placed += [(one, place(number + 1 + 2 * at)) for at, one in enumerate(single)]
        return placed, length + len(single)

    def query_terms(self, text: str) -> dict[str, float]:
        """Return what is looked up for a query, each word in every language that there may be.

        A word counts 1, and each of its spellings an equal share. Stop words are left out where
        there is anything else.
        """
        weights: dict[str, float] = {}
        for tongue in self._tongues.values() or [self._tongue]:
            own: dict[str, float] = {}
            for spellings in self._spellings(text, tongue):
                for term in spellings:
                    own[term] = own.get(term, 0.0) + 1 / len(spellings)
            weights |= {term: max(weight, weights.get(term, 0.0)) for term, weight in own.items()}
        return {
            term: weight for term, weight in weights.items() if term not in self.stop_words
        } or weights

    def phrases(self, text: str) -> list[list[PhraseWord]]:
        """Return the words of a phrase in order, once for each language that they differ in."""
        found: dict[tuple[PhraseWord, ...], None] = {}
        for tongue in self._tongues.values() or [self._tongue]:
            found[tuple(word.as_phrase() for word in self._words(text, tongue))] = None
        return [list(words) for words in found if words]

    def content_terms(self, text: str) -> list[str]:
        """Return the terms without stop words; all of them where there are only stop words."""
        terms = self.terms(text)
        return [term for term in terms if term not in self.stop_words] or terms

    def _tongue_of(self, language: str) -> _Tongue:
        return self._tongues.get(LANGUAGES.get(language, ""), self._tongue)

    def _terms(self, text: str, tongue: _Tongue) -> list[str]:
        return [term for spellings in self._spellings(text, tongue) for term in spellings]

    def _spellings(self, text: str, tongue: _Tongue) -> Iterator[tuple[str, ...]]:
        for word in self._words(text, tongue):
            yield word.spellings
            yield from word.parts

    def _words(self, text: str, tongue: _Tongue) -> Iterator[_Word]:
        text = plain_numbers(normalize(text), has_dots=tongue.has_dots)
        for match in _word_pattern().finditer(text):
            yield from tongue.analyze(match.group())


@dataclass(frozen=True, slots=True)
class _Word:
    """A word: the spellings of all of it, and of each of its parts where it is a compound.

    ``is_joined`` says that its parts in a row are the same word.
    """

    spellings: tuple[str, ...]
    parts: Chain = ()
    is_joined: bool = False

    def as_phrase(self) -> PhraseWord:
        """Return what stands for the word in a phrase."""
        whole: Chain = (self.spellings,)
        return (whole, self.parts) if self.is_joined and self.parts else (whole,)


class _Tongue:
    """One language's stemmer and stop words, and the mark that its terms carry."""

    def __init__(self, stemming: str, mark: str = "") -> None:
        self._stem = _stemmer(stemming)
        self._mark = mark
        self._stop = STOP_WORDS.get("english" if stemming == "porter" else stemming, frozenset())
        self._has_umlauts = stemming not in _FLAT
        self._has_elisions = stemming in _ELIDING
        self.has_dots = stemming in _DOTTED
        self.marked_stop_words = frozenset(mark + word for word in self._stop)
        self._known: dict[str, tuple[_Word, ...]] = {}

    def analyze(self, match: str) -> tuple[_Word, ...]:
        """Return the words of what the pattern found: one, or several where there are CJK runs."""
        known = self._known.get(match)
        if known is None:
            known = tuple(self._cut_cjk(match) if _CJK.search(match) else [self._cut(match)])
            if len(self._known) > _MOST_KNOWN:
                self._known.clear()
            self._known[match] = known
        return known

    def _cut(self, word: str) -> _Word:
        pieces = list(_parts(word))
        folded = _fold(word)
        has_lasting = bool(_LASTING.search(folded))
        whole = folded if has_lasting or len(pieces) < 2 else join_parts(folded)
        parts = [_fold(piece) for piece in pieces]
        if parts == [whole]:
            return _Word(self._spell(whole))
        is_joined = not has_lasting and not _JOINERS.search(whole)
        return _Word(self._spell(whole), tuple(map(self._spell, parts)), is_joined)

    def _spell(self, word: str) -> tuple[str, ...]:
        """Return the terms of a case-folded word: as it is written, then other spellings."""
        if word in self._stop:
            return (self._mark + word,)
        ways = [word, fold_marks(word)]
        if not word.isascii() and self._has_umlauts:
            ways.append(fold_marks(spell_out(word)))
        return tuple(dict.fromkeys(term for way in ways for term in self._terms(way)))

    def _terms(self, word: str) -> Iterator[str]:
        if _OTHER.search(word):  # no plain word of letters: an identifier, a number
            yield word.replace("'", "")[:_MAX_TERM]
            return
        if self._stem is str and word.endswith("'s"):
            yield self._mark + word[:_MAX_TERM]  # an inflection, which "none" leaves as it is
            return
        stem = self._stem(word)
        if "'" not in stem:
            yield self._mark + stem[:_MAX_TERM]
        if "'" in stem or ("'" in word and not self._has_elisions):
            whole = self._stem(word.removesuffix("'s").replace("'", ""))
            yield self._mark + whole[:_MAX_TERM]

    def _cut_cjk(self, word: str) -> Iterator[_Word]:
        last = 0
        for match in _CJK.finditer(word):
            if match.start() > last:
                yield self._cut(word[last : match.start()])
            run = match.group()
            if len(run) == 1:
                yield _Word((run,))
            yield from (_Word((run[index : index + 2],)) for index in range(len(run) - 1))
            last = match.end()
        if last < len(word):
            yield self._cut(word[last:])


def _fold(word: str) -> str:
    return word.casefold()[:_MAX_TERM]


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
