"""Text analyzer: tokenization, stemming and stop words, the same for an index and for a query.

Text is normalized (NFKC), case-folded and split into words. A compound (``foo_bar``, ``camelCase``,
``e-mail``, ``3.11.7``, ``C++``) gives itself and its parts; joining marks are removed from the
whole compound, so that it matches its other spellings (``foobar``, ``email``). A word with accents
gives itself with and without them. Chinese, Japanese and Korean runs give bigrams, and in an index
single characters, too, for queries of one character. Words of letters alone are stemmed by
Snowball. Stop words are indexed, but count neither in a passage's length nor in a query with any
other term.

With ``auto`` each document is stemmed by its language, and its terms are prefixed with it
(``de:haus``); a query's words are looked up in every language. So a word matches its inflections in
documents of any language, and a stop word of one language (``die``) is a term in another.

Spellings are unified: ``1,234`` is ``1234``, ``e-mail`` is ``email``, ``getUserName`` is
``getusername``, ``café`` also gives ``cafe``, ``Müller`` ``Mueller``; variants of hyphens,
apostrophes and digits are mapped to ASCII, and invisible characters are removed.

Not supported: word boundaries of Thai, Lao and Khmer (a run is one term), synonyms, misspellings
(those of questions: ``rag.generation.question``), words written separately in one place and
together in another (``data base``) without a hyphen or a capital letter, British and American
spelling, abbreviations.

The English stop words are Lucene's 33. The other lists are articles, pronouns, prepositions,
conjunctions and the forms of to be and to have, and as short: none contains a content word.
Languages without a list have no stop words. English words that ask (how, which) are indexed as any
other, but left out of a query.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

from stillroom.provenance import digest_json
from stillroom.rag.analysis.phrases import Chain, PhraseWord, PositionedTerms, encode_position
from stillroom.rag.analysis.stop_words import QUESTION_WORDS, STOP_WORDS

__all__ = [
    "ANALYZER_VERSION",
    "LANGUAGES",
    "Analyzer",
    "Stemming",
    "fold_diacritics",
    "normalize_numbers",
]


ANALYZER_VERSION = 6
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
_DEFAULT_LANGUAGE = "english"  # of a text of unknown language
_FINGERPRINT_TEXT = (
    "The quick-witted C++ runners' CamelCase v3.11.7 running naïve 日本語テキスト foo_bar Müller "
    "1,234 1.234 3,5 O’Reilly ёлка GPUs 5kg"
)
_CAMEL_CASE_BOUNDARY = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_NUMBER_WITH_UNIT = re.compile(
    r"(\d+)(?!(?:st|nd|rd|th|s)\b)([a-z]{1,4})"
)  # 5kg, 24h; not 1st, 1990s
_ACRONYM_PLURAL = re.compile(r"(?:[A-Z]{2,}\d*|[A-Za-z]+\d+)s")
_JOINERS = re.compile(r"[_.\-@:/+#&]")
_NOT_A_LETTER = re.compile(r"[\d_.\-@:/+#&]")
_SEPARATING_JOINERS = re.compile(r"[@:/+#&]")  # join words that are not one word
_WITHOUT_UMLAUT_SPELLING = frozenset(
    {"finnish", "hungarian", "turkish"}
)  # languages without the spelling ae for ä
_ELISION_LANGUAGES = frozenset({"french", "irish", "italian"})  # stemmers that remove l'
_DOT_GROUPED_LANGUAGES = frozenset(
    "danish dutch german greek indonesian italian norwegian portuguese romanian spanish"  # noqa: SIM905
    " turkish".split()
)
_MAX_CACHED_WORDS = 200_000
_CJK = re.compile("[぀-ヿ㐀-䶿一-鿿가-힯豈-﫿\U00020000-\U0003ffff]+")


class Analyzer:
    """Splits text into terms; equal settings give equal terms."""

    def __init__(self, stemming: Stemming = "english") -> None:
        """Analyze with a Snowball stemmer, with one per text's language, or without stemming."""
        self.stemming = stemming
        self._rules_by_language = (
            {name: _LanguageRules(name, f"{code}:") for code, name in LANGUAGES.items()}
            if stemming == "auto"
            else {}
        )
        self._default_rules = self._rules_by_language.get(_DEFAULT_LANGUAGE) or _LanguageRules(
            stemming
        )
        all_rules = self._rules_by_language.values() or [self._default_rules]
        self.stop_words = frozenset(word for rules in all_rules for word in rules.marked_stop_words)
        self._question_words = {
            term
            for rules in all_rules
            if rules.is_english
            for word in QUESTION_WORDS
            for term in self._terms(word, rules)
        }

    @property
    def _codes(self) -> list[str]:
        return list(LANGUAGES) if self._rules_by_language else []

    @property
    def fingerprint(self) -> str:
        """Digest of the version, the settings and the terms of a fixed text."""
        probed = [self.index_terms(_FINGERPRINT_TEXT, code) for code in ("", *self._codes)]
        return digest_json([ANALYZER_VERSION, self.stemming, probed])

    def terms(self, text: str, language: str = "") -> list[str]:
        """Return the terms of a text in order, stop words and all spellings included.

        ``language`` (ISO 639-1) is used only by ``auto``.
        """
        return self._terms(text, self._get_rules(language))

    def index_terms(self, text: str, language: str = "") -> list[str]:
        """Return the terms to index: those of ``terms``, and single CJK characters."""
        return [term for term, _ in self.get_positioned_terms([text], language)[0]]

    def get_positioned_terms(
        self, texts: Sequence[str], language: str = ""
    ) -> tuple[PositionedTerms, int]:
        """Return the terms of a field with their positions, and the field's length.

        The length is the number of terms without stop words and alternative spellings.
        ``texts`` are consecutive, as the headings of a path; ``language`` is used only by
        ``auto``.
        """
        rules, stop = self._get_rules(language), self.stop_words
        positioned: PositionedTerms = []
        length = number = 0
        for text in texts:
            for word in self._words(text, rules):
                for slot, spellings in enumerate((word.spellings, *word.parts)):
                    is_last = slot in (0, len(word.parts))
                    position = encode_position(number, slot, is_last=is_last)
                    positioned += [(term, position) for term in spellings]
                    length += spellings[0] not in stop
                number += 1
        characters = [
            character
            for text in texts
            for run in _CJK.findall(_normalize_spelling(text))
            if len(run) > 1
            for character in run
        ]
        # Positions that match no phrase: single characters are not consecutive words.
        positioned += [
            (character, encode_position(number + 1 + 2 * index))
            for index, character in enumerate(characters)
        ]
        return positioned, length + len(characters)

    def query_terms(self, text: str) -> dict[str, float]:
        """Return the weighted terms of a query, each word in all languages of the analyzer.

        The spellings of a word share a weight of 1. In each language, stop words are left out if
        there are other terms, English question words if there are others still; a lone stop word
        counts only in the languages in which it is none.
        """
        weights: dict[str, float] = {}
        lone: dict[str, float] = {}
        for rules in self._rules_by_language.values() or [self._default_rules]:
            shares: dict[str, float] = {}
            for spellings in self._spellings(text, rules):
                for term in spellings:
                    shares[term] = shares.get(term, 0.0) + 1 / len(spellings)
            for left_out in (self.stop_words | self._question_words, self.stop_words):
                if kept := {term: shares[term] for term in shares if term not in left_out}:
                    break
            else:
                kept = shares if len(shares) > 1 else {}
                lone |= shares
            weights |= {term: max(weight, weights.get(term, 0.0)) for term, weight in kept.items()}
        return weights or lone

    def phrases(self, text: str) -> list[list[PhraseWord]]:
        """Return the words of a phrase in order, once for each language in which they differ."""
        phrases: dict[tuple[PhraseWord, ...], None] = {}
        for rules in self._rules_by_language.values() or [self._default_rules]:
            phrases[tuple(word.as_phrase() for word in self._words(text, rules))] = None
        return [list(words) for words in phrases if words]

    def content_terms(self, text: str) -> list[str]:
        """Return the terms without stop words, or all terms if there are only stop words."""
        terms = self.terms(text)
        return [term for term in terms if term not in self.stop_words] or terms

    def has_content(self, text: str, languages: Sequence[str] = ()) -> bool:
        """Return whether a text has a term that is no stop word and no English question word.

        ``languages`` (ISO 639-1) are used only by ``auto``: any of them may be that of the text.
        """
        empty = self.stop_words | self._question_words
        codes = set(languages) or {""}
        return any(term not in empty for code in codes for term in self.terms(text, code))

    def _get_rules(self, language: str) -> _LanguageRules:
        return self._rules_by_language.get(LANGUAGES.get(language, ""), self._default_rules)

    def _terms(self, text: str, rules: _LanguageRules) -> list[str]:
        return [term for spellings in self._spellings(text, rules) for term in spellings]

    def _spellings(self, text: str, rules: _LanguageRules) -> Iterator[tuple[str, ...]]:
        for word in self._words(text, rules):
            yield word.spellings
            yield from word.parts

    def _words(self, text: str, rules: _LanguageRules) -> Iterator[_Word]:
        text = normalize_numbers(_normalize_spelling(text), has_dots=rules.has_dots)
        for match in _word_pattern().finditer(text):
            yield from rules.analyze(match.group())


