"""Score passages with a reranking server: Cohere, Jina, vLLM, Infinity (POST /v1/rerank).

Passages leave this machine if the address is another's. What the server does is up to the server.
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
        pattern=r"^https?://", description="with the model's name: http://host:8000/v1#name"
    )
    api_key_env: str = Field(
        "OPENAI_API_KEY",
        description="environment variable with the key; never sent over plain http to another "
        "machine",
    )
    depth: int = Field(50, ge=1, le=1000, description="how many first hits are sent")
    tries: int = Field(6, ge=1, le=20, description="of one request, the first included")
    read_timeout_s: float = Field(60, gt=0, description="seconds until an answer comes")

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
