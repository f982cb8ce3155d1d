"""Grade by asking the model whether a passage answers the question.

Source: Asai et al. 2023, "Self-RAG", arXiv:2310.11511 (the reflection ISREL). Differs from the
paper: the model is not trained for it; the probability of "Yes" against "No" is the grade, with the
model's leaning where it is shown no passage taken out, so that a model that likes to say yes grades
as well as one that does not: 0.5 is what no passage gives. An engine without probabilities answers
in words, and grades are 0 or 1.
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
    """The model's own yes, less its leaning."""

    paper: ClassVar[str] = "arXiv:2310.11511"

    words: int = Field(160, ge=10, le=4000, description="how many words of a passage are shown")
    is_calibrated: bool = Field(
        True, description="take out the model's leaning, for one more question to it"
    )
    upper: float = Field(
        0.75, ge=0, le=1, description="grade from which a passage is taken to hold the answer"
    )
    lower: float = Field(
        0.55, ge=0, le=1, description="grade below which a passage is taken to miss it"
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
        asked = quote_text(query.text).strip()
        if not shown:
            return []
        if self.is_calibrated:
            shown.append(_NO_TEXT)
        requests = [_REQUEST.format(text=text, query=asked) for text in shown]
        verdicts = ask_yes_no(model, requests, method="yes_no")
        if not self.is_calibrated:
            return verdicts
        *verdicts, leaning = verdicts
        if leaning in _WORD_GRADES:  # an engine without probabilities: nothing to take out
            return verdicts
        return [calibrate_prior(verdict, leaning) for verdict in verdicts]
