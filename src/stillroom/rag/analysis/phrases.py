"""Phrases: word positions, phrase queries, and rule-based noun phrases and acronyms.

A word has a number in its field. What stands for all of it (each of its spellings) is at slot 0,
the parts of a compound at the slots after, so that ``e-mail address`` is found where ``email
address`` stands, and ``user name`` within ``userName``. A position is one integer of the three.

Does not know: how texts are cut, or where occurrences lie.

``"exact words"`` must stand one after another, as the analyzer cuts them (stemmed where the index
is); ``headings:word`` and ``body:word`` must stand in that field (``title:`` and ``heading:`` are
``headings:``), and ``headings:"exact words"`` both. Everything else is words. There is no text that
cannot be read: a quotation mark without its pair, an unknown field, an empty pair are words, too.

Does not know: AND, OR, NOT and wildcards, which people write without meaning them; the fields of
documents, which a filter names (``stillroom.rag.filters``).

A phrase is a run of words that no function word, adverb, verb of the list or mark interrupts; a run
of capitalized words within it is a phrase of its own (``physicist Marie Curie`` gives both). One
word alone counts where the word before it announces a noun (``the compiler``), or where it begins
the sentence. Where a language's function words are not known (all but English), only names count:
capitalized words, identifiers, acronyms, and runs of Chinese or Japanese characters.

Source of the idea: the noun-phrase graph of FastGraphRAG (Edge et al. 2024, arXiv:2404.16130, and
its code). Acronyms: Schwartz and Hearst 2003, "A simple algorithm for identifying abbreviation
definitions in biomedical text".

Does not know: parts of speech. Verbs that are on no list stay in; what is found once only is pruned
later, and that removes most of them.
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


"""What must stand in slots or words one after another; each any one of several spellings."""


PhraseWord = tuple[Chain, ...]


"""A word of a phrase: any one of these chains stands for it."""


PositionedTerms = list[tuple[str, int]]


"""The terms of a field with their positions, ascending."""


Occurrences = Callable[[str], "tuple[NDArray[np.int64], NDArray[np.int64]]"]


_SLOT_BITS = 4


_LAST = 1


_WORD = 1 << (_SLOT_BITS + 1)


_MAX_PARTS = (1 << _SLOT_BITS) - 1


def encode_position(word: int, slot: int = 0, *, is_last: bool = True) -> int:
    """Return the position of a slot of a word; parts beyond the fifteenth share its slot."""
    return word * _WORD + (min(slot, _MAX_PARTS) << 1) + is_last


def find_phrase_rows(
    words: Sequence[PhraseWord | str], occurrences: Occurrences
) -> NDArray[np.int64]:
    """Return the rows that hold words one after another, ascending.

    Args:
        words: As the analyzer cuts the phrase, stop words included; a string is a word with one
            spelling. None find nothing.
        occurrences: Gives the rows and positions of a term, both ascending.
    """
    ends: NDArray[np.int64] | None = None
    for word in words:
        chains = (((word,),),) if isinstance(word, str) else word
        found = [_follow_chain(chain, ends, occurrences) for chain in chains]
        ends = _merge_sorted(found)
        if not len(ends):
            break
    return np.zeros(0, dtype=np.int64) if ends is None else np.unique(ends >> 32)


def _follow_chain(
    chain: Chain, ends: NDArray[np.int64] | None, occurrences: Occurrences
) -> NDArray[np.int64]:
    """Return where a chain ends that goes on from one of ``ends``: row << 32 | position."""
    for spellings in chain:
        held = [(rows << 32) + places for rows, places in map(occurrences, spellings)]
        keys = _merge_sorted(held)
        ends = keys if ends is None else keys[_is_adjacent(keys, ends)]
        if not len(ends):
            break
    return np.zeros(0, dtype=np.int64) if ends is None else ends


def _merge_sorted(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Return ascending numbers as one array of them, ascending; one alone is not sorted again."""
    if len(parts) == 1:
        return parts[0]
    return np.unique(np.concatenate(parts)) if parts else np.zeros(0, dtype=np.int64)


