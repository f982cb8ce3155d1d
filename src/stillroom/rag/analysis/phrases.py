"""Phrase queries (quoted exact words), word positions, and noun phrases and acronyms by rule.

A word has a number in its field. All spellings of the whole word are at slot 0, the parts of a
compound at the next slots, so that ``e-mail address`` matches ``email address``, and ``user name``
matches ``userName``. A position is one integer of word number, slot and end flag.

In a query, ``"exact words"`` must be consecutive, as split by the analyzer (stemmed if the index
is); ``headings:word`` and ``body:word`` must occur in that field (``title:`` and ``heading:`` are
``headings:``), and ``headings:"exact words"`` combines both. Everything else is plain words, and
every text is a valid query: an unpaired quotation mark, an unknown field and an empty pair are
plain words, too. There are no AND, OR, NOT and wildcards, which people write without meaning them;
fields of documents are for filters (``stillroom.rag.storage.filters``).

A noun phrase is a run of words without a function word, an adverb, a verb of the list or a
punctuation mark; a run of capitalized words within it is a phrase, too (``physicist Marie Curie``
gives both). A single word counts after a determiner or preposition (``the compiler``), or at the
start of a sentence. In languages other than English, whose function words are not listed, only
names count: capitalized words, identifiers, acronyms, and runs of Chinese or Japanese characters.

Source: the noun-phrase graph of FastGraphRAG (Edge et al. 2024, arXiv:2404.16130, and its code).
Acronyms: Schwartz and Hearst 2003, "A simple algorithm for identifying abbreviation definitions in
biomedical text".

There is no part-of-speech tagging: verbs that are not listed stay in; most of them are removed by
later pruning of phrases that occur only once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from stillroom.text.language import split_sentences

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.rag.analysis.analyzer import Analyzer
    from stillroom.rag.search_engines.keyword import Field, KeywordEngine

__all__ = [
    "Chain",
    "Phrase",
    "PhraseClause",
    "PhraseWord",
    "PositionedTerms",
    "encode_position",
    "find_acronyms",
    "find_phrase_rows",
    "find_phrases",
    "match_clauses",
    "parse_query",
]


Chain = tuple[tuple[str, ...], ...]
"""Consecutive slots or words, each as its alternative spellings."""
PhraseWord = tuple[Chain, ...]
"""Word of a phrase, as alternative chains."""
PositionedTerms = list[tuple[str, int]]
"""Terms of a field with their positions, ascending."""
Occurrences = Callable[[str], "tuple[NDArray[np.int64], NDArray[np.int64]]"]
_SLOT_BITS = 4
_LAST = 1
_WORD = 1 << (_SLOT_BITS + 1)
_MAX_PARTS = (1 << _SLOT_BITS) - 1


def encode_position(word: int, slot: int = 0, *, is_last: bool = True) -> int:
    """Return the position of a slot of a word; parts after the fifteenth share its slot."""
    return word * _WORD + (min(slot, _MAX_PARTS) << 1) + is_last


def find_phrase_rows(
    words: Sequence[PhraseWord | str], occurrences: Occurrences
) -> NDArray[np.int64]:
    """Return the rows that contain consecutive words, ascending.

    Args:
        words: Words of the phrase, split by the analyzer, stop words included; a string is a word
            with one spelling. No words match nothing.
        occurrences: Returns the rows and positions of a term, both ascending.
    """
    ends: NDArray[np.int64] | None = None
    for word in words:
        chains = (((word,),),) if isinstance(word, str) else word
        chain_ends = [_follow_chain(chain, ends, occurrences) for chain in chains]
        ends = _merge_sorted(chain_ends)
        if not len(ends):
            break
    return np.zeros(0, dtype=np.int64) if ends is None else np.unique(ends >> 32)


def _follow_chain(
    chain: Chain, ends: NDArray[np.int64] | None, occurrences: Occurrences
) -> NDArray[np.int64]:
    """Return the end positions of a chain that starts after ``ends``, as row << 32 | position."""
    for spellings in chain:
        key_arrays = [(rows << 32) + positions for rows, positions in map(occurrences, spellings)]
        keys = _merge_sorted(key_arrays)
        ends = keys if ends is None else keys[_is_adjacent(keys, ends)]
        if not len(ends):
            break
    return np.zeros(0, dtype=np.int64) if ends is None else ends


def _merge_sorted(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Return the sorted union of sorted arrays."""
    if len(parts) == 1:
        return parts[0]
    return np.unique(np.concatenate(parts)) if parts else np.zeros(0, dtype=np.int64)


