"""Effort: a vision model tuned in the smallest singular values of its attention weights.

Source: Yan et al. 2024, "Orthogonal Subspace Decomposition for Generalizable AI-Generated Image
Detection" (Effort), arXiv:2411.15633, section 3.2 (singular value decomposition of each linear map
in attention, the principal part frozen) and 3.3 (orthogonality). Differs: the residual is computed
as a product of thin factors instead of forming the whole map again at each step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.forensics.interfaces import VisionDetector

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stillroom.forensics.networks.interfaces import DetectorNetwork
    from stillroom.models.encoders.vision import VisionModel

__all__ = ["Effort", "make_svd_residual_linear"]

_ATTENTION = ("attn", "attention")


class Effort(VisionDetector):
    """A vision model trained in the smallest singular directions of its attention."""

    paper: ClassVar[str] = "arXiv:2411.15633"
    limitations: ClassVar[tuple[str, ...]] = (
        "It detects only traces of the forgery methods that it was trained on.",
    )
    rank: int = Field(default=1, ge=1, le=1024, description="trainable singular directions")
    orthogonality: float = Field(default=1.0, ge=0, description="weight of the orthonormality loss")

    @override
    def tune(self, vision: VisionModel) -> DetectorNetwork:

        from stillroom.forensics.networks.interfaces import DetectorOutput, VisionBackbone

        weight = self.orthogonality

        class EffortNetwork(VisionBackbone):
            residuals: list[Any]

            def loss(
                self, judged: DetectorOutput, labels: Tensor, masks: Tensor
            ) -> tuple[Tensor, dict[str, float]]:
                total, parts = super().loss(judged, labels, masks)
                if not weight:
                    return total, parts
                zero = total.new_zeros(())
                off = sum((part.orthogonality() for part in self.residuals), start=zero)
                return total + len(labels) * weight * off, parts

        network = EffortNetwork(vision)
        network.residuals = _decompose_attention(network.tower, self.rank)
        return network


def _decompose_attention(module: nn.Module, rank: int) -> list[nn.Module]:
    """Split every linear layer within attention by its singular values; return the new layers."""
    from torch import nn

    linears = [
        (name, part)
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear) and any(marker in name.lower() for marker in _ATTENTION)
    ]
    residuals = []
    for name, part in linears:
        parent, _, last = name.rpartition(".")
        residuals.append(make_svd_residual_linear(part, rank))
        setattr(module.get_submodule(parent), last, residuals[-1])
    return residuals


def make_svd_residual_linear(linear: nn.Linear, rank: int) -> nn.Module:
    """Return a linear layer whose ``rank`` smallest singular triples alone are trainable."""
    import torch
    from torch import nn
    from torch.nn import functional

    class SvdResidualLinear(nn.Module):
        def __init__(self, linear: nn.Linear, rank: int) -> None:
            super().__init__()
            left, sizes, right = torch.linalg.svd(
                linear.weight.detach().float(), full_matrices=False
            )
            num_fixed = max(len(sizes) - rank, 0)
            main = (left[:, :num_fixed] * sizes[:num_fixed]) @ right[:num_fixed]
            self.main = nn.Parameter(main, requires_grad=False)
            bias = None if linear.bias is None else linear.bias.detach().clone()
            self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
            self.left = nn.Parameter(left[:, num_fixed:].clone())
            self.sizes = nn.Parameter(sizes[num_fixed:].clone())
            self.right = nn.Parameter(right[num_fixed:].clone())

        def forward(self, inputs: Tensor) -> Tensor:
            learned = ((inputs @ self.right.T) * self.sizes) @ self.left.T
            return functional.linear(inputs, self.main, self.bias) + learned

        def orthogonality(self) -> Tensor:
            """Return the squared deviation of the trainable factors from orthonormality."""
            eye = torch.eye(len(self.sizes), device=self.sizes.device)
            left = self.left.T @ self.left - eye
            right = self.right @ self.right.T - eye
            return left.square().sum() + right.square().sum()

    return SvdResidualLinear(linear, rank)
