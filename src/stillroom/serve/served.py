"""Served: what stands behind the API, and how it is opened from a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from stillroom.flow.opening import find_step
from stillroom.models import Embedder, TextModel, open_text_model
from stillroom.provenance import find_output
from stillroom.records import Answer, Message, Sampling

__all__ = ["Ask", "Served", "open_run"]


class Ask(Protocol):
    """Answers from documents: pieces of text as they come, then the Answer."""

    def __call__(
        self, messages: Sequence[Message], sampling: Sampling, k: int
    ) -> Iterator[str | Answer]:
        """Answer the last message, which alone is read; ``k`` passages are shown to the model."""


@dataclass(frozen=True)
class Served:
    """A model, and optionally what embeds and what answers from documents.

    Clients name what they want: ``name`` answers from documents where there are any, ``bare_name``
    is the model alone, ``embedder_name`` makes vectors.
    """

    name: str
    model: TextModel
    ask: Ask | None = None
    embedder: Embedder | None = None
    embedder_name: str = "embedder"
    k: int = 3

    @property
    def bare_name(self) -> str:
        """The name under which the model answers alone."""
        return f"{self.name}-bare" if self.ask else self.name

    @property
    def names(self) -> list[str]:
        """Every name a client may ask for."""
        names = [self.name, self.bare_name] if self.ask else [self.name]
        return [*names, self.embedder_name] if self.embedder else names


@contextmanager
def open_run(
    run: Path, *, model: str = "", say: Callable[[str], None] | None = None
) -> Iterator[Served]:
    """Open a finished run's index and model (or another model) until the body ends.

    Raises:
        DataError: If the run is unfinished or names no index and model.
        CheckpointError: If the model cannot be found.
    """
    from stillroom.rag.answer import ask_stream
    from stillroom.rag.index import Index

    folder = find_output(find_step(run, "index"), "index")
    reference = model or str(find_step(run, "model"))
    with Index.open(folder) as index:
        text_model = open_text_model(reference, say=say)

        def ask(messages: Sequence[Message], sampling: Sampling, k: int) -> Iterator[str | Answer]:
            yield from ask_stream(index, text_model, messages[-1].content, k=k, sampling=sampling)

        try:
            embedder = index.embedder if index.description.embedder else None
            yield Served(run.resolve().name, text_model, ask, embedder)
        finally:
            text_model.close()
