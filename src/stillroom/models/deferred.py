"""A text model that is opened when it is first used."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING

from stillroom.models.interfaces import Score, TextModel

if TYPE_CHECKING:
    from stillroom.records import Completion, Prompt, Sampling

__all__ = ["DeferredModel"]


class DeferredModel:
    """Text model behind a function that opens it; answers that quote never call it.

    Not safe for concurrent first use.
    """

    def __init__(self, name: str, open_model: Callable[[], TextModel]) -> None:
        """Keep the function.

        Args:
            name: Display name until the model is open.
            open_model: Opens the model; called at most once.
        """
        self._name, self._open = name, open_model
        self._model: TextModel | None = None

    def _opened(self) -> TextModel:
        if self._model is None:
            self._model = self._open()
        return self._model

    @property
    def name(self) -> str:
        """Display name."""
        return self._name if self._model is None else self._model.name

    @property
    def fingerprint(self) -> str:
        """Identifier of the weights; opens the model."""
        return self._opened().fingerprint

    @property
    def context_length(self) -> int:
        """Maximum tokens of prompt and completion together; opens the model."""
        return self._opened().context_length

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling | Sequence[Sampling],
        *,
        on_done: Callable[[int, Completion], None] | None = None,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> list[Completion]:
        """Complete all prompts; see ``TextModel.generate``."""
        return self._opened().generate(
            prompts, sampling, on_done=on_done, is_cancelled=is_cancelled
        )

    def stream(self, prompt: Prompt, sampling: Sampling) -> Generator[str, None, Completion]:
        """Yield the text of a completion in pieces, and return the completion."""
        return self._opened().stream(prompt, sampling)

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Score]:
        """Return the log-probabilities of each completion's tokens, given its prompt."""
        return self._opened().score(prompts, completions)

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens of a text, without special tokens."""
        return self._opened().count_tokens(text)

    def close(self) -> None:
        """Close the model if it was opened."""
        if self._model is not None:
            self._model.close()