@dataclass(frozen=True, slots=True)
class _Word:
    """A word with its spellings, and the spellings of its parts if it is a compound.

    ``is_joined`` is True if its consecutive parts are the same word.
    """

    spellings: tuple[str, ...]
    parts: Chain = ()
    is_joined: bool = False

    def as_phrase(self) -> PhraseWord:
        """Return the word's alternatives in a phrase."""
        chain: Chain = (self.spellings,)
        return (chain, self.parts) if self.is_joined and self.parts else (chain,)


class _LanguageRules:
    """Stemmer and stop words of one language, and the prefix of its terms."""

    def __init__(self, stemming: str, mark: str = "") -> None:
        self._stem = _get_stemmer(stemming)
        self._mark = mark
        self.is_english = stemming in {"english", "porter"}
        self._stop = STOP_WORDS.get("english" if self.is_english else stemming, frozenset())
        self._has_umlauts = stemming not in _WITHOUT_UMLAUT_SPELLING
        self._has_elisions = stemming in _ELISION_LANGUAGES
        self.has_dots = stemming in _DOT_GROUPED_LANGUAGES
        self.marked_stop_words = frozenset(mark + word for word in self._stop)
        self._known: dict[str, tuple[_Word, ...]] = {}

    def analyze(self, match: str) -> tuple[_Word, ...]:
        """Return the words of a match: one, or several if it contains CJK runs."""
        known = self._known.get(match)
        if known is None:
            known = tuple(self._cut_cjk(match) if _CJK.search(match) else [self._cut(match)])
            if len(self._known) > _MAX_CACHED_WORDS:
                self._known.clear()
            self._known[match] = known
        return known

    def _cut(self, word: str) -> _Word:
        folded = _fold_case(word)
        if _ACRONYM_PLURAL.fullmatch(word):  # no camel case, and a stemmer would keep "gpus"
            both = (*self._spell(folded), *self._spell(folded.removesuffix("s")))
            return _Word(tuple(dict.fromkeys(both)))
        pieces = list(_split_compound(word))
        has_separator = bool(_SEPARATING_JOINERS.search(folded))
        compound = folded if has_separator or len(pieces) < 2 else _remove_joiners(folded)
        parts = [_fold_case(piece) for piece in pieces]
        if parts == [compound]:
            return _Word(self._spell(compound))
        is_joined = not has_separator and not _JOINERS.search(compound)
        return _Word(self._spell(compound), tuple(map(self._spell, parts)), is_joined)

    def _spell(self, word: str) -> tuple[str, ...]:
        """Return the terms of a case-folded word: as written, then alternative spellings."""
        if word in self._stop:
            return (self._mark + word,)
        spellings = [word, fold_diacritics(word)]
        if not word.isascii() and self._has_umlauts:
            spellings.append(fold_diacritics(_transliterate_umlauts(word)))
        return tuple(
            dict.fromkeys(term for spelling in spellings for term in self._terms(spelling))
        )

    def _terms(self, word: str) -> Iterator[str]:
        if _NOT_A_LETTER.search(word):  # not a plain word: an identifier, a number
            yield word.replace("'", "")[:_MAX_TERM]
            if word.endswith("'s"):  # P-200's
                yield word.removesuffix("'s").replace("'", "")[:_MAX_TERM]
            return
        if self._stem is str and word.endswith("'s"):
            yield self._mark + word[:_MAX_TERM]  # an inflection, unchanged by "none"
            return
        stem = self._stem(word)
        if "'" not in stem:
            yield self._mark + stem[:_MAX_TERM]
        if "'" in stem or ("'" in word and not self._has_elisions):
            stem_without_apostrophe = self._stem(word.removesuffix("'s").replace("'", ""))
            yield self._mark + stem_without_apostrophe[:_MAX_TERM]

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


