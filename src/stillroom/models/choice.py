"""Multiple choice and scores: a judge's reply as probabilities, by log-probabilities or JSON.

``logprob``: the engine scores given texts, or a server returns the most probable first tokens; the
probabilities are normalized over the options. ``drawn``: the model samples an answer under a JSON
Schema of the options, which gets probability 1. The method is part of the result: an expected value
over sampled answers is not an expectation.

Source: Liu et al. 2023, "G-Eval", arXiv:2303.16634 (scores weighted by token probabilities).

A first token counts for the option it equals, up to white space; options of several tokens must
differ in the first. Probability mass on other tokens is ignored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from stillroom.errors import BackendError
from stillroom.models.interfaces import TextModel
from stillroom.models.requests import run_in_threads
from stillroom.provenance.digests import load_json
from stillroom.records import Completion, Message, Prompt, Sampling

if TYPE_CHECKING:
    from stillroom.models.endpoints.client import Endpoint

__all__ = [
    "ChoiceProbabilities",
    "FirstTokenModel",
    "read_json_answer",
    "score_first_tokens",
    "score_options",
    "score_options_by_logprob",
]

_ANSWER_TOKENS = 24
_ANSWER_KEY = "answer"


@dataclass(frozen=True, slots=True)
class ChoiceProbabilities:
    """Probabilities of the options, summing to 1; None where the model assigns none."""

    chances: tuple[float, ...] | None
    way: Literal["logprob", "drawn"] = "logprob"
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def expect(self, values: Sequence[float]) -> float | None:
        """Return the expectation of values, one per option."""
        if self.chances is None:
            return None
        return math.fsum(a * b for a, b in zip(self.chances, values, strict=True))


@runtime_checkable
class FirstTokenModel(Protocol):
    """TextModel whose engine returns the most probable first tokens."""

    def choose(
        self, prompts: Sequence[Prompt], options: Sequence[str]
    ) -> list[ChoiceProbabilities]:
        """Return the probabilities of the options as the answer to each prompt.

        Raises:
            BackendError: With the code ``backend.no-score`` if the server has no log-probabilities.
        """


def score_options(
    model: TextModel, prompts: Sequence[Prompt], options: Sequence[str], *, seed: int = 0
) -> list[ChoiceProbabilities]:
    """Return the probabilities of options as the answer to each prompt, in order.

    Args:
        model: Text model.
        prompts: Prompts that end in the question and ask for one of the options.
        options: Texts with pairwise different first tokens, e.g. ``1`` to ``5``.
        seed: Random seed, where answers have to be sampled.

    Raises:
        BackendError: If the engine fails.
    """
    try:
        return score_options_by_logprob(model, prompts, options)
    except BackendError as error:
        if error.code != "backend.no-score":
            raise
    return _sample_options(model, prompts, options, seed)


def score_options_by_logprob(
    model: TextModel, prompts: Sequence[Prompt], options: Sequence[str]
) -> list[ChoiceProbabilities]:
    """Return the probabilities of options by log-probabilities, without sampling.

    Raises:
        BackendError: With the code ``backend.no-score`` if the engine has none.
    """
    if isinstance(model, FirstTokenModel):
        return model.choose(prompts, options)
    return [_score_options(model, prompt, options) for prompt in prompts]


def _score_options(model: TextModel, prompt: Prompt, options: Sequence[str]) -> ChoiceProbabilities:
    scores = [score.total for score in model.score([prompt] * len(options), list(options))]
    highest = max(scores)
    if not math.isfinite(highest):
        return ChoiceProbabilities(None)
    weights = [math.exp(score - highest) for score in scores]
    total = math.fsum(weights)
    return ChoiceProbabilities(tuple(weight / total for weight in weights))


def _sample_options(
    model: TextModel, prompts: Sequence[Prompt], options: Sequence[str], seed: int
) -> list[ChoiceProbabilities]:
    schema = {
        "type": "object",
        "properties": {_ANSWER_KEY: {"type": "string", "enum": list(options)}},
        "required": [_ANSWER_KEY],
        "additionalProperties": False,
    }
    questions = [replace(_ask_for_json(prompt, options), schema=schema) for prompt in prompts]
    sampling = Sampling(max_new_tokens=_ANSWER_TOKENS, seed=seed)
    results = []
    for completion in model.generate(questions, sampling):
        answer = read_json_answer(completion.text, _ANSWER_KEY)
        sure = tuple(float(option == answer) for option in options) if answer in options else None
        results.append(
            ChoiceProbabilities(
                sure, "drawn", completion.prompt_tokens, completion.completion_tokens
            )
        )
    return results


def _ask_for_json(prompt: Prompt, options: Sequence[str]) -> Prompt:
    if not prompt.messages:
        return prompt
    last = prompt.messages[-1]
    content = f'{last.content}\n\nAnswer in JSON, as {{"{_ANSWER_KEY}": "{options[0]}"}}.'
    return replace(prompt, messages=(*prompt.messages[:-1], Message(last.role, content)), prefix="")


def read_json_answer(text: str, key: str) -> str:
    """Return the value of a key in the JSON object of a model's answer; empty if it has none."""
    try:
        return str(load_json(text[text.index("{") : text.rindex("}") + 1])[key])
    except (ValueError, LookupError, TypeError):
        return ""


