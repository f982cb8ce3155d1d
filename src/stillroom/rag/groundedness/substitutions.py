"""Substitutions: detection of words that contradict the passage a sentence cites.

A sentence can consist of a passage's words and still contradict it: with another of its names or
numbers, two of them exchanged, a word from another place, or an antonym. Such errors are detected
by context: the words before and after are the passage's, those between them are not. A run of the
sentence is a substitution if the passage has a run of the same kind (number, name, plain word) in
the same context, and has the sentence's own run nowhere in as much context; or in as much context
only in a sentence or clause that lacks the rest, which the other's has. Words of the passage that
the sentence omits on either side of the run are ignored.

Any other number or name counts as a substitution; a plain word only if the passage has it
elsewhere, or if it is an antonym: any other may be a synonym. Not recognized: synonyms, antonyms
beyond a short English list, and facts in a different word order.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cached_property

from stillroom.text.language import split_sentences

__all__ = [
    "ANTONYMS",
    "NUMBER_WORDS",
    "TokenizedSentences",
    "find_substitution",
    "misplaces_number",
]

NUMBER_WORDS = {
    word: str(number)
    for number, word in enumerate(
        "two three four five six seven eight nine ten eleven twelve".split(),  # noqa: SIM905
        start=2,
    )
}
"""English number words and their digits, without "one", which is also a pronoun."""
_CONTEXT = 3  # words of context on each side
_STRONG_MATCH, _STRONGER_MATCH = (
    3,
    4,
)  # minimum context of a substitution; of a plain word, whose position varies more
_MAX_SUBSTITUTE_WORDS, _MAX_RIVAL_WORDS = 4, 5  # words of a name
_MAX_PHRASE = 2  # of plain words
_MIN_LEAD = 0.25  # share of a claim's words by which the sentence of another number is ahead
_BEGIN, _END = "^", "$"
_TOKEN = re.compile(r"\d+(?:[.,:]\d+)*|[^\W\d_]+(?:['’][^\W\d_]+)*")
_DROPPED = frozenset("the a an only just also".split())  # noqa: SIM905  # may be there or not
_CLAUSE_BREAK = re.compile(r"[,;:()–—]|\b(?:and|but|while|whereas)\b", re.IGNORECASE)
_FUNCTION_WORDS = frozenset(
    "which who whom whose that this these those he she it they his her hers its their theirs him"  # noqa: SIM905
    " them we us our you your i me my also still only however then there here been being do does"
    " did had has have so too very just even both each another other same own than when where"
    " while how why what can could may might will would shall should must about during from over"
    " under between through since until against among per within up out off upon including"
    " although though because unless one ones".split()
)
_ANTONYM_GROUPS = (
    "first last|more less fewer|most least fewest|larger bigger smaller|largest biggest smallest"
    "|higher lower|highest lowest|high low|before after|north south|northern southern|east west"
    "|eastern western|early late|earlier later|earliest latest|old new|older newer younger|oldest"
    " newest youngest|increase decrease|increased decreased|increases decreases|rise fall|rose fell"
    "|win lose|won lost|all some none|always rarely seldom|above below|best worst|better worse"
    "|strong weak|stronger weaker|positive negative|long short|longer shorter|longest shortest"
    "|internal external|rich poor|upper lower|begin end|began ended|accept reject|accepted rejected"
    "|common rare|maximum minimum|modern ancient|left right|open closed|same different"
    "|simple complex|support oppose|supported opposed|public private|male female|major minor"
    "|good bad|fast slow|faster slower|hot cold|enable disable|enabled disabled|allow forbid"
    "|allowed forbidden|buy sell|bought sold|inside outside|majority minority|success failure"
    "|legal illegal|possible impossible"
)


def _pair_antonyms() -> dict[str, frozenset[str]]:
    antonyms: dict[str, frozenset[str]] = {}
    for group in _ANTONYM_GROUPS.split("|"):
        words = frozenset(group.split())
        for word in words:
            antonyms[word] = antonyms.get(word, frozenset()) | (words - {word})
    return antonyms


ANTONYMS = _pair_antonyms()


class TokenizedSentences:
    """The words of a text's sentences, each with its term and kind.

    ``kinds`` are ``number``, ``name``, ``word``, or empty for function words and for the borders of
    sentences.
    """

    def __init__(self, text: str, stem: Callable[[str], str], *, has_names: bool = True) -> None:
        """Tokenize a text.

        ``stem`` returns the term of a word, empty for a stop word; names are capitalized
        words, except in German.
        """
        self.words: list[str] = []
        self.terms: list[str] = []
        self.kinds: list[str] = []
        self.borders: list[tuple[int, int]] = []
        """Start and end of each sentence, without the border tokens."""
        self.clauses: list[tuple[int, int]] = []
        """Start and end of each clause."""
        for start, end in split_sentences(text) or [(0, len(text))]:
            self._add(_BEGIN, _BEGIN, "")
            first = begin = len(self.words)
            breaks = [match.start() for match in _CLAUSE_BREAK.finditer(text, start, end)]
            for match in _TOKEN.finditer(text, start, end):
                while breaks and breaks[0] <= match.start():
                    breaks.pop(0)
                    self.clauses.append((begin, len(self.words)))
                    begin = len(self.words)
                self._add_word(match, stem, has_names)
            self.borders.append((first, len(self.words)))
            self.clauses.append((begin, len(self.words)))
            self._add(_END, _END, "")

    def unit_at(self, position: int, borders: Sequence[tuple[int, int]]) -> frozenset[str]:
        """Return the terms of the sentence or clause at a position."""
        start, end = next(border for border in borders if border[0] <= position < border[1])
        return frozenset(self.terms[start:end])

    def _add_word(self, match: re.Match[str], stem: Callable[[str], str], has_names: bool) -> None:
        word = match.group()
        plain = word.casefold()
        if plain in _DROPPED:
            return
        is_number = word[:1].isdigit() or plain in NUMBER_WORDS
        term = NUMBER_WORDS.get(plain, word.replace(",", "")) if is_number else stem(word)
        if is_number:
            kind = "number"
        elif plain not in ANTONYMS and (not term or plain in _FUNCTION_WORDS):
            kind = ""
        else:
            kind = "name" if has_names and word[:1].isupper() else "word"
        self._add(word, term or plain, kind)

    def _add(self, word: str, term: str, kind: str) -> None:
        self.words.append(word)
        self.terms.append(term)
        self.kinds.append(kind)

    @cached_property
    def positions(self) -> dict[str, list[int]]:
        """Positions of each term."""
        positions: dict[str, list[int]] = {}
        for i, term in enumerate(self.terms):
            positions.setdefault(term, []).append(i)
        return positions

    def kind_of(self, start: int, end: int) -> str:
        """Return the kind of a run of words; empty if it is mixed or ends in a function word."""
        kinds = self.kinds[start:end]
        if not (kinds[0] and kinds[-1]):
            return ""
        content = {kind for kind in kinds if kind}
        if (
            content == {"name", "word"}
            and self.terms[start - 1] == _BEGIN
            and "name" not in kinds[1:]
        ):
            content = {"word"}  # the capital of a sentence's first word
        if len(content) > 1:
            return ""
        kind = content.pop()
        longest = {"number": 1, "word": _MAX_PHRASE}.get(kind, _MAX_RIVAL_WORDS)
        return kind if len(kinds) <= longest else ""


def find_substitution(
    claim: TokenizedSentences, source: TokenizedSentences, known: Collection[tuple[str, str]] = ()
) -> tuple[str, str] | None:
    """Return a substituted run of a sentence and the passage's run instead of it, or None.

    Both texts must be tokenized with the same ``has_names``. ``known`` are
    neighboring terms of the passages: a word in the same context elsewhere is another thing, no
    synonym.
    """
    pair = _AlignedPair(claim, source, known)
    for start, end in claim.borders:
        for first in range(start, end):
            for last in range(first + 1, min(first + _MAX_SUBSTITUTE_WORDS, end) + 1):
                kind = claim.kind_of(first, last)
                rival = pair.find_rival(first, last, kind) if kind else None
                if rival is not None:
                    return " ".join(claim.words[first:last]), " ".join(source.words[slice(*rival)])
    return None


def misplaces_number(claim: TokenizedSentences, source: TokenizedSentences) -> bool:
    """Return whether a claim's numbers belong to another sentence of the passage than its rest.

    So it is if a sentence with other numbers only has more of the claim's words than every sentence
    with one of its numbers has, by ``_MIN_LEAD`` of their weight: words in few sentences of the
    passage weigh more.
    """
    sentences = [
        {source.terms[i]: source.kinds[i] for i in range(*border) if source.kinds[i]}
        for border in source.borders
    ]
    counts = Counter(term for sentence in sentences for term in sentence)
    weights = {term: math.log(1 + len(sentences) / count) for term, count in counts.items()}
    for border in claim.borders:
        terms = {claim.terms[i]: claim.kinds[i] for i in range(*border) if claim.kinds[i]}
        numbers = {term for term, kind in terms.items() if kind == "number" and counts[term]}
        words = sorted(term for term in terms if term not in numbers and counts[term])
        own = other = 0.0
        for sentence in sentences:
            share = sum(weights[term] for term in words if term in sentence)
            if numbers & set(sentence):
                own = max(own, share)
            elif "number" in sentence.values():
                other = max(other, share)
        lead = _MIN_LEAD * sum(weights[term] for term in words)
        if numbers and len(words) > 1 and other - own >= lead:
            return True
    return False


class _AlignedPair:
    """A sentence compared with a passage, by the context of positions in each."""

    def __init__(
        self,
        claim: TokenizedSentences,
        source: TokenizedSentences,
        known: Collection[tuple[str, str]],
    ) -> None:
        self._claim, self._source, self._known = claim, source, known

    def find_rival(self, first: int, last: int, kind: str) -> tuple[int, int] | None:
        """Return the passage's run that replaces claim[first:last]; None if there is none."""
        own_strength = None
        for start, end in self._iterate_runs(first, last, kind):
            before, behind = self._context_before(first, start), self._context_after(last, end)
            strength = before + behind
            if not (before and behind):
                continue
            if strength < self._required_context(first, last, start, end, kind):
                continue
            if not self._has_content(first - before, first, last, last + behind):
                continue
            if own_strength is None:
                own_strength, own_places = self._measure_own_context(first, last)
            if strength > own_strength or (
                strength == own_strength and self._is_told_elsewhere(first, last, start, own_places)
            ):
                return start, end
        return None

    def _is_told_elsewhere(self, first: int, last: int, rival: int, own: list[int]) -> bool:
        """Return whether a rival's sentence has the rest of the claim, and no own one has.

        "The yellow lamp means that the motor is too hot" where the passage says so of the red one,
        and something else of the yellow one. Within one sentence its clauses are compared.
        """
        claim = self._claim
        from_, to = next(border for border in claim.borders if border[0] <= first < border[1])
        rest = {claim.terms[i] for i in (*range(from_, first), *range(last, to)) if claim.kinds[i]}
        if not rest <= self._source.unit_at(rival, self._source.borders):
            return False
        for place in own:
            borders = self._source.borders
            if self._source.unit_at(place, borders) == self._source.unit_at(rival, borders):
                borders = self._source.clauses
            if rest <= self._source.unit_at(place, borders):
                return False
            if not rest <= self._source.unit_at(rival, borders):
                return False
        return bool(rest)

    def _iterate_runs(self, first: int, last: int, kind: str) -> Iterator[tuple[int, int]]:
        """Yield runs of the given kind in the passage that follow the word before the claim's run.

        Runs that share a term with the claim's are skipped.
        """
        source, before = self._source, self._claim.terms[first - 1]
        claim_terms = set(self._claim.terms[first:last])
        starts = (
            range(len(source.terms))
            if before == _BEGIN
            else [position + 1 for position in source.positions.get(before, ())]
        )
        for start in starts:
            for end in range(start + 1, min(start + _MAX_RIVAL_WORDS, len(source.terms)) + 1):
                if source.terms[end - 1] in {_BEGIN, _END} or source.terms[end - 1] in claim_terms:
                    break
                if source.kind_of(start, end) == kind:
                    yield start, end

    def _required_context(self, first: int, last: int, start: int, end: int, kind: str) -> int:
        """Return the minimum context for a substitution; more than the maximum if it is none."""
        claim, source = self._claim, self._source
        if kind != "word":
            return _STRONG_MATCH
        there = {word.casefold() for word in source.words[start:end]}
        if any(ANTONYMS.get(word.casefold(), set()) & there for word in claim.words[first:last]):
            return _STRONG_MATCH
        is_known = all(
            claim.terms[i] in source.positions or self._is_known(i) for i in range(first, last)
        )
        if is_known and self._is_unit(first):
            return _STRONG_MATCH
        return _STRONGER_MATCH if is_known else 2 * _CONTEXT + 1

    def _is_known(self, position: int) -> bool:
        """Return whether another passage has a term of the claim before or after the same word."""
        before, term, after = self._claim.terms[position - 1 : position + 2]
        return any(
            _BEGIN not in pair and _END not in pair and pair in self._known
            for pair in ((before, term), (term, after))
        )

    def _has_content(self, first: int, before: int, behind: int, last: int) -> bool:
        kinds = self._claim.kinds
        return any(kinds[max(first, 0) : before]) or any(kinds[behind:last])

    def _measure_own_context(self, first: int, last: int) -> tuple[int, list[int]]:
        """Return the context of the claim's own run in the passage, and where the run stands.

        Words that the claim omits are ignored, but not those between a number and its unit.
        """
        size, run, best = last - first, self._claim.terms[first:last], 0
        is_unit = self._is_unit(first)
        places = []
        for start in self._source.positions.get(run[0], ()):
            end = start + size
            if self._source.terms[start:end] != run:
                continue
            from_, to = next(
                border for border in self._source.borders if border[0] <= start < border[1]
            )
            places.append(start)
            far = (
                self._context_before(first, start)
                if is_unit
                else max(
                    self._context_before(first, position) for position in range(from_, start + 1)
                )
            )
            near = self._context_before(first, start) + max(
                self._context_after(last, position) for position in range(end, to + 1)
            )
            best = max(best, near, far + self._context_after(last, end))
        return best, places

    def _is_unit(self, first: int) -> bool:
        """Return whether a run of the claim follows a number."""
        return self._claim.kinds[first - 1] == "number" and self._claim.kinds[first] == "word"

    def _context_before(self, here: int, there: int) -> int:
        """Return the number of equal words before two positions, counting the claim's start."""
        count = 0
        while count < _CONTEXT:
            term = self._claim.terms[here - 1 - count]
            if term == _BEGIN:
                return count + 1
            if there - 1 - count < 0 or self._source.terms[there - 1 - count] != term:
                break
            count += 1
        return count

    def _context_after(self, here: int, there: int) -> int:
        """Return the number of equal words after two positions, counting the claim's end."""
        count = 0
        while count < _CONTEXT:
            term = self._claim.terms[here + count]
            if term == _END:
                return count + 1
            if there + count >= len(self._source.terms):
                break
            if self._source.terms[there + count] != term:
                break
            count += 1
        return count