def _fold_case(word: str) -> str:
    return word.casefold()[:_MAX_TERM]


def _split_compound(word: str) -> Iterator[str]:
    for piece in _JOINERS.split(word):
        trimmed = piece.strip("'")
        measure = _NUMBER_WITH_UNIT.fullmatch(trimmed)
        if measure is not None:
            yield from measure.groups()
        elif trimmed:
            yield from _CAMEL_CASE_BOUNDARY.split(trimmed)


@lru_cache(maxsize=1)
def _word_pattern() -> re.Pattern[str]:
    r"""Return a pattern of words with their joiners; unlike in ``\w``, marks belong to letters.

    A name that ends in signs starts a word, so that ``C++`` is found in ``C/C++`` and ``C#/C++``.
    """
    marks, start = [], -1
    for point in range(0x300, 0x11000):
        is_mark = unicodedata.category(chr(point)) in {"Mn", "Mc"}
        if is_mark and start < 0:
            start = point
        elif not is_mark and start >= 0:
            marks.append(f"{chr(start)}-{chr(point - 1)}")
            start = -1
    letter = rf"[\w{''.join(marks)}]"
    signs = rf"(?:\+\+|#)(?!{letter})"
    joined = rf"(?![\-:/&]{letter}+{signs})[.\-'@:/+#&]{letter}+"
    return re.compile(rf"{letter}+(?:{joined})*(?:\+\+|#)?")