_TOP_LOGPROBS = 20


def score_first_tokens(
    endpoint: Endpoint,
    name: str,
    prompts: Sequence[Prompt],
    options: Sequence[str],
    workers: int,
) -> list[ChoiceProbabilities]:
    """Generate one token per prompt, and read the probability of each option.

    Raises:
        BackendError: If the endpoint fails; ``backend.no-score`` if it has no log-probabilities.
    """
    results: list[ChoiceProbabilities] = [ChoiceProbabilities(None)] * len(prompts)

    def ask(index: int, is_stopped: Callable[[], bool]) -> Completion:
        prompt = prompts[index]
        messages = [message.to_json() for message in prompt.messages]
        body: dict[str, Any] = {
            "model": name,
            "messages": messages,
            "max_tokens": 1,
            "temperature": 0.0,
            "logprobs": True,
            "top_logprobs": _TOP_LOGPROBS,
        }
        if not prompt.messages:
            body["messages"] = [{"role": "user", "content": prompt.text + prompt.prefix}]
        try:
            answer = endpoint.ask("/chat/completions", body, is_stopped)
        except BackendError as error:
            if error.code == "backend.refused":  # most likely because of the logprobs setting
                raise _no_logprobs_error(endpoint) from error
            raise
        results[index] = _parse_logprobs(endpoint, answer, options)
        return Completion("", model=name)

    run_in_threads(ask, len(prompts), workers, name)
    return results


def _parse_logprobs(
    endpoint: Endpoint, answer: dict[str, Any], options: Sequence[str]
) -> ChoiceProbabilities:
    usage = answer.get("usage") or {}
    try:
        tokens = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        pairs = [(str(entry["token"]).strip(), float(entry["logprob"])) for entry in tokens]
        counts = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise _no_logprobs_error(endpoint) from error
    masses = [
        math.fsum(math.exp(p) for token, p in pairs if _matches_option(token, o)) for o in options
    ]
    total = math.fsum(masses)
    if not total:
        return ChoiceProbabilities(None, "logprob", *counts)
    return ChoiceProbabilities(tuple(mass / total for mass in masses), "logprob", *counts)


def _matches_option(token: str, option: str) -> bool:
    """Return whether a first token is an option, or the beginning of a longer word of it."""
    return token == option or (len(token) > 1 and token.isalpha() and option.startswith(token))


def _no_logprobs_error(endpoint: Endpoint) -> BackendError:
    return BackendError(
        f"{endpoint.address} has no token probabilities",
        code="backend.no-score",
        expected="choices[0].logprobs.content[0].top_logprobs",
        next="nothing: answers are sampled instead",
    )
