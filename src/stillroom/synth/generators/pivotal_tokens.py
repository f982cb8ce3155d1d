"""Pivotal tokens: preference pairs at tokens that change the probability of success most.

Source: Abdin et al. 2024 (Phi-4), arXiv:2412.08905, section 4.3 and figure 3: the probability of
success of a prefix is the share of its completions that are right; a solution is bisected until the
piece at which the probability jumps is one token; a pair is the prefix with the token that raises
and one that lowers the probability. Differs: pieces are words with their leading space, since
engines expose no tokens; a jump must also be significant (two proportions); the alternative is a
word that completions of the same prefix started with, so it needs no further requests.
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
from stillroom.synth.prompting.stepwise import GenerationUnit, RequestCoroutine, StepwiseGenerator

__all__ = ["PivotalTokens"]

_PIECE = re.compile(r"\s*\S+|\s+$")
_FEWEST = 2


class _Chance(NamedTuple):
    """Completions of a prefix: how many were right, in total and by first word."""

    right: int
    total: int
    starts: Mapping[str, tuple[int, int]]

    @property
    def share(self) -> float:
        return self.right / self.total if self.total else 0.0


class PivotalTokens(StepwiseGenerator):
    """Find pairs of words that decide whether an answer is right."""

    paper: ClassVar[str] = "arXiv:2412.08905"
    seed_kinds: ClassVar = ("records",)
    default_filters: ClassVar[tuple[str, ...]] = ()
    templates: ClassVar = {"ask": "{question}"}

    samples: int = Field(32, ge=4, le=512, description="completions of each prefix")
    threshold: float = Field(
        0.2, gt=0, le=1, description="minimum jump of the probability of success"
    )
    min_z: float = Field(
        1.64,
        ge=0,
        le=10,
        description="minimum z-score of the jump as a difference of two proportions",
    )
    min_chance: float = Field(
        0.2, ge=0, le=1, description="minimum success rate of the question alone"
    )
    max_chance: float = Field(
        0.8, ge=0, le=1, description="maximum success rate of the question alone"
    )
    pairs: int = Field(2, ge=1, le=32, description="maximum pairs per question")
    verifier: Annotated[Verifier, VERIFIERS.choice()] = Field(
        "maths", validate_default=True, description="method of checking an answer"
    )
    max_answer_tokens: int = Field(384, ge=16, le=8192, description="maximum tokens of an answer")

    @property
    @override
    def max_requests(self) -> int:
        return self.samples * (2 + 8 * self.pairs)

    @property
    @override
    def max_records(self) -> int:
        return self.pairs

    @override
    def write(self, unit: GenerationUnit) -> RequestCoroutine[None]:
        record = unit.seed.record
        question = get_question(record)
        fields = {**record.fields, "answer": get_reference_answer(record)}
        if not question or self.verifier.lacks(fields):
            unit.fail("a record without a question or what its answer is checked by")
            return
        prompt_text = unit.render("ask", question=question)
        search = _Search(self, unit, prompt_text, fields)
        baseline, solutions = yield from search.start()
        if not self.min_chance <= baseline.share <= self.max_chance:
            unit.fail("question too easy or too hard", f"{baseline.share:.2f}: {question}")
            return
        for solution in solutions:
            pieces = _PIECE.findall(solution)
            positions = yield from search.halve(pieces, 0, len(pieces))
            for position in positions:
                if search.kept >= self.pairs:
                    return
                search.keep(question, pieces, position)
        if not search.kept:
            unit.fail("no pivotal token found", question)


class _Search:
    """The success probabilities of the prefixes of one question."""

    def __init__(
        self,
        method: PivotalTokens,
        unit: GenerationUnit,
        prompt_text: str,
        fields: Mapping[str, Any],
    ) -> None:
        self._method = method
        self._unit = unit
        self._prompt_text = prompt_text
        self._fields = fields
        self._known: dict[str, _Chance] = {}
        self._pairs: set[tuple[str, str, str]] = set()
        self.kept = 0

    def start(self) -> RequestCoroutine[tuple[_Chance, list[str]]]:
        """Return the success rate of the question alone, a right solution and a wrong one."""
        texts = yield from self._complete("")
        verdicts = [bool(text) and self._is_right(text) for text in texts]
        chance = self._known[""] = _count("", texts, verdicts)
        right = next((text for text, ok in zip(texts, verdicts, strict=True) if ok), "")
        wrong = next(
            (text for text, ok in zip(texts, verdicts, strict=True) if text and not ok), ""
        )
        return chance, [text for text in (right, wrong) if text]

    def halve(self, pieces: list[str], low: int, high: int) -> RequestCoroutine[list[int]]:
        """Return the positions between two prefixes at which the probability jumps."""
        if low >= high:
            return []
        before = yield from self._chance("".join(pieces[:low]))
        after = yield from self._chance("".join(pieces[:high]))
        if not self._jumps(before, after):
            return []
        if high - low == 1:
            return [low]
        middle = (low + high) // 2
        first_half = yield from self.halve(pieces, low, middle)
        second_half = yield from self.halve(pieces, middle, high)
        return [*first_half, *second_half]

    def keep(self, question: str, pieces: list[str], position: int) -> None:
        """Add the pair at a position, if completions of its prefix include a contrary word."""
        prefix, token = "".join(pieces[:position]), pieces[position]
        before = self._known[prefix]
        after = self._known["".join(pieces[: position + 1])]
        rises = after.share > before.share
        contrary = _contrary(before, token, after.share, rises, self._method.threshold)
        if contrary is None:
            self._unit.fail("a pivotal token without a contrary", f"{prefix}|{token}")
            return
        alternative, share = contrary
        preferred, rejected = (token, alternative) if rises else (alternative, token)
        if (prefix, preferred, rejected) in self._pairs:
            return
        self._pairs.add((prefix, preferred, rejected))
        shares = (after.share, share) if rises else (share, after.share)
        fields = {
            "question": question,
            "prefix": prefix,
            "chosen": prefix + preferred,
            "rejected": prefix + rejected,
            "chance_before": round(before.share, 4),
            "chance_chosen": round(shares[0], 4),
            "chance_rejected": round(shares[1], 4),
            "samples": before.total,
            "way": "pivotal",
        }
        turns = [Message("user", question), Message("assistant", prefix + preferred)]
        self._unit.add_record(turns, fields)
        self.kept += 1

    def _chance(self, prefix: str) -> RequestCoroutine[_Chance]:
        if prefix not in self._known:
            texts = yield from self._complete(prefix)
            verdicts = [self._is_right(prefix + text) for text in texts]
            self._known[prefix] = _count(prefix, texts, verdicts)
        return self._known[prefix]

    def _complete(self, prefix: str) -> RequestCoroutine[list[str]]:
        method = self._method
        completions = yield from self._unit.sample_many(
            self._prompt_text, count=method.samples, tokens=method.max_answer_tokens, prefix=prefix
        )
        return [text or "" for text in completions]

    def _is_right(self, text: str) -> bool:
        return self._method.verifier.check(text, self._fields).keep

    def _jumps(self, before: _Chance, after: _Chance) -> bool:
        gap = abs(before.share - after.share)
        if gap < self._method.threshold:
            return False
        pooled = (before.right + after.right) / (before.total + after.total)
        error = math.sqrt(pooled * (1 - pooled) * (1 / before.total + 1 / after.total))
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
    before: _Chance, token: str, share: float, rises: bool, threshold: float
) -> tuple[str, float] | None:
    """Return the first word of completions whose share differs most in the other direction.

    Its share is on the other side of the prefix's own: one raises it, the other lowers it.
    """
    candidates = [
        (right / count, candidate)
        for candidate, (right, count) in before.starts.items()
        if candidate != token and count >= _FEWEST
    ]
    if not candidates:
        return None
    candidate_share, candidate = min(candidates) if rises else max(candidates)
    is_contrary = candidate_share < before.share if rises else candidate_share > before.share
    return (
        (candidate, candidate_share)
        if is_contrary and abs(candidate_share - share) >= threshold
        else None
    )
