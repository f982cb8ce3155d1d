"""Rerank by a server: Cohere, Jina, vLLM, Infinity (POST /v1/rerank).

Passages leave this machine if the address is on another one. The scores depend on the server.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.rag.interfaces import PassageReranker, Query
from stillroom.rag.model_calls import open_shared_model
from stillroom.rag.retrieval.ranking import sort_hits
from stillroom.rag.types import get_text_with_headings

if TYPE_CHECKING:
    from stillroom.models import TextModel
    from stillroom.rag.index.searcher import Index
    from stillroom.records import Hit

__all__ = ["Endpoint"]


class Endpoint(PassageReranker):
    """Scores of a reranking endpoint."""

    paper: ClassVar[str] = ""

    address: str = Field(
        pattern=r"^https?://", description="address with the model's name: http://host:8000/v1#name"
    )
    api_key_env: str = Field(
        "OPENAI_API_KEY",
        description="environment variable with the key; never sent over plain http to another "
        "machine",
    )
    depth: int = Field(50, ge=1, le=1000, description="number of first hits that are sent")
    tries: int = Field(
        6, ge=1, le=20, description="maximum attempts per request, the first included"
    )
    read_timeout_s: float = Field(60, gt=0, description="seconds to wait for an answer")

    @override
    def rerank(
        self,
        query: Query,
        hits: Sequence[Hit],
        index: Index,
        model: TextModel | None = None,
    ) -> list[Hit]:
        if not hits:
            return []
        reader = open_shared_model(
            self.address,
            api_key_env=self.api_key_env,
            tries=self.tries,
            read_timeout_s=self.read_timeout_s,
        )
        texts = [get_text_with_headings(hit.passage) for hit in hits[: self.depth]]
        return sort_hits(hits, reader.score(query.text, texts))
