"""IFD: instruction-following difficulty, the ratio of conditioned to unconditioned answer loss.

Source: Li et al. 2023, arXiv:2308.12032 (IFD), and Li et al. 2024, arXiv:2402.00530
(Superfiltering: a small model ranks as a large one does). ``ratio: perplexity`` is what their code
computes, exp(L(A|Q) - L(A)); ``ratio: loss`` is the paper's first form, L(A|Q) / L(A). Above 1 the
instruction makes the answer harder to foresee: they do not belong together. Both passes read the
same answer tokens. The papers keep the highest share: ``min_ifd`` sets a bound instead, and the
selector ``top`` takes a share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.provenance import digest_json
from stillroom.recipes import Reference
from stillroom.records import Prompt, Record
from stillroom.synth.interfaces import (
    FilterContext,
    FilterResult,
    ModelScoredFilter,
    ScoringState,
    score_individually,
)
from stillroom.synth.prompting.conversation import get_last_answer, get_prompt_messages

__all__ = ["Ifd"]


class Ifd(ModelScoredFilter):
    """Drops answers that their instruction does not help to foresee."""

    paper: ClassVar[str] = "arXiv:2402.00530"

    model: Reference = Field(
        "hub:HuggingFaceTB/SmolLM2-135M-Instruct",
        description="the causal model that judges; a small one will do",
    )
    ratio: Literal["perplexity", "loss"] = Field(
        "perplexity", description="of perplexities (Superfiltering) or of mean losses"
    )
    min_ifd: float = Field(0.0, ge=0, description="less is too easy to teach anything")
    max_ifd: float = Field(1.0, gt=0, description="more: the instruction does not help")

    @override
    def begin(self, context: FilterContext) -> ScoringState:
        return _IfdState(self, context)


class _IfdState(ScoringState):
    def __init__(self, chosen: Ifd, context: FilterContext) -> None:
        self._chosen = chosen
        self._model = context.models.text_model(chosen.model)
        self.fingerprint = digest_json([self._model.fingerprint, "ifd"])

    @override
    def measure(self, records: Sequence[Record]) -> list[Any]:
        return score_individually(records, self._measure)

    def _measure(self, record: Record) -> Any:
        asked, answer = get_prompt_messages(record), get_last_answer(record)
        if not asked or not answer.strip():
            return {"failed": "there is no question, or no answer"}
        given, alone = self._model.score([Prompt(asked), Prompt(text="")], [answer, answer])
        return {"given": -given.mean, "alone": -alone.mean, "tokens": len(given.logprobs)}

    @override
    def weigh(self, record: Record, value: Any) -> FilterResult:
        chosen, given, alone = self._chosen, value["given"], value["alone"]
        if chosen.ratio == "perplexity":
            ifd = math.exp(min(given - alone, 700.0))
        else:
            ifd = given / alone if alone else 1.0
        told = {"loss_given": given, "loss_alone": alone, "ratio": chosen.ratio}
        if ifd > chosen.max_ifd:
            return FilterResult(False, "the question does not help", ifd, chosen.max_ifd, told=told)
        if ifd < chosen.min_ifd:
            return FilterResult(False, "too easy", ifd, chosen.min_ifd, told=told)
        return FilterResult(True, score=ifd, told=told)
