"""LLM judges (LLM-as-a-judge): yes/no verdicts, rubric scores, pairwise comparison in both orders.

``logprob`` compares the probabilities of ``Yes`` and ``No``: always a verdict, with a probability
that can be calibrated. ``json`` constrains the answer to a schema of two words and retries
unreadable answers with another seed. Replies are parsed in ``models.choice``. A final failure is a
verdict without a value; means state the number of verdicts that they are taken over. Prompts come
from the caller.

A rubric score is the expected mark under the model's probabilities if the backend gives them,
else the sampled mark; the result has the mode. Two texts are compared in both orders, and the first
wins only if it wins in both: a verdict that changes with the order is a tie.

A judge's quality is unknown here: ``measure_judge_agreement`` compares it with labels of people,
and ``metrics.agreement`` with other judges.

Sources: Zheng et al. 2023, arXiv:2306.05685 (judges, position bias); Liu et al. 2023,
arXiv:2303.16634 (expected scores); Wang et al. 2023, arXiv:2305.17926 (both orders).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from stillroom.errors import BackendError
from stillroom.models.choice import ChoiceProbabilities, read_json_answer, score_options
from stillroom.provenance import digest_json
from stillroom.records import Message, Prompt, Sampling

if TYPE_CHECKING:
    from stillroom.models import TextModel

__all__ = [
    "BinaryJudge",
    "JudgeMode",
    "JudgeResult",
    "JudgeStats",
    "PairwiseResult",
    "RubricJudge",
    "RubricResult",
    "choose_judge_mode",
]


JudgeMode = Literal["logprob", "json"]
_WORDS = ("Yes", "No")  # as a first word, which models capitalize
_VERDICTS = ("yes", "no")

_VERDICT_SCHEMA = {
    "type": "object",
    "properties": {"verdict": {"enum": list(_VERDICTS), "type": "string"}},
    "required": ["verdict"],
    "additionalProperties": False,
}

_SYSTEM_PROMPTS = {
    "logprob": "You check statements. You answer with one word: Yes or No.",
    "json": 'You check statements. You answer in JSON: "yes" or "no" under the key "verdict".',
}

_MAX_ANSWER_TOKENS = 16
_RETRY_TEMPERATURE = 0.7
_MIN_EXPONENT = -700.0


@dataclass(frozen=True, slots=True)
class JudgeResult:
    """Probability of a yes, from 0 to 1 (only 0 or 1 with a grammar); None after a failure."""

    value: float | None
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def is_yes(self) -> bool | None:
        """Whether the verdict is yes; None after a failure."""
        return None if self.value is None else self.value > 0.5


@dataclass(frozen=True, slots=True)
class JudgeStats:
    """Counts and outcomes of judge calls."""

    asked: int = 0
    retried: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @classmethod
    def of(cls, verdicts: Iterable[JudgeResult]) -> JudgeStats:
        """Aggregate verdicts."""
        every = list(verdicts)
        return cls(
            len(every),
            sum(result.retries for result in every),
            sum(result.value is None for result in every),
            sum(result.prompt_tokens for result in every),
            sum(result.completion_tokens for result in every),
        )

    def to_json(self) -> dict[str, int]:
        """Return plain JSON values."""
        return asdict(self)


class BinaryJudge:
    """Judge with yes/no verdicts of one model."""

    def __init__(
        self, model: TextModel, *, way: JudgeMode = "logprob", retries: int = 2, seed: int = 0
    ) -> None:
        """Create a judge.

        Args:
            model: The judge; preferably not the model that wrote the answers, since models favor
                their own.
            way: ``logprob``, where the backend can score; else ``json``.
            retries: Retries of unreadable answers.
            seed: Random seed of sampling.
        """
        self.model, self.way, self.retries, self.seed = model, way, retries, seed

    @property
    def fingerprint(self) -> str:
        """Hash input of everything except the question that verdicts depend on."""
        return digest_json([self.model.fingerprint, self.way, self.retries, self.seed])

    def ask(self, question: str) -> JudgeResult:
        """Return the verdict on a text that ends with the question.

        Raises:
            BackendError: If the backend fails.
        """
        return self._compare(question) if self.way == "logprob" else self._read(question)

    def _compare(self, question: str) -> JudgeResult:
        prompt = self._prompt(question)
        yes, no = (score.total for score in self.model.score([prompt] * len(_WORDS), list(_WORDS)))
        tokens = sum(self.model.count_tokens(message.content) for message in prompt.messages)
        gap = yes - no
        if not math.isfinite(gap):
            return JudgeResult(None, prompt_tokens=tokens)
        return JudgeResult(
            1 / (1 + math.exp(-gap)) if gap > _MIN_EXPONENT else 0.0, prompt_tokens=tokens
        )

    def _read(self, question: str) -> JudgeResult:
        prompt = self._prompt(question)
        read = written = 0
        for attempt in range(self.retries + 1):
            seed = int(digest_json([self.seed, question, attempt])[:8], 16) >> 1
            warmth = _RETRY_TEMPERATURE if attempt else 0.0
            sampling = Sampling(max_new_tokens=_MAX_ANSWER_TOKENS, temperature=warmth, seed=seed)
            completion = self.model.generate([prompt], sampling)[0]
            read += completion.prompt_tokens
            written += completion.completion_tokens
            word = read_json_answer(completion.text, "verdict")
            if word in _VERDICTS:
                return JudgeResult(float(word == "yes"), attempt, read, written)
        return JudgeResult(None, self.retries, read, written)

    def _prompt(self, question: str) -> Prompt:
        messages = Message("system", _SYSTEM_PROMPTS[self.way]), Message("user", question)
        return Prompt(messages, schema=_VERDICT_SCHEMA if self.way == "json" else None)


def choose_judge_mode(model: TextModel) -> JudgeMode:
    """Return ``logprob`` if the model's backend can score a text, else ``json``."""
    probe = Prompt((Message("user", "Is water wet?"),))
    try:
        model.score([probe], ["yes"])
    except BackendError as error:
        if error.code == "backend.no-score":
            return "json"
        raise
    return "logprob"


