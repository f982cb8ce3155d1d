"""Scripted answers (mock model) from a JSON file or a function, for dry runs and tests.

The file is a list of answers, used in order, or an object from substrings of the prompt to answers
(``*`` for any other prompt). Tokens are words and punctuation marks, so that limits and stop
sequences work as in a real model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from typing_extensions import override

from stillroom.errors import BackendError
from stillroom.models.interfaces import Backend, Score
from stillroom.models.requests import broadcast_sampling, cut_at_stop
from stillroom.objects.disk import require_file
from stillroom.provenance import digest_json, digest_text
from stillroom.provenance.digests import load_json
from stillroom.records import Completion, Message, Prompt, Sampling

__all__ = [
    "Script",
    "Scripted",
    "ScriptedModel",
]

Script = Callable[[Prompt], str] | Sequence[str] | Mapping[str, str]
_TOKEN = re.compile(r"\s*(?:\w+|[^\w\s])")


class ScriptedModel:
    """TextModel that answers from a function, a list (in order of requests) or a mapping.

    A key of a mapping matches the prompt that equals it, or else any prompt that contains it,
    longer keys first; the key ``*`` matches all other prompts.
    """

    def __init__(
        self,
        script: Script,
        *,
        name: str = "scripted",
        fingerprint: str = "",
        context_length: int = 8192,
    ) -> None:
        self._script = script
        self._said = 0
        self.name = name
        self.context_length = context_length
        shown = script if not callable(script) else "function"
        self.fingerprint = fingerprint or f"scripted:{digest_json(shown)[:16]}"
        self.asked: list[Prompt] = []
        """Prompts in order of requests."""
        self.is_closed = False

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling | Sequence[Sampling],
        *,
        on_done: Callable[[int, Completion], None] | None = None,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> list[Completion]:
        """Answer all prompts in order; see ``TextModel.generate``."""
        completions = []
        for index, (prompt, prompt_sampling) in enumerate(
            zip(prompts, broadcast_sampling(prompts, sampling), strict=True)
        ):
            if is_cancelled is not None and is_cancelled():
                completions.append(Completion("", "cancelled", model=self.fingerprint))
                continue
            completion = self._complete(prompt, prompt_sampling)
            completions.append(completion)
            if on_done is not None:
                on_done(index, completion)
        return completions

    def stream(self, prompt: Prompt, sampling: Sampling) -> Generator[str, None, Completion]:
        """Yield the answer token by token."""
        completion = self._complete(prompt, sampling)
        text = completion.text
        end = 0
        for match in _TOKEN.finditer(text):
            yield match.group()
            end = match.end()
        if text[end:]:
            yield text[end:]
        return completion

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Score]:
        """Return artificial, deterministic log-probabilities: high where the script agrees."""
        scores = []
        for prompt, completion in zip(prompts, completions, strict=True):
            same = completion == self._answer(prompt, listen=False)
            base = "yes" if same else _join_prompt_text(prompt)
            scores.append(
                Score(
                    tuple(_token_logprob(base, token, same) for token in _TOKEN.findall(completion))
                )
            )
        return scores

    def count_tokens(self, text: str) -> int:
        """Count words and punctuation marks."""
        return len(_TOKEN.findall(text))

    def render(self, messages: Sequence[Message]) -> str:
        """Return messages in ChatML."""
        turns = [
            f"<|im_start|>{message.role}\n{message.content}<|im_end|>\n" for message in messages
        ]
        return "".join([*turns, "<|im_start|>assistant\n"])

    def close(self) -> None:
        """Mark the model as closed."""
        self.is_closed = True

    def _complete(self, prompt: Prompt, sampling: Sampling) -> Completion:
        self.asked.append(prompt)
        text, stopped = cut_at_stop(self._answer(prompt), sampling.stop)
        tokens = list(_TOKEN.finditer(text))
        reason = "stop"
        if len(tokens) > sampling.max_new_tokens and not stopped:
            text, reason = text[: tokens[sampling.max_new_tokens - 1].end()], "length"
            tokens = tokens[: sampling.max_new_tokens]
        prompt_tokens = self.count_tokens(_join_prompt_text(prompt))
        return Completion(text, reason, prompt_tokens, len(tokens), self.fingerprint)

    def _answer(self, prompt: Prompt, *, listen: bool = True) -> str:
        if callable(self._script):
            return self._script(prompt)
        if isinstance(self._script, Mapping):
            return self._look_up(prompt)
        if not listen:
            return ""
        if self._said >= len(self._script):
            raise BackendError(
                f"the script has {len(self._script)} answers, and one more was requested",
                code="backend.script",
                expected="an answer for every prompt",
                next="add answers to the script",
            )
        self._said += 1
        return self._script[self._said - 1]

    def _look_up(self, prompt: Prompt) -> str:
        assert isinstance(self._script, Mapping)  # noqa: S101  # checked by _answer
        text = _join_prompt_text(prompt)
        last = prompt.messages[-1].content if prompt.messages else prompt.text
        if last in self._script:
            return self._script[last]
        for key in sorted(self._script, key=len, reverse=True):
            if key != "*" and key in text:
                return self._script[key]
        if "*" in self._script:
            return self._script["*"]
        raise BackendError(
            f"the script has no answer for {last[:80]!r}",
            code="backend.script",
            expected=f"a prompt that contains one of its {len(self._script)} keys",
            next="add the key, or '*' for any other prompt",
        )


def _join_prompt_text(prompt: Prompt) -> str:
    """Return the text of a prompt, messages joined as paragraphs."""
    return prompt.text or "\n\n".join(message.content for message in prompt.messages)


def _token_logprob(base: str, token: str, same: bool) -> float:
    share = int(digest_text(f"{base}\0{token}")[:8], 16) / 0xFFFFFFFF
    return math.log(0.5 + 0.49 * share) if same else math.log(0.01 + 0.48 * share)


class Scripted(Backend):
    """Scripted answers from a JSON file."""

    paper: ClassVar[str] = ""

    @override
    def open(self, reference: str) -> ScriptedModel:
        path = Path(reference.removeprefix("scripted:"))
        try:
            script = load_json(require_file(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise _invalid_script_error(path, str(error)) from error
        values = list(script.values()) if isinstance(script, dict) else script
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise _invalid_script_error(path, "its answers are not all strings")
        return ScriptedModel(script, name=path.stem, context_length=self.context_length or 8192)


def _invalid_script_error(path: Path, why: str) -> BackendError:
    return BackendError(
        f"{path} is not a script: {why}",
        code="backend.script",
        expected="a JSON list of answers, or an object from prompt substrings to answers",
        next='write {"*": "the answer"} into it',
    )
