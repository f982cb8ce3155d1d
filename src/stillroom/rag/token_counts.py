"""CountingModel: a text model that counts the tokens it reads and writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from stillroom.models.protocols import Score
from stillroom.records import Completion, Prompt, Sampling

if TYPE_CHECKING:
    from stillroom.models import TextModel

__all__ = ["CountingModel"]


class CountingModel:
    """Stands before a model and passes everything on; ``tokens`` is what it took so far."""

    def __init__(self, inner: TextModel) -> None:
        """Count what ``inner`` is asked."""
        self._inner = inner
        self.tokens = 0

    @property
    def name(self) -> str:
        """The model's name."""
        return self._inner.name

    @property
    def fingerprint(self) -> str:
        """What identifies the weights."""
        return self._inner.fingerprint

    @property
    def context_length(self) -> int:
        """How many tokens prompt and completion may have together."""
        return self._inner.context_length

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling | Sequence[Sampling],
        *,
        on_done: Callable[[int, Completion], None] | None = None,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> list[Completion]:
        """Complete every prompt, and count."""
        done = self._inner.generate(prompts, sampling, on_done=on_done, is_cancelled=is_cancelled)
        self.tokens += sum(one.prompt_tokens + one.completion_tokens for one in done)
        return done

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[str]:
        """Yield the completion's text in pieces, and count them."""
        pieces = [message.content for message in prompt.messages] or [prompt.text]
        self.tokens += sum(self.count_tokens(piece) for piece in pieces)
        for piece in self._inner.stream(prompt, sampling):
            self.tokens += self.count_tokens(piece)
            yield piece

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Score]:
        """Return the log-probabilities of completions, and count what was read."""
        for prompt, completion in zip(prompts, completions, strict=True):
            pieces = [message.content for message in prompt.messages] or [prompt.text]
            self.tokens += sum(self.count_tokens(piece) for piece in [*pieces, completion])
        return self._inner.score(prompts, completions)

    def count_tokens(self, text: str) -> int:
        """Return how many tokens the text has."""
        return self._inner.count_tokens(text)

    def close(self) -> None:
        """Release the engine."""
        self._inner.close()
