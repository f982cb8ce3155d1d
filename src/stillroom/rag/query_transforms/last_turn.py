"""Rewrite a follow-up question with its chat history as a standalone question (query rewriting).

Source: Vakulenko et al. 2020, "Question Rewriting for Conversational Question Answering",
arXiv:2004.14652. Differs from the paper: any model rewrites, without training. A query without
history is unchanged, without a call to the model.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.rag.interfaces import Query, QueryTransform
from stillroom.rag.model_calls import generate_texts, require_model

if TYPE_CHECKING:
    from stillroom.models import TextModel
    from stillroom.rag.index.searcher import Index

__all__ = ["LastTurn"]

_REQUEST = (
    "Rewrite the last question of the conversation below so that it can be understood without the "
    "conversation: name what its pronouns mean, and change nothing else.\n\n{turns}\n\n"
    "Last question: {query}"
)
_MAX_TURN_LENGTH = 1000


class LastTurn(QueryTransform):
    """The standalone question instead of the query."""

    paper: ClassVar[str] = "arXiv:2004.14652"

    turns: int = Field(6, ge=1, le=100, description="number of last turns in the prompt")
    max_new_tokens: int = Field(
        128, ge=16, le=2048, description="maximum length of the model's answer, in tokens"
    )

    @override
    def rewrite(self, query: Query, index: Index, model: TextModel | None) -> list[Query]:
        if not query.history:
            return [query]
        model = require_model(model, "the transform last_turn", "a standalone question")
        turns = "\n".join(
            f"{message.role}: {' '.join(message.content.split())[:_MAX_TURN_LENGTH]}"
            for message in query.history[-self.turns :]
        )
        rewritten = generate_texts(
            model,
            _REQUEST.format(turns=turns, query=query.text),
            most=1,
            max_new_tokens=self.max_new_tokens,
            method="last_turn",
        )
        return [replace(query, text=rewritten[0], history=())] if rewritten else [query]
