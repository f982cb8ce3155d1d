"""Meter: a TextModel that counts what is asked of another."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING

from stillroom.models.streams import with_end
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

    def stream(self, prompt: Prompt, sampling: Sampling) -> Generator[str, None, Completion]:
        """Yield the completion's text in pieces as it comes; of one left midway, count those."""
        self.calls += 1
        stream, pieces = self._model.stream(prompt, sampling), list[str]()
        done = Completion("", model=self.fingerprint)
        try:
            for item in with_end(stream):
                if isinstance(item, Completion):
                    done = item
                else:
                    pieces.append(item)
                    yield item
        finally:
            stream.close()
            self.tokens += done.prompt_tokens or self._measure(prompt)
            self.tokens += done.completion_tokens or self.count_tokens("".join(pieces))
        return done

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
