"""Language models, embedders and rerankers behind common protocols.

``open_text_model`` and ``open_embedder`` open a reference (a folder, a ``.gguf`` file,
``hub:NAME``, an endpoint's address) as an object with the protocols of ``interfaces``. Engines are
methods of the registries ``backends`` and ``embedders``; callers do not depend on the engine.
Importing this package imports neither torch nor transformers nor any engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stillroom.exports import export_lazily

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
        TextModel,
        TokenEmbedder,
    )
    from stillroom.models.local.causal_lm import load_causal_lm, load_model_only
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
    "TextModel",
    "TokenEmbedder",
    "load_causal_lm",
    "load_model_only",
    "open_embedder",
    "open_reranker",
    "open_text_model",
    "render_chat",
    "resolve_checkpoint",
    "wrap_with_cache",
]

__getattr__ = export_lazily(__name__)
