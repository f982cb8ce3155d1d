"""Chunk likelihood: matches the probabilities that both models give to common chunks.

Source: Minixhofer et al. 2025 (ALM), arXiv:2503.20083, section 3: a chunk happens or not, and the
two Bernoulli distributions are compared by a divergence, their probabilities raised to 1 /
temperature. With one-to-one chunks of one vocabulary it is the binary KL of the token that stands
in the text. Differs from the paper: the loss is multiplied by the temperature, so that its size
does not depend on it where it is large; there is no debiasing of chunks by the probability that the
next one starts a word; chunks are exact to the byte. ``squared`` compares the two log-probabilities
themselves. No whole distribution is compared, so that what stands in no text is learned only by
what it takes from what does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.distill.interfaces import ChunkLoss

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ChunkLikelihood"]

_LEAST = {"float64": 1e-12, "float32": 1e-6}


class ChunkLikelihood(ChunkLoss):
    """``t KL(Bernoulli(p^(1/t)) || Bernoulli(q^(1/t)))`` for chunk probabilities p and q.

    A probability within rounding of 1 is taken as just below it; the sum ``certain`` counts those.
    """

    paper: ClassVar[str] = "arXiv:2503.20083"

    temperature: float = Field(
        default=1.0,
        gt=0,
        description="chunk probabilities are raised to one over this; large makes unlikely chunks "
        "weigh as much as likely ones",
    )
    divergence: Literal["binary_kl", "squared"] = Field(
        default="binary_kl",
        description="binary_kl: of the chunk happening or not; squared: half the squared "
        "difference of log-probabilities, over temperature",
    )

    @override
    def compare(self, log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor, dict[str, float]]:
        heat = self.temperature
        if self.divergence == "squared":
            gap = log_q - log_p
            return gap.square() / (2 * heat), gap / heat, {}
        import torch

        least = _LEAST["float64" if log_q.dtype == torch.float64 else "float32"]
        ours, theirs = log_q / heat, log_p / heat
        certain = float((ours > -least).sum())
        ours, theirs = ours.clamp(max=-least), theirs.clamp(max=-least)
        p, q = theirs.exp(), ours.exp()
        not_p, not_q = -torch.expm1(theirs), -torch.expm1(ours)
        loss = p * (theirs - ours) + not_p * (not_p.log() - not_q.log())
        return loss * heat, (q - p) / not_q, {"certain": certain}
