"""Substitutions: detection of words that contradict the passage a sentence cites.

A sentence can be made of a passage's words and still say what the passage does not: another of its
names, another of its numbers, two of them exchanged, a word from somewhere else, the opposite word.
What gives it away is the place: the words before and behind are the passage's, what stands between
them is not. A run of the sentence is a substitution where the passage has a run of the same kind
(number, name, plain word) between the same words and has the sentence's own run nowhere between as
many of them. What the sentence leaves out of the passage's sentence on either side of the run is no
difference.

A number or name is replaced by any other; a plain word only by one that the passage has elsewhere,
or by an opposite: any other may be a synonym. Does not know: synonyms, opposites beyond a short
list of English ones, a fact that is told in an order of words of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cached_property

from stillroom.text.language import split_sentences

__all__ = ["NUMBER_WORDS", "TokenizedSentences", "find_substitution"]

NUMBER_WORDS = {
    word: str(number)
    for number, word in enumerate(
        "two three four five six seven eight nine ten eleven twelve".split(),  # noqa: SIM905
        start=2,
    )
}
"""English number words and their digits; "one" is left out, since it is a pronoun, too."""

_CONTEXT = 3  # words of context on each side that count
_STRONG_MATCH, _STRONGER_MATCH = (
    3,
    4,
)  # context that a substitution needs; of a plain word, which may wander
_MAX_SUBSTITUTE_WORDS, _MAX_RIVAL_WORDS = 4, 5  # words of a name
_MAX_PHRASE = 2  # of plain words
_BEGIN, _END = "^", "$"
_TOKEN = re.compile(r"\d+(?:[.,:]\d+)*|[^\W\d_]+(?:['’][^\W\d_]+)*")
_ARTICLES = frozenset({"the", "a", "an"})  # names have none: left out, all stand alike
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
    found: dict[str, frozenset[str]] = {}
    for group in _ANTONYM_GROUPS.split("|"):
        words = frozenset(group.split())
        for word in words:
            found[word] = found.get(word, frozenset()) | (words - {word})
    return found


_ANTONYMS = _pair_antonyms()


class TokenizedSentences:
    """A text as the words of its sentences, each with its term and its kind.

    ``kinds`` are ``number``, ``name``, ``word``, or nothing for what only holds a sentence together
    and for the borders of sentences.
    """

    def __init__(self, text: str, stem: Callable[[str], str], *, has_names: bool = True) -> None:
        """Read a text.

        Args:
            text: Any.
            stem: Gives the term of a word; nothing for a stop word.
            has_names: Whether words with a capital letter are names; they are not in German.
        """
        self.words: list[str] = []
        self.terms: list[str] = []
        self.kinds: list[str] = []
        self.borders: list[tuple[int, int]] = []
        """Where each sentence begins and ends, its border marks left out."""
        for start, end in split_sentences(text) or [(0, len(text))]:
            self._add(_BEGIN, _BEGIN, "")
            first = len(self.words)
            for found in _TOKEN.finditer(text, start, end):
                self._take(found.group(), stem, has_names)
            self.borders.append((first, len(self.words)))
            self._add(_END, _END, "")

    def _take(self, word: str, stem: Callable[[str], str], has_names: bool) -> None:
        plain = word.casefold()
        if plain in _ARTICLES:
            return
        is_number = word[:1].isdigit() or plain in NUMBER_WORDS
        term = NUMBER_WORDS.get(plain, word.replace(",", "")) if is_number else stem(word)
        if is_number:
            kind = "number"
        elif plain not in _ANTONYMS and (not term or plain in _FUNCTION_WORDS):
            kind = ""
        else:
            kind = "name" if has_names and word[:1].isupper() else "word"
        self._add(word, term or plain, kind)

    def _add(self, word: str, term: str, kind: str) -> None:
        self.words.append(word)
        self.terms.append(term)
        self.kinds.append(kind)

    @cached_property
    def places(self) -> dict[str, list[int]]:
        """Where each term stands."""
        found: dict[str, list[int]] = {}
        for at, term in enumerate(self.terms):
            found.setdefault(term, []).append(at)
        return found

    def kind_of(self, start: int, end: int) -> str:
        """Return the kind of a run of words; nothing where it is mixed or ends in no content."""
        kinds = self.kinds[start:end]
        if not (kinds[0] and kinds[-1]):
            return ""
        content = {kind for kind in kinds if kind}
        if len(content) > 1:
            return ""
        kind = content.pop()
        longest = {"number": 1, "word": _MAX_PHRASE}.get(kind, _MAX_RIVAL_WORDS)
        return kind if len(kinds) <= longest else ""


def find_substitution(
    claim: TokenizedSentences, source: TokenizedSentences
) -> tuple[str, str] | None:
    """Return what a sentence says in the place of what a passage says, and that; None if nothing.

    Both readings must have been made with the same ``has_names``.
    """
    pair = _AlignedPair(claim, source)
    for start, end in claim.borders:
        for first in range(start, end):
            for last in range(first + 1, min(first + _MAX_SUBSTITUTE_WORDS, end) + 1):
                kind = claim.kind_of(first, last)
                rival = pair.find_rival(first, last, kind) if kind else None
                if rival is not None:
                    return " ".join(claim.words[first:last]), " ".join(source.words[slice(*rival)])
    return None


class _AlignedPair:
    """A sentence held against a passage, by the words around a place in each."""

    def __init__(self, claim: TokenizedSentences, source: TokenizedSentences) -> None:
        self._claim, self._source = claim, source

    def find_rival(self, first: int, last: int, kind: str) -> tuple[int, int] | None:
        """Return the passage's run in the place of claim[first:last]; None if there is none."""
        own = None
        for start, end in self._runs_like(first, last, kind):
            before, behind = self._before(first, start), self._behind(last, end)
            strength = before + behind
            if not (before and behind and strength >= self._needed(first, last, start, end, kind)):
                continue
            if not self._has_content(first - before, first, last, last + behind):
                continue
            own = self._find_own(first, last) if own is None else own
            if strength > own:
                return start, end
        return None

    def _runs_like(self, first: int, last: int, kind: str) -> Iterator[tuple[int, int]]:
        """Yield runs of the passage of one kind, behind the word that stands before the claim's.

        Runs that share a term with the claim's are left out.
        """
        source, before = self._source, self._claim.terms[first - 1]
        asked = set(self._claim.terms[first:last])
        starts = (
            range(len(source.terms))
            if before == _BEGIN
            else [place + 1 for place in source.places.get(before, ())]
        )
        for start in starts:
            for end in range(start + 1, min(start + _MAX_RIVAL_WORDS, len(source.terms)) + 1):
                if source.terms[end - 1] in {_BEGIN, _END} or source.terms[end - 1] in asked:
                    break
                if source.kind_of(start, end) == kind:
                    yield start, end

    def _needed(self, first: int, last: int, start: int, end: int, kind: str) -> int:
        """Return how much context makes a run another in the same place; more than there is: no."""
        claim, source = self._claim, self._source
        if kind != "word":
            return _STRONG_MATCH
        there = {word.casefold() for word in source.words[start:end]}
        if any(_ANTONYMS.get(word.casefold(), set()) & there for word in claim.words[first:last]):
            return _STRONG_MATCH
        is_known = all(term in source.places for term in claim.terms[first:last])
        return _STRONGER_MATCH if is_known else 2 * _CONTEXT + 1

    def _has_content(self, first: int, before: int, behind: int, last: int) -> bool:
        kinds = self._claim.kinds
        return any(kinds[max(first, 0) : before]) or any(kinds[behind:last])

    def _find_own(self, first: int, last: int) -> int:
        """Return how much context the claim's own run has in the passage, left out words aside."""
        size, run, best = last - first, self._claim.terms[first:last], 0
        for start in self._source.places.get(run[0], ()):
            end = start + size
            if self._source.terms[start:end] != run:
                continue
            from_, to = next(one for one in self._source.borders if one[0] <= start < one[1])
            far = max(self._before(first, at) for at in range(from_, start + 1))
            near = self._before(first, start) + max(
                self._behind(last, at) for at in range(end, to + 1)
            )
            best = max(best, near, far + self._behind(last, end))
        return best

    def _before(self, here: int, there: int) -> int:
        """Return how many words before two places are equal; the claim's beginning is one."""
        count = 0
        while count < _CONTEXT:
            term = self._claim.terms[here - 1 - count]
            if term == _BEGIN:
                return count + 1
            if there - 1 - count < 0 or self._source.terms[there - 1 - count] != term:
                break
            count += 1
        return count

    def _behind(self, here: int, there: int) -> int:
        """Return how many words from two places on are equal; the claim's end is one."""
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