@lru_cache(maxsize=64)
def _make_stemmer(language: str) -> object:
    import snowballstemmer

    return snowballstemmer.stemmer(language)


class _Stemmer:
    """A Snowball stemmer with a cache of words."""

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
def _get_stemmer(stemming: str) -> _Stemmer | type[str]:
    if stemming not in get_args(Stemming):
        raise ValueError(stemming)
    return str if stemming == "none" else _Stemmer(stemming)


_LOOKALIKES = str.maketrans(
    dict.fromkeys("\u2018\u2019\u02bc\u02bb\uff07", "'")
    | dict.fromkeys("\u2010\u2011\ufe63\uff0d", "-")
    | dict.fromkeys("\u00ad\u200c\u200d\u2060\ufeff")
)
_SPACED_GROUPS = re.compile(
    r"(?<![\d.,'])[0-9]{1,3}(?:[\u00a0\u2007\u2009\u202f][0-9]{3})+(?![0-9])"
)
_NUMBER = re.compile(r"(?<![\w.,'])[0-9][0-9.,'_]*[0-9]")
_COMMA_GROUPED = re.compile(r"[0-9]{1,3}(?:,[0-9]{2,3})*,[0-9]{3}(?:\.[0-9]+)?")
_MARK_GROUPED = re.compile(r"[0-9]{1,3}(?:'[0-9]{3})+(?:[.,][0-9]+)?|[0-9]{1,3}(?:_[0-9]{3})+")
_DOT_GROUPED = re.compile(r"[0-9]{1,3}(?:\.[0-9]{3}){2,}|[0-9]{1,3}(?:\.[0-9]{3})+,[0-9]+")
_ONE_DOT_GROUP = re.compile(r"[0-9]{1,3}\.[0-9]{3}")
_DECIMAL = re.compile(r"[0-9]+,[0-9]+")
_JOINER = re.compile(r"(?<![0-9])[_\-.']|[_\-.'](?![0-9])")
_NO_MARKS = str.maketrans(
    dict(zip("øłđðħıŧþ", ("o", "l", "d", "d", "h", "i", "t", "th"), strict=True))
    | {"æ": "ae", "œ": "oe", "ё": "е", "ـ": ""}
)
_UMLAUT_SPELLINGS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "ø": "oe", "å": "aa"})
_DIACRITIC_SCRIPTS = ("LATIN", "GREEK", "ARABIC", "HEBREW")
_STRESS = "\u0301"


