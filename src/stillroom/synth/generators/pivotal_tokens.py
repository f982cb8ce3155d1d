"""Pivotal tokens: preference pairs at tokens that change the probability of success most.

Source: Abdin et al. 2024 (Phi-4), arXiv:2412.08905, section 4.3 and figure 3: the chance of success
of a prefix is the share of its completions that are right; a solution is halved until the piece
whose chance jumps is one token; a pair is the prefix with the token that raises and one that lowers
the chance. Differs: pieces are words with their space, since engines give no tokens; a jump must
also be significant (two proportions); the contrary is a word that completions of the same prefix
began with, so nothing more is asked for it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import Field
from typing_extensions import override

from stillroom.evaluate.interfaces import VERIFIERS, Verifier
from stillroom.records import Message
from stillroom.synth.prompting.conversation import get_question, get_reference_answer
from stillroom.synth.prompting.coroutines import GenerationUnit, RequestCoroutine, StepwiseGenerator
from stillroom.synth.prompting.requests import PromptTemplate
from stillroom.synth.types import SeedKind

__all__ = ["PivotalTokens"]

_PIECE = re.compile(r"\s*\S+|\s+$")
_FEWEST = 2


class _Chance(NamedTuple):
    """Of a prefix: how many completions were right, and what each began with."""

    right: int
    total: int
    starts: Mapping[str, tuple[int, int]]

    @property
    def share(self) -> float:
        return self.right / self.total if self.total else 0.0


class PivotalTokens(StepwiseGenerator):
    """Finds pairs of words that decide whether an answer comes out right."""

    paper: ClassVar[str] = "arXiv:2412.08905"
    takes: ClassVar[tuple[SeedKind, ...]] = ("records",)
    default_filters: ClassVar[tuple[str, ...]] = ()
    templates: ClassVar = {"ask": PromptTemplate("{question}")}

    samples: int = Field(32, ge=4, le=512, description="completions of each prefix")
    threshold: float = Field(0.2, gt=0, le=1, description="least jump of the chance of success")
    min_z: float = Field(
        1.64, ge=0, le=10, description="least z of the jump as a difference of two proportions"
    )
    min_chance: float = Field(
        0.2, ge=0, le=1, description="of the question alone; below is dropped"
    )
    max_chance: float = Field(
        0.8, ge=0, le=1, description="of the question alone; above is dropped"
    )
    pairs: int = Field(2, ge=1, le=32, description="pairs of one question, at most")
    verifier: Annotated[Verifier, VERIFIERS.choice()] = Field(
        "maths", validate_default=True, description="how an answer is checked"
    )
    max_answer_tokens: int = Field(384, ge=16, le=8192, description="longest answer")

    @property
    @override
    def asks(self) -> int:
        return self.samples * (2 + 8 * self.pairs)

    @property
    @override
    def gives(self) -> int:
        return self.pairs

    @property
    @override
    def longest(self) -> int:
        return self.max_answer_tokens

    @override
    def write(self, unit: GenerationUnit) -> RequestCoroutine[None]:
        record = unit.seed.record
        question = get_question(record)
        fields = {**record.fields, "answer": get_reference_answer(record)}
        if not question or self.verifier.lacks(fields):
            unit.fail("a record without a question or what its answer is checked by")
            return
        words = unit.words("ask", question=question)
        search = _Search(self, unit, words, fields)
        first, solutions = yield from search.begin()
        if not self.min_chance <= first.share <= self.max_chance:
            unit.fail("question too easy or too hard", f"{first.share:.2f}: {question}")
            return
        for solution in solutions:
            pieces = _PIECE.findall(solution)
            found = yield from search.halve(pieces, 0, len(pieces))
            for place in found:
                if search.kept >= self.pairs:
                    return
                search.keep(question, pieces, place)
        if not search.kept:
            unit.fail("no pivotal token found", question)


class _Search:
    """The chances of the prefixes of one question."""

    def __init__(
        self, method: PivotalTokens, unit: GenerationUnit, words: str, fields: Mapping[str, Any]
    ) -> None:
        self._method, self._unit, self._words, self._fields = method, unit, words, fields
        self._known: dict[str, _Chance] = {}
        self._pairs: set[tuple[str, str, str]] = set()
        self.kept = 0

    def begin(self) -> RequestCoroutine[tuple[_Chance, list[str]]]:
        """Return the chance of the question alone, a right solution and a wrong one."""
        texts = yield from self._complete("")
        verdicts = [bool(text) and self._is_right(text) for text in texts]
        chance = self._known[""] = _count("", texts, verdicts)
        right = next((text for text, ok in zip(texts, verdicts, strict=True) if ok), "")
        wrong = next(
            (text for text, ok in zip(texts, verdicts, strict=True) if text and not ok), ""
        )
        return chance, [text for text in (right, wrong) if text]

    def halve(self, pieces: list[str], low: int, high: int) -> RequestCoroutine[list[int]]:
        """Return the places between two prefixes at which the chance jumps."""
        if low >= high:
            return []
        before = yield from self._chance("".join(pieces[:low]))
        after = yield from self._chance("".join(pieces[:high]))
        if not self._jumps(before, after):
            return []
        if high - low == 1:
            return [low]
        middle = (low + high) // 2
        left = yield from self.halve(pieces, low, middle)
        right = yield from self.halve(pieces, middle, high)
        return [*left, *right]

    def keep(self, question: str, pieces: list[str], place: int) -> None:
        """Keep the pair at a place, if completions of its prefix began with a contrary word."""
        prefix, word = "".join(pieces[:place]), pieces[place]
        before = self._known[prefix]
        after = self._known["".join(pieces[: place + 1])]
        rises = after.share > before.share
        contrary = _contrary(before, word, after.share, rises, self._method.threshold)
        if contrary is None:
            self._unit.fail("a pivotal token without a contrary", f"{prefix}|{word}")
            return
        other, share = contrary
        chosen, rejected = (word, other) if rises else (other, word)
        if (prefix, chosen, rejected) in self._pairs:
            return
        self._pairs.add((prefix, chosen, rejected))
        shares = (after.share, share) if rises else (share, after.share)
        told = {
            "question": question,
            "prefix": prefix,
            "chosen": prefix + chosen,
            "rejected": prefix + rejected,
            "chance_before": round(before.share, 4),
            "chance_chosen": round(shares[0], 4),
            "chance_rejected": round(shares[1], 4),
            "samples": before.total,
            "way": "pivotal",
        }
        turns = [Message("user", question), Message("assistant", prefix + chosen)]
        self._unit.keep(turns, told)
        self.kept += 1

    def _chance(self, prefix: str) -> RequestCoroutine[_Chance]:
        if prefix not in self._known:
            texts = yield from self._complete(prefix)
            verdicts = [self._is_right(prefix + text) for text in texts]
            self._known[prefix] = _count(prefix, texts, verdicts)
        return self._known[prefix]

    def _complete(self, prefix: str) -> RequestCoroutine[list[str]]:
        method = self._method
        drawn = yield from self._unit.draw(
            self._words, count=method.samples, tokens=method.max_answer_tokens, prefix=prefix
        )
        return [text or "" for text in drawn]

    def _is_right(self, text: str) -> bool:
        return self._method.verifier.check(text, self._fields).keep

    def _jumps(self, one: _Chance, other: _Chance) -> bool:
        gap = abs(one.share - other.share)
        if gap < self._method.threshold:
            return False
        pooled = (one.right + other.right) / (one.total + other.total)
        error = math.sqrt(pooled * (1 - pooled) * (1 / one.total + 1 / other.total))
        return error == 0 or gap / error >= self._method.min_z


def _count(prefix: str, texts: list[str], verdicts: list[bool]) -> _Chance:
    starts: dict[str, tuple[int, int]] = {}
    for text, is_right in zip(texts, verdicts, strict=True):
        match = _PIECE.match(text)
        if match:
            right, count = starts.get(match.group(), (0, 0))
            starts[match.group()] = right + is_right, count + 1
    return _Chance(sum(verdicts), len(texts), starts)


def _contrary(
    before: _Chance, word: str, share: float, rises: bool, threshold: float
) -> tuple[str, float] | None:
    """Return the word, of those that completions began with, whose share is most contrary.

    It stands on the other side of the prefix's own chance: one raises it, the other lowers it.
    """
    others = [
        (right / count, other)
        for other, (right, count) in before.starts.items()
        if other != word and count >= _FEWEST
    ]
    if not others:
        return None
    found, other = min(others) if rises else max(others)
    is_contrary = found < before.share if rises else found > before.share
    return (other, found) if is_contrary and abs(found - share) >= threshold else None
