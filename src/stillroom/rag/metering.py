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
    """Passes every call on; ``calls`` counts prompts that were completed or scored."""

    def __init__(self, model: TextModel) -> None:
        """Count what is asked of ``model``."""
        self._model = model
        self.name, self.fingerprint = model.name, model.fingerprint
        self.context_length = model.context_length
        self.calls = 0

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
        return self._model.generate(prompts, sampling, on_done=on_done, is_cancelled=is_cancelled)

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[str]:
        """Yield the completion's text in pieces as it comes."""
        self.calls += 1
        yield from self._model.stream(prompt, sampling)

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Score]:
        """Return the log-probabilities of each completion's tokens, given its prompt."""
        self.calls += len(set(map(id, prompts)))
        return self._model.score(prompts, completions)

    def count_tokens(self, text: str) -> int:
        """Return how many tokens the text has, without special tokens."""
        return self._model.count_tokens(text)

    def close(self) -> None:
        """Leave the model open: who opened it closes it."""