def _is_adjacent(keys: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which places stand right after an end, in a compound or at the next word's beginning.

    Looks back from each place, by bisection: what follows a common word is never spelled out.
    """
    is_last = ends % 2 == _LAST
    words = ends[is_last] // _WORD
    parts = ends[~is_last & ((ends % _WORD) >> 1 > 0)]
    begins = (keys % _WORD) >> 1 <= 1
    found = np.empty(len(keys), dtype=np.bool_)
    found[begins] = _contains(words, keys[begins] // _WORD - 1)
    found[~begins] = _contains(parts, keys[~begins] - keys[~begins] % 2 - 2)
    return found


def _contains(ascending: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which of the wanted numbers are among ascending ones."""
    if not len(ascending):
        return np.zeros(len(wanted), dtype=np.bool_)
    at = np.searchsorted(ascending, wanted)
    at[at == len(ascending)] = 0
    held: NDArray[np.bool_] = ascending[at] == wanted
    return held


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
    """Words that must stand one after another, in one field or in either."""

    text: str
    field: Field | None = None


def parse_query(text: str) -> tuple[str, tuple[PhraseClause, ...]]:
    """Return the words of a query without its syntax, and what must stand so; never raises.

    Args:
        text: Any text. Beyond 16 clauses the rest are words.
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
    """Return which of an engine's rows meet all clauses, (P,) bool.

    A clause that the analyzer finds no term in (``"!!!"``) asks for nothing.
    """
    found = np.ones(len(engine), dtype=bool)
    for clause in clauses:
        phrases = analyzer.phrases(clause.text)
        if not phrases:
            continue
        met = np.zeros(len(engine), dtype=bool)
        for field in _get_fields(clause):
            for words in phrases:
                met[engine.phrase(words, field=field)] = True
        found &= met
    return found


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
    """A noun phrase: its place, ``text[start:end]``, and the number of its sentence, from 0."""

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
    """Whether only white space lies between the word before and this one."""


def find_phrases(text: str, language: str = "") -> list[Phrase]:
    """Return the noun phrases of a text by place, longer ones first where places agree.

    Args:
        text: Any text; code and tables give their identifiers.
        language: ISO 639-1; empty is taken as English.
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
    found = sorted(spans.items(), key=lambda item: (item[0][0], -item[0][1]))
    return [Phrase(start, end, number) for (start, end), number in found]


def find_acronyms(text: str) -> list[tuple[str, str]]:
    """Return (acronym, what it stands for) where a text defines it: ``World Bank Group (WBG)``."""
    found = []
    for match in _ACRONYM.finditer(text):
        short = match.group(1)
        before = text[max(match.start() - 20 * len(short), 0) : match.start()].rstrip()
        sentence = re.split(r"[.;:!?()\n]", before)[-1]
        words = sentence.split()[-min(len(short) + 5, 2 * len(short)) :]
        long = _match_letters(short, " ".join(words))
        if long and long.casefold() != short.casefold():
            found.append((short, long))
    return found


def _match_letters(short: str, long: str) -> str:
    """Return the end of ``long`` that holds the letters of ``short`` in order, or nothing.

    The first letter must begin a word, and every capital a word or a capital of its own.
    """
    at = len(long) - 1
    for place in range(len(short) - 1, -1, -1):
        letter = short[place].casefold()
        if not letter.isalnum():
            continue
        while at >= 0 and not (
            long[at].casefold() == letter and (place > 0 or at == 0 or not long[at - 1].isalnum())
        ):
            at -= 1
        if at < 0:
            return ""
        at -= 1
    return long[at + 1 :]


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
        return "stop"  # such runs are found by their characters
    if not any(character.isalpha() for character in word):
        return "number"
    if "'" in folded and folded.rsplit("'", 1)[1] in {"t", "re", "ve", "ll", "d", "m"}:
        return "stop"
    if _is_name(word) and not (is_first and word[1:].islower() and is_known):
        return "name"
    return "stop" if len(word) > 4 and word.islower() and word.endswith("ly") else "word"


def _is_name(word: str) -> bool:
    """Return whether a word looks like a name: a capital, or an identifier's marks."""
    return any(map(str.isupper, word)) or "_" in word or any(map(str.isdigit, word))


def _iter_runs(tokens: Sequence[_Token]) -> Iterator[tuple[list[_Token], bool]]:
    """Yield runs of words that nothing interrupts, and whether a word announces a noun there."""
    run: list[_Token] = []
    is_announced = bool(tokens) and tokens[0].text[0].isupper()
    for at, token in enumerate(tokens):
        if token.kind == "stop" and not _is_connector(tokens, at):
            if run:
                yield run, is_announced
            run, is_announced = [], token.text.casefold() in _DETERMINERS
            continue
        if run and (not token.is_joined or _is_boundary(run[-1], token)):
            yield run, is_announced
            run, is_announced = [], False
        elif not run and at and not token.is_joined:
            is_announced = False
        run.append(token)
    if run:
        yield run, is_announced


def _is_connector(tokens: Sequence[_Token], at: int) -> bool:
    """Return whether a small word stands within a name: ``University of Oxford``."""
    token = tokens[at]
    if token.text not in _CONNECTORS or not 0 < at < len(tokens) - 1:
        return False
    before, after = tokens[at - 1], tokens[at + 1]
    is_tight = token.is_joined and after.is_joined
    return is_tight and before.kind == after.kind == "name"


def _is_boundary(before: _Token, after: _Token) -> bool:
    """Return whether a phrase ends between two words: a repeat, a plural, a participle."""
    if before.text.casefold() == after.text.casefold():
        return True
    if before.kind != "word":
        return False
    is_plural = before.text.endswith("s") and not before.text.endswith(("ss", "us", "is"))
    is_participle = after.kind == "word" and len(after.text) > 4 and after.text.endswith("ed")
    return (is_plural and len(before.text) > 3) or is_participle


def _iter_run_phrases(
    found: tuple[list[_Token], bool], is_known: bool
) -> Iterator[tuple[int, int]]:
    """Yield the places of the phrases of one run: its names, and the whole of it."""
    run, is_announced = found
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
    """Yield the maximal runs of names; numbers and small words belong to a name before them."""
    names: list[_Token] = []
    for token in run:
        if token.kind == "name" or (names and token.kind in {"number", "stop"}):
            names.append(token)
        elif names:
            yield names
            names = []
    if names:
        yield names
