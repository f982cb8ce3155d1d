"""Chunk likelihood (ALM): matches the probabilities that both models assign to common chunks.

Source: Minixhofer et al. 2025 (ALM), arXiv:2503.20083, section 3: a chunk is a Bernoulli event, and
the two Bernoulli distributions are compared by a divergence, their probabilities raised to 1 /
temperature. For one-to-one chunks of equal vocabularies it is the binary KL of the observed token.
Differs from the paper: the loss is multiplied by the temperature, so that its scale does not depend
on large temperatures; chunks are not debiased by the probability that the next one starts a word;
chunks are exact to the byte. ``squared`` compares the log-probabilities directly. Full
distributions are not compared: tokens that do not occur in the text are learned only through the
probability mass they take from those that do.
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

    Probabilities within rounding of 1 are clamped just below it and counted in ``certain``.
    """

    paper: ClassVar[str] = "arXiv:2503.20083"

    temperature: float = Field(
        default=1.0,
        gt=0,
        description="chunk probabilities are raised to one over this; a large value weights "
        "unlikely chunks as much as likely ones",
    )
    divergence: Literal["binary_kl", "squared"] = Field(
        default="binary_kl",
        description="binary_kl: KL between Bernoulli distributions of the chunk; squared: half the "
        "squared difference of log-probabilities, over temperature",
    )

    @override
    def compare(self, log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor, dict[str, float]]:
        temperature = self.temperature
        if self.divergence == "squared":
            gap = log_q - log_p
            return gap.square() / (2 * temperature), gap / temperature, {}
        import torch

        epsilon = _LEAST["float64" if log_q.dtype == torch.float64 else "float32"]
        student, teacher = log_q / temperature, log_p / temperature
        certain = float((student > -epsilon).sum())
        student, teacher = student.clamp(max=-epsilon), teacher.clamp(max=-epsilon)
        p, q = teacher.exp(), student.exp()
        not_p, not_q = -torch.expm1(teacher), -torch.expm1(student)
        loss = p * (teacher - student) + not_p * (not_p.log() - not_q.log())
        return loss * temperature, (q - p) / not_q, {"certain": certain}
