"""Protocols of text models, embedders and rerankers, and the base classes of backends.

Independent of engines and tensors: prompts and completions are records, vectors are NumPy arrays.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from pydantic import Field

from stillroom.records import Completion, Message, Prompt, Sampling
from stillroom.registry import Method, Registry

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "BACKENDS",
    "EMBEDDERS",
    "AsyncModel",
    "Backend",
    "BatchingModel",
    "ConcurrentModel",
    "CountingModel",
    "DelegatingModel",
    "DenoisingModel",
    "DenoisingStep",
    "Embedder",
    "EmbedderMethod",
    "OnDone",
    "OpenAIPassthroughModel",
    "RerankerModel",
    "Score",
    "TemplatedModel",
    "TextKind",
    "TextModel",
    "TokenEmbedder",
    "Vectors",
]


class Backend(Method, ABC):
    """Backend (inference runtime, provider) of a text model; its fields are its settings."""

    paper: ClassVar[str] = ""

    num_threads: int | None = Field(
        None, ge=1, description="CPU threads; default: all cores of this process"
    )
    context_length: int | None = Field(
        None, ge=64, description="maximum tokens of prompt and completion; default: the model's"
    )

    @abstractmethod
    def open(self, reference: str) -> TextModel:
        """Open a model.

        Args:
            reference: A checkpoint folder or ``.gguf`` file, or an endpoint's address.

        Raises:
            BackendError: If the engine cannot open it.
            MissingExtraError: If the engine's package is not installed.
        """


class EmbedderMethod(Method, ABC):
    """Backend of an embedder; its fields are the engine's settings."""

    paper: ClassVar[str] = ""

    @abstractmethod
    def open(self, reference: str) -> Embedder:
        """Open an embedder.

        Args:
            reference: A checkpoint folder, an endpoint's address, or the name of the method.

        Raises:
            BackendError: If the engine cannot open it.
            MissingExtraError: If the engine's package is not installed.
        """


BACKENDS = Registry("stillroom.models.backends", Backend)
EMBEDDERS = Registry("stillroom.models.embedders", EmbedderMethod)


class DelegatingModel:
    """Base of wrappers of a ``TextModel``: by default everything is the wrapped model's."""

    def __init__(self, model: TextModel) -> None:
        self.model = model

    @property
    def name(self) -> str:
        """Name of the wrapped model."""
        return self.model.name

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the wrapped model."""
        return self.model.fingerprint

    @property
    def context_length(self) -> int:
        """Context length of the wrapped model."""
        return self.model.context_length

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling | Sequence[Sampling],
        *,
        on_done: Callable[[int, Completion], None] | None = None,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> list[Completion]:
        """Complete all prompts; see ``TextModel.generate``."""
        return self.model.generate(prompts, sampling, on_done=on_done, is_cancelled=is_cancelled)

    def stream(self, prompt: Prompt, sampling: Sampling) -> Generator[str, None, Completion]:
        """Yield the text of a completion in pieces, and return the completion."""
        return self.model.stream(prompt, sampling)

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Score]:
        """Return the log-probabilities of each completion's tokens, given its prompt."""
        return self.model.score(prompts, completions)

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens of a text, without special tokens."""
        return self.model.count_tokens(text)

    def close(self) -> None:
        """Close the wrapped model."""
        self.model.close()


if TYPE_CHECKING:
    Vectors = NDArray[np.float32]
else:
    Vectors = Any


TextKind = Literal["query", "passage"]
OnDone = Callable[[Completion | BaseException], None]
"""Callback of a submitted request."""


@dataclass(frozen=True, slots=True)
class Score:
    """Natural log-probabilities of a completion's tokens."""

    logprobs: tuple[float, ...]

    @property
    def total(self) -> float:
        """Log-probability of the completion, in nats."""
        return float(sum(self.logprobs))

    @property
    def mean(self) -> float:
        """Mean log-probability per token, in nats; 0.0 for an empty completion."""
        return self.total / len(self.logprobs) if self.logprobs else 0.0


@runtime_checkable
class TextModel(Protocol):
    """A model (LLM, generator) that generates and scores text.

    A completion depends on its prompt, its sampling and the model only: not on other prompts, their
    order, or earlier requests. Its text does not repeat the prompt's ``prefix``.
    """

    @property
    def name(self) -> str:
        """Display name."""

    @property
    def fingerprint(self) -> str:
        """Identifier of the weights (or of endpoint and model name) in caches and lineage."""

    @property
    def context_length(self) -> int:
        """Maximum tokens of prompt and completion together."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling | Sequence[Sampling],
        *,
        on_done: Callable[[int, Completion], None] | None = None,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> list[Completion]:
        """Complete all prompts, in order.

        Args:
            prompts: Prompts.
            sampling: One for all, or one per prompt.
            on_done: Called with index and completion as each ends, in any order, on the caller's
                thread.
            is_cancelled: Polled between completions (and within long ones where the engine can);
                once true, open completions are returned with ``finish_reason`` ``cancelled``.

        Raises:
            BackendError: If the engine or endpoint fails, or a prompt exceeds the context.
        """

    def stream(self, prompt: Prompt, sampling: Sampling) -> Generator[str, None, Completion]:
        """Yield the text of a completion in pieces, and return the completion.

        Token counts are the engine's; unknown ones are 0.
        """

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Score]:
        """Return the log-probabilities of each completion's tokens, given its prompt."""

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens of a text, without special tokens."""

    def close(self) -> None:
        """Release the engine; idempotent."""


@runtime_checkable
class ConcurrentModel(TextModel, Protocol):
    """TextModel that gains from concurrent calls of several threads: a server's."""

    @property
    def concurrency(self) -> int:
        """Maximum concurrent requests; more are queued."""


