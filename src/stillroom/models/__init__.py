"""Models: whatever generates, scores or embeds text, whichever engine does the work.

``open_text_model`` and ``open_embedder`` turn a reference (a folder, a ``.gguf`` file,
``hub:NAME``, an endpoint's address) into something that speaks the protocols of ``protocols``.
Engines are methods of the seams ``backends`` and ``embedders``; nothing above this floor knows
which one works.
Importing this package imports neither torch nor transformers nor any engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillroom.models.cache import CompletionCache, cached
    from stillroom.models.causal import load_causal_lm
    from stillroom.models.chat import render_chat
    from stillroom.models.hub import resolve_checkpoint
    from stillroom.models.method import BACKENDS, EMBEDDERS, Backend, EmbedderMethod
    from stillroom.models.opening import open_embedder, open_reranker, open_text_model
    from stillroom.models.protocols import (
        ConcurrentModel,
        Embedder,
        Reranker,
        Score,
        SpanEmbedder,
        SubmittingModel,
        TextModel,
        TokenEmbedder,
    )

__all__ = [
    "BACKENDS",
    "EMBEDDERS",
    "Backend",
    "CompletionCache",
    "ConcurrentModel",
    "Embedder",
    "EmbedderMethod",
    "Reranker",
    "Score",
    "SpanEmbedder",
    "SubmittingModel",
    "TextModel",
    "TokenEmbedder",
    "cached",
    "load_causal_lm",
    "open_embedder",
    "open_reranker",
    "open_text_model",
    "render_chat",
    "resolve_checkpoint",
]

_HOMES = {
    "BACKENDS": "method",
    "EMBEDDERS": "method",
    "Backend": "method",
    "CompletionCache": "cache",
    "ConcurrentModel": "protocols",
    "SubmittingModel": "protocols",
    "Embedder": "protocols",
    "EmbedderMethod": "method",
    "Reranker": "protocols",
    "Score": "protocols",
    "SpanEmbedder": "protocols",
    "TextModel": "protocols",
    "TokenEmbedder": "protocols",
    "cached": "cache",
    "load_causal_lm": "causal",
    "open_embedder": "opening",
    "open_reranker": "opening",
    "open_text_model": "opening",
    "render_chat": "chat",
    "resolve_checkpoint": "hub",
}


def __getattr__(name: str) -> Any:
    """Load a public name from its module on first use."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"stillroom.models.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
