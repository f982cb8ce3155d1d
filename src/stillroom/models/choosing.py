"""How likely a model finds each of a few given answers, by whatever way its engine has.

``logprob``: the engine scores a given text, or a server tells the likeliest first tokens; the
chances are those of the options among each other. ``drawn``: neither is there, so the model answers
under a schema of the options and all the chance is on what it says. The way is part of the result:
an expected value over drawn answers is no expectation.

Source: Liu et al. 2023, "G-Eval", arXiv:2303.16634 (scores weighted by token probabilities).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

from stillroom.errors import BackendError
from stillroom.models.protocols import TextModel
from stillroom.records import Message, Prompt, Sampling

__all__ = ["ChoosingModel", "Chosen", "weigh_given", "weigh_options"]

_ANSWER_TOKENS = 24
_KEY = "answer"


@dataclass(frozen=True, slots=True)
class Chosen:
    """The options' chances, which add up to 1; None where the model gave none of them."""

    chances: tuple[float, ...] | None
    way: Literal["logprob", "drawn"] = "logprob"
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def expect(self, values: Sequence[float]) -> float | None:
        """Return the mean of values, one an option, under the chances."""
        if self.chances is None:
            return None
        return math.fsum(a * b for a, b in zip(self.chances, values, strict=True))


@runtime_checkable
class ChoosingModel(Protocol):
    """A TextModel whose engine tells the chances of the likeliest first tokens."""

    def choose(self, prompts: Sequence[Prompt], options: Sequence[str]) -> list[Chosen]:
        """Return the options' chances as the answer to each prompt.

        Raises:
            BackendError: With the code ``backend.no-score`` if the server tells no chances.
        """


def weigh_options(
    model: TextModel, prompts: Sequence[Prompt], options: Sequence[str], *, seed: int = 0
) -> list[Chosen]:
    """Return the options' chances as the answer to each prompt, in order.

    Args:
        model: Who is asked.
        prompts: Each ends in what is to be decided, and says that one of the options is wanted.
        options: Texts that no two of which begin with the same token, as ``1`` to ``5``.
        seed: Of what is drawn, where nothing else can be done.

    Raises:
        BackendError: If the engine fails otherwise than in giving no chances.
    """
    try:
        return weigh_given(model, prompts, options)
    except BackendError as error:
        if error.code != "backend.no-score":
            raise
    return _draw(model, prompts, options, seed)


def weigh_given(
    model: TextModel, prompts: Sequence[Prompt], options: Sequence[str]
) -> list[Chosen]:
    """Return the options' chances by the engine's own probabilities; nothing is drawn.

    Raises:
        BackendError: With the code ``backend.no-score`` if the engine has none.
    """
    if isinstance(model, ChoosingModel):
        return model.choose(prompts, options)
    return [_score(model, prompt, options) for prompt in prompts]


def _score(model: TextModel, prompt: Prompt, options: Sequence[str]) -> Chosen:
    scores = [one.total for one in model.score([prompt] * len(options), list(options))]
    highest = max(scores)
    if not math.isfinite(highest):
        return Chosen(None)
    weights = [math.exp(score - highest) for score in scores]
    total = math.fsum(weights)
    return Chosen(tuple(weight / total for weight in weights))


def _draw(
    model: TextModel, prompts: Sequence[Prompt], options: Sequence[str], seed: int
) -> list[Chosen]:
    schema = {
        "type": "object",
        "properties": {_KEY: {"type": "string", "enum": list(options)}},
        "required": [_KEY],
        "additionalProperties": False,
    }
    asked = [replace(_say_how(prompt, options), schema=schema) for prompt in prompts]
    sampling = Sampling(max_new_tokens=_ANSWER_TOKENS, seed=seed)
    found = []
    for completion in model.generate(asked, sampling):
        said = _read(completion.text)
        sure = tuple(float(option == said) for option in options) if said in options else None
        found.append(Chosen(sure, "drawn", completion.prompt_tokens, completion.completion_tokens))
    return found


def _say_how(prompt: Prompt, options: Sequence[str]) -> Prompt:
    if not prompt.messages:
        return prompt
    last = prompt.messages[-1]
    told = f'{last.content}\n\nAnswer in JSON, as {{"{_KEY}": "{options[0]}"}}.'
    return replace(prompt, messages=(*prompt.messages[:-1], Message(last.role, told)), prefix="")


def _read(text: str) -> str:
    try:
        value = json.loads(text[text.index("{") : text.rindex("}") + 1])
        return str(value[_KEY])
    except (ValueError, KeyError, TypeError):
        return ""
