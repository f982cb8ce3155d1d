"""ModelJudge: yes or no of a model, by its probabilities or under a grammar; every failure counted.

``logprob`` compares how likely the model finds ``Yes`` and ``No``: always a verdict, and a
probability that can be calibrated. ``json`` holds the answer to a schema of two words and asks
again, with another seed, what could not be read. What fails for good is a verdict without a value;
whoever averages says on how many verdicts of how many a figure stands.

Knows no question of retrieval: prompts come from outside. Does not know whether the model is any
good at judging: ``judge_agreement`` tells, on labels of people.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from stillroom.errors import BackendError
from stillroom.provenance import digest_json
from stillroom.records import Message, Prompt, Sampling

if TYPE_CHECKING:
    from stillroom.models import TextModel

__all__ = ["Counts", "JudgeWay", "ModelJudge", "Verdict", "choose_way"]

JudgeWay = Literal["logprob", "json"]
_WORDS = ("Yes", "No")  # as a first word, which models write with a capital
_VERDICTS = ("yes", "no")
_SCHEMA = {
    "type": "object",
    "properties": {"verdict": {"enum": list(_VERDICTS), "type": "string"}},
    "required": ["verdict"],
    "additionalProperties": False,
}
_RULES = {
    "logprob": "You check statements. You answer with one word: Yes or No.",
    "json": 'You check statements. You answer in JSON: "yes" or "no" under the key "verdict".',
}
_ANSWER_TOKENS = 16
_WARMTH = 0.7
_LEAST = -700.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """How likely a yes is, from 0 to 1 (just 0 or 1 under a grammar); None where asking failed."""

    value: float | None
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def is_yes(self) -> bool | None:
        """Whether it is a yes; None where asking failed."""
        return None if self.value is None else self.value > 0.5


@dataclass(frozen=True, slots=True)
class Counts:
    """What judging took and how it went."""

    asked: int = 0
    retried: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @classmethod
    def of(cls, verdicts: Iterable[Verdict]) -> Counts:
        """Add up verdicts."""
        every = list(verdicts)
        return cls(
            len(every),
            sum(one.retries for one in every),
            sum(one.value is None for one in every),
            sum(one.prompt_tokens for one in every),
            sum(one.completion_tokens for one in every),
        )

    def to_json(self) -> dict[str, int]:
        """Return plain JSON values."""
        return asdict(self)


class ModelJudge:
    """Asks one model for verdicts."""

    def __init__(
        self, model: TextModel, *, way: JudgeWay = "logprob", retries: int = 2, seed: int = 0
    ) -> None:
        """Judge by ``model``.

        Args:
            model: Better another one than wrote the answers: models favor their own.
            way: ``logprob``, where the engine can score; else ``json``.
            retries: How often what could not be read is asked again.
            seed: Of what is drawn.
        """
        self.model, self.way, self.retries, self.seed = model, way, retries, seed

    @property
    def fingerprint(self) -> str:
        """What verdicts depend on beside the question."""
        return digest_json([self.model.fingerprint, self.way, self.retries, self.seed])

    def ask(self, question: str) -> Verdict:
        """Return the verdict on a text that ends in what is to be decided.

        Raises:
            BackendError: If the engine fails otherwise than in what it writes.
        """
        return self._compare(question) if self.way == "logprob" else self._read(question)

    def _compare(self, question: str) -> Verdict:
        prompt = self._prompt(question)
        yes, no = (one.total for one in self.model.score([prompt] * len(_WORDS), list(_WORDS)))
        tokens = sum(self.model.count_tokens(message.content) for message in prompt.messages)
        gap = yes - no
        if not math.isfinite(gap):
            return Verdict(None, prompt_tokens=tokens)
        return Verdict(1 / (1 + math.exp(-gap)) if gap > _LEAST else 0.0, prompt_tokens=tokens)

    def _read(self, question: str) -> Verdict:
        prompt = self._prompt(question)
        read = written = 0
        for attempt in range(self.retries + 1):
            seed = int(digest_json([self.seed, question, attempt])[:8], 16) >> 1
            warmth = _WARMTH if attempt else 0.0
            sampling = Sampling(max_new_tokens=_ANSWER_TOKENS, temperature=warmth, seed=seed)
            completion = self.model.generate([prompt], sampling)[0]
            read += completion.prompt_tokens
            written += completion.completion_tokens
            word = _verdict_of(completion.text)
            if word:
                return Verdict(float(word == "yes"), attempt, read, written)
        return Verdict(None, self.retries, read, written)

    def _prompt(self, question: str) -> Prompt:
        messages = Message("system", _RULES[self.way]), Message("user", question)
        return Prompt(messages, schema=_SCHEMA if self.way == "json" else None)


def choose_way(model: TextModel) -> JudgeWay:
    """Return ``logprob`` where the model's engine can score a text, else ``json``."""
    probe = Prompt((Message("user", "Is water wet?"),))
    try:
        model.score([probe], ["yes"])
    except BackendError as error:
        if error.code == "backend.no-score":
            return "json"
        raise
    return "logprob"


def _verdict_of(text: str) -> str:
    """Return ``yes`` or ``no`` of a JSON answer; nothing if it is neither."""
    try:
        value: Any = json.loads(text[text.index("{") : text.rindex("}") + 1])
        word = value["verdict"]
    except (ValueError, KeyError, TypeError):
        return ""
    return word if word in _VERDICTS else ""