def _is_adjacent(keys: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which keys directly follow an end, within a compound or at the start of the next word.

    Ends are searched for by bisection from each key, so that occurrences of frequent words are not
    expanded.
    """
    is_last = ends % 2 == _LAST
    words = ends[is_last] // _WORD
    parts = ends[~is_last & ((ends % _WORD) >> 1 > 0)]
    is_start = (keys % _WORD) >> 1 <= 1
    is_adjacent = np.empty(len(keys), dtype=np.bool_)
    is_adjacent[is_start] = _contains(words, keys[is_start] // _WORD - 1)
    is_adjacent[~is_start] = _contains(parts, keys[~is_start] - keys[~is_start] % 2 - 2)
    return is_adjacent


def _contains(ascending: NDArray[np.int64], values: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which values are in a sorted array."""
    if not len(ascending):
        return np.zeros(len(values), dtype=np.bool_)
    indices = np.searchsorted(ascending, values)
    indices[indices == len(ascending)] = 0
    is_member: NDArray[np.bool_] = ascending[indices] == values
    return is_member


_MAX_CLAUSES = 16
_FIELDS: dict[str, Field] = {
    "headings": "headings",
    "heading": "headings",
    "title": "headings",
    "body": "body",
}
_QUOTED = '"([^"]*)"|“([^“”]*)”'
_CLAUSE = re.compile(rf"(?:(?<!\S)(\w+):)?(?:{_QUOTED})|(?<!\S)(\w+):(\S+)")


@dataclass(frozen=True, slots=True)
class PhraseClause:
    """Consecutive words that a query requires, in one field or in any."""

    text: str
    field: Field | None = None


def parse_query(text: str) -> tuple[str, tuple[PhraseClause, ...]]:
    """Return the plain words of a query and its clauses; never raises.

    After 16 clauses, the rest of the text is plain words.
    """
    clauses: list[PhraseClause] = []

    def take(match: re.Match[str]) -> str:
        name, straight, curly, word_name, word = match.groups()
        if word is not None:
            name, inner = word_name, word.strip('"“”')
        else:
            inner = straight if straight is not None else curly
        field = _FIELDS.get((name or "").casefold())
        is_known = field is not None or not name
        if not is_known or not inner.strip() or len(clauses) >= _MAX_CLAUSES:
            return match.group()
        clauses.append(PhraseClause(" ".join(inner.split()), field))
        return inner

    plain = _CLAUSE.sub(take, text)
    return (plain, tuple(clauses)) if clauses else (text, ())


def match_clauses(
    clauses: tuple[PhraseClause, ...], engine: KeywordEngine, analyzer: Analyzer
) -> NDArray[np.bool_]:
    """Return a mask of an engine's rows that match all clauses, (P,) bool.

    A clause without terms (``"!!!"``) matches all rows.
    """
    mask = np.ones(len(engine), dtype=bool)
    for clause in clauses:
        phrases = analyzer.phrases(clause.text)
        if not phrases:
            continue
        matched = np.zeros(len(engine), dtype=bool)
        for field in _get_fields(clause):
            for words in phrases:
                matched[engine.phrase(words, field=field)] = True
        mask &= matched
    return mask


def _get_fields(clause: PhraseClause) -> Iterator[Field]:
    yield from ("headings", "body") if clause.field is None else (clause.field,)


_FUNCTION = (
    "a about above according across actually after afterwards again against ago all almost along "
    "already also although always am among an and another any anybody anyone anything anyway "
    "anywhere are around as aside at away back be became because become becomes been before "
    "behind being below beneath beside besides between beyond both but by can cannot could did do "
    "does doing done down due during each either else elsewhere enough etc even ever every "
    "everybody everyone everything everywhere except few fewer first for former from further had "
    "has have having he hence her here hers herself him himself his how however i if in inside "
    "instead into is it its itself just last later latter least less let like likely lot lots many "
    "may maybe me meanwhile might mine more moreover most much must my myself namely near nearly "
    "neither never nevertheless next no nobody none nor not nothing now nowhere of off often on "
    "once one ones only onto or other others otherwise our ours ourselves out outside over own per "
    "perhaps please quite rather really s same second seem seemed seems several shall she should "
    "since so some somebody somehow someone something sometimes somewhere still such t than that "
    "the their theirs them themselves then thence there therefore these they third this those "
    "though three through throughout thus to together too toward towards two under unless until up "
    "upon us very via was we well were what whatever when whenever where whereas wherever whether "
    "which while who whoever whole whom whose why will with within without would yes yet you your "
    "yours yourself yourselves four five six seven eight nine ten able available new good better "
    "best different various certain"
)
_VERBS = (
    "add added adding allow allowed allows appear appears apply applies ask asked asks begin "
    "begins began bring brings call called calls came choose come comes consider contain contains "
    "continue create created creates creating describe described describes enable enables ensure "
    "ensures explain explains find finds follow followed follows found gave get gets getting give "
    "given gives go goes going gone got happen happened happens help helps hold holds include "
    "included includes including keep keeps knew know known knows learn leave leaves left look "
    "looks made make makes making mean means meet need needed needs offer offers place play "
    "provide provided provides providing put reach reached read receive run runs said saw say says "
    "see seen sent set show showed shown shows specify start started starts take taken takes "
    "taking tell tells think took tried try trying turn turned turns understand use used uses "
    "using visit want wanted wants went work worked works write writes written wrote"
)
_DETERMINER_WORDS = (
    "a an the this that these those its their his her our your my each every no some any of in "
    "on at by for with from into via per between within without about against"
)
_DETERMINERS = frozenset(_DETERMINER_WORDS.split())
_STOPS = frozenset((*_FUNCTION.split(), *_VERBS.split()))
_CONNECTORS = frozenset("of de von van der del la le du di".split())  # noqa: SIM905
_WORD_PATTERN = re.compile(r"[^\W_]+(?:[_.\-'’@:/+#&]+[^\W_]+)*(?:\+\+|#)?")
_GAP = re.compile(r"[ \t]*\n?[ \t]*\Z")
_CJK = re.compile("[㐀-䶿一-鿿豈-﫿]{2,6}|[゠-ヿ]{2,20}")
_CJK_CHARACTER = re.compile("[぀-ヿ㐀-䶿一-鿿가-힯]")
_ACRONYM = re.compile(r"\(([A-Z][A-Za-z0-9&\-]{1,9})\)")
_MAX_WORDS = 4
_MAX_PHRASE_LENGTH = 80
_Kind = Literal["stop", "name", "word", "number"]


@dataclass(frozen=True, slots=True)
class Phrase:
    """Noun phrase ``text[start:end]``, with the number of its sentence, from 0."""

    start: int
    end: int
    sentence: int


@dataclass(frozen=True, slots=True)
class _Token:
    start: int
    end: int
    text: str
    kind: _Kind
    is_joined: bool
    """Whether only white space separates this word from the previous one."""


def find_phrases(text: str, language: str = "") -> list[Phrase]:
    """Return the noun phrases of a text by start, longer ones first at equal starts.

    Code and tables give their identifiers; an empty language is treated as English.
    """
    is_known = language in {"", "en"}
    spans: dict[tuple[int, int], int] = {}
    for number, (start, end) in enumerate(split_sentences(text)):
        tokens = _tokenize(text, start, end, is_known)
        for run in _iter_runs(tokens):
            for first, last in _iter_run_phrases(run, is_known):
                if last - first <= _MAX_PHRASE_LENGTH:
                    spans.setdefault((first, last), number)
        for match in _CJK.finditer(text, start, end):
            spans.setdefault(match.span(), number)
    ordered = sorted(spans.items(), key=lambda item: (item[0][0], -item[0][1]))
    return [Phrase(start, end, number) for (start, end), number in ordered]


def find_acronyms(text: str) -> list[tuple[str, str]]:
    """Return pairs of acronym and expansion that a text defines: ``World Bank Group (WBG)``."""
    acronyms = []
    for match in _ACRONYM.finditer(text):
        short = match.group(1)
        before = text[max(match.start() - 20 * len(short), 0) : match.start()].rstrip()
        sentence = re.split(r"[.;:!?()\n]", before)[-1]
        words = sentence.split()[-min(len(short) + 5, 2 * len(short)) :]
        long = _match_letters(short, " ".join(words))
        if long and long.casefold() != short.casefold():
            acronyms.append((short, long))
    return acronyms


def _match_letters(short: str, long: str) -> str:
    """Return the end of ``long`` that contains the letters of ``short`` in order, or nothing.

    The first letter must start a word.
    """
    position = len(long) - 1
    for index in range(len(short) - 1, -1, -1):
        letter = short[index].casefold()
        if not letter.isalnum():
            continue
        while position >= 0 and not (
            long[position].casefold() == letter
            and (index > 0 or position == 0 or not long[position - 1].isalnum())
        ):
            position -= 1
        if position < 0:
            return ""
        position -= 1
    return long[position + 1 :]


def _tokenize(text: str, start: int, end: int, is_known: bool) -> list[_Token]:
    tokens: list[_Token] = []
    last = start
    for match in _WORD_PATTERN.finditer(text, start, end):
        word = match.group().rstrip("-'’./:&")
        is_joined = bool(tokens) and _GAP.match(text[last : match.start()]) is not None
        last = match.start() + len(word)
        kind = _classify_word(word, is_first=not tokens, is_known=is_known)
        tokens.append(_Token(match.start(), last, word, kind, is_joined))
    if len(tokens) > 1 and tokens[0].kind == "word" and tokens[0].text[0].isupper():
        first, second = tokens[:2]
        if second.kind == "name" and second.is_joined and second.text[0].isupper():
            tokens[0] = replace(first, kind="name")  # Fairhaven Yard, at the start of a sentence
    return tokens


def _classify_word(word: str, *, is_first: bool, is_known: bool) -> _Kind:
    folded = word.casefold().replace("’", "'")
    if folded in _STOPS and not (word.isupper() and len(word) > 2):
        return "stop"
    if _CJK_CHARACTER.search(word):
        return "stop"  # such runs are matched by their characters
    if not any(character.isalpha() for character in word):
        return "number"
    if "'" in folded and folded.rsplit("'", 1)[1] in {"t", "re", "ve", "ll", "d", "m"}:
        return "stop"
    if _is_name(word) and not (is_first and word[1:].islower() and is_known):
        return "name"
    return "stop" if len(word) > 4 and word.islower() and word.endswith("ly") else "word"


def _is_name(word: str) -> bool:
    """Return whether a word looks like a name: with a capital, an underscore or a digit."""
    return any(map(str.isupper, word)) or "_" in word or any(map(str.isdigit, word))


def _iter_runs(tokens: Sequence[_Token]) -> Iterator[tuple[list[_Token], bool]]:
    """Yield uninterrupted runs of words, and whether a determiner precedes them."""
    run: list[_Token] = []
    is_announced = bool(tokens) and tokens[0].text[0].isupper()
    for number, token in enumerate(tokens):
        if token.kind == "stop" and not _is_connector(tokens, number):
            if run:
                yield run, is_announced
            run, is_announced = [], token.text.casefold() in _DETERMINERS
            continue
        if run and (not token.is_joined or _is_boundary(run[-1], token)):
            yield run, is_announced
            run, is_announced = [], False
        elif not run and number and not token.is_joined:
            is_announced = False
        run.append(token)
    if run:
        yield run, is_announced


def _is_connector(tokens: Sequence[_Token], number: int) -> bool:
    """Return whether a connector is within a name: ``University of Oxford``."""
    token = tokens[number]
    if token.text not in _CONNECTORS or not 0 < number < len(tokens) - 1:
        return False
    before, after = tokens[number - 1], tokens[number + 1]
    is_tight = token.is_joined and after.is_joined
    return is_tight and before.kind == after.kind == "name"


def _is_boundary(before: _Token, after: _Token) -> bool:
    """Return whether a phrase ends between two words: at a repeat, a plural or a participle."""
    if before.text.casefold() == after.text.casefold():
        return True
    if before.kind != "word":
        return False
    is_plural = before.text.endswith("s") and not before.text.endswith(("ss", "us", "is"))
    return (is_plural and len(before.text) > 3) or _is_participle(after)


def _iter_run_phrases(
    announced_run: tuple[list[_Token], bool], is_known: bool
) -> Iterator[tuple[int, int]]:
    """Yield the spans of the phrases of one run: its names, and the whole run."""
    run, is_announced = announced_run
    for names in _iter_names(run):
        if len(names) <= _MAX_WORDS + 2 and not all(token.kind == "number" for token in names):
            yield names[0].start, names[-1].end
    if not is_known or all(token.kind in {"name", "number", "stop"} for token in run):
        return
    words = run[-_MAX_WORDS:]
    while words and (words[0].kind in {"number", "stop"} or _is_participle(words[0])):
        words = words[1:]
    if len(words) > 1 or (words and is_announced and len(words[0].text) > 2):
        yield words[0].start, words[-1].end


def _is_participle(token: _Token) -> bool:
    return token.kind == "word" and len(token.text) > 4 and token.text.endswith("ed")


def _iter_names(run: Sequence[_Token]) -> Iterator[list[_Token]]:
    """Yield the maximal runs of names; numbers and connectors belong to the name before them."""
    names: list[_Token] = []
    for token in run:
        if token.kind == "name" or (names and token.kind in {"number", "stop"}):
            names.append(token)
        elif names:
            yield names
            names = []
    if names:
        yield names
