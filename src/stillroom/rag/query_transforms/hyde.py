"""Search with hypothetical documents, passages written by a model as answers (HyDE).

Source: Gao et al. 2022, "Precise Zero-Shot Dense Retrieval without Relevance Labels",
arXiv:2212.10496: the query's vector is averaged with those of the drafts
(``rag.embedding.query_embedder``). Drafts may be false: they are used for search only, and are
never shown or cited.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.errors import DataError
from stillroom.provenance import digest_json
from stillroom.rag.interfaces import Query, QueryTransform
from stillroom.records import Message, Prompt, Sampling

if TYPE_CHECKING:
    from stillroom.models import TextModel
    from stillroom.rag.index.searcher import Index

__all__ = ["Hyde"]


class Hyde(QueryTransform):
    """Adds drafts to the dense side of a query; its terms stay the same."""

    paper: ClassVar[str] = "arXiv:2212.10496"

    drafts: int = Field(1, ge=1, le=16, description="number of generated passages")
    max_new_tokens: int = Field(
        80, ge=8, le=1024, description="maximum length of a draft, in tokens"
    )
    temperature: float = Field(
        0.7, ge=0, le=2, description="sampling temperature of drafts after the first"
    )

    @override
    def rewrite(self, query: Query, index: Index, model: TextModel | None) -> list[Query]:
        if model is None:
            raise DataError(
                "the transform hyde writes passages, but no model is given",
                code="rag.no-model",
                expected="a model",
                next="pass model=..., or use the transform expand, which needs none",
            )
        prompt = Prompt(
            (Message("user", f"Write a short passage that answers the question.\n\n{query.text}"),)
        )
        seed = int(digest_json(query.text)[:8], 16)
        samplings = [
            Sampling(
                max_new_tokens=self.max_new_tokens,
                temperature=self.temperature if number else 0.0,
                seed=seed + number,
            )
            for number in range(self.drafts)
        ]
        completions = model.generate([prompt] * self.drafts, samplings)
        drafts = tuple(
            completion.text.strip() for completion in completions if completion.text.strip()
        )
        return [replace(query, drafts=drafts)]
