"""Extract a query's low-level and high-level keywords with a model (LightRAG).

Source: Guo et al. 2024, arXiv:2410.05779. ``graph_hybrid`` finds entities by the low-level keywords
(names, things) and relations by the high-level ones (themes); other retrievers search the query as
it is. Differs: the answer is held to a JSON Schema where the engine can; one that cannot be read
leaves the query, and is noticed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.rag.interfaces import Query, QueryTransform
from stillroom.rag.model_calls import generate_texts, quote_text, require_model

if TYPE_CHECKING:
    from stillroom.models import TextModel
    from stillroom.rag.index.searcher import Index

__all__ = ["GraphKeywords"]


class GraphKeywords(QueryTransform):
    """Names and themes of a query, written by a text model."""

    paper: ClassVar[str] = "arXiv:2410.05779"

    keywords: int = Field(4, ge=1, le=16, description="how many of each kind at most")

    @override
    def rewrite(self, query: Query, index: Index, model: TextModel | None) -> list[Query]:
        model = require_model(
            model, "the transform graph_keywords", "graph_hybrid without a transform"
        )
        names = self._ask(model, query.text, "names of people, products, places and things")
        themes = self._ask(model, query.text, "broad themes that the question is about")
        return [replace(query, keywords=tuple(names), themes=tuple(themes))]

    def _ask(self, model: TextModel, text: str, what: str) -> list[str]:
        request = f"Question: {quote_text(text)}\n\nList at most {self.keywords} {what}."
        return generate_texts(
            model,
            request,
            most=self.keywords,
            max_new_tokens=16 + 16 * self.keywords,
            method="graph_keywords",
        )
