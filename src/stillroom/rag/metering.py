"""Meter: a TextModel that counts what is asked of another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from stillroom.records import Completion, Prompt, Sampling

if TYPE_CHECKING:
    from stillroom.models import TextModel
    from stillroom.models.protocols import Score

__all__ = ["Meter"]


class Meter:
    """Passes every call on; ``calls`` counts prompts that were completed or scored.

    ``tokens`` are those that were read and written, as the engine or its tokenizer counts them.
    """

    def __init__(self, model: TextModel) -> None:
        """Count what is asked of ``model``."""
        self._model = model
        self.name, self.fingerprint = model.name, model.fingerprint
        self.context_length = model.context_length
        self.calls = self.tokens = 0

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling | Sequence[Sampling],
        *,
        on_done: Callable[[int, Completion], None] | None = None,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> list[Completion]:
        """Complete every prompt; see ``TextModel.generate``."""
        self.calls += len(prompts)
        done = self._model.generate(prompts, sampling, on_done=on_done, is_cancelled=is_cancelled)
        self.tokens += sum(one.prompt_tokens + one.completion_tokens for one in done)
        return done

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[str]:
        """Yield the completion's text in pieces as it comes."""
        self.calls += 1
        self.tokens += self._measure(prompt)
        pieces = []
        try:
            for piece in self._model.stream(prompt, sampling):
                pieces.append(piece)
                yield piece
        finally:
            self.tokens += self.count_tokens("".join(pieces))

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Score]:
        """Return the log-probabilities of each completion's tokens, given its prompt."""
        distinct = {id(prompt): prompt for prompt in prompts}
        self.calls += len(distinct)
        self.tokens += sum(map(self._measure, distinct.values()))
        return self._model.score(prompts, completions)

    def count_tokens(self, text: str) -> int:
        """Return how many tokens the text has, without special tokens."""
        return self._model.count_tokens(text)

    def _measure(self, prompt: Prompt) -> int:
        texts = [message.content for message in prompt.messages] or [prompt.text]
        return sum(map(self.count_tokens, texts))

    def close(self) -> None:
        """Leave the model open: who opened it closes it."""
