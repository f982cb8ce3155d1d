"""Grade by asking the model whether a passage answers the question.

Source: Asai et al. 2023, "Self-RAG", arXiv:2310.11511 (the reflection ISREL). Differs from the
paper: the model is not trained for it; the grade is the probability of "Yes" against "No",
calibrated by the probability without a passage, so that a bias toward yes is removed and 0.5 means
no evidence. For an engine without probabilities, the answer is parsed as text, and grades are 0 or
1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.rag.interfaces import Query, RelevanceGrader
from stillroom.rag.model_calls import ask_yes_no, calibrate_prior, quote_text, require_model

if TYPE_CHECKING:
    from stillroom.models import TextModel
    from stillroom.rag.index.searcher import Index

__all__ = ["YesNo"]

_REQUEST = "Text: {text}\n\nQuestion: {query}\n\nDoes the text hold the answer to the question?"
_NO_TEXT = "(no text)"
_WORD_GRADES = (0.0, 0.5, 1.0)


class YesNo(RelevanceGrader):
    """The model's probability of yes, calibrated by its prior."""

    paper: ClassVar[str] = "arXiv:2310.11511"

    words: int = Field(
        160, ge=10, le=4000, description="maximum words of a passage shown to the model"
    )
    is_calibrated: bool = Field(
        True, description="remove the model's bias toward yes or no, at one more model call"
    )
    upper: float = Field(
        0.75, ge=0, le=1, description="minimum grade of a passage that has the answer"
    )
    lower: float = Field(
        0.55, ge=0, le=1, description="grade below which a passage does not have the answer"
    )

    @override
    def grade(
        self,
        query: Query,
        texts: Sequence[str],
        index: Index,
        model: TextModel | None = None,
    ) -> list[float]:
        model = require_model(model, "the grader yes_no", "the grader overlap")
        shown = [quote_text(" ".join(text.split()[: self.words])) for text in texts]
        question = quote_text(query.text).strip()
        if not shown:
            return []
        if self.is_calibrated:
            shown.append(_NO_TEXT)
        requests = [_REQUEST.format(text=text, query=question) for text in shown]
        verdicts = ask_yes_no(model, requests, method="yes_no")
        if not self.is_calibrated:
            return verdicts
        *verdicts, prior = verdicts
        if prior in _WORD_GRADES:  # an engine without probabilities: no bias to remove
            return verdicts
        return [calibrate_prior(verdict, prior) for verdict in verdicts]
