"""Served: what stands behind the API, and how it is opened from a run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from stillroom.flow.opening import find_step
from stillroom.models import Embedder, TextModel, open_text_model
from stillroom.provenance import find_output, read_artifact
from stillroom.records import Answer, Message, Sampling

if TYPE_CHECKING:
    from stillroom.rag.asking import AskSettings, AskTexts

__all__ = ["Ask", "Served", "open_run"]


class Ask(Protocol):
    """Answers from documents: pieces of text as they come, then the Answer."""

    def __call__(
        self,
        messages: Sequence[Message],
        sampling: Sampling,
        k: int,
        *,
        settings: AskTexts,
        is_cancelled: Callable[[], bool],
    ) -> Iterator[str | Answer]:
        """Answer the last message; ``k`` passages are shown to the model.

        Args:
            messages: The conversation; what comes before the last message is read where the way
                begins with the transform last_turn.
            sampling: How the answer is drawn.
            k: How many passages are shown.
            settings: What the client wants otherwise than the server does it.
            is_cancelled: Once true, the client has left.

        Raises:
            RecipeError: If the client names an unknown method.
        """


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
    run: Path,
    *,
    model: str = "",
    settings: AskSettings | None = None,
    say: Callable[[str], None] | None = None,
) -> Iterator[Served]:
    """Open a finished run's index and model (or another model) until the body ends.

    Args:
        run: The folder of the run, or of an index if a model is given.
        model: Another model than the run's own.
        settings: How questions are answered where a client does not say.
        say: Told what a ``hub:`` reference was resolved to.

    Raises:
        DataError: If the run is unfinished or names no index and model.
        CheckpointError: If the model cannot be found.
    """
    from stillroom.rag.answer import ask_stream
    from stillroom.rag.asking import read_settings
    from stillroom.rag.index import Index
    from stillroom.rag.method import Query

    is_index = bool(model) and (run / "artifact.json").is_file() and _kind_of(run) == "index"
    folder = find_output(run if is_index else find_step(run, "index"), "index")
    reference = model or str(find_step(run, "model"))
    own: AskSettings = settings or {}
    with Index.open(folder) as index:
        text_model = open_text_model(reference, say=say)
        shown, lock = [index], threading.Lock()

        def newest() -> Index:
            """Return the index as it is now: what was deleted is in no answer from then on."""
            with lock:
                shown[0] = shown[0].newest()
                return shown[0]

        def ask(
            messages: Sequence[Message],
            sampling: Sampling,
            k: int,
            *,
            settings: AskTexts,
            is_cancelled: Callable[[], bool],
        ) -> Iterator[str | Answer]:
            query = Query(messages[-1].content, history=tuple(messages[:-1]))
            wanted: AskSettings = {**own, **read_settings(settings), "k": k}
            return ask_stream(
                newest(), text_model, query, sampling=sampling, is_cancelled=is_cancelled, **wanted
            )

        try:
            embedder = index.embedder if index.description.embedder else None
            name = run.resolve().name
            yield Served(name, text_model, ask, embedder, k=own.get("k", Served.k))
        finally:
            text_model.close()


def _kind_of(path: Path) -> str:
    return read_artifact(path).kind