def _normalize_spelling(text: str) -> str:
    """Return text in NFKC, with ASCII punctuation and digits, without invisible characters."""
    if text.isascii():
        return text
    text = _SPACED_GROUPS.sub(lambda match: re.sub(r"\D", "", match.group()), text)
    text = unicodedata.normalize("NFKC", text.translate(_LOOKALIKES)).translate(_LOOKALIKES)
    return re.sub(r"[^\x00-\x7f]", _ascii_digit, text) if re.search(r"(?![0-9])\d", text) else text


def normalize_numbers(text: str, *, has_dots: bool = False) -> str:
    """Return text with numbers written without thousands separators, and with a decimal point.

    Args:
        text: Text after ``_normalize_spelling``.
        has_dots: Whether its language separates thousands by points, so that ``1.234`` is 1234.
    """
    return _NUMBER.sub(lambda match: _normalize_number(match.group(), has_dots), text)


def _remove_joiners(word: str) -> str:
    """Return a case-folded compound without joining marks, except those between digits."""
    return word if word.startswith("_") or word.endswith("_") else _JOINER.sub("", word)


def fold_diacritics(word: str) -> str:
    """Return a case-folded word without diacritics that its script can do without.

    Vowel signs of Indian scripts and the breve of the Cyrillic short i are kept.
    """
    if word.isascii():
        return word
    characters: list[str] = []
    base = ""
    for character in unicodedata.normalize("NFD", word.translate(_NO_MARKS)):
        if unicodedata.category(character) != "Mn":
            base = character
        elif character == _STRESS or unicodedata.name(base or character, "").startswith(
            _DIACRITIC_SCRIPTS
        ):
            continue
        characters.append(character)
    return unicodedata.normalize("NFC", "".join(characters))


def _transliterate_umlauts(word: str) -> str:
    """Return a case-folded word in the spelling of keyboards without umlauts."""
    return word.translate(_UMLAUT_SPELLINGS)


def _ascii_digit(match: re.Match[str]) -> str:
    value = unicodedata.decimal(match.group(), None)
    return match.group() if value is None else str(value)


def _normalize_number(number: str, has_dots: bool) -> str:
    if _COMMA_GROUPED.fullmatch(number):
        return number.replace(",", "")
    if _MARK_GROUPED.fullmatch(number):
        return re.sub("['_]", "", number).replace(",", ".")
    if _DOT_GROUPED.fullmatch(number) or (has_dots and _ONE_DOT_GROUP.fullmatch(number)):
        return number.replace(".", "").replace(",", ".")
    return number.replace(",", ".") if _DECIMAL.fullmatch(number) else number


LANGUAGES = {
    "ar": "arabic",
    "da": "danish",
    "de": "german",
    "el": "greek",
    "en": "english",
    "es": "spanish",
    "fi": "finnish",
    "fr": "french",
    "ga": "irish",
    "hi": "hindi",
    "hu": "hungarian",
    "id": "indonesian",
    "it": "italian",
    "lt": "lithuanian",
    "nl": "dutch",
    "no": "norwegian",
    "pt": "portuguese",
    "ro": "romanian",
    "ru": "russian",
    "sv": "swedish",
    "ta": "tamil",
    "tr": "turkish",
}
"""Names of Snowball stemmers by ISO 639-1 code."""
