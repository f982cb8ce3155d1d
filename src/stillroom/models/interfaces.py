"""Protocols of text models, embedders and rerankers, and the base classes of backends.

Knows no engine and no tensor: prompts and completions are records, vectors are numpy arrays.
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
    "OpenAIPassthroughModel",
    "RerankerModel",
    "Score",
    "SpanEmbedder",
    "TemplatedModel",
    "TextKind",
    "TextModel",
    "TokenEmbedder",
    "Vectors",
]


class Backend(Method, ABC):
    """An engine behind a TextModel; its fields are the engine's settings."""

    paper: ClassVar[str] = ""

    num_threads: int | None = Field(
        None, ge=1, description="processor threads; by default all cores this process may use"
    )
    context_length: int | None = Field(
        None, ge=64, description="tokens of prompt and completion together; by default the model's"
    )

    @abstractmethod
    def open(self, reference: str) -> TextModel:
        """Open a model.

        Args:
            reference: A checkpoint's folder or ``.gguf`` file, or an endpoint's address.

        Raises:
            BackendError: If the engine cannot open it.
            MissingExtraError: If the engine's package is not installed.
        """


class EmbedderMethod(Method, ABC):
    """An engine behind an Embedder; its fields are the engine's settings."""

    paper: ClassVar[str] = ""

    @abstractmethod
    def open(self, reference: str) -> Embedder:
        """Open an embedder.

        Args:
            reference: A checkpoint's folder, an endpoint's address, or the method's own name.

        Raises:
            BackendError: If the engine cannot open it.
            MissingExtraError: If the engine's package is not installed.
        """


BACKENDS = Registry("stillroom.models.backends", Backend)


EMBEDDERS = Registry("stillroom.models.embedders", EmbedderMethod)


class DelegatingModel:
    """What a model has of the one behind it: its name, fingerprint and context length."""

    def __init__(self, model: TextModel) -> None:
        """Stand before ``model``."""
        self.model = model

    @property
    def name(self) -> str:
        """The name of the model behind."""
        return self.model.name

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the model behind."""
        return self.model.fingerprint

    @property
    def context_length(self) -> int:
        """The context length of the model behind."""
        return self.model.context_length


if TYPE_CHECKING:
    Vectors = NDArray[np.float32]
else:
    Vectors = Any


TextKind = Literal["query", "passage"]


@dataclass(frozen=True, slots=True)
class Score:
    """How likely a model finds a completion: the natural log-probability of each of its tokens."""

    logprobs: tuple[float, ...]

    @property
    def total(self) -> float:
        """The log-probability of the whole completion, in nats."""
        return float(sum(self.logprobs))

    @property
    def mean(self) -> float:
        """Nats per token; 0.0 for an empty completion."""
        return self.total / len(self.logprobs) if self.logprobs else 0.0


@runtime_checkable
class TextModel(Protocol):
    """Anything that generates and scores text.

    What is generated for a prompt depends on that prompt, its sampling and the model alone: never
    on the prompts asked beside it, their order, or what was asked before. A completion's text does
    not repeat the prompt's ``prefix``.
    """

    @property
    def name(self) -> str:
        """A short name for people."""

    @property
    def fingerprint(self) -> str:
        """What identifies the weights (or the endpoint and model name) in caches and lineage."""

    @property
    def context_length(self) -> int:
        """How many tokens prompt and completion may have together."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling | Sequence[Sampling],
        *,
        on_done: Callable[[int, Completion], None] | None = None,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> list[Completion]:
        """Complete every prompt, in order.

        Args:
            prompts: What to complete.
            sampling: One for all, or one for each.
            on_done: Called with index and completion as each is done, in any order, on the
                caller's thread.
            is_cancelled: Asked between completions (and within long ones where the engine can);
                once true, what is not done comes back with ``finish_reason`` ``cancelled``.

        Raises:
            BackendError: If the engine or endpoint fails, or a prompt does not fit the context.
        """

    def stream(self, prompt: Prompt, sampling: Sampling) -> Generator[str, None, Completion]:
        """Yield the completion's text in pieces as it comes, and return it whole.

        What is returned is accounted for as the engine counts: a count it does not tell is 0.
        """

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Score]:
        """Return the log-probabilities of each completion's tokens, given its prompt."""

    def count_tokens(self, text: str) -> int:
        """Return how many tokens the text has, without special tokens."""

    def close(self) -> None:
        """Release the engine; closing twice does no harm."""


@runtime_checkable
class ConcurrentModel(TextModel, Protocol):
    """A TextModel that several threads may ask at once, and gains by it: a server's."""

    @property
    def concurrency(self) -> int:
        """How many requests it takes at once; more wait for their turn."""


@runtime_checkable
class AsyncModel(ConcurrentModel, Protocol):
    """A ConcurrentModel that can be asked without a thread that waits for each answer."""

    def submit(
        self, prompt: Prompt, sampling: Sampling, done: Callable[[Completion | BaseException], None]
    ) -> None:
        """Ask, and have ``done`` called once with the completion or the error.

        It is called on the model's own thread, or on this one before ``submit`` returns where the
        answer is at hand, and must neither wait nor raise. A model that is closed meanwhile gives
        ``Cancelled``.

        Raises:
            BackendError: If the model is closed.
        """


