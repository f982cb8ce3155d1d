"""Hidden-state (feature) matching of paired layers, through a learned projector.

Source: Jiao et al. 2019 (TinyBERT), arXiv:1909.10351, equation 8: mean square of ``H_s W - H_t``;
``distance: cosine`` is that of DistilBERT, arXiv:1910.01108. The embedding loss (equation 9) is the
layer pair [0, 0]: hidden state 0 is the input of the first layer. Differs from the paper: W is not
part of the student; there is one for each pair of layers, trained with the student and dropped at
the end, initialized to the identity for equal widths and to an orthogonal matrix otherwise. The
state of the last layer is taken after the final norm. ``distill.trainers.feature_set`` pairs the
layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.distill.interfaces import HiddenStateLoss
from stillroom.errors import ShapeError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["HiddenState"]


class HiddenState(HiddenStateLoss):
    """``|h_s W - h_t|^2 / H_t``, or one minus the cosine, at every loss position."""

    paper: ClassVar[str] = "arXiv:1909.10351"

    distance: Literal["mse", "cosine"] = Field(
        default="mse",
        description="mse: mean squared difference; cosine: one minus the cosine",
    )
    projector: Literal["auto", "identity", "orthogonal", "none"] = Field(
        default="auto",
        description="initialization of W; identity: ones on the diagonal; orthogonal: random; "
        "auto: identity for equal widths, else orthogonal; none: no W, for equal widths",
    )

    @override
    def make_projector(self, student_width: int, teacher_width: int, seed: int) -> nn.Module | None:
        import torch
        from torch import nn

        if self.projector == "none":
            if student_width != teacher_width:
                raise ShapeError(
                    f"hidden states of width {student_width} and {teacher_width} need a projector",
                    code="distill.feature-shape",
                    where="features, hidden_state.projector",
                    expected="equal widths, or a projector",
                    next="set projector: auto",
                )
            return None
        linear = nn.Linear(student_width, teacher_width, bias=False, device="meta").to_empty(
            device="cpu"
        )
        is_eye = student_width == teacher_width and self.projector == "auto"
        with torch.no_grad():
            if is_eye or self.projector == "identity":
                nn.init.eye_(linear.weight)
            else:
                generator = torch.Generator().manual_seed(seed)
                nn.init.orthogonal_(linear.weight, generator=generator)
        return linear

    @override
    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        if self.distance == "cosine":
            from torch.nn.functional import cosine_similarity

            return 1 - cosine_similarity(student, teacher, dim=-1)
        return (student - teacher).square().mean(-1)
