"""Language models, embedders and rerankers behind common protocols.

``open_text_model`` and ``open_embedder`` open a reference (a folder, a ``.gguf`` file,
``hub:NAME``, an endpoint's address) as an object with the protocols of ``interfaces``. Engines are
methods of the registries ``backends`` and ``embedders``; callers do not depend on the engine.
Importing this package imports neither torch nor transformers nor any engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillroom.models.cache import CompletionCache, wrap_with_cache
    from stillroom.models.factory import open_embedder, open_reranker, open_text_model
    from stillroom.models.hub import resolve_checkpoint
    from stillroom.models.interfaces import (
        BACKENDS,
        EMBEDDERS,
        AsyncModel,
        Backend,
        ConcurrentModel,
        Embedder,
        EmbedderMethod,
        RerankerModel,
        Score,
        SpanEmbedder,
        TextModel,
        TokenEmbedder,
    )
    from stillroom.models.local.causal_lm import load_causal_lm
    from stillroom.models.tokenization.chat_template import render_chat

__all__ = [
    "BACKENDS",
    "EMBEDDERS",
    "AsyncModel",
    "Backend",
    "CompletionCache",
    "ConcurrentModel",
    "Embedder",
    "EmbedderMethod",
    "RerankerModel",
    "Score",
    "SpanEmbedder",
    "TextModel",
    "TokenEmbedder",
    "load_causal_lm",
    "open_embedder",
    "open_reranker",
    "open_text_model",
    "render_chat",
    "resolve_checkpoint",
    "wrap_with_cache",
]

_HOMES = {
    "BACKENDS": "interfaces",
    "EMBEDDERS": "interfaces",
    "Backend": "interfaces",
    "CompletionCache": "cache",
    "ConcurrentModel": "interfaces",
    "AsyncModel": "interfaces",
    "Embedder": "interfaces",
    "EmbedderMethod": "interfaces",
    "RerankerModel": "interfaces",
    "Score": "interfaces",
    "SpanEmbedder": "interfaces",
    "TextModel": "interfaces",
    "TokenEmbedder": "interfaces",
    "wrap_with_cache": "cache",
    "load_causal_lm": "local.causal_lm",
    "open_embedder": "factory",
    "open_reranker": "factory",
    "open_text_model": "factory",
    "render_chat": "tokenization.chat_template",
    "resolve_checkpoint": "hub",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"stillroom.models.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
