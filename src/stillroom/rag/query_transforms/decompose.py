"""Query decomposition: search also for the simpler questions that make up a query.

Source: Press et al. 2022, "Measuring and Narrowing the Compositionality Gap in Language Models"
(self-ask), arXiv:2210.03350. Differs from the paper: all parts are generated at once, before any is
answered, so a part cannot use the answer of another; hits are fused by reciprocal rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.rag.interfaces import Query, QueryTransform
from stillroom.rag.model_calls import generate_queries

if TYPE_CHECKING:
    from stillroom.models import TextModel
    from stillroom.rag.index.searcher import Index

__all__ = ["Decompose"]

_REQUEST = (
    "Split the question below into at most {count} simpler questions that can each be looked up by "
    "themselves. If it is simple already, repeat it.\n\nQuestion: {query}"
)


class Decompose(QueryTransform):
    """The query and its simpler parts."""

    paper: ClassVar[str] = "arXiv:2210.03350"

    parts: int = Field(4, ge=2, le=16, description="maximum number of parts")
    max_new_tokens: int = Field(
        256, ge=16, le=2048, description="maximum length of the model's answer, in tokens"
    )

    @override
    def rewrite(self, query: Query, index: Index, model: TextModel | None) -> list[Query]:
        return generate_queries(
            model,
            query,
            _REQUEST,
            most=self.parts,
            max_new_tokens=self.max_new_tokens,
            method="decompose",
        )