@runtime_checkable
class AsyncModel(ConcurrentModel, Protocol):
    """ConcurrentModel with requests that do not block a thread."""

    def submit(self, prompt: Prompt, sampling: Sampling, done: OnDone) -> None:
        """Submit a request; ``done`` is called once with the completion or the exception.

        It is called on the model's thread, or on the caller's before ``submit`` returns if the
        answer is cached, and must neither block nor raise. Closing the model passes ``Cancelled``.

        Raises:
            BackendError: If the model is closed.
        """


@runtime_checkable
class BatchingModel(TextModel, Protocol):
    """Local TextModel that batches the prompts of several threads."""

    @property
    def lanes(self) -> int:
        """Maximum concurrent calls without queueing."""


@runtime_checkable
class OpenAIPassthroughModel(TextModel, Protocol):
    """TextModel with OpenAI's API, for requests that a Prompt cannot express, e.g. tools."""

    def relay_chat(self, body: Mapping[str, Any], is_stopped: Callable[[], bool]) -> dict[str, Any]:
        """Send a chat request unchanged, except for the model name; return the response.

        Raises:
            BackendError: If the endpoint fails or refuses.
        """

    def stream_chat(self, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Send a chat request and yield the chunks of the response."""


@dataclass(frozen=True, slots=True)
class DenoisingStep:
    """State of a text after one step of a diffusion model.

    Args:
        step: Step, from 0.
        readings: Forward passes so far.
        pieces: Text at each position after the prompt, None where masked.
        written: Positions unmasked in this step.
        changed: Positions remasked or replaced in this step.
    """

    step: int
    readings: int
    pieces: tuple[str | None, ...]
    written: tuple[int, ...]
    changed: tuple[int, ...]


@runtime_checkable
class DenoisingModel(TextModel, Protocol):
    """TextModel of a diffusion model, with access to its denoising steps."""

    def stream_canvas(
        self, prompt: Prompt, sampling: Sampling
    ) -> Generator[str | DenoisingStep, None, Completion]:
        """Yield and return as ``stream`` does, and yield the steps between the pieces."""


@runtime_checkable
class CountingModel(TextModel, Protocol):
    """TextModel with an exact token count of prompts: a local one."""

    def count_prompt(self, prompt: Prompt) -> int:
        """Return the number of tokens of a prompt, including its chat template."""


@runtime_checkable
class TemplatedModel(TextModel, Protocol):
    """TextModel with access to its chat template: a local one."""

    def render(self, messages: Sequence[Message]) -> str:
        """Apply the chat template to messages and open the assistant's turn.

        Control tokens within the messages are escaped; those of the template are not.

        Raises:
            BackendError: If the template refuses the messages.
        """


@runtime_checkable
class Embedder(Protocol):
    """A model that embeds texts; the dot product of vectors is their similarity."""

    truncated: int
    """Number of texts truncated to ``max_tokens``."""

    @property
    def dimensions(self) -> int:
        """Vector length."""

    @property
    def max_tokens(self) -> int:
        """Maximum tokens per text, including two special tokens, without the prompt.

        Longer texts are truncated and counted in ``truncated``.
        """

    @property
    def fingerprint(self) -> str:
        """Identifier of the weights (or of endpoint and model name)."""

    def embed(self, texts: Sequence[str], *, kind: TextKind) -> Vectors:
        """Return one L2-normalized row per text, (N, D) float32.

        Rows are independent of the other texts.

        Raises:
            DataError: If a text is empty: its vector would have no direction.
        """

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens of a text, without special tokens."""


@runtime_checkable
class TokenEmbedder(Embedder, Protocol):
    """Embedder with access to its token states."""

    def embed_tokens(self, texts: Sequence[str], *, kind: TextKind) -> list[Vectors]:
        """Return the token states of each text, L2-normalized rows, (T, D) float32.

        Special tokens are omitted; texts beyond ``max_tokens`` are truncated. Results are
        independent of the other texts.
        """


@runtime_checkable
class RerankerModel(Protocol):
    """A model that scores the relevance of texts to a query."""

    @property
    def fingerprint(self) -> str:
        """Identifier of the weights (or of endpoint and model name)."""

    def score(self, query: str, texts: Sequence[str]) -> list[float]:
        """Return one score per text, in order; higher is better, the scale is the model's.

        Raises:
            BackendError: If the engine or endpoint fails, or the query leaves no room for a text.
        """

    def close(self) -> None:
        """Release the engine; idempotent."""
