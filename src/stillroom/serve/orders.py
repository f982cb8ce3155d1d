"""Orders: what a client wants of a model, in our own nouns, whichever dialect it was said in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stillroom.records import Prompt, Sampling

if TYPE_CHECKING:
    from stillroom.rag.asking import AskTexts

__all__ = ["Order"]


def _nothing() -> AskTexts:
    return {}


@dataclass(frozen=True, slots=True)
class Order:
    """One request to a model.

    Args:
        model: The name that the client asks for.
        prompt: What is answered; empty where the request is passed on.
        draws: How each text is drawn.
        is_streamed: Whether the client wants events as they come.
        k: Passages shown, where the client says.
        settings: What the client wants otherwise of an answer from documents.
        wants_canvas: Whether every step is shown of a model that writes in any order.
        passed_on: The request as another server of the dialect takes it, where only a backend that
            knows tools can answer.
        schema_field: How the client's dialect calls the field that asks for JSON.
    """

    model: str
    prompt: Prompt = field(default_factory=Prompt)
    draws: tuple[Sampling, ...] = ()
    is_streamed: bool = False
    k: int | None = None
    settings: AskTexts = field(default_factory=_nothing)
    wants_canvas: bool = False
    passed_on: Mapping[str, Any] | None = None
    schema_field: str = "response_format"

    @property
    def of_documents(self) -> str | None:
        """The first thing that is said of how documents are asked, or None."""
        return next(iter(self.settings), None if self.k is None else "k")