Winner = Literal["first", "second", "tie"]
_RUBRIC_PROMPT = "You are a strict and fair examiner. You answer with one mark and nothing else."
_NUM_ORDERS = 2
_FRAME = re.compile(r"<(/?answer\b)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class RubricResult:
    """Scores of one judge by criterion; None without a mark. ``way`` is the scoring mode."""

    scores: Mapping[str, float | None]
    way: str

    @property
    def mean(self) -> float | None:
        """Mean over the criteria; None where a mark is missing."""
        known = [score for score in self.scores.values() if score is not None]
        return math.fsum(known) / len(known) if len(known) == len(self.scores) else None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"scores": dict(self.scores), "way": self.way}


@dataclass(frozen=True, slots=True)
class PairwiseResult:
    """Verdict on two texts; ``probability`` is that of the first, averaged over orders.

    ``flipped`` is whether the verdict changed with the order. None where the judge gave none.
    """

    winner: Winner | None
    probability: float | None
    flipped: bool
    way: str

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "winner": self.winner,
            "chance": self.probability,
            "flipped": self.flipped,
            "way": self.way,
        }


class RubricJudge:
    """Judge with a rubric: criteria and a scale from 1."""

    def __init__(
        self, model: TextModel, rubric: Mapping[str, str], *, scale: int = 5, seed: int = 0
    ) -> None:
        """Create a judge.

        Args:
            model: The judge; preferably not the model that wrote the texts, since models favor
                their own.
            rubric: Criteria by name, each with the requirement for a good text.
            scale: The highest mark, 2 to 9; the lowest is 1.
            seed: Random seed of sampling, where the backend gives no probabilities.
        """
        self.model, self.rubric, self.scale, self.seed = model, dict(rubric), scale, seed

    @property
    def fingerprint(self) -> str:
        """Hash input of everything except the texts that ratings depend on."""
        return digest_json([self.model.fingerprint, self.rubric, self.scale, self.seed, 2])

    def rate(self, tasks: Sequence[str]) -> list[RubricResult]:
        """Return a rating of each task: a question with its answer.

        Raises:
            BackendError: If the model fails.
        """
        marks = [str(mark) for mark in range(1, self.scale + 1)]
        prompts = [
            self._ask_mark(task, name, requirement)
            for task in tasks
            for name, requirement in self.rubric.items()
        ]
        choices = iter(score_options(self.model, prompts, marks, seed=self.seed) if prompts else ())
        ratings = []
        for _ in tasks:
            mine = {name: next(choices) for name in self.rubric}
            scores = {name: choice.expect(list(map(float, marks))) for name, choice in mine.items()}
            ratings.append(RubricResult(scores, _mode_of(list(mine.values()))))
        return ratings

    def compare(self, tasks: Sequence[tuple[str, str, str]]) -> list[PairwiseResult]:
        """Return a verdict on each (question, first answer, second answer), in both orders.

        Raises:
            BackendError: If the model fails.
        """
        prompts = []
        for question, first, second in tasks:
            prompts += [self._ask_better(question, first, second)]
            prompts += [self._ask_better(question, second, first)]
        choices = score_options(self.model, prompts, ("A", "B"), seed=self.seed) if prompts else []
        return [
            _combine_orders(choices[index], choices[index + 1])
            for index in range(0, len(choices), _NUM_ORDERS)
        ]

    def _ask_mark(self, task: str, name: str, requirement: str) -> Prompt:
        words = (
            f"{task}\n\nCriterion: {name}. {requirement}\n\nGive one mark for this criterion "
            f"alone, from 1 (not at all) to {self.scale} (entirely). Answer with the number only."
        )
        return Prompt((Message("system", _RUBRIC_PROMPT), Message("user", words)))

    def _ask_better(self, question: str, first: str, second: str) -> Prompt:
        criteria = "; ".join(f"{name}: {requirement}" for name, requirement in self.rubric.items())
        words = (
            f'{question}\n\n<answer name="A">\n{_escape_frame(first)}\n</answer>\n\n<answer '
            'name="B">\n'
            f"{_escape_frame(second)}\n</answer>\n\nWhat counts: {criteria}\n\nWhich answer "
            "is better? "
            "Their order and their length say nothing. Answer with the letter only: A or B."
        )
        return Prompt((Message("system", _RUBRIC_PROMPT), Message("user", words)))


def _combine_orders(straight: ChoiceProbabilities, swapped: ChoiceProbabilities) -> PairwiseResult:
    way = _mode_of([straight, swapped])
    if straight.chances is None or swapped.chances is None:
        return PairwiseResult(None, None, False, way)
    first, second = straight.chances[0], swapped.chances[1]
    probability = (first + second) / 2
    if first > 0.5 and second > 0.5:
        return PairwiseResult("first", probability, False, way)
    if first < 0.5 and second < 0.5:
        return PairwiseResult("second", probability, False, way)
    return PairwiseResult("tie", probability, (first - 0.5) * (second - 0.5) < 0, way)


def _escape_frame(text: str) -> str:
    """Return an answer that cannot close its own frame or open another."""
    return _FRAME.sub(r"< \1", text)


def _mode_of(choices: Sequence[ChoiceProbabilities]) -> str:
    return "drawn" if any(choice.way == "drawn" for choice in choices) else "logprob"
