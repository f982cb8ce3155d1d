"""Search also for the more general question behind the query (step-back prompting).

Source: Zheng et al. 2023, "Take a Step Back: Evoking Reasoning via Abstraction in Large Language
Models", arXiv:2310.06117. Both questions are searched, and their hits fused by reciprocal rank.
Differs from the paper: no examples are shown to the model.
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

__all__ = ["StepBack"]

_REQUEST = (
    "Write one more general question whose answer would be the background that the question below "
    "needs.\n\nQuestion: {query}"
)


class StepBack(QueryTransform):
    """The query and a more general question behind it."""

    paper: ClassVar[str] = "arXiv:2310.06117"

    max_new_tokens: int = Field(
        128, ge=16, le=2048, description="maximum length of the model's answer, in tokens"
    )

    @override
    def rewrite(self, query: Query, index: Index, model: TextModel | None) -> list[Query]:
        return generate_queries(
            model, query, _REQUEST, most=1, max_new_tokens=self.max_new_tokens, method="step_back"
        )
