"""IFD: how much the instruction helps a model to foresee the answer.

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
from stillroom.synth.measured import Measured, Meter, each_by_itself
from stillroom.synth.method import Context, Verdict
from stillroom.synth.turns import answer_of, asked_of

__all__ = ["Ifd"]


class Ifd(Measured):
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
    def begin(self, context: Context) -> Meter:
        return _Difficult(self, context)


class _Difficult(Meter):
    def __init__(self, chosen: Ifd, context: Context) -> None:
        self._chosen = chosen
        self._model = context.models.text_model(chosen.model)
        self.fingerprint = digest_json([self._model.fingerprint, "ifd"])

    @override
    def measure(self, records: Sequence[Record]) -> list[Any]:
        return each_by_itself(records, self._measure)

    def _measure(self, record: Record) -> Any:
        asked, answer = asked_of(record), answer_of(record)
        if not asked or not answer.strip():
            return {"failed": "there is no question, or no answer"}
        given, alone = self._model.score([Prompt(asked), Prompt(text="")], [answer, answer])
        return {"given": -given.mean, "alone": -alone.mean, "tokens": len(given.logprobs)}

    @override
    def weigh(self, record: Record, value: Any) -> Verdict:
        chosen, given, alone = self._chosen, value["given"], value["alone"]
        if chosen.ratio == "perplexity":
            ifd = math.exp(min(given - alone, 700.0))
        else:
            ifd = given / alone if alone else 1.0
        told = {"loss_given": given, "loss_alone": alone, "ratio": chosen.ratio}
        if ifd > chosen.max_ifd:
            return Verdict(False, "the question does not help", ifd, chosen.max_ifd, told=told)
        if ifd < chosen.min_ifd:
            return Verdict(False, "too easy", ifd, chosen.min_ifd, told=told)
        return Verdict(True, score=ifd, told=told)