@runtime_checkable
class BatchingModel(TextModel, Protocol):
    """A TextModel in this process that works on several prompts side by side."""

    @property
    def lanes(self) -> int:
        """How many threads may ask it at once before one waits for another."""


@runtime_checkable
class OpenAIPassthroughModel(TextModel, Protocol):
    """A TextModel that speaks OpenAI's dialect, and so takes what no Prompt says: tools."""

    def relay_chat(self, body: Mapping[str, Any], is_stopped: Callable[[], bool]) -> dict[str, Any]:
        """Send a chat request as it stands, but for the model's name; return the answer.

        Raises:
            BackendError: If the endpoint fails or refuses.
        """

    def stream_chat(self, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Send a chat request and yield the chunks of its answer."""


@dataclass(frozen=True, slots=True)
class DenoisingStep:
    """A text after one step of a model that writes in any order.

    Args:
        step: From 0.
        readings: Of the model so far.
        pieces: The text of each place behind the prompt, None where it is open.
        written: Places that were written in this step.
        changed: Places that were opened again or replaced.
    """

    step: int
    readings: int
    pieces: tuple[str | None, ...]
    written: tuple[int, ...]
    changed: tuple[int, ...]


@runtime_checkable
class DenoisingModel(TextModel, Protocol):
    """A TextModel that writes in any order, and can show how."""

    def stream_canvas(
        self, prompt: Prompt, sampling: Sampling
    ) -> Generator[str | DenoisingStep, None, Completion]:
        """Yield and return what ``stream`` does, and yield the steps between the pieces."""


@runtime_checkable
class CountingModel(TextModel, Protocol):
    """A TextModel that can count a prompt as it reads it: one in this process."""

    def count_prompt(self, prompt: Prompt) -> int:
        """Return how many tokens are read of a prompt, those of its chat template with them."""


@runtime_checkable
class TemplatedModel(TextModel, Protocol):
    """A TextModel whose chat template can be seen: one in this process."""

    def render(self, messages: Sequence[Message]) -> str:
        """Return messages as the template writes them, with the assistant's turn opened.

        Control tokens within the messages are escaped; those of the template are not.

        Raises:
            BackendError: If the template refuses the messages.
        """


@runtime_checkable
class Embedder(Protocol):
    """Anything that turns texts into vectors whose dot product is their likeness."""

    truncated: int
    """How many texts were longer than ``max_tokens`` and embedded without their ends."""

    @property
    def dimensions(self) -> int:
        """Length of a vector."""

    @property
    def max_tokens(self) -> int:
        """How many tokens of a text are read, two special ones included and prompts left out.

        The rest is cut and counted in ``truncated``.
        """

    @property
    def fingerprint(self) -> str:
        """What identifies the weights (or the endpoint and model name)."""

    def embed(self, texts: Sequence[str], *, kind: TextKind) -> Vectors:
        """Return one L2-normalized row per text, (N, D) float32.

        A text's row does not depend on the texts beside it.

        Raises:
            DataError: If a text is empty: its vector would have no direction.
        """

    def count_tokens(self, text: str) -> int:
        """Return how many tokens the text has, without special tokens."""


@runtime_checkable
class TokenEmbedder(Embedder, Protocol):
    """An embedder that also gives what it knows of every token."""

    def embed_tokens(self, texts: Sequence[str], *, kind: TextKind) -> list[Vectors]:
        """Return for each text its tokens' states, L2-normalized rows, (T, D) float32.

        Special tokens are left out; a text longer than ``max_tokens`` loses its end. What is given
        for a text does not depend on the texts beside it.
        """


@runtime_checkable
class SpanEmbedder(Embedder, Protocol):
    """An embedder that reads a whole text and gives a vector for each of its passages."""

    def embed_spans(
        self, text: str, spans: Sequence[tuple[int, int]], *, kind: TextKind
    ) -> Vectors:
        """Return one row for each span of a text, read with all of the text around it.

        Args:
            text: The whole text, however long; it is read in windows that overlap.
            spans: First and last + 1 character of each passage.
            kind: What the spans are.

        Returns:
            L2-normalized rows, (N, D) float32.

        Raises:
            CheckpointError: If the embedder's vectors are not means of token states.
            DataError: If a span is empty.
        """


@runtime_checkable
class RerankerModel(Protocol):
    """Anything that reads a query and a text together and says how well they fit."""

    @property
    def fingerprint(self) -> str:
        """What identifies the weights (or the endpoint and model name)."""

    def score(self, query: str, texts: Sequence[str]) -> list[float]:
        """Return one score for each text, in order; higher fits better, the scale is the model's.

        Raises:
            BackendError: If the engine or endpoint fails, or the query leaves no room for a text.
        """

    def close(self) -> None:
        """Release the engine; closing twice does no harm."""
