"""Length-normalized log-likelihood of completions under the model that generated them.

Source: best-of-n by the model's own length-normalized log-probability, the reranking baseline of
Adiwardana et al. 2020, arXiv:2001.09977, section 2.4 (sample and rank). It prefers the mode of the
generating model over variety: use it to keep one good text per prompt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.distill.interfaces import CompletionScorer
from stillroom.distill.types import CompletionScore
from stillroom.records import Prompt, Record

if TYPE_CHECKING:
    from stillroom.models import TextModel

__all__ = ["Likelihood"]


class Likelihood(CompletionScorer):
    """Mean log-probability of the completion's tokens, in nats."""

    paper: ClassVar[str] = "arXiv:2001.09977"
    needs_scores: ClassVar[bool] = True

    @override
    @classmethod
    def recipe_sets(cls) -> dict[str, Any]:
        """Return a placeholder for the model, since endpoints do not score given text."""
        return {"sequence.model": "path/to/model"}

    least: float | None = Field(
        default=None,
        le=0,
        description="minimum mean log-probability in nats per token; null rejects none",
    )

    @override
    def judge(
        self, record: Record, prompt: Prompt, texts: Sequence[str], model: TextModel
    ) -> list[CompletionScore]:
        scores = [score.mean for score in model.score([prompt] * len(texts), texts)]
        return [self._judge(score) for score in scores]

    def _judge(self, score: float) -> CompletionScore:
        if not math.isfinite(score):
            return CompletionScore(reason="no finite likelihood")
        if self.least is not None and score < self.least:
            return CompletionScore(reason="too unlikely")
        return CompletionScore(score)
