"""IFD: instruction-following difficulty, the ratio of conditioned to unconditioned answer loss.

Source: Li et al. 2023, arXiv:2308.12032 (IFD), and Li et al. 2024, arXiv:2402.00530
(Superfiltering: a small model ranks as a large one does). ``ratio: perplexity`` is the computation
of their code, exp(L(A|Q) - L(A)); ``ratio: loss`` is the paper's first form, L(A|Q) / L(A). Above 1
the instruction makes the answer harder to predict: they do not belong together. Both passes score
the same answer tokens. The papers keep the highest share: ``min_ifd`` sets a bound instead, and the
selector ``top`` takes a share.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.models.hub import DEFAULT_TEACHER
from stillroom.provenance import digest_json
from stillroom.recipes import Reference
from stillroom.records import Prompt, Record
from stillroom.synth.interfaces import FilterContext, FilterResult, ModelScoredFilter, ScoringState
from stillroom.synth.prompting.conversation import get_last_answer, get_prompt_messages

__all__ = ["Ifd"]


class Ifd(ModelScoredFilter):
    """Drop answers that their instruction does not make easier to predict."""

    paper: ClassVar[str] = "arXiv:2402.00530"

    model: Reference = Field(
        DEFAULT_TEACHER,
        description="causal model that scores; a small one suffices",
    )
    ratio: Literal["perplexity", "loss"] = Field(
        "perplexity", description="ratio of perplexities (Superfiltering) or of mean losses"
    )
    min_ifd: float = Field(0.0, ge=0, description="minimum ratio; below it a record is too easy")
    max_ifd: float = Field(
        1.0, gt=0, description="maximum ratio; above it the instruction does not help"
    )

    @override
    def start(self, context: FilterContext) -> ScoringState:
        return _IfdState(self, context)


class _IfdState(ScoringState):
    def __init__(self, settings: Ifd, context: FilterContext) -> None:
        self._settings = settings
        self._model = context.models.text_model(settings.model)
        self.fingerprint = digest_json([self._model.fingerprint, "ifd"])

    @override
    def measure(self, record: Record) -> Any:
        prompt, answer = get_prompt_messages(record), get_last_answer(record)
        if not prompt or not answer.strip():
            return {"failed": "there is no question, or no answer"}
        conditioned, unconditioned = self._model.score(
            [Prompt(prompt), Prompt(text="")], [answer, answer]
        )
        return {
            "given": -conditioned.mean,
            "alone": -unconditioned.mean,
            "tokens": len(conditioned.logprobs),
        }

    @override
    def decide(self, record: Record, value: Any) -> FilterResult:
        settings, conditioned, unconditioned = self._settings, value["given"], value["alone"]
        if settings.ratio == "perplexity":
            ifd = math.exp(min(conditioned - unconditioned, 700.0))
        else:
            ifd = conditioned / unconditioned if unconditioned else 1.0
        details = {"loss_given": conditioned, "loss_alone": unconditioned, "ratio": settings.ratio}
        if ifd > settings.max_ifd:
            return FilterResult(
                False, "the question does not help", ifd, settings.max_ifd, details=details
            )
        if ifd < settings.min_ifd:
            return FilterResult(False, "too easy", ifd, settings.min_ifd, details=details)
        return FilterResult(True, score=ifd, details=details)
