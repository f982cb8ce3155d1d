"""RubricJudge: several models give a text a score on each of a few criteria, or compare two texts.

A score is the expected one under the model's probabilities of the marks of the scale, where its
engine gives them; else the mark that it draws, and the rating says so. Two texts are shown in both
orders and the first wins only if it wins in both: what changes with the order is a tie.

Knows no record. Does not know whether a judge is any good: ``raters`` compares judges with each
other and with people.

Sources: Zheng et al. 2023, arXiv:2306.05685 (judges, position bias); Liu et al. 2023,
arXiv:2303.16634 (expected scores); Wang et al. 2023, arXiv:2305.17926 (both orders).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from stillroom.models.choosing import Chosen, weigh_options
from stillroom.provenance import digest_json
from stillroom.records import Message, Prompt

if TYPE_CHECKING:
    from stillroom.models import TextModel

__all__ = ["Comparison", "Rating", "RubricJudge"]

Winner = Literal["first", "second", "tie"]
_RULES = "You are a strict and fair examiner. You answer with one mark and nothing else."
_ORDERS = 2
_FRAME = re.compile(r"<(/?answer\b)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Rating:
    """One judge's scores by criterion; None where it gave no mark. ``way`` is how they were had."""

    scores: Mapping[str, float | None]
    way: str

    @property
    def mean(self) -> float | None:
        """The mean over the criteria; None where a mark is missing."""
        known = [score for score in self.scores.values() if score is not None]
        return math.fsum(known) / len(known) if len(known) == len(self.scores) else None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"scores": dict(self.scores), "way": self.way}


@dataclass(frozen=True, slots=True)
class Comparison:
    """One judge's verdict on two texts; ``chance`` is that of the first, mean of both orders.

    ``flipped`` says that the verdict changed with the order. None where the judge said nothing.
    """

    winner: Winner | None
    chance: float | None
    flipped: bool
    way: str

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "winner": self.winner,
            "chance": self.chance,
            "flipped": self.flipped,
            "way": self.way,
        }


class RubricJudge:
    """One model with a rubric: what is looked at, and from 1 to which mark."""

    def __init__(
        self, model: TextModel, rubric: Mapping[str, str], *, scale: int = 5, seed: int = 0
    ) -> None:
        """Judge by ``model``.

        Args:
            model: Better another one than wrote the texts: models favor their own.
            rubric: Criteria by name, each with what is asked of a good text.
            scale: The highest mark, 2 to 9; the lowest is 1.
            seed: Of what is drawn where the engine gives no probabilities.
        """
        self.model, self.rubric, self.scale, self.seed = model, dict(rubric), scale, seed

    @property
    def fingerprint(self) -> str:
        """What ratings depend on beside the texts."""
        return digest_json([self.model.fingerprint, self.rubric, self.scale, self.seed, 2])

    def rate(self, tasks: Sequence[str]) -> list[Rating]:
        """Return a rating of each task: a question with its answer, shown whole.

        Raises:
            BackendError: If the model fails.
        """
        marks = [str(mark) for mark in range(1, self.scale + 1)]
        prompts = [
            self._ask_mark(task, name, told) for task in tasks for name, told in self.rubric.items()
        ]
        chosen = iter(weigh_options(self.model, prompts, marks, seed=self.seed) if prompts else ())
        ratings = []
        for _ in tasks:
            mine = {name: next(chosen) for name in self.rubric}
            scores = {name: one.expect(list(map(float, marks))) for name, one in mine.items()}
            ratings.append(Rating(scores, _way_of(list(mine.values()))))
        return ratings

    def compare(self, tasks: Sequence[tuple[str, str, str]]) -> list[Comparison]:
        """Return a verdict on each (question, first answer, second answer), in both orders.

        Raises:
            BackendError: If the model fails.
        """
        prompts = []
        for question, first, second in tasks:
            prompts += [self._ask_better(question, first, second)]
            prompts += [self._ask_better(question, second, first)]
        chosen = weigh_options(self.model, prompts, ("A", "B"), seed=self.seed) if prompts else []
        return [_settle(chosen[at], chosen[at + 1]) for at in range(0, len(chosen), _ORDERS)]

    def _ask_mark(self, task: str, name: str, told: str) -> Prompt:
        words = (
            f"{task}\n\nCriterion: {name}. {told}\n\nGive one mark for this criterion alone, from "
            f"1 (not at all) to {self.scale} (entirely). Answer with the number only."
        )
        return Prompt((Message("system", _RULES), Message("user", words)))

    def _ask_better(self, question: str, first: str, second: str) -> Prompt:
        criteria = "; ".join(f"{name}: {told}" for name, told in self.rubric.items())
        words = (
            f'{question}\n\n<answer name="A">\n{_inert(first)}\n</answer>\n\n<answer name="B">\n'
            f"{_inert(second)}\n</answer>\n\nWhat counts: {criteria}\n\nWhich answer is better? "
            "Their order and their length say nothing. Answer with the letter only: A or B."
        )
        return Prompt((Message("system", _RULES), Message("user", words)))


def _settle(straight: Chosen, swapped: Chosen) -> Comparison:
    way = _way_of([straight, swapped])
    if straight.chances is None or swapped.chances is None:
        return Comparison(None, None, False, way)
    one, other = straight.chances[0], swapped.chances[1]
    chance = (one + other) / 2
    if one > 0.5 and other > 0.5:
        return Comparison("first", chance, False, way)
    if one < 0.5 and other < 0.5:
        return Comparison("second", chance, False, way)
    return Comparison("tie", chance, (one - 0.5) * (other - 0.5) < 0, way)


def _inert(text: str) -> str:
    """Return an answer that cannot close its frame, nor open the other's."""
    return _FRAME.sub(r"< \1", text)


def _way_of(chosen: Sequence[Chosen]) -> str:
    return "drawn" if any(one.way == "drawn" for one in chosen) else "logprob"
