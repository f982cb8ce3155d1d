"""Route a question to no retrieval, one retrieval, or several, by its complexity.

Source: Jeong et al. 2024, "Adaptive-RAG: Learning to Adapt Retrieval-Augmented Large Language
Models through Question Complexity", arXiv:2403.14403. Differs from the paper: instead of a trained
classifier, a rule matches the question's form (several questions, comparisons, dependent clauses),
or the model answers yes or no. Answering without documents is off by default, since nothing could
support such an answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.rag.interfaces import ANSWER_STRATEGIES, AnswerStrategy
from stillroom.rag.model_calls import ask_yes_no, calibrate_prior, quote_text
from stillroom.rag.retrieval.pipeline import parse_method

if TYPE_CHECKING:
    from stillroom.rag.generation.session import AnswerSession

__all__ = ["Adaptive"]

_MULTI_HOP_PROMPT = (
    "Question: {query}\n\nDoes answering the question take several facts that have to be looked up "
    "in different places?"
)
_NO_QUESTION = "(no question)"
_QUESTION_WORDS = r"(?:what|which|who|whom|whose|when|where|why|how)"
_COMPARISON = re.compile(
    r"\b(?:compar\w+|contrast\w*|differ\w*|versus|vs\.?|rather than|instead of|both|between .+ and"
    r"|relat(?:e|es|ed|ion\w*) (?:to|between)|similar\w* (?:to|between)|in addition|as well as"
    r"|(?:more|less|better|worse|older|younger|larger|smaller|faster|earlier|later) than)\b",
    re.IGNORECASE,
)
_CHAINED_QUESTIONS = re.compile(
    rf"\b(?:and|or|but|then)\s+(?:\w+\s+)?{_QUESTION_WORDS}\b|\?\s*\S.*\?|\b(?:of|by|in|for|with)\s+the\s+\w+"
    r"(?:\s+\w+){0,2}\s+(?:who|that|which|whose|where)\b",
    re.IGNORECASE | re.DOTALL,
)
_SMALL_TALK = re.compile(
    r"\s*(?:hi|hello|hey|good (?:morning|day|evening)|thanks|thank you|bye|goodbye|ok|okay|great"
    r"|yes|no|please)[\s!.,]*",
    re.IGNORECASE,
)


class Adaptive(AnswerStrategy):
    """Routes questions to other strategies."""

    paper: ClassVar[str] = "arXiv:2403.14403"

    router: Literal["rule", "model"] = Field(
        "rule", description="classifier of questions: a rule over their form, or the model"
    )
    once: str = Field(
        "corrective", description="strategy for a simple question: METHOD[:KEY=VALUE,...]"
    )
    several: str = Field(
        "iterative", description="strategy for a question that needs several searches"
    )
    threshold: float = Field(
        0.5, gt=0, lt=1, description="minimum verdict of the model for several searches"
    )
    is_closed_book: bool = Field(
        False, description="answer small talk without documents instead of searching once"
    )

    @property
    @override
    def moment(self) -> str:
        return " ".join(
            parse_method(ANSWER_STRATEGIES, line).moment for line in (self.once, self.several)
        ).strip()

    @override
    def answer(self, inquiry: AnswerSession) -> Iterator[str]:
        route, why = self._route(inquiry)
        inquiry.note("route", route=route, why=why)
        if route == "none":
            yield from inquiry.read([])
            return
        strategy = parse_method(
            ANSWER_STRATEGIES, self.several if route == "several" else self.once
        )
        if isinstance(strategy, Adaptive):
            strategy = ANSWER_STRATEGIES.build("generate")
        yield from strategy.answer(inquiry)

    def _route(self, inquiry: AnswerSession) -> tuple[str, str]:
        """Return none, once or several, and the reason."""
        question = inquiry.query.text
        if self.is_closed_book and _SMALL_TALK.fullmatch(question):
            return "none", "small talk"
        if self.router == "rule":
            for pattern, why in (
                (_COMPARISON, "a comparison"),
                (_CHAINED_QUESTIONS, "several questions"),
            ):
                if pattern.search(question):
                    return "several", why
            return "once", "a simple form"
        if not inquiry.within_budget("route", 2):
            return "once", "out of bounds"
        prompts = [
            _MULTI_HOP_PROMPT.format(query=text) for text in (quote_text(question), _NO_QUESTION)
        ]
        verdict = calibrate_prior(*ask_yes_no(inquiry.model, prompts, method="adaptive"))
        return ("several" if verdict >= self.threshold else "once"), f"verdict {verdict:.2f}"
