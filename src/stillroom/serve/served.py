"""Served: what stands behind the API, and how it is opened from a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from stillroom.flow.opening import find_model, find_step
from stillroom.models import ConcurrentModel, Embedder, TextModel, open_text_model
from stillroom.models.protocols import CanvasModel, LanedModel, RelayModel, Reranker
from stillroom.provenance import find_output, read_artifact
from stillroom.records import Answer, Message, Sampling

if TYPE_CHECKING:
    from stillroom.rag.access import Access
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
        access: Access | None,
        is_cancelled: Callable[[], bool],
    ) -> Iterator[str | Answer]:
        """Answer the last message; ``k`` passages are shown to the model.

        Args:
            messages: The conversation; what comes before the last message is read where the way
                begins with the transform last_turn.
            sampling: How the answer is drawn.
            k: How many passages are shown.
            settings: What the client wants otherwise than the server does it.
            access: Who asks, as the client's key says; None where it says nobody.
            is_cancelled: Once true, the client has left.

        Raises:
            RecipeError: If the client names an unknown method.
            DataError: If the index has tenants and nobody is named.
        """


@dataclass(frozen=True)
class Served:
    """One mount: a model, what embeds, what reranks, and what answers from documents.

    Clients name what they want: ``name`` answers from documents where there are any, ``bare_name``
    is the model alone, ``embedder_name`` makes vectors; without a model the name is that of the
    embedder or the reranker itself.
    """

    name: str
    model: TextModel | None = None
    ask: Ask | None = None
    embedder: Embedder | None = None
    embedder_name: str = "embedder"
    reranker: Reranker | None = None
    k: int = 3
    rule: str = "open"
    """Whether all see all of the index (``open``), or each their own (``tenants``)."""

    @property
    def bare_name(self) -> str:
        """The name under which the model answers alone."""
        return f"{self.name}-bare" if self.ask else self.name

    @property
    def names(self) -> list[str]:
        """Every name a client may ask for."""
        names = [self.name, self.bare_name] if self.ask else [self.name]
        if self.embedder is not None and self.embedder_name not in names:
            names.append(self.embedder_name)
        return names

    def abilities(self, name: str) -> list[str]:
        """Return which endpoints answer to a name."""
        if name == self.embedder_name and self.embedder is not None:
            return ["embeddings", "rerank"]
        if self.reranker is not None:
            return ["rerank"]
        if self.model is None:
            return []
        found = ["chat.completions", "responses", "completions"]
        if self.ask is not None and name == self.name:
            return [*found, "citations"]
        if isinstance(self.model, CanvasModel):
            found.append("canvas")
        if isinstance(self.model, RelayModel):
            found.append("tools")
        return found

    @property
    def lanes(self) -> int:
        """How many answers the engine writes at once."""
        if isinstance(self.model, ConcurrentModel):
            return self.model.concurrency
        return self.model.lanes if isinstance(self.model, LanedModel) else 1


@contextmanager
def open_run(
    run: Path,
    *,
    name: str = "",
    model: str = "",
    settings: AskSettings | None = None,
    access: Access | None = None,
    say: Callable[[str], None] | None = None,
) -> Iterator[Served]:
    """Open a finished run's index and model (or another model) until the body ends.

    Args:
        run: The folder of the run, or of an index if a model is given.
        name: What clients call it; by default the folder's name.
        model: Another model than the run's own.
        settings: How questions are answered where a client does not say.
        access: As whom is asked where a client does not say, of an index with tenants.
        say: Told what a ``hub:`` reference was resolved to.

    Raises:
        DataError: If the run is unfinished or names no index and model.
        CheckpointError: If the model cannot be found.
    """
    from stillroom.rag.answer import ask_stream
    from stillroom.rag.asking import read_settings
    from stillroom.rag.audience import Audience
    from stillroom.rag.method import Query

    is_index = bool(model) and (run / "artifact.json").is_file() and _kind_of(run) == "index"
    folder = find_output(run if is_index else find_step(run, "index"), "index")
    reference = model or find_model(run)
    own: AskSettings = settings or {}
    with Audience(folder, default=access) as audience:
        text_model = open_text_model(reference, say=say)

        def ask(
            messages: Sequence[Message],
            sampling: Sampling,
            k: int,
            *,
            settings: AskTexts,
            access: Access | None = None,
            is_cancelled: Callable[[], bool],
        ) -> Iterator[str | Answer]:
            # As it is now: what was deleted, or is theirs no more, is in no answer from then on.
            index = audience.seen_by(access)
            query = Query(messages[-1].content, history=tuple(messages[:-1]))
            wanted: AskSettings = {**own, **read_settings(settings), "k": k}
            return ask_stream(
                index, text_model, query, sampling=sampling, is_cancelled=is_cancelled, **wanted
            )

        try:
            yield Served(
                name or run.resolve().name,
                text_model,
                ask,
                audience.embedder,
                k=own.get("k", Served.k),
                rule=audience.rule,
            )
        finally:
            text_model.close()


def _kind_of(path: Path) -> str:
    return read_artifact(path).kind
